"""Small pieces of HTML. Everything that is not `Html` is escaped: ids and reasons come from data."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

# No script and nothing from outside can run or load, whatever a page holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --ground: #ffffff; --card: #f6f8fa; --accent: #1f6f8b;
  --good: #1a7f4b; --bad: #b3362b; --warn: #fff4d6; --warnline: #d9a514; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b3; --line: #323a45; --ground: #14181e;
  --card: #1c222a; --accent: #6bbcd6; --good: #5ec48c; --bad: #ef8b80; --warn: #3a3117; --warnline: #b58d1e; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 5rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
.over { color: var(--soft); font-size: .85rem; letter-spacing: .04em; margin: 0 0 .3rem; }
.lead { font-size: 1.12rem; margin-top: 1.2rem; }
.soft { color: var(--soft); }
.small { font-size: .875rem; }
nav { margin: 1.4rem 0 0; font-size: .9rem; }
nav a { margin-right: 1rem; text-decoration: none; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.note { background: var(--warn); border-left: 4px solid var(--warnline); padding: .6rem 1rem; margin: 1rem 0;
  border-radius: 0 4px 4px 0; }
.note p { margin: .2rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .3rem; }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .8rem; border-bottom-color: var(--soft); white-space: nowrap; }
th + th, td + td { padding-left: .8rem; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 5rem; }
td.text:first-child { min-width: 11rem; }
tr.sub td { color: var(--soft); border-bottom-style: dotted; }
tr.sub td:first-child { padding-left: 1.4rem; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.better { color: var(--good); font-weight: 600; }
.worse, .bad { color: var(--bad); font-weight: 600; }
.bar { display: inline-block; position: relative; width: 9rem; height: .8rem; vertical-align: middle;
  border-bottom: 1px solid var(--line); border-left: 1px solid var(--line); border-right: 1px solid var(--line); }
.bar i { position: absolute; top: .22rem; height: .36rem; background: var(--accent); opacity: .4; border-radius: 2px; }
.bar b { position: absolute; top: 0; width: 3px; margin-left: -1px; height: .8rem; background: var(--accent); }
.bar u { position: absolute; top: 0; width: 1px; height: .8rem; background: var(--soft); }
figure { margin: 1rem 0 1.5rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
@media (prefers-color-scheme: dark) { figure img { padding: .4rem; } }
figcaption { font-size: .875rem; color: var(--soft); margin-top: .4rem; max-width: 46rem; }
figcaption strong { color: var(--ink); }
.pair { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-end; }
.pair figure { flex: 0 1 auto; }
.pair figcaption { width: 0; min-width: 100%; }
details { margin: .4rem 0; }
summary { cursor: pointer; }
summary::marker { color: var(--accent); }
footer { margin-top: 4rem; color: var(--soft); font-size: .875rem; border-top: 1px solid var(--line);
  padding-top: .8rem; }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --ground: #fff; --card: #fff; --accent: #1f6f8b;
    --good: #1a7f4b; --bad: #b3362b; --warn: #fff; --warnline: #888; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } details::details-content { content-visibility: visible; }
  .bar i, .bar b, .bar u { print-color-adjust: exact; } }
"""


class Html(str):
    """Markup that is already safe."""

    __slots__ = ()


class Number(str):
    """A formatted number: a cell that is aligned to the right."""

    __slots__ = ()


def text(value: Any) -> Html:
    """Any value as safe markup; `Html` as it is."""
    return value if isinstance(value, Html) else Html(html.escape("" if value is None else str(value), quote=True))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Pieces of markup one after another; strings that are not `Html` are escaped."""
    return Html(text(between).join(text(part) for part in parts))


def tag(name: str, *parts: Any, **attributes: str) -> Html:
    """An element; `class_` stands for the attribute class."""
    given = "".join(f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items() if value)
    return Html(f"<{name}{given}>{join(map(text, parts))}</{name}>")


def section(anchor: str, title: str, *parts: str) -> Html:
    """A section with a heading; nothing if all parts are empty."""
    body = join(parts, Html("\n"))
    return Html(f"{tag('h2', title, id=anchor)}\n{body}\n") if body.strip() else Html("")


def paragraph(*parts: Any, class_: str = "") -> Html:
    return tag("p", *parts, class_=class_)


def note(*parts: str) -> Html:
    """Paragraphs that must not be overlooked."""
    return tag("div", *(paragraph(part) for part in parts), class_="note") if parts else Html("")


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "", sub: frozenset[int] = frozenset()
) -> Html:
    """A table; a column is aligned to the right when it holds numbers. `sub` are row numbers shown as details."""
    if not rows:
        return Html("")
    numeric = [any(isinstance(row[c], int | float | Number) for row in rows) for c in range(len(head))]
    lines = [tag("caption", caption)] if caption else []
    lines.append(
        tag("thead", tag("tr", *(tag("th", h, class_="n" if n else "") for h, n in zip(head, numeric, strict=True))))
    )
    body = [
        tag("tr", *(_cell(cell, n) for cell, n in zip(row, numeric, strict=True)), class_="sub" if i in sub else "")
        for i, row in enumerate(rows)
    ]
    lines.append(tag("tbody", join(body, Html("\n"))))
    return tag("div", tag("table", *lines), class_="scroll")


def _cell(cell: Any, numeric: bool) -> Html:
    if isinstance(cell, bool):
        cell = str(cell)
    shown = f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}" if isinstance(cell, float) else cell
    return tag("td", shown, class_="n" if numeric else "text")


def details(title: Any, *parts: str) -> Html:
    return tag("details", tag("summary", title), *parts)


def figure(content: bytes, *, kind: str, title: str, caption: str = "", width: int | None = None) -> Html:
    """An image as a data URI. kind: `svg+xml`, `png` or `jpeg`. width: CSS pixels at most."""
    data = base64.b64encode(content).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{text(title)}"{f" width={width}" if width else ""}>'
    return tag("figure", Html(image), tag("figcaption", tag("strong", title), Html(" "), caption))


def bar(value: float, low: float | None, high: float | None, *, start: float, end: float, zero: bool = False) -> Html:
    """A value and its interval as a mark on a line from start to end; `zero` marks 0."""

    def at(x: float) -> float:
        return round(100 * min(max((x - start) / (end - start), 0), 1), 1)

    parts = []
    if zero:
        parts.append(f'<u style="left:{at(0)}%"></u>')
    if low is not None and high is not None:
        parts.append(f'<i style="left:{at(low)}%;width:{round(at(high) - at(low), 1)}%"></i>')
    parts.append(f'<b style="left:{at(value)}%"></b>')
    return Html(f'<span class="bar" aria-hidden="true">{"".join(parts)}</span>')


def document(title: str, *parts: str) -> bytes:
    """A complete page."""
    body = join(parts, Html("\n"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    ).encode()
