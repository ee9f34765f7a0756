"""What a notebook draws: HTML of folding lines and bars that needs no script, on a light page and on a dark one.

Text has the colour of the page it stands on, and whatever else is coloured is read on both, so nothing here asks which of
them it is. All texts come in raw and are escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_COLOURS = ("#4c8dd6", "#e08a3c", "#4fa67a", "#b07cc6", "#c9a227", "#5bb5c5", "#8c8c8c")
OVER = "#d9534f"  # of what does not fit

_STYLE = """<style>
.easyfn{font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:inherit;overflow-x:auto;text-align:left}
.easyfn-title{font-weight:700;margin:2px 0 6px}
.easyfn details>summary{cursor:pointer;list-style:none}
.easyfn details>summary::-webkit-details-marker{display:none}
.easyfn details>summary .easyfn-name::before{content:"\\25b8\\00a0";opacity:.6}
.easyfn details[open]>summary .easyfn-name::before{content:"\\25be\\00a0"}
.easyfn-line{display:grid;gap:0 14px;align-items:center;white-space:nowrap;border-top:1px solid rgba(128,128,128,.22)}
.easyfn-line>*{overflow:hidden;text-overflow:ellipsis}
.easyfn-line:hover{background:rgba(128,128,128,.13)}
.easyfn-head{font-weight:700;border-top:none}
.easyfn-dim{opacity:.65}
.easyfn-right{text-align:right}
.easyfn-bar{display:flex;height:9px;border-radius:2px;overflow:hidden;background:rgba(128,128,128,.22)}
.easyfn-bar>i{display:block;height:100%}
.easyfn-whole{height:15px;max-width:760px}
.easyfn-key{margin:4px 0 8px}
.easyfn-key span{display:inline-block;margin-right:18px}
.easyfn-key i{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px}
.easyfn-section{margin-top:6px;font-weight:700}
.easyfn pre{background:rgba(128,128,128,.13);padding:6px 10px;margin:4px 0;color:inherit;font:inherit;white-space:pre}
</style>"""


def page(title: str, parts: Iterable[str]) -> str:
    """All of it, under a title."""
    return f'{_STYLE}<div class="easyfn"><div class="easyfn-title">{html.escape(title)}</div>{"".join(parts)}</div>'


def line(cells: Sequence[str], columns: str, *, share: float | None = None, depth: int = 0, kind: str = "") -> str:
    """One line of a table: `columns` is CSS's template of its grid, with one more for the bar if there is a `share`."""
    name, *rest = cells
    indent = f' style="padding-left:{1.3 * depth:.1f}em"' if depth else ""
    drawn = [f'<span class="easyfn-name" title="{html.escape(name)}"{indent}>{html.escape(name)}</span>']
    drawn += [f'<span title="{html.escape(cell)}">{html.escape(cell)}</span>' for cell in rest]
    if share is not None:
        drawn.append(bar([share]))
    return f'<div class="easyfn-line {kind}" style="grid-template-columns:{columns}">{"".join(drawn)}</div>'


def fold(summary: str, body: Iterable[str], *, unfolded: bool) -> str:
    """`body` under a line of HTML that opens and closes it."""
    return f"<details{' open' if unfolded else ''}><summary>{summary}</summary>{''.join(body)}</details>"


def section(title: str, body: Iterable[str], *, unfolded: bool = True) -> str:
    """A part of a page under a title of its own."""
    name = f'<div class="easyfn-section"><span class="easyfn-name">{html.escape(title)}</span></div>'
    return fold(name, body, unfolded=unfolded)


def bar(shares: Sequence[float], *, colours: Sequence[str] = _COLOURS, kind: str = "") -> str:
    """Parts of a whole, side by side: each share of the width of the bar."""
    drawn = "".join(
        f'<i style="width:{100 * min(max(share, 0.0), 1.0):.2f}%;background:{colours[i % len(colours)]}"></i>'
        for i, share in enumerate(shares)
    )
    return f'<div class="easyfn-bar {kind}">{drawn}</div>'


def stacked(parts: Sequence[tuple[str, str, int]], whole: int, *, over: str = "") -> str:
    """Amounts (name, as text, in bytes) as one bar, with its key below; `over` says that they are more than the whole."""
    total = sum(size for *_, size in parts)
    width = max(whole, total, 1)
    colours = [*(_COLOURS[i % len(_COLOURS)] for i in range(len(parts)))]
    key = [
        f'<span><i style="background:{colour}"></i>{html.escape(name)} '
        f'<span class="easyfn-dim">{html.escape(said)}</span></span>'
        for (name, said, _), colour in zip(parts, colours, strict=True)
    ]
    if over:
        key.append(f'<b style="color:{OVER}">{html.escape(over)}</b>')
    drawn = bar([size / width for *_, size in parts], colours=colours, kind="easyfn-whole")
    return f'{drawn}<div class="easyfn-key">{"".join(key)}</div>'
