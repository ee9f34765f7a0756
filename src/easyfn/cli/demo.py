"""The main job, step by step: load, show, shard, quantize, fine-tune, generate, merge, save, and read it back elsewhere."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

from .finetune import blocks, tune
from .parts import extra, tokenizer_of


def curve(losses: list[float], width: int = 72, height: int = 10) -> str:
    """A line of numbers as a plot for the terminal."""
    width = min(width, len(losses))
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(losses), width)]
    low, high = min(means), max(means)
    rows = [[" "] * width for _ in range(height)]
    for x, value in enumerate(means):
        rows[round((high - value) / ((high - low) or 1) * (height - 1))][x] = "•"
    labels = {0: f"{high:6.2f}", height - 1: f"{low:6.2f}"}
    return "\n".join(f"{labels.get(n, ' ' * 6)} │{''.join(row)}" for n, row in enumerate(rows))


def picture(
    losses: list[float], path: Path, title: str = "LoRA on an nf4 base", label: str = "loss (nats per token)"
) -> None:
    pyplot = extra("matplotlib.figure")
    figure = pyplot.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, linewidth=1)
    axes.set(xlabel="step", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def held_out_loss(model: Any, rows: np.ndarray) -> float:
    return float(jax.jit(lambda m, ids: ef.compute_loss(m, {"input_ids": ids})[0])(model, jnp.asarray(rows)))


def complete(model: Any, tokenizer: Any, prompt: str, new: int = 48) -> str:
    ids = np.array([tokenizer.encode(prompt).ids])
    out = ef.generate(model, ids, max_new_tokens=new, do_sample=False)
    return tokenizer.decode(np.asarray(out.sequences)[0].tolist())


def largest_difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max())


def run(checkpoint: str, text_file: str, out: Path, steps: int) -> None:
    """Runs the demo and prints its report; every file goes to `out`. Raises if a check against transformers or PEFT fails."""
    console = extra("rich.console").Console()
    progress = extra("rich.progress")
    jax.config.update("jax_num_cpu_devices", 8)  # eight fake devices, before the first is used
    began = time.time()

    def head(text: str) -> None:
        console.rule(f"[bold]{text}[/] [dim]{time.time() - began:.0f} s[/]")

    head("1. load")
    model = ef.load(checkpoint, dtype=jnp.float32)
    tokenizer = tokenizer_of(checkpoint)
    console.print(
        f"{ef.model_type(model)}, {ef.num_params(model):,} parameters, {ef.num_bytes(model) / 1e6:.1f} MB in float32"
    )

    head("2. show")
    console.print(str(ef.show(model)), markup=False, highlight=False, soft_wrap=True)

    head("3. shard over 8 fake devices")
    mesh = ef.make_mesh(dp=2, fsdp=2, tp=2)
    text = Path(text_file).read_text()
    paragraphs = text.split("\n\n")  # every tenth is held out
    learned = "\n\n".join(p for n, p in enumerate(paragraphs) if n % 10)
    unseen = "\n\n".join(paragraphs[::10])
    held = blocks(tokenizer, unseen, 128)[:32]
    held = held[: len(held) // 4 * 4]
    before = held_out_loss(model, held)
    sharded, report = ef.shard(model, None, mesh, report=True)
    after = held_out_loss(sharded, held)
    console.print(f"mesh {dict(mesh.shape)}; held-out loss {before:.5f} on one device, {after:.5f} on eight")
    console.print(
        f"{len(report.replicated)} arrays are replicated, such as {report.replicated[0].path}: {report.replicated[0].why}"
    )

    head("4. quantize to nf4")
    quantized = ef.quantize(sharded, "nf4")
    console.print(
        f"{ef.num_bytes(model) / 1e6:.1f} MB to {ef.num_bytes(quantized) / 1e6:.1f} MB; "
        f"held-out loss {held_out_loss(quantized, held):.4f}, was {before:.4f}"
    )

    head(f"5. fine-tune: LoRA of rank 16 on the nf4 base, {steps} steps on {Path(text_file).name}")
    columns = (*progress.Progress.get_default_columns(), progress.TextColumn("loss {task.fields[loss]:.3f}"))
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=steps, loss=float("nan"))
        tuned, losses = tune(
            quantized,
            tokenizer,
            learned,
            steps=steps,
            rank=16,
            mesh=mesh,
            tick=lambda n, loss: bar.update(task, completed=n + 1, loss=loss),
        )
    out.mkdir(parents=True, exist_ok=True)
    picture(losses, out / "loss.png")
    console.print(curve(losses), markup=False, highlight=False)
    console.print(
        f"held-out loss {held_out_loss(tuned, held):.4f}, was {before:.4f}; the curve is in {out / 'loss.png'}"
    )

    head("6. generate, before and after")
    prompt = max(paragraphs[::10], key=len)[:80].rsplit(" ", 1)[0]
    tuned = ef.fully_gather(tuned)
    for name, who in (("before", model), ("after", tuned)):
        console.print(f"[bold]{name}[/]")
        console.print(complete(who, tokenizer, prompt), markup=False, highlight=False)

    head("7. merge and save")
    merged = ef.merge_lora(ef.dequantize(tuned))
    for folder in ("merged", "adapter", "nf4"):
        shutil.rmtree(out / folder, ignore_errors=True)
    ef.save(merged, out / "merged", tokenizer=checkpoint)
    ef.save(ef.remove_lora(tuned), out / "nf4")
    ef.save_adapter(tuned, out / "adapter", config={"base_model_name_or_path": str(checkpoint)})
    for path in sorted(out.rglob("*.safetensors")):
        console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")

    head("8. read back with easyfn, transformers and PEFT")
    ids = held[:2]
    ours = ef.forward(merged, ids).logits
    checks = {
        "easyfn, the merged checkpoint": largest_difference(ef.forward(ef.load(out / "merged"), ids).logits, ours)
    }
    again = ef.load_adapter(ef.load(out / "nf4"), out / "adapter")
    checks["easyfn, nf4 checkpoint and adapter"] = largest_difference(
        ef.forward(again, ids).logits, ef.forward(tuned, ids).logits
    )
    torch, transformers, peft = extra("torch"), extra("transformers"), extra("peft")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch_ids = torch.tensor(np.asarray(ids), dtype=torch.long)
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out / "merged")
        checks["transformers, the merged checkpoint"] = largest_difference(theirs(torch_ids).logits.numpy(), ours)
        base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        adapted = peft.PeftModel.from_pretrained(base, str(out / "adapter"))
        mine = ef.forward(ef.load_adapter(model, out / "adapter"), ids).logits
        checks["PEFT, the adapter on the float32 base"] = largest_difference(adapted(torch_ids).logits.numpy(), mine)
    for name, difference in checks.items():
        console.print(f"{'ok ' if difference < 1e-3 else 'BAD'} {name}: largest difference of logits {difference:.1e}")
    if worst := [name for name, difference in checks.items() if difference >= 1e-3]:
        raise ValueError(f"logits disagree: {', '.join(worst)}")
    head("done")
