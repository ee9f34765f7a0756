"""`QuantConfig`: what to quantize, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .._tree import Pattern, near
from .._weight import Weight

Encode = Callable[[Any, "QuantConfig"], Weight]

METHODS: dict[str, Encode] = {}


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

    - `method`: `"8bit"` or `"int8"` (per output channel), `"nf4"`, `"fp4"` (bitsandbytes' 4-bit formats) and what else
      `easyfn.quant.METHODS` lists.
    - `group_size`: entries that share a scale; `None` is the method's own choice.
    - `pattern`: which slots, as everywhere (`ef.select_slots`). `"all-linear"` is every linear layer and every
      expert. A head, an embedding or a router is reached only by a pattern that needs its name: `"lm_head"` does,
      `".*"` does not.
    - `double_quant`: store the scales of `nf4` and `fp4` in 8 bits (QLoRA's double quantization).

    ```python
    import easyfn as ef
    assert ef.QuantConfig("nf4", group_size=128).double_quant is False
    ```
    """

    method: str
    group_size: int | None = None
    pattern: Pattern = "all-linear"
    double_quant: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"unknown quantization method {self.method!r}. {near(str(self.method), METHODS)} "
                f"easyfn knows: {', '.join(METHODS)}."
            )
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise ValueError(f"group_size must be a positive integer or None, not {self.group_size!r}")
        if isinstance(self.pattern, list):
            object.__setattr__(self, "pattern", tuple(self.pattern))

    def encode(self, w: Any) -> Weight:
        """The weight that stands for a dense array `(..., out, in)`."""
        return METHODS[self.method](w, self)

    def refuse(self, *names: str) -> None:
        """Raises for settings that the method has no use for: nothing is ignored in silence."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise ValueError(f"QuantConfig({self.method!r}): the method has no {name}; leave it out")
