"""What a terminal draws: the tables of `show` and `plan` as rich's (extra `cli`), which asks for them by `__rich__`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BAR = 24  # characters


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], summary: Sequence[str]) -> Any:
    """A title, a table whose last column is of amounts, and lines below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    styles = {"path": "cyan", "format": "yellow", "axes": "green"}
    for n, name in enumerate(head):
        right = n == len(head) - 1
        drawn.add_column(name, style=styles.get(name), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    return Group(Text(title, style="bold"), "", drawn, "", *(Text(each, style="dim") for each in summary))


def report(title: str, parts: Sequence[tuple[str, Sequence[tuple[str, str, float | None]]]], good: bool) -> Any:
    """Titled lists of names, values and shares of a whole, drawn as bars; red where it is not `good`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn: list[Any] = [Text(title, style="bold")]
    for name, rows in (part for part in parts if part[1]):
        drawn += ["", Text(name, style="bold cyan")]
        lines = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for each, value, share in rows:
            full = 0 if share is None else round(BAR * min(max(share, 0.0), 1.0))
            colour = "blue" if good else "red"
            bar = Text() if share is None else Text.assemble(("━" * full, colour), ("━" * (BAR - full), "bright_black"))
            lines.add_row("", Text(each), Text(value), bar)
        drawn.append(lines)
    return Group(*drawn)
