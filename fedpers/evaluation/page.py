"""The page of a report: its frame and style, and the small pieces that all sections use."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --panel: #f4f6f8; --personal: #0060a8; --global: #6b4f00; --gated: #8a3f8a; --local: #00694e;
  --harm: #b3400a; --heat: 0, 96, 168; --shade: #1b1f2466; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #e8ebee; --soft: #a3adb8;
  --line: #3a434d; --panel: #1e242b; --personal: #62b5f0; --global: #e0b040; --gated: #d99ad9;
  --local: #4cc9a0; --harm: #ff8f57; --heat: 98, 181, 240; --shade: #e8ebee66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .875rem; overflow-wrap: anywhere; }
.lead { font-size: 1.15rem; font-weight: 500; }
.told { margin: .5rem 0; padding-left: 1.2rem; max-width: 46rem; overflow-wrap: anywhere; }
.told li { margin: .25rem 0; }
.words { color: var(--soft); font-size: .875rem; margin: .5rem 0; padding-left: 1.2rem;
  max-width: 46rem; }
.warn { border-left: 4px solid var(--harm); padding: .25rem .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1rem 0; padding: 0; }
.tiles div { background: var(--panel); border-radius: .5rem; padding: .6rem .8rem; }
.tiles dt { color: var(--soft); font-size: .875rem; line-height: 1.3; }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600; }
.pair { display: grid; gap: 1rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); align-items: start; }
.pair > * { min-width: 0; margin: 0; }
.pair h3 { margin-top: .25rem; }
.scroll { overflow-x: auto; max-width: 100%; background:
  linear-gradient(to left, var(--page) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; font-size: .875rem; vertical-align: bottom; }
th:first-child { text-align: left; white-space: normal; max-width: 16rem; min-width: 8rem;
  overflow-wrap: anywhere; position: sticky;
  left: 0; background: var(--page); }
tbody th { font-weight: 600; }
.cells td { text-align: center; padding: .15rem .3rem; min-width: 1.9rem; border: 0;
  font-size: .8125rem; }
.cells th { padding: .15rem .4rem; border: 0; font-size: .8125rem; text-align: center; }
.cells th:first-child { text-align: left; white-space: nowrap; min-width: 0; max-width: 9rem;
  overflow: hidden; text-overflow: ellipsis; }
figure { margin: .75rem 0; }
svg { display: block; overflow: visible; }
svg text { font-size: 12px; fill: var(--soft); }
.plot { padding: 4px 14px 4px 46px; }
.grid { stroke: var(--line); stroke-width: 1; }
.clients { display: grid; grid-template-columns: minmax(2.2rem, max-content) 1fr max-content;
  gap: 0 .9rem; font-size: .8125rem; }
.compared { display: grid; grid-template-columns: minmax(3rem, max-content) 1fr max-content;
  gap: 0 .9rem; font-size: .875rem; max-width: 48rem; }
.compared ol { list-style: none; margin: 0; }
.compared li { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; max-width: 14rem;
  font-variant-numeric: tabular-nums; }
.clients.dense { grid-template-columns: 1fr; padding: 0 14px; }
.clients ol { list-style: none; margin: 0; padding: 26px 0 0; }
.clients li { height: 22px; line-height: 22px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; max-width: 6.5rem; font-variant-numeric: tabular-nums; }
.clients ol.gains li { text-align: right; }
.clients li.harmed { color: var(--harm); font-weight: 600; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .4rem 0; padding: 0;
  list-style: none; font-size: .875rem; }
.key li { display: flex; align-items: center; gap: .4rem; }
.key svg { flex: none; }
.bars { display: grid; grid-template-columns: minmax(3rem, max-content) 1fr max-content;
  gap: .3rem .7rem; align-items: center; font-size: .875rem; max-width: 40rem; margin: .5rem 0; }
.bars > span { overflow: hidden; text-overflow: ellipsis; max-width: 9rem; white-space: nowrap; }
.bars > i { display: block; height: .8rem; background: var(--panel); }
.bars > i > i { display: block; height: 100%; background: var(--personal); min-width: 1px; }
.bars > b { font-weight: 400; text-align: right; font-variant-numeric: tabular-nums; }
.heat { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border: 1px solid var(--line); }
.across { display: flex; color: var(--soft); font-size: .8125rem; }
.across span { flex: 1; text-align: center; }
.ramp { display: inline-block; width: 6rem; height: .7rem; border: 1px solid var(--line);
  background: linear-gradient(90deg, rgba(40, 130, 205, 0), rgb(40, 130, 205)); }
.photo { max-width: 100%; background: #fff; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0;
  font-size: .9375rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
pre { background: var(--panel); padding: .75rem; overflow-x: auto; font-size: .8125rem;
  border-radius: .5rem; }
@media (max-width: 32rem) { .clients li { max-width: 4.2rem; }
  .compared li { max-width: 7rem; } th, td { padding: .3rem .45rem; }
  th:first-child { max-width: 8.5rem; } .cells th:first-child { max-width: 5rem; } }
@media print { details { display: none; } }
"""

