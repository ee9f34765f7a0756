"""GPT-2 (Radford et al. 2019). On purpose the odd one: fused qkv, transposed matrices, learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.config import labels, only
from ..config.fields import Size, alias
from ..core.frozen import Frozen
from ..core.weight import shape_of
from ..names.rules import Rule, rename, transposed
from ..nn import (
    KV,
    CausalLM,
    Context,
    Embedding,
    LayerNorm,
    Linear,
    Output,
    QuestionAnswering,
    Ring,
    SequenceClassifier,
    TokenClassifier,
    activation,
    attend_to,
    attend_within,
    chosen_rows,
    dropout,
    empty_kv,
    fold,
    layer_cache,
    learned_positions,
    max_positions,
    split_heads,
)
from ..registry.family import family
from .decoders import head_dropout


@dataclass(frozen=True)
class GPT2Config:
    """The keys of a GPT-2 `config.json`."""

    model_type: ClassVar[str] = "gpt2"
    vocab_size: Size
    n_positions: Size
    n_embd: Size
    n_layer: int
    n_head: Size
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = {k: v for k, v in data.items() if k != "n_ctx"}  # an old twin of n_positions
        only(data, "add_cross_attention", False)
        return labels(data)

    hidden_size = alias("n_embd")
    max_position_embeddings = alias("n_positions")
    num_attention_heads = alias("n_head")
    num_hidden_layers = alias("n_layer")


class FusedAttention(eqx.Module):
    """Self attention with queries, keys and values from one matrix."""

    c_attn: Linear
    c_proj: Linear
    heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    dropout: tuple[float, float] = eqx.field(static=True)  # of the attention weights, of the output

    def __init__(self, config: GPT2Config, layer: int) -> None:
        dim = config.n_embd
        if dim % config.n_head:
            raise ValueError(f"gpt2: n_embd={dim} is no multiple of n_head={config.n_head}")
        self.c_attn = Linear(dim, 3 * dim, True, axes=("heads", "embed"))
        self.c_proj = Linear(dim, dim, True, axes=("embed", "heads"))
        self.heads = config.n_head
        scale = (dim // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        self.scale = scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale
        self.dropout = (config.attn_pdrop, config.resid_pdrop)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, jax.Array | None]:
        q, k, v = (split_heads(part, self.heads) for part in jax.numpy.split(self.c_attn(x), 3, axis=-1))
        cache, keys, values, mask = attend_to(cache, k, v, context, None)
        out, weights = attend_within(context, q, keys, values, mask, scale=self.scale, dropout=self.dropout[0], site=0)
        return dropout(self.c_proj(out), self.dropout[1], context, 1), cache, weights


@layer_cache.register(FusedAttention)
def _(layer: FusedAttention, batch_size: int, max_length: int, dtype: Any) -> KV | Ring:
    head_dim = shape_of(layer.c_proj.weight)[-2] // layer.heads  # -2: the layer may be a stack
    return empty_kv(batch_size, layer.heads, head_dim, max_length, None, dtype)


class MLP(eqx.Module):
    c_fc: Linear
    c_proj: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, config: GPT2Config) -> None:
        inner = config.n_inner or 4 * config.n_embd
        activation(config.activation_function)
        self.c_fc = Linear(config.n_embd, inner, True, axes=("mlp", "embed"))
        self.c_proj = Linear(inner, config.n_embd, True, axes=("embed", "mlp"))
        self.act = config.activation_function
        self.dropout = config.resid_pdrop

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return dropout(self.c_proj(activation(self.act)(self.c_fc(x))), self.dropout, context, 2)


class GPT2Block(eqx.Module):
    ln_1: LayerNorm
    attn: FusedAttention
    ln_2: LayerNorm
    mlp: MLP

    def __init__(self, config: GPT2Config, layer: int) -> None:
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = FusedAttention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, cache, attentions = self.attn(self.ln_1(x), context, cache)
        x = x + h
        return x + self.mlp(self.ln_2(x), context), cache, {"attentions": attentions}


class GPT2(eqx.Module):
    """Token and position embeddings, pre-norm blocks, a final norm."""

    wte: Embedding
    wpe: Embedding
    h: tuple[Any, ...]
    ln_f: LayerNorm
    config: GPT2Config = eqx.field(static=True)

    def __init__(self, config: GPT2Config) -> None:
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd, axes=(None, "embed"))
        self.h = tuple(GPT2Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        token_type_ids: Any = None,
    ) -> Output:
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        x = x + learned_positions(self.wpe, context.position_ids)
        if token_type_ids is not None:
            x = x + chosen_rows(self.wte, token_type_ids, "token_type_ids")
        x = dropout(x, self.config.embd_pdrop, context, 3)
        x, cache, trace = fold(self.h, x, context, cache)
        x = self.ln_f(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@max_positions.register(GPT2)
def _(model: GPT2) -> int:
    return model.config.n_positions


def _names(model: Any) -> list[Rule]:
    prefix = "" if isinstance(model, GPT2) else "model."
    conv1d = [
        transposed(f"{prefix}h.{{i}}.{part}.weight")
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    return [*conv1d, rename("model.{rest}", "transformer.{rest}")]


family(
    "gpt2",
    config=GPT2Config,
    tasks={
        "causal-lm": lambda c: CausalLM(GPT2(c), tied=c.tie_word_embeddings),
        "base": GPT2,
        "sequence-classification": lambda c: SequenceClassifier(GPT2(c)),
        "token-classification": lambda c: TokenClassifier(GPT2(c), dropout=head_dropout(c)),
        "question-answering": lambda c: QuestionAnswering(GPT2(c)),
    },
    architectures={
        "GPT2LMHeadModel": "causal-lm",
        "GPT2Model": "base",
        "GPT2ForSequenceClassification": "sequence-classification",
        "GPT2ForTokenClassification": "token-classification",
        "GPT2ForQuestionAnswering": "question-answering",
    },
    names=_names,
    ignore=(
        "add_cross_attention",
        "reorder_and_upcast_attn",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ),  # the same numbers, in a safer order for float16: ours always is
    ignore_tensors=(r"\.attn\.bias$", r"\.attn\.masked_bias$"),
    prefix="transformer",
)
