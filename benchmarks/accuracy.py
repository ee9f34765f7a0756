"""What every weight format costs in accuracy, on the trained model of this repository: a table in Markdown.

    python benchmarks/accuracy.py            # minutes on two cores
    python benchmarks/accuracy.py int4 nf4   # some methods only

The linear layers of `examples/tiny` are quantized and half of its held-out text is read (32 rows of 256 tokens); the other
half is what calibration sees. The loss of a model of this size moves by less than the noise of 8000 tokens, so the figure
to judge by is the divergence of the predictions from those of the float32 weights, in thousandths of a nat per token.
Beside ours: the same weights through bitsandbytes' and gguf's own functions and back.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef
from easyfn.quant import METHODS

TINY = Path(__file__).parent.parent / "examples" / "tiny"
SIZES: dict[str, tuple[int | None, ...]] = {  # beside the default
    "nf4": (32, 64, 128),
    "fp4": (32, 64, 128),
    "int4": (32, 64),
    "a4q": (32, 64),
}
BLOCKS = {"fp8": ("channel", "tensor")}
ON_DATA: dict[str, tuple[dict[str, Any], ...]] = {
    "int4": (
        {"calibration": "gptq"},
        {"calibration": "gptq", "act_order": True},
        {"calibration": "awq"},
        {"refine": "hqq"},
    ),
    "a4q": ({"calibration": "gptq"}, {"calibration": "awq"}, {"refine": "hqq"}),
    "a8bit": ({"calibration": "smooth"}, {"calibration": "awq"}),
}


def configs(methods: list[str]) -> Iterator[ef.QuantConfig]:
    for name in methods:
        for size in SIZES.get(name, (None,)):
            for block in BLOCKS.get(name, (None,)):
                yield ef.QuantConfig(name, size, block=block)
            for more in ON_DATA.get(name, ()):
                yield ef.QuantConfig(name, size, **more)
        if name == "nf4":
            yield ef.QuantConfig(name, 64, double_quant=True)


def title(cfg: ef.QuantConfig) -> str:
    words = [cfg.block, cfg.calibration, cfg.refine, "act order" if cfg.act_order else None]
    return " ".join([cfg.method, *(["double"] if cfg.double_quant else []), *(w for w in words if w)])


def through(model: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The model with every linear weight changed by somebody else's functions."""
    found = ef.select_slots("accuracy", model, "all-linear", ("linear",))
    new = {f.path: np.stack([change(w) for w in np.asarray(f.weight)]) for f in found}
    return ef.with_params(model, {path: w.astype(np.float32) for path, w in new.items()})


def others() -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """`(library and format, group, function)` of what runs on this machine's CPU."""
    import torch
    from bitsandbytes import functional
    from gguf import GGMLQuantizationType, quants

    def four(kind: str, size: int, w: np.ndarray) -> np.ndarray:
        # As one row: their decoder for CPU goes wrong where blocks cross rows.
        packed, state = functional.quantize_4bit(torch.tensor(w.reshape(1, -1)), blocksize=size, quant_type=kind)
        return functional.dequantize_4bit(packed, state).numpy().reshape(w.shape)

    def eight(w: np.ndarray) -> np.ndarray:
        codes, scales, _ = functional.int8_vectorwise_quant(torch.tensor(w).half())
        return (codes.float() * scales[:, None] / 127).numpy()

    def ggml(kind: Any, w: np.ndarray) -> np.ndarray:
        return quants.dequantize(quants.quantize(w, kind), kind)

    for kind in ("nf4", "fp4"):
        for size in (32, 64, 128):
            yield f"bitsandbytes {kind}", str(size), lambda w, kind=kind, size=size: four(kind, size, w)
    yield "bitsandbytes int8", "row", eight
    for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"):
        yield f"gguf {name}", "32", lambda w, name=name: ggml(GGMLQuantizationType[name], w)


def main(methods: list[str]) -> None:
    model = ef.stack(ef.load(TINY, dtype=jnp.float32, progress=False))
    text = np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32).reshape(-1, 256)
    data, held = [text[32:48], text[48:]], jnp.asarray(text[:32])

    @jax.jit
    def read(model: Any) -> tuple[jax.Array, jax.Array]:
        scores = jax.nn.log_softmax(ef.forward(model, held).logits.astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(scores[:, :-1], held[:, 1:, None], axis=-1)), scores

    loss, exact = read(model)
    weights = [f.weight for f in ef.select_slots("accuracy", model, "all-linear", ("linear",))]
    entries = sum(w.size for w in weights)
    rows: list[tuple[float, str]] = []

    def judge(name: str, group: str, bits: str, model: Any) -> None:
        new, scores = read(model)
        divergence = float(jnp.mean(jnp.sum(jnp.exp(exact) * (exact - scores), axis=-1)))
        line = f"| {name} | {group} | {bits} | {1e3 * divergence:.3f} | {float(new):.4f} | {100 * float(new / loss - 1):+.3f} |"
        rows.append((divergence, line))
        print(line, file=sys.stderr)

    for cfg in configs(methods):
        try:
            small = (ef.calibrate if cfg.calibration else lambda m, _, c: ef.quantize(m, c))(model, data, cfg)
        except ValueError as error:
            print(f"{title(cfg)} {cfg.group_size}: {error}", file=sys.stderr)
            continue
        slots = [f.weight for f in ef.find_slots(small, ("linear",))]
        bits = sum(8 * ef.num_bytes(w) for w in slots) / entries
        group = "/".join(sorted({ef.format_of(w).partition("/")[2].partition("+")[0] for w in slots})) or "row"
        judge(title(cfg), group, f"{bits:.2f}", small)
    if len(methods) == len(METHODS) - 1:
        for name, group, change in others():
            judge(name, group, "", through(model, change))
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("jax", "bitsandbytes", "gguf"))
    print(f"{datetime.date.today()}, {versions}. Float32: loss {float(loss):.4f}.\n")
    print("| format | group | bits | divergence, 1e-3 nat | loss | change, % |\n|---|---|---|---|---|---|")
    print("\n".join(line for _, line in sorted(rows)))


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in METHODS if name != "8bit"])