ABSENT = "–"


def page(title: str, body: str) -> str:
    """A whole document. ``title`` is text, ``body`` markup."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def esc(text: Any) -> str:
    """Text as it may stand in markup and in attributes."""
    return html.escape(str(text), quote=True)


def section(title: str, *pieces: str) -> str:
    """A section with a heading, or nothing where it would be empty."""
    content = "\n".join(piece for piece in pieces if piece)
    return f"<section>\n<h2>{esc(title)}</h2>\n{content}\n</section>" if content else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts in a box of its own that scrolls; the first column names the row."""
    titles = "".join(f'<th scope="col">{esc(title)}</th>' for title in head)
    lines = [
        f'<tr><th scope="row">{esc(row[0])}</th>'
        + "".join(f"<td>{esc(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars from 0: name, value >= 0, and the value as text."""
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    lines = [
        f'<span title="{esc(name)}">{esc(name)}</span>'
        f'<i aria-hidden="true"><i style="width:{100 * max(0.0, value) / most:.1f}%"></i></i>'
        f"<b>{esc(text)}</b>"
        for name, value, text in rows
    ]
    return f'<div class="bars" role="group" aria-label="{esc(label)}">{"".join(lines)}</div>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values as they are in a file."""
    lines = []
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, list | dict) else value
        shown = ABSENT if value is None else text
        lines.append(f"<dt>{esc(str(name).replace('_', ' '))}</dt><dd>{esc(shown)}</dd>")
    return f'<dl class="facts">{"".join(lines)}</dl>' if lines else ""


def meanings(words: Mapping[str, str]) -> str:
    """What words above mean, a short line each."""
    lines = "".join(
        f"<li><strong>{esc(word)}</strong>: {esc(told)}.</li>" for word, told in words.items()
    )
    return f'<ul class="words">{lines}</ul>' if lines else ""


def listed(texts: Sequence[Any]) -> str:
    """Texts as a list."""
    lines = "".join(f"<li>{esc(text)}</li>" for text in texts)
    return f'<ul class="soft">{lines}</ul>' if lines else ""


def percent(value: float | None) -> str:
    """A fraction in percent, without the sign."""
    return ABSENT if value is None else f"{100 * value:.1f}"


def figure(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def size(count: float | None) -> str:
    """Bytes, in units of a thousand."""
    if count is None:
        return ABSENT
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes from two minutes up."""
    if seconds is None:
        return ABSENT
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def by_name(name: str) -> tuple[int, str]:
    """A key that sorts ``2`` before ``10``."""
    return (int(name) if name.isdecimal() and len(name) < 20 else 10**20, name)


def plural(count: int, noun: str) -> str:
    """``1 client``, ``2 clients``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
