"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): a weighted mean of all values so far in the place of attention.

A token's weight is `exp(key)`, and shrinks by `exp(-exp(time_decay))` with every token after it; the newest has
`time_first` besides. Sums and their largest exponent pass from token to token by an operation that is associative, so a prompt
takes a parallel scan. Every layer also mixes each token with the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import CommonFields, Size, alias
from ..core.weight import Slot, Weight, dense, slots
from ..names.rules import Rule, rename
from ..nn import (
    CausalLM,
    Context,
    Documents,
    Embedding,
    LayerNorm,
    Linear,
    Output,
    RecurrentState,
    along_last,
    declare,
    fold,
    input_embeddings,
    layer_cache,
)
from ..registry.family import family

LEAST = -1e38  # the exponent of a sum of nothing: finite, so that no difference is NaN


@dataclass(frozen=True, kw_only=True)
class RwkvConfig(CommonFields):
    """The keys of an RWKV-4 `config.json`.

    After every `rescale_every` layers hidden states are halved, and what the later ones add with them, as transformers does
    at inference. Norms hardly notice.
    """

    model_type: ClassVar[str] = "rwkv"
    max_position_embeddings = alias("context_length")
    vocab_size: Size = 50277
    context_length: Size = 1024  # of transformers' kernel: a model runs on any length
    hidden_size: Size = 4096
    num_hidden_layers: int = 32
    attention_hidden_size: Size | None = None
    intermediate_size: Size | None = None
    layer_norm_epsilon: float = 1e-5
    rescale_every: int = 6
    tie_word_embeddings: bool = False


def previous(x: jax.Array, documents: Documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every token of `x` `(batch, seq, channels)` the one before it in its document, zeros for the first; and the last.

    `state` `(batch, channels)` is the last of the passes before. Padding is looked through.
    """
    places = jnp.arange(1, x.shape[1] + 1, dtype=jnp.int32)[None]
    newest = jax.lax.cummax(jnp.where(documents.real, places, 0), axis=1)  # 0 is the state
    before = jnp.pad(newest[:, :-1], ((0, 0), (1, 0)))
    held = jnp.concatenate([state[:, None].astype(x.dtype), x], axis=1)
    same = jnp.take_along_axis(jnp.pad(documents.index, ((0, 0), (1, 0))), before, axis=1) == documents.index
    shifted = jnp.take_along_axis(held, before[..., None], axis=1)
    last = jnp.take_along_axis(held, newest[:, -1:, None], axis=1)[:, 0]
    return jnp.where(same[..., None], shifted, jnp.zeros_like(shifted)), last


def weighted_mean(
    decay: jax.Array, first: jax.Array, k: jax.Array, v: jax.Array, documents: Documents, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean of all values up to each token. All float32: `decay` (negative) and `first` `(channels,)`; `k`, `v` `(batch, seq,
    channels)`; `state` `(batch, channels, 3)` are the sums of values and of weights, and the exponent both are relative to."""
    real, index = documents.real[..., None], documents.index
    ahead = jnp.pad(index[:, :-1], ((0, 0), (1, 0)))  # of the token before
    begins = (index != ahead)[..., None]
    shrink = jnp.where(begins, LEAST, jnp.where(real, along_last(decay, k), 0.0))
    part = (shrink, jnp.where(real, v, 0.0), jnp.where(real, jnp.ones_like(v), 0.0), jnp.where(real, k, LEAST))

    def after(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        old = jnp.maximum(a[3] + b[0], LEAST)
        top = jnp.maximum(old, b[3])
        left, right = jnp.exp(old - top), jnp.exp(b[3] - top)
        return jnp.maximum(a[0] + b[0], LEAST), left * a[1] + right * b[1], left * a[2] + right * b[2], top

    begin = tuple(state[:, None, :, n] for n in range(3))
    sums = jax.lax.associative_scan(after, part, axis=1)
    sums = after((jnp.zeros_like(begin[0]), *begin), sums)[1:]
    values, weights, top = (jnp.concatenate([b, s[:, :-1]], axis=1) for b, s in zip(begin, sums, strict=True))
    top = jnp.where(begins, LEAST, top)  # what came before is another document's
    own = k + along_last(first, k)
    most = jnp.maximum(top, own)
    old, new = jnp.exp(top - most), jnp.exp(own - most)
    mean = (old * values + new * v) / (old * weights + new)
    return mean, jnp.stack([s[:, -1] for s in sums], axis=-1)


def mixed(x: jax.Array, shifted: jax.Array, share: Weight) -> jax.Array:
    """A token and the one before it, the first as much as `share` `(1, 1, channels)` says."""
    weight = dense(share).astype(x.dtype)
    return x * weight + shifted * (1 - weight)


class RwkvAttention(eqx.Module):
    """The weighted mean between its projections, as much of it as `receptance` lets through."""

    time_decay: Weight
    time_first: Weight
    time_mix_key: Weight
    time_mix_value: Weight
    time_mix_receptance: Weight
    key: Linear
    value: Linear
    receptance: Linear
    output: Linear

    def __init__(self, c: RwkvConfig) -> None:
        width = c.attention_hidden_size or c.hidden_size
        into = lambda: Linear(c.hidden_size, width, axes=("mlp", "embed"))
        self.time_decay, self.time_first = declare(width), declare(width)
        self.time_mix_key, self.time_mix_value, self.time_mix_receptance = (
            declare(1, 1, c.hidden_size) for _ in range(3)
        )
        self.key, self.value, self.receptance = into(), into(), into()
        self.output = Linear(width, c.hidden_size, axes=("embed", "mlp"))

    def __call__(
        self, x: jax.Array, documents: Documents, before: jax.Array, state: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        shifted, last = previous(x, documents, before)
        k = self.key(mixed(x, shifted, self.time_mix_key)).astype(jnp.float32)
        v = self.value(mixed(x, shifted, self.time_mix_value)).astype(jnp.float32)
        gate = jax.nn.sigmoid(self.receptance(mixed(x, shifted, self.time_mix_receptance)))
        decay, first = (dense(w).astype(jnp.float32) for w in (self.time_decay, self.time_first))
        mean, state = weighted_mean(-jnp.exp(decay), first, k, v, documents, state)
        return self.output(gate * mean.astype(x.dtype)), last, state


@slots.register(RwkvAttention)
def _(layer: RwkvAttention) -> dict[str, Slot]:
    def decays(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.linspace(-5.0, 3.0, shape[-1]), shape).astype(dtype)

    time = {"time_decay": Slot("other", ("mlp",), decays), "time_first": Slot("other", ("mlp",), "ones")}
    return {**time, **_mixes("key", "value", "receptance")}


class RwkvFeedForward(eqx.Module):
    """`sigmoid(receptance) * value(relu(key)^2)`."""

    time_mix_key: Weight
    time_mix_receptance: Weight
    key: Linear
    receptance: Linear
    value: Linear

    def __init__(self, c: RwkvConfig) -> None:
        width = c.intermediate_size or 4 * c.hidden_size
        self.time_mix_key, self.time_mix_receptance = (declare(1, 1, c.hidden_size) for _ in range(2))
        self.key = Linear(c.hidden_size, width, axes=("mlp", "embed"))
        self.receptance = Linear(c.hidden_size, c.hidden_size, axes=("embed", None))
        self.value = Linear(width, c.hidden_size, axes=("embed", "mlp"))

    def __call__(self, x: jax.Array, documents: Documents, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        shifted, last = previous(x, documents, before)
        h = jnp.square(jax.nn.relu(self.key(mixed(x, shifted, self.time_mix_key))))
        return jax.nn.sigmoid(self.receptance(mixed(x, shifted, self.time_mix_receptance))) * self.value(h), last


@slots.register(RwkvFeedForward)
def _(layer: RwkvFeedForward) -> dict[str, Slot]:
    return _mixes("key", "receptance")


def _mixes(*names: str) -> dict[str, Slot]:
    def share(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.arange(shape[-1]) / shape[-1], shape).astype(dtype)

    return {f"time_mix_{name}": Slot("other", (None, None, "norm"), share) for name in names}


class RwkvBlock(eqx.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`; `added` multiplies what is added, `scale` what comes out."""

    ln1: LayerNorm
    ln2: LayerNorm
    attention: RwkvAttention
    feed_forward: RwkvFeedForward
    sizes: tuple[int, int] = eqx.field(static=True)
    added: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, c: RwkvConfig, layer: int) -> None:
        every = max(c.rescale_every, 0)
        self.ln1, self.ln2 = (LayerNorm(c.hidden_size, c.layer_norm_epsilon) for _ in range(2))
        self.attention, self.feed_forward = RwkvAttention(c), RwkvFeedForward(c)
        self.sizes = c.hidden_size, c.attention_hidden_size or c.hidden_size
        self.added = 0.5 ** (layer // every) if every else 1.0
        self.scale = 0.5 if every and (layer + 1) % every == 0 else 1.0

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        state: Any = layer_cache(self, x.shape[0], 1, x.dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        times = lambda y, factor: y if factor == 1.0 else y * jnp.asarray(factor, y.dtype)
        y, first, sums = self.attention(self.ln1(x), documents, state.conv[:, 0], state.ssm)
        x = x + times(y, self.added)
        y, second = self.feed_forward(self.ln2(x), documents, state.conv[:, 1])
        x = times(x + times(y, self.added), self.scale)
        if cache is None:
            return x, None, {}
        return x, RecurrentState(jnp.stack([first, second], 1).astype(state.conv.dtype), sums, documents.last), {}


@layer_cache.register(RwkvBlock)
def _(block: RwkvBlock, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    if not jnp.issubdtype(dtype, jnp.floating):  # int8 is for keys and values
        dtype = dense(block.attention.key.weight).dtype
    hidden, width = block.sizes
    nothing = jnp.broadcast_to(jnp.asarray([0.0, 0.0, LEAST], jnp.float32)[None, None], (batch_size, width, 3))
    return RecurrentState(jnp.zeros((batch_size, 2, hidden), dtype), nothing, jnp.zeros((batch_size,), jnp.int32))


class RwkvModel(eqx.Module):
    """Embeddings behind a norm, blocks, a norm."""

    embeddings: Embedding
    pre_ln: LayerNorm
    layers: tuple[Any, ...]
    ln_out: LayerNorm
    config: RwkvConfig = eqx.field(static=True)

    def __init__(self, config: RwkvConfig) -> None:
        self.embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.pre_ln = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.layers = tuple(RwkvBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_out = LayerNorm(config.hidden_size)
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        x = self.pre_ln(self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds)
        out, cache, trace = fold(self.layers, x, context, cache)
        x = self.ln_out(out)
        if context.wants("hidden_states"):  # as transformers lists them: what each layer gives, not what it takes
            trace["hidden_states"] = (*trace["hidden_states"][1:], out, x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@input_embeddings.register(RwkvModel)
def _(model: RwkvModel) -> Embedding:
    return model.embeddings


def names(model: Any) -> list[Rule]:
    """Layers are `blocks` in files, and the norm of the embeddings is in the first."""
    ours, theirs = ("", "") if isinstance(model, RwkvModel) else ("model.", "rwkv.")
    return [
        rename(f"{ours}pre_ln.{{tail}}", f"{theirs}blocks.0.pre_ln.{{tail}}"),
        rename(f"{ours}layers.{{tail}}", f"{theirs}blocks.{{tail}}"),
        *([rename("model.{tail}", "rwkv.{tail}"), rename("lm_head.{tail}", "head.{tail}")] if ours else []),
    ]


family(
    "rwkv",
    config=RwkvConfig,
    tasks={"causal-lm": lambda c: CausalLM(RwkvModel(c), tied=c.tie_word_embeddings), "base": RwkvModel},
    architectures={"RwkvForCausalLM": "causal-lm", "RwkvModel": "base"},
    names=names,
    prefix="rwkv",
)
