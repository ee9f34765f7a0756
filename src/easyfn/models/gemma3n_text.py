"""Gemma 3n, text (Google DeepMind 2025): four streams of which a layer reads one, inputs by layer, keys that layers share."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.fields import DecoderFields, Size, rope
from ..core.frozen import Frozen
from ..core.stack import one_by_one
from ..core.weight import dense
from ..nn import Embedding, GatedMLP, Linear, RMSNorm, fold, hands_on
from ..nn.activation import activation
from ..nn.altup import AltUp
from ..nn.attention.rope import checked_rope, rope_table
from ..nn.attention.sharing import SharingAttention, sharing
from ..nn.block import Result
from ..nn.context import Context, called
from ..nn.linear import along_last, pad_token
from ..nn.output import Output
from .decoders import alternate, decoder_family, layer_windows, rope_by_kind


@dataclass(frozen=True, kw_only=True)
class Gemma3nTextConfig(DecoderFields):
    """The keys of a Gemma 3n text `config.json`. `rope_parameters` has one entry per kind of layer.

    Without `layer_types` every fifth layer is global; without `activation_sparsity_pattern` the first ten of more than ten
    keep a twentieth of their activations.
    """

    model_type: ClassVar[str] = "gemma3n_text"
    vocab_size: Size = 262400
    hidden_size: Size = 2048
    intermediate_size: Size | tuple[Size, ...] | None = None  # type: ignore[assignment]  # 16384, or one for each layer
    num_hidden_layers: int = 35
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 2
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 32768
    rope_parameters: Frozen = Frozen(sliding_attention=rope(10000.0), full_attention=rope(1000000.0))
    attention_bias: bool = False
    sliding_window: Size = 512
    layer_types: tuple[str, ...] | None = None
    final_logit_softcapping: float | int | None = 30.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    vocab_size_per_layer_input: Size = 262144
    hidden_size_per_layer_input: Size = 256
    altup_active_idx: int = 0
    altup_coef_clip: float | int | None = 120.0
    altup_correct_scale: bool = True
    altup_num_inputs: Size = 4
    num_kv_shared_layers: int = 15
    laurel_rank: Size = 64
    activation_sparsity_pattern: tuple[float | int, ...] | None = None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return rope_by_kind(data, sliding=10000.0, full=1000000.0)


class SparseMLP(eqx.Module):
    """A gated MLP of which the largest gates alone are open: those above `cut` standard deviations over their mean."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)
    cut: float = eqx.field(static=True)

    def __init__(self, hidden_size: int, intermediate_size: int, act: str, sparsity: float) -> None:
        dense_mlp = GatedMLP(hidden_size, intermediate_size, act)
        self.gate_proj, self.up_proj, self.down_proj = dense_mlp.gate_proj, dense_mlp.up_proj, dense_mlp.down_proj
        self.act = act
        self.cut = statistics.NormalDist().inv_cdf(sparsity)  # were they normal, so many would be below

    def __call__(self, x: Float[Array, "*rows in_"]) -> Float[Array, "*rows out"]:
        gate = self.gate_proj(x).astype(jnp.float32)
        bar = jnp.mean(gate, axis=-1, keepdims=True) + jnp.std(gate, axis=-1, keepdims=True) * self.cut
        gate = jax.nn.relu(gate - bar).astype(x.dtype)
        return self.down_proj(activation(self.act)(gate) * self.up_proj(x))


class Laurel(eqx.Module):
    """A residual layer of low rank: `x + norm(right(left(x)))`."""

    linear_left: Linear
    linear_right: Linear
    post_laurel_norm: RMSNorm

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))


