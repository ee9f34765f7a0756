"""xLSTM-7B (Beck et al. 2025, arXiv 2503.13427): matrix memories in the place of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..nn import Decoder, GatedMLP, MatrixLSTM, RecurrentBlock, RMSNorm
from .decoders import decoder_family, decoder_names


@dataclass(frozen=True, kw_only=True)
class xLSTMConfig(CommonFields):
    """The keys of an xLSTM `config.json`. Kernels and modes are ways to the same numbers."""

    model_type: ClassVar[str] = "xlstm"
    vocab_size: Size = 50304
    hidden_size: Size = 4096
    num_hidden_layers: int = 32
    num_heads: Size = 8
    norm_eps: float = 1e-6
    qk_dim_factor: float | int = 0.5
    v_dim_factor: float | int = 1.0
    chunk_size: Size = 64
    eps: float = 1e-6
    ffn_proj_factor: float | int = 2.667
    ffn_round_up_to_multiple_of: Size = 64
    gate_soft_cap: float | int | None = 15.0
    output_logit_soft_cap: float | int | None = 30.0
    tie_word_embeddings: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = (
        # Heads are never tied, and there is always a last norm, whatever the reference's config says of them.
        *("chunkwise_kernel", "sequence_kernel", "step_kernel", "mode", "return_last_states", "autocast_kernel_dtype"),
        *("inference_state_dtype", "max_inference_chunksize", "norm_reduction_force_float32", "add_out_norm"),
        *("tie_word_embeddings", "use_bias", "weight_mode"),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_bias", False)
        only(data, "weight_mode", "single")
        for name, second in (("hidden_size", "embedding_dim"), ("num_hidden_layers", "num_blocks")):
            value = data.pop(second, None)
            if data.get(name) is None and value is not None:
                data[name] = value
            elif value is not None:
                only({second: value}, second, data[name])
        return data


def xlstm(c: xLSTMConfig) -> Decoder:
    """The decoder: pre-norm blocks of a matrix memory and a gated MLP."""
    multiple = c.ffn_round_up_to_multiple_of
    width = int((c.hidden_size * c.ffn_proj_factor + multiple - 1) // multiple * multiple)
    norm = lambda: RMSNorm(c.hidden_size, c.norm_eps)

    def block() -> RecurrentBlock:
        memory = MatrixLSTM(
            c.hidden_size,
            heads=c.num_heads,
            key_width=int(c.hidden_size * c.qk_dim_factor),
            value_width=int(c.hidden_size * c.v_dim_factor),
            softcap=c.gate_soft_cap,
            chunk=c.chunk_size,
            eps=c.eps,
            norm_eps=c.norm_eps,
        )
        return RecurrentBlock(memory, GatedMLP(c.hidden_size, width, "silu"), norm(), norm())

    return Decoder(c, [block() for _ in range(c.num_hidden_layers)], norm(), padding=False)


LAYER = "layers.{i}"
NAMES = {
    "embed_tokens": "embeddings",
    "norm": "out_norm",
    f"{LAYER}.mixer": "blocks.{i}.mlstm_layer",
    f"{LAYER}.mlp.gate_proj": "blocks.{i}.ffn.proj_up_gate",
    f"{LAYER}.mlp.up_proj": "blocks.{i}.ffn.proj_up",
    f"{LAYER}.mlp.down_proj": "blocks.{i}.ffn.proj_down",
    f"{LAYER}.input_layernorm": "blocks.{i}.norm_mlstm",
    f"{LAYER}.post_attention_layernorm": "blocks.{i}.norm_ffn",
}

decoder_family(
    "xLSTM",
    xLSTMConfig,
    xlstm,
    head={"softcap": lambda c: c.output_logit_soft_cap},
    classifies=False,
    names=decoder_names("backbone", NAMES),
    prefix="backbone",
)
