"""Pixtral's image tower (Agrawal et al. 2024, arXiv 2410.07073): Llama's blocks on images of any size, in which height and
width turn in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn.pixtral import PixtralTower
from ..registry.family import family


@dataclass(frozen=True, kw_only=True)
class PixtralVisionConfig(CommonFields):
    """The keys of a Pixtral tower's `config.json`."""

    model_type: ClassVar[str] = "pixtral"
    hidden_size: Size = 1024
    intermediate_size: Size = 4096
    num_hidden_layers: int = 24
    num_attention_heads: Size = 16
    num_channels: Size = 3
    image_size: int | tuple[int, ...] = 1024
    patch_size: int | tuple[int, ...] = 16
    hidden_act: str = "gelu"
    attention_dropout: float | int = 0.0
    rope_parameters: Frozen = Frozen(rope_type="axial", rope_theta=10000.0)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """Older files have the base of the rotation at the top, and a head's width that is never read."""
        data = dict(data)
        data.pop("head_dim", None)
        rope = {"rope_theta": data.pop("rope_theta", None) or 10000.0, **(data.get("rope_parameters") or {})}
        if (kind := rope.pop("rope_type", None) or "axial") not in ("axial", "default"):
            raise ValueError(f"pixtral: rope_type={kind!r}: the tower turns by height and width, 'axial'")
        return {**data, "rope_parameters": {**rope, "rope_type": "axial"}}


_BLOCK = {"norm1": "attention_norm", "norm2": "ffn_norm", "mlp": "feed_forward"}

family(
    "pixtral",
    config=PixtralVisionConfig,
    tasks={"base": PixtralTower},
    architectures={"PixtralVisionModel": "base"},
    names=[
        *(rename(f"layers.{{i}}.{a}.{{rest}}", f"transformer.layers.{{i}}.{b}.{{rest}}") for a, b in _BLOCK.items()),
        rename("layers.{rest}", "transformer.layers.{rest}"),
    ],
    ignore_tensors=(r"patch_positional_embedding\.",),
    ignore=("vocab_size",),
    prefix="",
)