class Gemma3nBlock(eqx.Module):
    """One layer on all streams: attention and MLP read the active one; the others get its input by layer on top."""

    self_attn: SharingAttention
    mlp: Any
    input_layernorm: RMSNorm
    post_attention_layernorm: RMSNorm
    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm
    altup: AltUp
    laurel: Laurel
    per_layer_input_gate: Linear
    per_layer_projection: Linear
    post_per_layer_input_norm: RMSNorm
    act: str = eqx.field(static=True)
    scaled: bool = eqx.field(static=True)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        guess = self.altup.predict(x, context)
        active = guess[:, :, self.altup.active]
        h = self.input_layernorm(active)
        laurel = self.laurel(h)
        h, cache, weights, given = self.self_attn(h, context, cache)
        h = (active + self.post_attention_layernorm(h) + laurel) * jnp.asarray(2**-0.5, x.dtype)
        h = h + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h)))
        x = self.altup.correct(guess, h, context)

        first = x[:, :, self.altup.active]
        if self.scaled:
            first = first * along_last(dense(self.altup.correct_output_scale).astype(x.dtype), first)
        assert context.by_layer is not None
        first = self.per_layer_projection(activation(self.act)(self.per_layer_input_gate(first)) * context.by_layer)
        x = x.at[:, :, 1:].add(self.post_per_layer_input_norm(first)[:, :, None])
        return x, cache, {"attentions": weights, "handed_on": given}


@hands_on.register(Gemma3nBlock)
def _(block: Gemma3nBlock) -> bool:
    return True


class Gemma3nDecoder(eqx.Module):
    """Token ids to hidden states; `hidden_states` are those of all streams, `(streams, batch, seq, embed)`."""

    embed_tokens: Embedding
    embed_tokens_per_layer: Embedding
    layers: tuple[Any, ...]
    norm: RMSNorm
    per_layer_model_projection: Linear
    per_layer_projection_norm: RMSNorm
    altup_projections: tuple[Linear, ...]
    altup_unembed_projections: tuple[Linear, ...]
    config: Any = eqx.field(static=True)
    rope: Frozen = eqx.field(static=True)

    def __init__(self, c: Gemma3nTextConfig) -> None:
        kinds = c.layer_types or alternate(c.num_hidden_layers, 5)
        windows, roles = layer_windows(c, kinds, c.sliding_window), sharing(c, kinds)
        widths, sparsities = _by_layer(c)
        norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps)

        def block(i: int) -> Gemma3nBlock:
            act = c.hidden_activation
            first, second, third, fourth = (norm() for _ in range(4))
            return Gemma3nBlock(
                SharingAttention(c, kinds[i], windows[i], roles[i], c.head_dim, c.num_key_value_heads),
                SparseMLP(c.hidden_size, widths[i], act, sparsities[i])
                if sparsities[i] > 0
                else GatedMLP(c.hidden_size, widths[i], act),
                first,
                second,
                third,
                fourth,
                AltUp(
                    c.hidden_size, c.altup_num_inputs, c.altup_active_idx, c.rms_norm_eps, _number(c.altup_coef_clip)
                ),
                Laurel(Linear(c.hidden_size, c.laurel_rank), Linear(c.laurel_rank, c.hidden_size), norm()),
                Linear(c.hidden_size, c.hidden_size_per_layer_input, axes=(None, "embed")),
                Linear(c.hidden_size_per_layer_input, c.hidden_size, axes=("embed", None)),
                norm(),
                act,
                c.altup_correct_scale,
            )

        own = c.num_hidden_layers * c.hidden_size_per_layer_input
        squares = lambda: tuple(Linear(c.hidden_size, c.hidden_size) for _ in range(1, c.altup_num_inputs))
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size, padding=pad_token(c))
        self.embed_tokens_per_layer = Embedding(
            c.vocab_size_per_layer_input, own, axes=("vocab", None), padding=pad_token(c)
        )
        self.layers = tuple(block(i) for i in range(c.num_hidden_layers))
        self.norm = norm()
        self.per_layer_model_projection = Linear(c.hidden_size, own, axes=(None, "embed"))
        self.per_layer_projection_norm = RMSNorm(c.hidden_size_per_layer_input, c.rms_norm_eps)
        self.altup_projections = squares()
        self.altup_unembed_projections = squares()
        self.config = c
        self.rope = checked_rope({kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}, c.head_dim)

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        called(self, context)
        c = self.config
        if inputs_embeds is None:
            x = self.embed_tokens(input_ids)
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        else:
            x = inputs_embeds
        by_layer = self._by_layer(x, input_ids if inputs_embeds is None else None)
        tables = {
            n: rope_table(p, c.head_dim, c.max_position_embeddings, context.position_ids) for n, p in self.rope.items()
        }
        context = context.replace(rope=tables, by_layer=by_layer)
        streams = jnp.stack([x, *(_as_loud(p(x), x) for p in one_by_one(self.altup_projections))], axis=2)
        streams, cache, trace = fold(self.layers, streams, context, cache)
        if context.wants("hidden_states"):
            trace["hidden_states"] = tuple(jnp.moveaxis(h, 2, 0) for h in (*trace["hidden_states"], streams))
        first = streams[:, :, 0]
        rest = (
            _as_loud(p(streams[:, :, i + 1]), first) for i, p in enumerate(one_by_one(self.altup_unembed_projections))
        )
        x = self.norm(jnp.mean(jnp.stack([first, *rest]), axis=0))
        return Output(last_hidden_state=x, cache=cache, **trace)

    def _by_layer(self, x: jax.Array, ids: jax.Array | None) -> jax.Array:
        """What each layer gets of the tokens on its own, `(batch, layers, seq, width)`: from a table, and from embeddings."""
        c = self.config
        shape = (*x.shape[:2], c.num_hidden_layers, c.hidden_size_per_layer_input)
        own = self.per_layer_model_projection(x) * jnp.asarray(c.hidden_size**-0.5, x.dtype)
        own = self.per_layer_projection_norm(own.reshape(shape))
        if ids is None:
            return jnp.moveaxis(own, 2, 1)
        known = (ids >= 0) & (ids < c.vocab_size_per_layer_input)
        table = self.embed_tokens_per_layer(jnp.where(known, ids, 0)).reshape(shape)
        if c.pad_token_id == 0:  # others than those share the row of padding, which is not trained
            table = jnp.where(known[..., None, None], table, jax.lax.stop_gradient(table))
        table = table * jnp.asarray(c.hidden_size_per_layer_input**0.5, table.dtype)
        return jnp.moveaxis((own + table) * jnp.asarray(2**-0.5, x.dtype), 2, 1)


def _number(value: float | int | None) -> float | None:
    return None if value is None else float(value)


def _as_loud(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` with the root mean square of `other`."""
    power = lambda a: jnp.mean(jnp.square(a.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jnp.sqrt(power(other) / jnp.maximum(power(x), 1e-5))).astype(x.dtype)


def _by_layer(c: Gemma3nTextConfig) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The width and the sparsity of every layer's MLP."""
    layers = c.num_hidden_layers
    said = 16384 if c.intermediate_size is None else c.intermediate_size
    widths = (said,) * layers if isinstance(said, int) else said
    sparsities = c.activation_sparsity_pattern
    if sparsities is None:
        sparsities = tuple(0.95 if layers > 10 and i < 10 else 0.0 for i in range(layers))
    if len(widths) != layers or len(sparsities) != layers or not all(0 <= s < 1 for s in sparsities):
        raise ValueError(
            f"gemma3n_text: there are {layers} layers, and intermediate_size={c.intermediate_size} and "
            f"activation_sparsity_pattern={c.activation_sparsity_pattern} have a number for each, the latter below 1"
        )
    return tuple(widths), tuple(float(s) for s in sparsities)


def _unread(c: Gemma3nTextConfig) -> tuple[str, ...]:
    """Patterns of what files hold for layers that read the keys of others."""
    first = c.num_hidden_layers - c.num_kv_shared_layers
    layers = "|".join(str(i) for i in range(max(first, 0), c.num_hidden_layers)) or "none"
    return (r"rotary_emb\.", rf"(^|\.)layers\.({layers})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.")


decoder_family(
    None,
    Gemma3nTextConfig,
    Gemma3nDecoder,
    head={"softcap": lambda c: c.final_logit_softcapping},
    architectures={"Gemma3nForCausalLM": "causal-lm", "Gemma3nTextModel": "base"},
    ignore_tensors=_unread,
)
