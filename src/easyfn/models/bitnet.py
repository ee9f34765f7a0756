"""BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764) in floats: Llama with a norm before each projection that leads out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax

from ..config.fields import LlamaFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..nn import Attention, Block, Decoder, GatedMLP, Linear, RMSNorm
from .decoders import attention, decoder, decoder_family, decoder_names, norm


@dataclass(frozen=True, kw_only=True)
class BitNetConfig(LlamaFields):
    """The keys of a BitNet `config.json`."""

    model_type: ClassVar[str] = "bitnet"
    num_key_value_heads: Size | None = 5
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)
    attention_bias: bool = False


class Normed(eqx.Module):
    """A linear layer with a norm of its own before it."""

    norm: RMSNorm
    linear: Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(self.norm(x))


def bitnet(c: BitNetConfig) -> Decoder:
    """The decoder: Llama's, with norms inside attention and MLP."""
    if c.num_attention_heads * head_dim(c) != c.hidden_size:
        raise ValueError("bitnet: its norm of the heads is as wide as hidden_size, so the heads together must be")

    def heads() -> Attention:
        made = attention(c, qkv_bias=c.attention_bias, out_bias=c.attention_bias)
        return eqx.tree_at(lambda a: a.o_proj, made, Normed(norm(c), made.o_proj))

    def mlp() -> GatedMLP:
        made = GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)
        inner = RMSNorm(c.intermediate_size, c.rms_norm_eps)
        return eqx.tree_at(lambda m: m.down_proj, made, Normed(inner, made.down_proj))

    return decoder(c, lambda _: Block(heads(), mlp(), norm(c), norm(c)))


NAMES = decoder_names(
    "model",
    {
        "layers.{i}.self_attn.o_proj.norm": "layers.{i}.self_attn.attn_sub_norm",
        "layers.{i}.self_attn.o_proj.linear": "layers.{i}.self_attn.o_proj",
        "layers.{i}.mlp.down_proj.norm": "layers.{i}.mlp.ffn_sub_norm",
        "layers.{i}.mlp.down_proj.linear": "layers.{i}.mlp.down_proj",
    },
)

decoder_family(
    None,
    BitNetConfig,
    bitnet,
    architectures={"BitNetForCausalLM": "causal-lm", "BitNetModel": "base"},
    names=NAMES,
)
