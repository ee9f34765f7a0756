"""README's picture: a model as a table, what it learns, and where it lies.

python docs/images/front.py             # from the losses in front.json
python docs/images/front.py --measure   # trains again: about a minute on two cores
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.patches import Rectangle
from theme import COLOURS, HERE, drawn

import easyfn as ef

ROOT = HERE.parent.parent
STEPS = 60


def pages():
    """This documentation, which the small Llama has not seen, as rows of 128 tokens: to learn, and held out."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md")))
    ids = np.array(ef.tokenizer(ROOT / "examples/tiny").encode(text).ids, np.int32)
    rows = np.random.default_rng(0).permutation(ids[: len(ids) // 128 * 128].reshape(-1, 128))
    return rows[16:], jnp.asarray(rows[:16])


def learned(model):
    """Losses of a QLoRA: of each step, and every 15 steps of what was held out."""
    rows, held = pages()
    state = ef.to_state(model, optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS)))
    step = jax.jit(ef.train_step)
    told = jax.jit(lambda model: ef.compute_loss(model, {"input_ids": held})[0])
    losses, seen = [], [(0, float(told(state.model)))]
    for n in range(STEPS):
        batch = rows[4 * n % (len(rows) - 4) :][:4]
        state, metrics = step(state, {"input_ids": jnp.asarray(batch)})
        losses.append(float(metrics["loss"]))
        if (n + 1) % 15 == 0:
            seen.append((n + 1, float(told(state.model))))
    return losses, seen


def table(axes, shown, ink, rule, panel):
    rows = shown.rows
    columns = ((0.0, "path"), (0.445, "shape"), (0.58, "format"), (0.755, "placement"))
    axes.set(xlim=(0, 1), ylim=(len(rows) + 1.2, -1.6))
    axes.axis("off")
    axes.text(0, -1.1, f"print(ef.show(model))     {shown.title}", size=8.6, weight="bold", va="center")
    kinds = {name: COLOURS[n] for n, name in enumerate(shown.totals())}
    most = max(row.bytes for row in rows)
    for x, name in columns:
        axes.text(x, 0, name, size=8, alpha=0.65, va="center")
    axes.text(0.88, 0, "bytes", size=8, alpha=0.65, va="center")
    for n, row in enumerate(rows, 1):
        axes.axhline(n - 0.5, color=rule, linewidth=0.7)
        cells = (row.path, " x ".join(map(str, row.shape)), row.format, row.placement)
        for (x, _), cell in zip(columns, cells, strict=True):
            axes.text(x, n, cell, size=7.4, family="DejaVu Sans Mono", va="center")
        axes.add_patch(Rectangle((0.88, n - 0.28), 0.12, 0.56, color=panel))
        axes.add_patch(Rectangle((0.88, n - 0.28), 0.12 * row.bytes / most, 0.56, color=kinds[row.format]))


def layout(figure, place, weight, name):
    """Which device holds which part of a matrix."""
    axes = figure.add_axes(place)
    rows, columns = weight.shape
    for device, (r, c) in weight.sharding.devices_indices_map(weight.shape).items():
        top, bottom = r.start or 0, rows if r.stop is None else r.stop
        left, right = c.start or 0, columns if c.stop is None else c.stop
        colour = COLOURS[device.id]
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, facecolor=colour, alpha=0.85, edgecolor="white")
        )
        axes.text(
            (left + right) / 2, (top + bottom) / 2, device.id, ha="center", va="center", size=8.5, color="white", weight="bold"
        )  # fmt: skip
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axes.set_title(name, size=7.6, family="DejaVu Sans Mono", pad=3)


def main():
    model = ef.load(ROOT / "examples/tiny", dtype=jnp.float32, progress=False)
    model = ef.apply_lora(ef.quantize(model, "nf4"), "all-linear", rank=8, key=jax.random.key(0))
    kept = HERE / "front.json"
    if "--measure" in sys.argv:
        losses, seen = learned(model)
        kept.write_text(json.dumps({"losses": [round(x, 4) for x in losses], "held_out": seen}) + "\n")
    losses, seen = json.loads(kept.read_text()).values()
    placed = ef.shard(model, mesh=ef.make_mesh(fsdp=4, tp=2))
    block = placed.model.layers[0]
    with drawn("front", (11.6, 4.3)) as themes:
        for figure, ink, rule, panel in themes:
            table(figure.add_axes((0.012, 0.03, 0.60, 0.95)), ef.show(placed), ink, rule, panel)
            axes = figure.add_axes((0.665, 0.54, 0.325, 0.375))
            axes.plot(range(1, STEPS + 1), losses, linewidth=0.9, alpha=0.75, label="training")
            axes.plot(*zip(*seen, strict=True), "o-", markersize=3.5, linewidth=1.5, label="held out")
            axes.set_title("QLoRA on this documentation: loss by step", size=8.6, weight="bold", loc="left")
            axes.tick_params(labelsize=7, length=2)
            axes.grid(alpha=0.5, linewidth=0.6)
            axes.legend(fontsize=7.5, frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
            figure.text(0.665, 0.425, "the same model over eight devices", size=8.6, weight="bold")
            codes = {
                "q_proj": block.self_attn.q_proj.weight.base.codes,
                "o_proj": block.self_attn.o_proj.weight.base.codes,
                "down_proj": block.mlp.down_proj.weight.base.codes,
            }
            for n, (name, array) in enumerate(codes.items()):
                spec = ", ".join(str(s) for s in array.sharding.spec)
                layout(figure, (0.665 + 0.112 * n, 0.05, 0.1, 0.27), array, f"{name} [{spec}]")


if __name__ == "__main__":
    main()
