"""What the configs of many families have in common: groups of fields, and second names of them.

A group is a dataclass without methods that a config takes its fields from, as dataclasses do: what a family has otherwise
it says again, and its own fields it adds.

```python
from dataclasses import dataclass
from typing import ClassVar
from easyfn.config.fields import LlamaFields, Size

@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaFields):
    model_type: ClassVar[str] = "qwen2"
    max_position_embeddings: Size = 32768
    use_sliding_window: bool = False
```
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.frozen import Frozen
from .check import Integer as Integer, Positive as Positive, Size as Size


class alias:
    """A second name of a field, as in transformers' `attribute_map`: `hidden_size = alias("n_embd")`.

    Files may hold the value under either name, and the config answers to both.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, cls: type | None = None) -> Any:
        return self if config is None else getattr(config, self.name)


def aliases(cls: type) -> dict[str, str]:
    """The second names of a config's fields, each with the field it stands for."""
    found = {n: v.name for c in reversed(cls.__mro__) for n, v in vars(c).items() if isinstance(v, alias)}
    names = {f.name for f in dataclasses.fields(cls)}
    return {name: field for name, field in found.items() if field in names and name not in names}


def rope(theta: float = 10000.0, **more: Any) -> Frozen:
    """The `rope_parameters` of a family whose file says nothing of them."""
    return Frozen(rope_type="default", rope_theta=theta, **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonFields:
    """What every config has.

    `extra` holds the keys of the file without influence on the mathematics, `generation` the content of
    `generation_config.json`.
    """

    num_labels: Size = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryFields(CommonFields):
    """The keys of a decoder with rotary positions and grouped key heads."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: int
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size = 2048
    rope_parameters: Frozen = rope()
    attention_dropout: float | int | None = 0.0
    tie_word_embeddings: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderFields(RotaryFields):
    """`RotaryFields` of a decoder with RMSNorm."""

    rms_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaFields(DecoderFields):
    """`DecoderFields` and Llama's key for the activation of a gated MLP."""

    hidden_act: str = "silu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma2Fields(DecoderFields):
    """The keys of Gemma 2. Without `layer_types`, every second layer is global."""

    num_key_value_heads: Size = 4
    head_dim: Size = 256
    max_position_embeddings: Size = 8192
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: Positive = 256
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None
    final_logit_softcapping: float | int | None = 30.0
    attn_logit_softcapping: float | int | None = 50.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTFields(CommonFields):
    """The keys of a decoder of GPT-2's kind, under GPT-2's names."""

    vocab_size: Size
    n_positions: Size
    n_embd: Size
    n_layer: int
    n_head: Size
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    attn_pdrop: float | int = 0.0
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    hidden_size = alias("n_embd")
    max_position_embeddings = alias("n_positions")
    num_attention_heads = alias("n_head")
    num_hidden_layers = alias("n_layer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchFields(CommonFields):
    """The keys of an encoder of image patches, under ViT's names, that BEiT has, too."""

    hidden_size: Size = 768
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    num_channels: Size = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTFields(PatchFields):
    """The keys of an encoder of image patches, under ViT's names."""

    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    encoder_stride: Size = 16


def head_dim(config: Any) -> int:
    """The width of a head: the config's `head_dim`, or what `hidden_size` is by the number of heads.

    Raises `ValueError` where that is no whole number.
    """
    if (said := getattr(config, "head_dim", None)) is not None:
        return said
    width, rest = divmod(config.hidden_size, config.num_attention_heads)
    if rest:
        raise ValueError(
            f"{config.model_type}: hidden_size={config.hidden_size} is no multiple of "
            f"num_attention_heads={config.num_attention_heads}; it must be where the config has no head_dim"
        )
    return width
