"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060): no attention, a state of fixed size in its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dense, slots
from ..names.rules import rename
from ..nn import (
    CausalConv1d,
    CausalLM,
    Context,
    Documents,
    Embedding,
    GatedRMSNorm,
    Linear,
    Output,
    RecurrentState,
    RMSNorm,
    activation,
    declare,
    fold,
    input_embeddings,
    layer_cache,
    scan_chunks,
    scan_step,
)
from ..registry.family import family


@dataclass(frozen=True)
class Mamba2Config:
    """The keys of a Mamba-2 `config.json`."""

    model_type: ClassVar[str] = "mamba2"
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    head_dim: int
    state_size: int = 128
    expand: int = 2
    conv_kernel: int = 4
    n_groups: int = 8
    chunk_size: int = 256
    use_bias: bool = False
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    layer_norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    initializer_range: float = 0.1
    tie_word_embeddings: bool = False
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    def __post_init__(self) -> None:
        if self.hidden_size * self.expand != self.num_heads * self.head_dim:
            raise ValueError(
                f"mamba2: hidden_size * expand = {self.hidden_size * self.expand} must equal "
                f"num_heads * head_dim = {self.num_heads * self.head_dim}"
            )
        if self.num_heads % self.n_groups:
            raise ValueError(f"mamba2: num_heads={self.num_heads} is no multiple of n_groups={self.n_groups}")
        if self.conv_kernel < 1 or self.chunk_size < 1:
            raise ValueError(
                f"mamba2: conv_kernel={self.conv_kernel} and chunk_size={self.chunk_size} must be positive"
            )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """JSON has no infinity: transformers writes `{"__float__": "Infinity"}` (today) or `Infinity` (before)."""
        if limit := data.get("time_step_limit"):
            limit = tuple(float(v["__float__"] if isinstance(v, dict) else v) for v in limit)
            return {**data, "time_step_limit": limit}
        return {k: v for k, v in data.items() if k != "time_step_limit"}


class Mamba2Mixer(eqx.Module):
    """One projection in, a short convolution, the selective scan, a gated norm, one projection out."""

    in_proj: Linear  # to gate, convolution channels (x, B, C) and one time step per head
    conv1d: CausalConv1d
    A_log: Weight
    D: Weight
    dt_bias: Weight
    norm: GatedRMSNorm
    out_proj: Linear
    config: Mamba2Config = eqx.field(static=True)

    def __init__(self, config: Mamba2Config) -> None:
        c = config
        inner, shared = c.num_heads * c.head_dim, c.n_groups * c.state_size
        activation(c.hidden_act)
        self.in_proj = Linear(c.hidden_size, 2 * inner + 2 * shared + c.num_heads, c.use_bias, axes=("mlp", "embed"))
        self.conv1d = CausalConv1d(inner + 2 * shared, c.conv_kernel, c.use_conv_bias)
        self.A_log = declare(c.num_heads)
        self.D = declare(c.num_heads)
        self.dt_bias = declare(c.num_heads)
        self.norm = GatedRMSNorm(inner, c.n_groups, c.layer_norm_epsilon)
        self.out_proj = Linear(inner, c.hidden_size, c.use_bias, axes=("embed", "mlp"))
        self.config = c

    def __call__(
        self, x: jax.Array, context: Context, cache: RecurrentState | None = None
    ) -> tuple[jax.Array, RecurrentState | None]:
        c = self.config
        (batch, length, _), f32 = x.shape, jnp.float32
        state = empty_state(self, batch, x.dtype) if cache is None else cache
        inner, shared = c.num_heads * c.head_dim, c.n_groups * c.state_size
        documents = Documents.of(context.segment_ids, state.segment_ids)

        gate, xbc, dt = jnp.split(self.in_proj(x), (inner, 2 * inner + 2 * shared), axis=-1)
        xbc, conv = self.conv1d(xbc, documents, state.conv)
        xbc = activation(c.hidden_act)(xbc)
        u, b, c_ = jnp.split(xbc, (inner, inner + shared), axis=-1)
        u = u.reshape(batch, length, c.num_heads, c.head_dim)
        b, c_ = (m.reshape(batch, length, c.n_groups, c.state_size) for m in (b, c_))
        dt = jax.nn.softplus(dt.astype(f32) + dense(self.dt_bias).astype(f32)[None, None])
        dt = jnp.where(documents.real[..., None], jnp.clip(dt, *c.time_step_limit), 0.0)  # padding takes no time
        a = -jnp.exp(dense(self.A_log).astype(f32))
        if length == 1:
            y, ssm = scan_step(u, dt, a, b, c_, documents, state.ssm)
        else:
            y, ssm = scan_chunks(u, dt, a, b, c_, documents, state.ssm, chunk=c.chunk_size)
        y = y + u * dense(self.D).astype(f32)[None, None, :, None]
        y = self.out_proj(self.norm(y.reshape(batch, length, inner), gate))
        return y, None if cache is None else RecurrentState(conv, ssm, documents.last)


