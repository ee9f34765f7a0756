"""Laws that cannot fail are worthless: for each, a broken copy of the third-party model that breaks just that law."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import easyfn as ef
import thirdparty as tp
from easyfn.names.rules import transposed
from easyfn.testing import Case, laws

# Laws that a broken model must keep, unless it says otherwise. The first are cheap; the second are about one forward pass.
ALWAYS = ("same_config_same_hash", "future_does_not_leak")
FORWARD = ("vmap_is_loop", "padding_is_invisible", "cache_is_no_cache")
BROKEN: dict[str, tuple] = {}


def breaks(law: str, also: tuple[str, ...] = (), keeps: tuple[str, ...] = ()):
    """The decorated function makes a case that breaks `law` and, as follows from it, `also`."""

    def decorate(make):
        BROKEN[law] = (make, tuple(n for n in (*ALWAYS, *keeps) if n != law and n not in also), also)
        return make

    return decorate


def model(name: str, *, config=tp.ThirdConfig, of=tp.ThirdLM, methods=None, settings=None, names=(), **case) -> Case:
    """A case of a model whose class has other methods, registered as a family of its own."""
    own = dataclasses.dataclass(frozen=True)(type("Config", (config,), {"model_type": name, "__annotations__": {}}))
    cls = type("Broken" + name, (of,), {"__annotations__": {}, **(methods or {})})
    ef.family(name, config=own, model=cls, names=names, override=True)
    options = {"quantization": ("sixteenths",), **case}
    return Case(name=name, make=lambda key: cls(own(**(settings or {})), key=key), **options)


def altered(change):
    """A `__call__` whose hidden states, logits and all, went through `change(hidden, context, cache)`."""

    def __call__(self, context, cache=None, *, input_ids=None, inputs_embeds=None):
        out = tp.ThirdLM.__call__(self, context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)
        hidden = change(out.last_hidden_state, context, cache)
        return out.replace(last_hidden_state=hidden, logits=self.lm_head(hidden))

    return {"__call__": __call__}


def seen_through(change):
    """A `__call__` of the same model in another context."""

    def __call__(self, context, cache=None, *, input_ids=None, inputs_embeds=None):
        context = change(context)
        return tp.ThirdLM.__call__(self, context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)

    return {"__call__": __call__}


# --- the forward pass


@breaks("same_config_same_hash")
def _():
    @dataclasses.dataclass(frozen=True, eq=False)  # equal to itself only
    class Config(tp.ThirdConfig):
        model_type: ClassVar[str] = "identity"

        __hash__ = object.__hash__
        __eq__ = object.__eq__

    ef.family("identity", config=Config, model=tp.ThirdLM, override=True)
    return Case(name="identity", make=lambda key: tp.ThirdLM(Config(), key=key))


@breaks("abstract_is_concrete")
def _():
    def __init__(self, config, *, key):  # looks whether it is being traced
        rows = 40 if isinstance(key, jax.core.Tracer) else config.max_position_embeddings
        tp.ThirdLM.__init__(self, dataclasses.replace(config, max_position_embeddings=rows), key=key)
        self.config = config

    return model("two-faced", methods={"__init__": __init__})


@breaks("jit_is_eager", keeps=("padding_is_invisible",))
def _():
    return model("tracing", methods=altered(lambda h, *_: h * (1.1 if isinstance(h, jax.core.Tracer) else 1.0)))


@breaks("vmap_is_loop", keeps=FORWARD)
def _():
    return model("batched", methods=altered(lambda h, *_: h - 0.1 * jnp.mean(h, axis=0, keepdims=True)))


@breaks("future_does_not_leak", also=("cache_is_no_cache",), keeps=FORWARD)
def _():
    return model("prophetic", methods=seen_through(lambda c: c.replace(causal=False)))


@breaks("padding_is_invisible", keeps=FORWARD)
def _():
    count = lambda c: jnp.mean(c.segment_ids == 0, axis=1)[:, None, None]
    return model("padded", methods=altered(lambda h, c, _: h * (1 + 0.1 * count(c))))


def slotted(side):
    """A model whose decoding steps count places, padding on one side included."""

    def change(c):
        if c.slots.size > 1 or c.cached_segment_ids is None:
            return c
        behind = c.cached_segment_ids[:, :1] if side == "right" else 1 - c.cached_segment_ids[:, :1]
        return c.replace(position_ids=jnp.where(behind > 0, c.slots[None], c.position_ids))

    return model("slotted-" + side, methods=seen_through(change))


@breaks("left_padding_is_invisible_to_the_cache", keeps=FORWARD)
def _():
    return slotted("left")


@breaks("right_padding_is_invisible_to_the_cache", keeps=FORWARD)
def _():
    return slotted("right")


@breaks("documents_do_not_see_each_other", keeps=FORWARD)
def _():
    return model("unpacked", methods=seen_through(lambda c: c.replace(segment_ids=jnp.minimum(c.segment_ids, 1))))


@breaks("cache_is_no_cache", keeps=FORWARD)
def _():
    return model("forgetful", methods=altered(lambda h, _, cache: h if cache is None else 1.1 * h))


@breaks("generate_is_step_by_step", keeps=("cache_is_no_cache",))
def _():
    return model("contrary", methods=altered(lambda h, c, _: -h if c.fresh else h))


# --- weights


@breaks("weights_only_through_verbs", keeps=("quantize_is_close",))
def _():
    class Indexed(tp.Table):
        def __call__(self, ids):
            return self.weight[ids]

    def __init__(self, config, *, key):
        tp.ThirdLM.__init__(self, config, key=key)
        self.places = Indexed(32, 16, key=key)

    return model("peeking", methods={"__init__": __init__})


@breaks("stack_is_list", keeps=("unstack_inverts_stack",))
def _():
    def __call__(self, context, cache=None, *, input_ids=None, inputs_embeds=None):
        out = tp.ThirdLM.__call__(self, context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)
        return out.replace(logits=out.logits / len(self.layers))  # the number of entries, which a stack changes

    return model("counting", methods={"__call__": __call__})


@jax.tree_util.register_pytree_node_class
class Ageing:
    """A layer that differs from itself after each transformation."""

    def __init__(self, layer, age=0):
        self.layer, self.age = layer, age

    def __call__(self, x, context, cache=None):
        return self.layer(x, context, cache)

    def tree_flatten(self):
        return (self.layer,), self.age

    @classmethod
    def tree_unflatten(cls, age, children):
        return cls(*children, age + 1)


@breaks("unstack_inverts_stack", keeps=("stack_is_list",))
def _():
    def __init__(self, config, *, key):
        tp.ThirdLM.__init__(self, config, key=key)
        self.layers = tuple(Ageing(layer) for layer in self.layers)

    return model("ageing", methods={"__init__": __init__})


@breaks("bfloat16_is_close", keeps=FORWARD[:1])
def _():
    return model("wide", methods=altered(lambda h, *_: h * jnp.ones((1, 1, 1), jnp.float32)))


def _format(name: str, encode) -> str:
    ef.quant.method(name, override=True)(encode)
    return name


@breaks("quantize_is_close", keeps=("quantize_commutes_with_stack",))
def _():
    def twice(w, cfg):
        good = tp.encode(w, cfg)
        return tp.Sixteenths(good.codes, good.scale * 2, good.dtype)

    return model("loud", quantization=(_format("loud", twice),))


@breaks("quantize_twice_is_refused", also=("quantize_is_close",), keeps=("quantize_commutes_with_stack",))
def _():
    rounded = lambda w, cfg: ef.dense(tp.encode(w, cfg))  # nothing says that the weight is quantized
    return model("silent", quantization=(_format("silent", rounded),))


@breaks("quantize_commutes_with_stack", keeps=("quantize_twice_is_refused",))
def _():
    def one_scale(w, cfg):  # for everything that it is given: of a stack, for all layers
        scale = jnp.max(jnp.abs(w), keepdims=True) / 127
        scale = jnp.broadcast_to(scale, (*w.shape[:-1], 1))
        return tp.Sixteenths(jnp.round(w / scale).astype(jnp.int8), scale, w.dtype.name)

    return model("global", quantization=(_format("global", one_scale),))


def layers_of(kind):
    """An `__init__` whose up projections are of another type."""

    def __init__(self, config, *, key):
        tp.ThirdLM.__init__(self, config, key=key)
        up = lambda m: [layer.up for layer in m.layers]
        fresh = [kind(config.dim, 2 * config.dim, ("mlp", "embed"), key=key) for _ in self.layers]
        self.layers = eqx.tree_at(up, self, fresh).layers

    return {"__init__": __init__}


class LoudUnderLoRA(tp.Matrix):
    pass


class LoudUnderQLoRA(tp.Matrix):
    pass


@ef.apply_lora.register(LoudUnderLoRA)
def _(layer, how):
    return eqx.tree_at(lambda m: (m.weight, m.gain), layer, (how(layer.weight), layer.gain * 1.5))


@ef.apply_lora.register(LoudUnderQLoRA)
def _(layer, how):
    gain = layer.gain * (1.5 if ef.is_quantized(layer.weight) else 1.0)
    return eqx.tree_at(lambda m: (m.weight, m.gain), layer, (how(layer.weight), gain))


@breaks("fresh_lora_changes_nothing", also=("lora_rests_on_quantized",), keeps=("stack_is_list",))
def _():
    return model("adapting", methods=layers_of(LoudUnderLoRA))


@breaks("lora_rests_on_quantized", keeps=("fresh_lora_changes_nothing",))
def _():
    return model("qadapting", methods=layers_of(LoudUnderQLoRA))


class Biased(eqx.Module):
    """A weight of which `dense` is not what `dot` multiplies with."""

    w: jax.Array

    @property
    def dtype(self):
        return self.w.dtype


ef.shape_of.register(Biased)(lambda b: tuple(b.w.shape))
ef.dot.register(Biased)(lambda b, x, *, dtype=None: ef.dot(b.w, x, dtype=dtype))
ef.dense.register(Biased)(lambda b: 1.1 * b.w)
ef.requantize.register(Biased)(lambda b, new: Biased(new))


@breaks("merged_lora_is_lora", keeps=("fresh_lora_changes_nothing",))
def _():
    def __init__(self, config, *, key):
        tp.ThirdLM.__init__(self, config, key=key)
        up = lambda m: [layer.up.weight for layer in m.layers]
        self.layers = eqx.tree_at(up, self, [Biased(w) for w in up(self)]).layers

    return model("crooked", methods={"__init__": __init__})


@breaks("shard_changes_nothing")
def _():
    return model("whole", rules=ef.ShardingRules({}))


# --- training


@breaks("gradient_is_finite", keeps=("gradients_reach_exactly_the_trainable",))
def _():
    def change(h, c, _):  # sqrt has no slope at zero, and `where` hides that on the way forward only
        real = (c.segment_ids > 0)[..., None]
        return jnp.where(real, jnp.sqrt(h * h * real), h)

    return model("steep", methods=altered(change))


@breaks("gradients_reach_exactly_the_trainable", keeps=("gradient_is_finite",))
def _():
    class Frozen(tp.Matrix):
        def __call__(self, x):
            y = ef.dot(self.weight, x)
            return y * ef.nn.along_last(jax.lax.stop_gradient(self.gain).astype(y.dtype), y)

    return model("numb", methods=layers_of(Frozen))


@breaks("loss_counts_right", keeps=("gradient_is_finite",))
def _():
    case = model("miscounting")

    @ef.compute_loss.register(type(case.model))
    def _(model, batch, cfg=ef.LossConfig(), **more):

        loss, metrics = ef.compute_loss.which(object)(model, batch, cfg, **more)
        tokens = metrics["num_tokens"]
        return loss * tokens / batch["labels"].size if cfg.reduction == "mean" else loss, metrics

    return case


@breaks("flops_are_positive")
def _():
    def change(h, *_):  # a product whose size is not the batch's
        return h + 0 * jnp.sum(jnp.ones((64, 64)) @ jnp.ones((64, 64)))

    return model("idling", methods=altered(change))


# --- files and torch


@breaks("save_then_load_is_identity", keeps=("names_are_a_bijection",))
def _():
    @dataclasses.dataclass(frozen=True)
    class Config(tp.ThirdConfig):
        @staticmethod
        def denormalize(data):
            return {k: v for k, v in data.items() if k != "heads"}

    return model("lossy", config=Config, settings={"heads": 4})


@breaks("names_are_a_bijection", also=("save_then_load_is_identity",))
def _():
    def names(model):  # the file is written in one layout and read in another: a model about to be read has no arrays
        read = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))
        return [] if read else [transposed("layers.{i}.attention.out.weight")]

    return model("moody", names=names)


def _llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    return LlamaForCausalLM(config).eval()


@breaks("torch_agrees", keeps=("torch_round_trip",))
def _():
    def module():
        made = _llama()
        made.lm_head.register_forward_hook(lambda module, args, out: out * 1.1)
        return made

    return Case(torch=module, name="louder torch")


@breaks("torch_round_trip", keeps=("torch_agrees",))
def _():
    def module():
        made = _llama()
        table = made.model.rotary_emb  # a tensor that no model of ours holds
        table.register_buffer("inv_freq", table.inv_freq, persistent=True)
        return made

    return Case(torch=module, name="richer torch")


@pytest.mark.thinned("it judges the laws, which change seldom")
@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_model_breaks_the_law_that_names_its_fault(law):
    make, keeps, also = BROKEN[law]
    case = make()
    for name in (law, *also):
        with pytest.raises(AssertionError):
            laws.known()[name](case)
    for name in keeps:
        laws.known()[name](case)


@pytest.mark.quick("testing", "every law has a model that breaks it")
def test_every_law_has_its_broken_model():
    assert set(laws.known()) == set(BROKEN)
