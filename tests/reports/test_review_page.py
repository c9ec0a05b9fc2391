"""The page as text: nothing from data becomes markup, and only the one script may run."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from appssl.reports.review_page import SIDE, item, reason_text, review_page, thumbnail
from tests.judged import EVIL, pixels

ROW = {
    "id": EVIL, "label": EVIL, "suggested_label": "red", "kind": "id_noise", "suspicion": 0.9,
    "reason": json.dumps({"why": EVIL, "loss": 2.5, "p_clean": 0.1}), "source_url": "https://e.org/?a=1&b=2",
}  # fmt: skip
NEAR = {"leak": True, "similarity": 0.98, "nearest": "t", "nearest_split": "test"}


def page(items=None, **values):
    made = {"classes": (EVIL, "red"), "labels": [EVIL], "groups": [], "decisions": [(EVIL, "relabel", "red")]}
    shown = [item(ROW, pixels(0), split="train", near=NEAR)] if items is None else items
    return review_page(f"tiny {EVIL}", about=f"about {EVIL}", items=shown, **{**made, **values}).decode()


def embedded(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_hostile_text_stays_text():
    text = page()
    assert EVIL not in text
    assert text.count("<script") == text.count("</script>") == 2
    data = embedded(text)
    assert (data["items"][0]["id"], data["classes"], data["labels"]) == (EVIL, [EVIL, "red"], [EVIL])
    assert data["decisions"] == [[EVIL, "relabel", "red"]]


def test_the_policy_names_the_only_script_and_style_and_no_other_place():
    text = page()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#x27;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "connect-src": "'self'", "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    assert "http" not in re.sub(r"<script type.*?</script>", "", text, flags=re.DOTALL).replace(
        "http-equiv", ""
    ).replace('startsWith("http")', "")


def test_the_script_never_makes_markup_of_text():
    script = re.search(r"<script>(.*?)</script>", page(), re.DOTALL)[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function\(", script)


def test_an_item_is_what_the_page_shows():
    found = item(ROW, pixels(0), split="train", near=NEAR)
    image = found.pop("image")
    assert found == {
        "id": EVIL, "label": EVIL, "suggested": "red", "kind": "id_noise", "kindText": "in-distribution noise",
        "suspicion": 0.9, "why": EVIL, "facts": "loss 2.5", "split": "train", "url": "https://e.org/?a=1&b=2",
        "leak": True, "similarity": 0.98, "nearest": "t", "nearestSplit": "test",
    }  # fmt: skip
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))), np.float64)
    assert np.abs(shown[:8, :8].mean((0, 1)) - pixels(0)[0, 0]).max() < 12  # JPEG


def test_an_image_that_was_not_judged_has_its_label_only():
    found = item({"id": "t", "label": None}, pixels(1), split="test")
    assert {key: found[key] for key in ("kind", "suspicion", "suggested", "url", "why")} == {
        "kind": None, "suspicion": None, "suggested": None, "url": None, "why": "",
    }  # fmt: skip
    assert "leak" not in found


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "//e.org", "", None])
def test_only_addresses_of_the_web_become_links(url):
    assert item({**ROW, "source_url": url}, pixels(0), split="train")["url"] is None


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ('{"why": "small loss", "loss": 0.5, "round": 2}', ("small loss", "loss 0.5, round 2")),
        ('{"why": "taken", "model": "' + 64 * "0" + '"}', ("taken", "")),
        ("plain words", ("plain words", "")),
        ('{"loss": 1}', ('{"loss": 1}', "")),
        ("[1]", ("[1]", "")),
        (None, ("", "")),
    ],
)
def test_reasons_are_read_aloud(reason, said):
    assert reason_text(reason) == said


def test_thumbnails_are_small_and_the_same_twice():
    large = pixels(3, side=600)
    assert Image.open(io.BytesIO(thumbnail(large))).size == (SIDE, SIDE)
    assert Image.open(io.BytesIO(thumbnail(pixels(3)))).size == (16, 16)
    assert Image.open(io.BytesIO(thumbnail(large[:300]))).size == (SIDE, SIDE // 2)
    assert thumbnail(large) == thumbnail(large)


def test_the_same_content_is_the_same_page():
    assert page() == page()
