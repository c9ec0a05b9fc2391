"""The review page: one self-contained file of suspicious labels and near-duplicates, to be decided by keyboard.

The same bytes work from `appssl review`, which keeps decisions, and from the disk, where they are downloaded. The
policy names the digests of the only script and style there are, so nothing that a label or id holds can run or load.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appssl.reports.markup import STYLE, Html, join, tag
from appssl.reports.wording import readable

_NEAR = (
    "Images that the encoder finds much the same. Those in different parts come first: a picture that is trained on "
    "and tested with makes the test too easy. Mark as duplicates those that do show one picture, of a leak in training."
)
SIDE = 160  # pixels of a thumbnail at most
_DEEDS = (
    ("keep", "K", "Keep label"), ("suggestion", "S", "Take suggestion"), ("other", "C", "Other class …"),
    ("irrelevant", "I", "Irrelevant"), ("duplicate", "D", "Duplicate"), ("undo", "U", "Undo"),
)  # fmt: skip


def review_page(
    title: str,
    *,
    about: str,
    classes: Sequence[str],
    items: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
    decisions: Sequence[tuple[str, str, str | None]],
) -> bytes:
    """The whole page.

    Args:
        about: a sentence on what is shown. items: every image that is shown once, as `item` makes it. labels: ids in
            the order of their suspicion. groups: near-duplicates, {number, similarity, leak, splits, ids}.
        decisions: (id, decision, label) so far.
    """
    kinds = {item["kind"]: item["kindText"] for item in items if item["kind"]}
    values = {
        "classes": list(classes),
        "kinds": sorted(kinds.items()),
        "items": list(items),
        "labels": list(labels),
        "groups": list(groups),
        "decisions": decisions,
    }
    script, style = _beside("review_page.js"), STYLE + _beside("review_page.css")
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="referrer" content="same-origin">\n<link rel="icon" href="data:,">'),
        tag("title", f"Review of {title}"),
        Html(f"<style>{style}</style>"),
    ]
    body = [
        _header(title),
        _main(about),
        _picker(),
        Html(f'<script type="application/json" id="data">{_embedded(values)}</script>\n<script>{script}</script>'),
    ]
    parts = [tag(name, join(["", *inner, ""], Html("\n"))) for name, inner in (("head", head), ("body", body))]
    return Html(f'<!DOCTYPE html>\n<html lang="en">\n{join(parts)}\n</html>\n').encode()


def item(
    row: Mapping[str, Any], pixels: np.ndarray, *, split: str, near: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One image as the page knows it.

    Args:
        row: of the triage table, or only {id, label} of an image that was not judged. pixels: (H, W, 3) uint8.
        near: its row of the table of near-duplicates, {similarity, nearest, nearest_split, leak}, if it has any.
    """
    kind, url = row.get("kind"), row.get("source_url") or ""
    why, facts = reason_text(row.get("reason"))
    found = {
        "id": row["id"],
        "label": row["label"],
        "suggested": row.get("suggested_label"),
        "kind": kind,
        "kindText": readable(kind) if kind else None,
        "suspicion": row.get("suspicion"),
        "why": why,
        "facts": facts,
        "split": split,
        "url": url if url.startswith(("https://", "http://")) else None,  # no other scheme is a place on the web
        "image": base64.b64encode(thumbnail(pixels)).decode(),
    }
    if near is not None:
        found |= {
            "leak": near["leak"],
            "similarity": near["similarity"],
            "nearest": near["nearest"],
            "nearestSplit": near["nearest_split"],
        }
    return found


def reason_text(reason: str | None) -> tuple[str, str]:
    """A labeler's reason as a sentence and its numbers: JSON with `why` and others, or any text."""
    try:
        values = json.loads(reason or "")
    except ValueError:
        return reason or "", ""
    if not isinstance(values, dict) or not isinstance(values.get("why"), str):
        return reason or "", ""
    shown = {key: value for key, value in values.items() if key not in ("why", "p_clean") and len(str(value)) < 40}
    return values["why"], ", ".join(f"{readable(key)} {value}" for key, value in shown.items())


def thumbnail(pixels: np.ndarray) -> bytes:
    """JPEG of an image (H, W, 3) uint8, shrunk to `SIDE` if it is larger."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    return content.getvalue()


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _embedded(values: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in, whatever it holds."""
    made = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return made.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _header(title: str) -> Html:
    heading = tag("h1", "Review", tag("span", title, class_="soft"))
    track = tag("div", Html("<i></i>"), id="track")
    progress = tag(
        "div", track, tag("span", id="count"), tag("span", class_="soft", id="saved"), class_="progress", role="status"
    )
    views = tag(
        "div", _button("view-labels", "Labels"), _button("view-groups", "Near-duplicates"), class_="views", id="views"
    )
    filters = [Html(f'<select id="{name}" aria-label="{name}"></select>') for name in ("kind", "label", "state")]
    download = tag("button", "Download decisions.csv", type="button", class_="plain", id="download")
    tools = tag("div", views, *filters, tag("span", class_="gap"), download, class_="tools")
    retry = tag("button", "Try again", type="button", class_="plain", id="retry")
    alert = Html(f'<div class="note" id="alert" role="alert" hidden><p><span id="problem"></span>{retry}</p></div>')
    return tag("header", tag("div", heading, progress, class_="head"), tools, alert)


def _button(name: str, label: str) -> Html:
    return tag("button", label, type="button", id=name, **{"aria-pressed": str(name == "view-labels").lower()})


def _main(about: str) -> Html:
    deeds = [tag("button", tag("span", label), tag("kbd", key), type="button", id=name) for name, key, label in _DEEDS]
    panel = tag(
        "aside",
        Html('<img id="large" alt="the selected image">'),
        Html('<p id="name"></p>'),
        tag("div", *deeds, class_="deeds"),
        Html('<div id="classes"></div><dl id="facts"></dl>'),
        id="panel",
    )
    empty = Html('<p class="soft" id="empty" hidden>Nothing to show with these filters.</p>')
    intro = [
        tag(
            "p",
            about,
            " Arrow keys move; a decision moves on to the next open image.",
            class_="small",
            id="intro-labels",
        ),
        tag("p", _NEAR, class_="small", id="intro-groups"),
    ]
    return tag("main", tag("div", *intro, empty, Html('<div id="grid"></div>')), panel)


def _picker() -> Html:
    search = Html(
        '<input id="search" type="text" autocomplete="off" spellcheck="false" placeholder="Class" aria-label="class">'
    )
    return tag("dialog", search, Html('<div id="options"></div>'), id="picker", **{"aria-label": "another class"})
