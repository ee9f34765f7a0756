"""How the pictures of these pages look, on light paper and on dark."""

import contextlib
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = ("#4c8dd6", "#e08a3c", "#4fa67a", "#b07cc6", "#c9a227", "#5bb5c5", "#d4605a", "#8c8c8c")
THEMES = {"light": ("#ffffff", "#1f2328", "#d0d7de", "#f3f5f8"), "dark": ("#0d1117", "#e6edf3", "#30363d", "#161b22")}


_PATH, _NUMBER = re.compile(r' d="([^"]*)"'), re.compile(r"-?\d+\.\d+")


def _short(found):
    """A path with the digits that are seen, on fewer lines."""
    short = _NUMBER.sub(lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), found[1])
    return f' d="{" ".join(short.split())}"'


@contextlib.contextmanager
def drawn(name, size, folder=HERE):
    """`for figure, ink, rule, panel in ...`: once for each theme, written as `name-light.svg` and `name-dark.svg`."""
    figures = []

    def each():
        for theme, (paper, ink, rule, panel) in THEMES.items():
            settings = {
                "figure.facecolor": paper,
                "axes.facecolor": paper,
                "savefig.facecolor": paper,
                "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
                "font.family": "DejaVu Sans",
                "svg.hashsalt": name,
                **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
                **dict.fromkeys(("axes.edgecolor", "grid.color"), rule),
            }
            with matplotlib.rc_context(settings):
                figure = Figure(figsize=size)
                yield figure, ink, rule, panel
                file = folder / f"{name}-{theme}.svg"
                figure.savefig(file, metadata={"Date": None})
                file.write_text(_PATH.sub(_short, file.read_text()))
                figures.append(figure)

    yield each()
    assert len(figures) == len(THEMES)


def box(axes, x, y, width, height, text, *, face, edge, ink=None, size=9, weight="normal", mono=False, radius=0.06):
    """A rounded box with a text in its middle."""
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.1))
    family = {"family": "DejaVu Sans Mono"} if mono else {}
    axes.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", size=size, color=ink, weight=weight, **family
    )


def arrow(axes, start, end, colour, *, text="", size=8, bend=0.0, dashed=False):
    """An arrow, with a text beside its middle."""
    axes.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1.2,
            "linestyle": "--" if dashed else "-",
            "connectionstyle": f"arc3,rad={bend}",
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, text, size=size, ha="center", va="bottom")


def blank(figure, width, height):
    """Axes that fill a figure, in units of your own, with nothing drawn."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes
