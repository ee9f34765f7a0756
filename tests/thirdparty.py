"""A weight format, layers and a model outside easyfn, with its public names only, as Equinox users write them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

import easyfn as ef

# --- a weight format: each row in sixteenths of its largest entry


class Sixteenths(eqx.Module):
    codes: jax.Array  # int8 (..., out, in)
    scale: jax.Array  # (..., out, 1)
    dtype: str = eqx.field(static=True, default="float32")


@ef.quant.method("sixteenths")
def encode(w, cfg):
    cfg.refuse("group_size", "double_quant")
    scale = jnp.max(jnp.abs(w), axis=-1, keepdims=True) / 16
    return Sixteenths(jnp.round(w / scale).astype(jnp.int8), scale.astype(jnp.float32), w.dtype.name)


@ef.shape_of.register(Sixteenths)
def _(w):
    return tuple(w.codes.shape)


@ef.format_of.register(Sixteenths)
def _(w):
    return "sixteenths"


@ef.dense.register(Sixteenths)
def _(w):
    return (w.codes * w.scale).astype(w.dtype)


@ef.dot.register(Sixteenths)
def _(w, x, *, dtype=None):
    y = ef.dot(w.codes.astype(x.dtype), x, dtype=jnp.float32)
    return (y * ef.nn.along_last(w.scale[..., 0], y)).astype(dtype or x.dtype)


@ef.take.register(Sixteenths)
def _(w, ids):
    return (ef.take(w.codes, ids) * ef.take(w.scale, ids)).astype(w.dtype)


@ef.axes_of.register(Sixteenths)
def _(w, axes):
    return Sixteenths(axes, (*axes[:-1], None), w.dtype)


@ef.cast.register(Sixteenths)
def _(w, dtype):
    return Sixteenths(w.codes, w.scale, jnp.dtype(dtype).name)


@ef.trainable.register(Sixteenths)
def _(w):
    return jax.tree.map(lambda _: False, w)


# --- layers


class Matrix(eqx.Module):
    """`x @ weight.T * gain`: a linear layer that learns a factor per output."""

    weight: ef.Weight
    gain: jax.Array
    axes: tuple = eqx.field(static=True)

    def __init__(self, inputs, outputs, axes, *, key):
        self.weight = jax.random.normal(key, (outputs, inputs)) * inputs**-0.5
        self.gain = 1 + 0.1 * jax.random.normal(key, (outputs,))
        self.axes = axes

    def __call__(self, x):
        y = ef.dot(self.weight, x)
        return y * ef.nn.along_last(self.gain.astype(y.dtype), y)


@ef.slots.register(Matrix)
def _(matrix):
    return {"weight": ef.Slot("linear", matrix.axes), "gain": ef.Slot("other", matrix.axes[:1], "ones")}


class Table(eqx.Module):
    weight: ef.Weight

    def __init__(self, rows, dim, *, key):
        self.weight = jax.random.normal(key, (rows, dim)) * 0.5

    def __call__(self, ids):
        return ef.take(self.weight, ids)


@ef.slots.register(Table)
def _(table):
    return {"weight": ef.Slot("embedding", ("vocab", "embed"))}


class Centre(eqx.Module):
    """A norm without parameters of its own but one."""

    power: jax.Array

    def __init__(self):
        self.power = jnp.full((), 0.9)

    def __call__(self, x):
        h = x.astype(jnp.float32)
        size = jnp.sqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        return (h / size ** self.power.astype(jnp.float32)).astype(x.dtype)


@ef.slots.register(Centre)
def _(centre):
    return {"power": ef.Slot("norm", (), "ones")}


class SelfAttention(eqx.Module):
    qkv: Matrix
    out: Matrix
    heads: int = eqx.field(static=True)

    def __init__(self, dim, heads, *, key):
        first, second = jax.random.split(key)
        self.qkv = Matrix(dim, 3 * dim, ("heads", "embed"), key=first)
        self.out = Matrix(dim, dim, ("embed", "heads"), key=second)
        self.heads = heads

    def __call__(self, x, context, cache=None):
        q, k, v = (ef.nn.split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        cache, keys, values, mask = ef.nn.attend_to(cache, k, v, context, None)
        y, weights = ef.nn.attend(q, keys, values, mask, scale=q.shape[-1] ** -0.5, weights=context.wants("attentions"))
        return self.out(ef.nn.merge_heads(y)), cache, weights


@ef.nn.layer_cache.register(SelfAttention)
def _(layer, batch_size, max_length, dtype):
    dim = ef.shape_of(layer.out.weight)[0]
    return ef.nn.empty_kv(batch_size, layer.heads, dim // layer.heads, max_length, None, dtype)


class Layer(eqx.Module):
    attention: SelfAttention
    up: Matrix
    down: Matrix
    centre: Centre

    def __init__(self, config, *, key):
        keys = jax.random.split(key, 3)
        self.attention = SelfAttention(config.dim, config.heads, key=keys[0])
        self.up = Matrix(config.dim, 2 * config.dim, ("mlp", "embed"), key=keys[1])
        self.down = Matrix(2 * config.dim, config.dim, ("embed", "mlp"), key=keys[2])
        self.centre = Centre()

    def __call__(self, x, context, cache=None):
        h, cache, attentions = self.attention(self.centre(x), context, cache)
        x = x + h
        return x + self.down(jax.nn.relu(self.up(self.centre(x)))), cache, {"attentions": attentions}


# --- the model


@dataclasses.dataclass(frozen=True)
class ThirdConfig:
    model_type: ClassVar[str] = "third"
    vocab_size: int = 30
    dim: int = 16
    heads: int = 2
    depth: int = 2
    max_position_embeddings: int = 32


class ThirdLM(eqx.Module):
    embed_tokens: Table
    places: Table
    layers: tuple
    centre: Centre
    lm_head: Matrix
    config: ThirdConfig = eqx.field(static=True)

    def __init__(self, config, *, key):
        first, second, third, *rest = jax.random.split(key, 3 + config.depth)
        self.embed_tokens = Table(config.vocab_size, config.dim, key=first)
        self.places = Table(config.max_position_embeddings, config.dim, key=second)
        self.layers = tuple(Layer(config, key=k) for k in rest)
        self.centre = Centre()
        self.lm_head = Matrix(config.dim, config.vocab_size, ("vocab", "embed"), key=third)
        self.config = config

    def __call__(self, context, cache=None, *, input_ids=None, inputs_embeds=None):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x, cache, trace = ef.nn.fold(self.layers, x + self.places(context.position_ids), context, cache)
        x = self.centre(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return ef.Output(last_hidden_state=x, logits=self.lm_head(x), cache=cache, **trace)


ef.family("third", config=ThirdConfig, model=ThirdLM)
