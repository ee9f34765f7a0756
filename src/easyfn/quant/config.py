"""`QuantConfig`: what to quantize, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..core.tree import Pattern, closest
from ..core.weight import Weight

Encode = Callable[[Any, "QuantConfig"], Weight]

METHODS: dict[str, Encode] = {}
REFINEMENTS: dict[str, Callable[[Any, Weight], Weight]] = {}  # (dense, as the method rounds it) -> a better rounding
CALIBRATIONS: dict[str, Any] = {}  # see `calibrate`


def method(name: str, *, override: bool = False) -> Callable[[Encode], Encode]:
    """Names a weight format for [`easyfn.QuantConfig`][]; decorates `encode(w, cfg) -> weight`.

    `w` is a dense array of shape `(..., out, in)`, concrete or traced; leading axes are layers or experts, each
    quantized as if alone. The answer is an `eqx.Module` whose arrays all have the rank of `w`.

    ```python
    import easyfn as ef, jax, jax.numpy as jnp
    from easyfn.quant import METHODS, method

    @method("my_half")
    def encode(w, cfg):
        return w.astype(jnp.float16)

    linear = ef.init(ef.nn.Linear(4, 8), key=jax.random.key(0))
    assert ef.quantize(linear, "my_half").weight.dtype == jnp.float16
    del METHODS["my_half"]
    ```
    """

    def decorate(encode: Encode) -> Encode:
        if name in METHODS and not override:
            raise ValueError(
                f"the quantization method {name!r} is registered already; pass override=True to replace it"
            )
        METHODS[name] = encode
        return encode

    return decorate


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """A weight format and the slots that get it.

    **Arguments**

    - `method`: one of `easyfn.quant.METHODS`. Weights alone: `"8bit"` or `"int8"` (a scale per output channel), `"int4"`
      (symmetric integers in groups), `"nf4"`, `"fp4"` (bitsandbytes' 4-bit formats), `"fp8"`, `"mxfp4"`, `"mxfp8"`,
      `"nvfp4"`. Weights and, anew for every product, its input rounded to int8: `"a8bit"` (weights as `8bit`), `"a8q"`
      (GGUF's Q8_0, the input in blocks of 32 too), `"a4q"` (weights as `int4`).
    - `group_size`: entries that share a scale; `None` is the method's own choice: 64 of `nf4` and `fp4`; of `int4` and
      `a4q` 128, or 64 or 32 where 128 do not divide the row (see `easyfn.quant.to_int4`).
    - `pattern`: which slots, as everywhere (`ef.select_slots`). `"all-linear"` is every linear layer and every
      expert. A head, an embedding or a router is reached only by a pattern that needs its name: `"lm_head"` does,
      `".*"` does not.
    - `double_quant`: store the scales of `nf4` and `fp4` in 8 bits (QLoRA's double quantization).
    - `block`: what shares a scale of `fp8`: `"channel"` (a row; the default), `"tensor"` or `"128x128"`.
    - `refine`: `"hqq"` chooses better zeros for integer codes in groups (`int4`, `a4q`), without data.
    - `calibration`: how [`easyfn.calibrate`][] chooses the codes: `"gptq"`, `"awq"`, or `"smooth"` (SmoothQuant, for
      methods that round activations). `act_order`: `gptq` takes the columns of the largest inputs first.

    ```python
    import easyfn as ef
    assert ef.QuantConfig("nf4", group_size=128).double_quant is False
    ```
    """

    method: str
    group_size: int | None = None
    pattern: Pattern = "all-linear"
    double_quant: bool = False
    block: str | None = None
    refine: str | None = None
    calibration: str | None = None
    act_order: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            close = closest(str(self.method).lower(), METHODS)
            hint = f"Near misses: {', '.join(close)}. " if close else ""
            for name, known in (("calibration", CALIBRATIONS), ("refine", REFINEMENTS)):
                if self.method in known:
                    call = "ef.calibrate(model, batches, " if name == "calibration" else "ef.quantize(model, "
                    hint = f"It chooses the codes of a method: {call}ef.QuantConfig('int4', {name}={self.method!r})). "
            raise ValueError(f"unknown quantization method {self.method!r}. {hint}easyfn knows: {', '.join(METHODS)}.")
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise ValueError(f"group_size must be a positive integer or None, not {self.group_size!r}")
        for name, known in (("refine", REFINEMENTS), ("calibration", CALIBRATIONS)):
            if (value := getattr(self, name)) not in (None, *known):
                raise ValueError(f"QuantConfig.{name} is one of {', '.join(known)} or None, not {value!r}")
        if self.act_order and self.calibration != "gptq":
            raise ValueError("act_order is an order of GPTQ's columns: it needs calibration='gptq'")
        if self.refine is not None and self.calibration is not None:
            raise ValueError(f"refine={self.refine!r} works without data and calibration={self.calibration!r} with it")
        if isinstance(self.pattern, list):
            object.__setattr__(self, "pattern", tuple(self.pattern))

    def encode(self, w: Any) -> Weight:
        """The weight that stands for a dense array `(..., out, in)`; without data, whatever `calibration` says."""
        plain = METHODS[self.method](w, self)
        return plain if self.refine is None else REFINEMENTS[self.refine](w, plain)

    def refuse(self, *names: str) -> None:
        """Raises for settings that the method has no use for: nothing is ignored in silence."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise ValueError(f"QuantConfig({self.method!r}): the method has no {name}; leave it out")