@slots.register(Mamba2Mixer)
def _(mixer: Mamba2Mixer) -> dict[str, Slot]:
    c = mixer.config

    def a_log(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.log(jnp.arange(1, c.num_heads + 1, dtype=jnp.float32)), shape).astype(dtype)

    def dt_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        low, high = math.log(c.time_step_min), math.log(c.time_step_max)
        dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high)), c.time_step_floor)
        return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)  # softplus of it is dt

    return {
        "A_log": Slot("other", (None,), a_log),
        "D": Slot("other", (None,), "ones"),
        "dt_bias": Slot("other", (None,), dt_bias),
    }


def empty_state(mixer: Mamba2Mixer, batch_size: int, dtype: Any) -> RecurrentState:
    """The state before the first token."""
    c = mixer.config
    return RecurrentState(
        jnp.zeros((batch_size, c.conv_kernel - 1, c.num_heads * c.head_dim + 2 * c.n_groups * c.state_size), dtype),
        jnp.zeros((batch_size, c.num_heads, c.head_dim, c.state_size), jnp.float32),
        jnp.zeros((batch_size,), jnp.int32),
    )


@layer_cache.register(Mamba2Mixer)
def _(mixer: Mamba2Mixer, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    if not jnp.issubdtype(dtype, jnp.floating):  # int8 is for keys and values: a state is added to at every token
        dtype = dense(mixer.norm.weight).dtype
    return empty_state(mixer, batch_size, dtype)


class Mamba2Block(eqx.Module):
    """`x + mixer(norm(x))`; the residual stream may be wider in dtype than the weights."""

    norm: RMSNorm
    mixer: Mamba2Mixer

    def __init__(self, config: Mamba2Config) -> None:
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mixer = Mamba2Mixer(config)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, cache = self.mixer(self.norm(x.astype(dense(self.norm.weight).dtype)), context, cache)
        return x + h.astype(x.dtype), cache, {}


class Mamba2(eqx.Module):
    """Embeddings, blocks, a final norm."""

    embeddings: Embedding
    layers: tuple[Any, ...]
    norm_f: RMSNorm
    config: Mamba2Config = eqx.field(static=True)

    def __init__(self, config: Mamba2Config) -> None:
        self.embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.layers = tuple(Mamba2Block(config) for _ in range(config.num_hidden_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        dtype = dense(self.norm_f.weight).dtype
        x = x.astype(jnp.float32 if self.config.residual_in_fp32 else dtype)
        out, cache, trace = fold(self.layers, x, context, cache)
        x = self.norm_f(out).astype(dtype)
        if context.wants("hidden_states"):  # as transformers lists them: what each layer gives, not what it takes
            trace["hidden_states"] = (*trace["hidden_states"][1:], out, x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@input_embeddings.register(Mamba2)
def _(model: Mamba2) -> Embedding:
    return model.embeddings


family(
    "mamba2",
    config=Mamba2Config,
    tasks={
        "causal-lm": lambda c: CausalLM(Mamba2(c), tied=c.tie_word_embeddings),
        "base": Mamba2,
    },
    architectures={"Mamba2ForCausalLM": "causal-lm", "Mamba2Model": "base"},
    names=(rename("model.{rest}", "backbone.{rest}"),),
    aliases={"backbone.embeddings.weight": ("backbone.embedding.weight",)},  # the authors' own files
    # Most of them stand in older files, of Mamba 1 or its trainers, and transformers never reads them.
    ignore=(
        "intermediate_size",
        "norm_before_gate",
        "rescale_prenorm_residual",
        "rms_norm",
        "time_step_init_scheme",
        "time_step_rank",
        "time_step_scale",
        "use_mambapy",
    ),
    prefix="backbone",
)
