"""The figures of the guides: the five ideas, the house, the mesh, the life of a weight. A few seconds.

python docs/images/figures.py
"""

from matplotlib.patches import Rectangle
from theme import COLOURS, arrow, blank, box, drawn

BLUE, ORANGE, GREEN, PURPLE, YELLOW, CYAN, RED, GREY = COLOURS


def tint(colour, alpha="2e"):
    return colour + alpha


def ideas():
    told = (
        ("a model is data", "eqx.Module, abstract\nuntil init or load\nbrings the numbers", "Llama(layers=(…))", BLUE),
        (
            "a verb is a function",
            "dispatched on type:\nteach it your layer,\nget every verb",
            "ef.quantize(model)",
            ORANGE,
        ),
        ("a slot holds a tree", "an array, NF4, or\nLoRA(base=NF4):\nQLoRA is nesting", "ef.dot(w, x)", GREEN),
        (
            "names are the hub's",
            "a path is a tensor's\nname; two-way rules\nfor what differs",
            "ef.save(model, …)",
            PURPLE,
        ),
        ("transforms are laws", "eager = jit = vmap,\ncache = no cache,\nsaved = loaded", "easyfn.testing.laws", CYAN),
    )
    with drawn("ideas", (11.4, 2.35)) as themes:
        for figure, _ink, rule, panel in themes:
            axes = blank(figure, 11.4, 2.35)
            for n, (name, text, code, colour) in enumerate(told):
                x = 0.12 + 2.26 * n
                box(axes, x, 0.12, 2.12, 2.1, "", face=panel, edge=rule)
                axes.add_patch(Rectangle((x, 1.7), 0.07, 0.38, color=colour))
                axes.text(x + 0.16, 1.89, f"{n + 1}  {name}", size=9.6, weight="bold", va="center")
                axes.text(x + 0.16, 1.12, text, size=8.8, va="center", linespacing=1.45)
                axes.text(x + 0.16, 0.36, code, size=8, family="DejaVu Sans Mono", color=colour, va="center")


def house():
    """docs/design.md in a picture: every floor may import from those below it."""
    floors = (
        (("testing", 2.3), ("cli", 2.3), "public names only", GREY),
        (("planning", 2.3), ("serve", 2.3), "put the verbs of all rooms together", PURPLE),
        (
            *((name, 1.55) for name in ("generation", "engine", "train", "data", "evaluation", "inspect")),
            "verbs and facts only: never a model",
            BLUE,
        ),
        (("models", 9.65), "one file a family, found by its model_type", ORANGE),
        (
            *((name, 1.32) for name in ("forward", "inputs", "tasks", "registry", "names", "config", "io")),
            "what a model takes and answers; files meet it through the registry",
            GREEN,
        ),
        (("nn", 4.79), ("quant", 1.55), ("lora", 1.55), ("sharding", 1.55), "layers; formats and axes: never a model", CYAN),
        (("core", 9.65), "verb, tree, slots, dot, take: what everything else is said in", YELLOW),
    )  # fmt: skip
    with drawn("house", (10.4, 6.0)) as themes:
        for figure, ink, _rule, _panel in themes:
            axes = blank(figure, 10.4, 6.0)
            for n, floor in enumerate(reversed(floors)):
                *rooms, said, colour = floor
                y = 0.12 + 0.84 * n
                gap = 0.07
                x = 0.18
                axes.text(0.18, y + 0.64, said, size=8, alpha=0.75, va="center")
                for name, width in rooms:
                    box(axes, x, y, width, 0.47, name, face=tint(colour), edge=colour, ink=ink, size=9.5, weight="bold")
                    x += width + gap
            arrow(axes, (10.0, 5.75), (10.0, 0.12), ink)
            axes.text(10.1, 3.0, "imports", size=8.5, rotation=270, va="center", alpha=0.75)


