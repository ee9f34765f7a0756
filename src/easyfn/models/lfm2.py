"""LFM2 (Liquid AI 2025, arXiv 2511.23404): gated short convolutions, with attention at a few layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Decoder, GatedMLP
from ..registry.family import family
from .decoders import decoder_tasks
from .hybrids import LFM2_NAMES, Lfm2Fields, kinds_of_layers, lfm2_decoder


@dataclass(frozen=True, kw_only=True)
class Lfm2Config(Lfm2Fields):
    """The keys of an LFM2 `config.json`. `layer_types`, or else `full_attn_idxs`, says which layers attend."""

    model_type: ClassVar[str] = "lfm2"
    intermediate_size: Size = 12288
    block_multiple_of: Size = 256
    block_ffn_dim_multiplier: float | int | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: tuple[int, ...] | None = None
    layer_types: tuple[str, ...] | None = None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = Lfm2Fields.normalize(data)
        if "block_ff_dim" in data:  # its first files' word; it wins
            data = {**data, "intermediate_size": data.pop("block_ff_dim")}
        return data


def width(config: Lfm2Config) -> int:
    """The width of the MLP: with `block_auto_adjust_ff_dim`, two thirds of what is said, rounded up to a multiple."""
    c = config
    size = c.intermediate_size
    if c.block_auto_adjust_ff_dim:
        size = int(2 * size / 3)
        if c.block_ffn_dim_multiplier is not None:
            size = int(c.block_ffn_dim_multiplier * size)
            size = -(-size // c.block_multiple_of) * c.block_multiple_of
    return size


def lfm2(config: Lfm2Config) -> Decoder:
    """The decoder: a short convolution or attention, then a gated MLP, all pre-norm."""
    c = config
    attends = range(c.num_hidden_layers) if c.full_attn_idxs is None else c.full_attn_idxs
    kinds = kinds_of_layers(c, ("conv", "full_attention"), lambda i: "full_attention" if i in attends else "conv")
    return lfm2_decoder(c, kinds, lambda i: GatedMLP(c.hidden_size, width(c)))


tasks = decoder_tasks(lfm2)
family(
    "lfm2",
    config=Lfm2Config,
    tasks={name: tasks[name] for name in ("causal-lm", "base")},
    architectures={"Lfm2ForCausalLM": "causal-lm", "Lfm2Model": "base"},
    names=LFM2_NAMES,
    # Of the first files; transformers reads none of them.
    ignore=[
        "block_dim",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "num_heads",
        "theta",
        "use_pos_enc",
    ],
    ignore_tensors=(r"(rotary|pos)_emb\.inv_freq$",),
)