def mesh():
    """Axes of a mesh and what each cuts."""
    cuts = (
        ("dp", "the batch", "gradients are summed", BLUE, (4, 1), "rows of input_ids"),
        ("fsdp", "the batch, and every weight", "gathered for a layer, freed after it", ORANGE, (4, 1), "embed of each weight"),
        ("tp", "heads, mlp, vocab", "one sum behind each block", GREEN, (1, 4), "heads of q, k, v; columns of the MLP"),
        ("sp", "the sequence", "keys go around a ring", PURPLE, (1, 4), "tokens of a long text"),
        ("ep", "the experts", "tokens travel to theirs", CYAN, (2, 2), "experts of a mixture"),
        ("pp", "the layers", "micro-batches in stages", RED, (4, 1), "stages of layers"),
    )  # fmt: skip
    with drawn("mesh", (10.4, 4.0)) as themes:
        for figure, ink, rule, panel in themes:
            axes = blank(figure, 10.4, 4.0)
            for n, (axis, what, moves, colour, (rows, columns), where) in enumerate(cuts):
                x, y = 0.15 + 3.42 * (n % 3), 2.1 - 1.95 * (n // 3)
                box(axes, x, y, 3.27, 1.78, "", face=panel, edge=rule)
                for r in range(rows):
                    for c in range(columns):
                        place = (x + 0.16 + c * 1.0 / columns, y + 0.3 + (rows - 1 - r) * 1.1 / rows)
                        shade = ("ff", "c0", "88", "58")[r * columns + c]
                        part = Rectangle(
                            place, 1.0 / columns, 1.1 / rows, facecolor=colour + shade, edgecolor=panel, linewidth=1.6
                        )
                        axes.add_patch(part)
                        middle = (place[0] + 0.5 / columns, place[1] + 0.55 / rows)
                        axes.text(*middle, r * columns + c, ha="center", va="center", size=8, color=ink)
                axes.text(x + 0.16, y + 1.55, axis, size=11, weight="bold", color=colour, va="center")
                axes.text(x + 0.75, y + 1.55, f"cuts {what}", size=8.6, va="center")
                axes.text(x + 1.3, y + 0.98, where.replace("; ", ";\n"), size=7.6, va="center")
                axes.text(x + 1.3, y + 0.5, moves, size=7.6, va="center", alpha=0.7, style="italic")


def life():
    """The life of a weight: a tensor of a file, a slot of a model, and back."""
    with drawn("life", (11.2, 3.5)) as themes:
        for figure, ink, rule, panel in themes:
            axes = blank(figure, 11.2, 3.5)
            steps = (
                ("model.safetensors", "a tensor by name,\nread by those who need it", GREY),
                ("array", "abstract, then filled:\nbfloat16 (4096, 4096)", BLUE),
                ("NF4", "codes and scales,\nthe dense weight's rank", ORANGE),
                ("LoRA", "a, b, and the NF4\nas its base, frozen", GREEN),
                ("on 8 devices", "every part cut by\nthe same axes", PURPLE),
            )
            verbs = ("ef.load", "ef.quantize", "ef.apply_lora", "ef.shard")
            for n, (name, text, colour) in enumerate(steps):
                x = 0.15 + 2.26 * n
                box(axes, x, 1.72, 1.62, 1.12, "", face=tint(colour, "22"), edge=colour)
                axes.text(x + 0.81, 2.58, name, size=9.2, weight="bold", ha="center", va="center")
                axes.text(x + 0.81, 2.12, text, size=7.6, ha="center", va="center", linespacing=1.4)
                if n < len(verbs):
                    arrow(axes, (x + 1.65, 2.28), (x + 2.23, 2.28), ink)
                    axes.text(x + 1.94, 3.0, verbs[n], size=8, family="DejaVu Sans Mono", ha="center")
            last = 0.15 + 2.26 * 4 + 0.81
            arrow(axes, (last, 1.69), (last, 1.29), ink)
            box(axes, 7.0, 0.66, 3.75, 0.6, "", face=panel, edge=rule)
            axes.text(8.87, 0.96, "every layer only asks  ef.dot(weight, x)", size=8.6, ha="center", va="center")
            arrow(axes, (6.97, 0.96), (5.72, 0.96), ink)
            axes.text(6.35, 1.06, "train", size=8, ha="center", family="DejaVu Sans Mono")
            box(axes, 3.65, 0.66, 2.05, 0.6, "", face=tint(GREEN, "22"), edge=GREEN)
            axes.text(4.67, 0.96, "only a and b changed", size=8.2, ha="center", va="center")
            arrow(axes, (3.62, 1.05), (2.0, 1.5), ink, bend=-0.1)
            arrow(axes, (3.62, 0.86), (2.0, 0.55), ink, bend=0.1)
            axes.text(1.9, 1.45, "ef.save_adapter", size=8, ha="right", family="DejaVu Sans Mono")
            axes.text(1.9, 1.22, "PEFT's files", size=7.6, ha="right", alpha=0.75)
            axes.text(1.9, 0.56, "ef.merge_lora, ef.save", size=8, ha="right", family="DejaVu Sans Mono")
            axes.text(1.9, 0.33, "model.safetensors again", size=7.6, ha="right", alpha=0.75)


if __name__ == "__main__":
    for draw in (ideas, house, mesh, life):
        draw()
