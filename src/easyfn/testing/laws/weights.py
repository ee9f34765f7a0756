"""Laws of the transforms: each is pure, they compose, and none asks what a weight is made of."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

from ..case import Case, run, same, same_trees, shaken
from ..opaque import Opaque
from .law import law
from .training import answers_and_gradient

# The largest relative error (Frobenius) that a method may leave in a matrix of normal numbers.
ERRORS = {"8bit": 0.012, "a8bit": 0.012, "a8q": 0.012, "nf4": 0.12, "int4": 0.12, "a4q": 0.12, "fp4": 0.16}
# How far answers may lie from those of the dense weights, of the largest: more where products round their input too.
ROUNDED_INPUT = {"a8bit": 0.05, "a8q": 0.05, "a4q": 0.05}


@law()
def weights_only_through_verbs(case: Case) -> None:
    """Every matrix may be a pytree that answers nothing but `dot`, `take` and `ragged_dot`."""
    roles = ("linear", "head", "router", "embedding", "experts")
    slots = {found.path: found.weight for found in ef.find_slots(case.model, roles)}
    assert slots, "the model has no weight slots: register its layers with ef.slots"
    opaque = _replaced(case.model, {path: Opaque(weight) for path, weight in slots.items()})
    try:
        got = case.answers(opaque)
    except (TypeError, AttributeError) as error:
        raise AssertionError(f"a layer looked into a weight instead of calling dot or take: {error}") from error
    same(case, got, case.answers(case.model), "opaque weights against arrays")


def _replaced(model: object, new: dict[str, object]) -> object:
    """The model with other weights in its slots."""
    paths = {id(f.weight): f.path for f in ef.find_slots(model)}
    is_slot = lambda node: id(node) in paths
    leaves, treedef = jax.tree.flatten(model, is_leaf=is_slot)
    return treedef.unflatten([new.get(paths.get(id(leaf), ""), leaf) for leaf in leaves])


@law()
def stack_is_list(case: Case) -> None:
    """Layers stacked for a scan answer as layers in a list."""
    same(case, case.answers(case.stacked()), case.answers(case.model), "stacked against listed layers")


@law()
def unstack_inverts_stack(case: Case) -> None:
    """`unstack(stack(model))` is the model, bit by bit."""
    back = ef.unstack(case.stacked())
    assert jax.tree.structure(back) == jax.tree.structure(case.model), "the structure came back changed"
    same_trees(back, case.model, "stacked and unstacked")


@law()
def bfloat16_is_close(case: Case) -> None:
    """In bfloat16 the model computes in bfloat16, and the answers stay near."""
    low = ef.cast(case.model, jnp.bfloat16)
    assert ef.dtype_of(low) == jnp.bfloat16 and ef.dtype_of(case.model) == jnp.float32, "cast changed another model"
    answers = run(low, case.given())[0]
    wide = {name: value.dtype for name, value in answers.items() if value.dtype != jnp.bfloat16}
    assert not wide, f"a bfloat16 model answers in {wide}"
    same(case, answers, case.answers(case.model), "bfloat16 against float32", tolerance=0.1)


@law()
def quantize_is_close(case: Case) -> None:
    """A quantized weight is near the weight, and the model computes with just that weight."""
    for method in case.quantization:
        quantized = case.quantized(method)
        assert ef.is_quantized(quantized), f"{method}: no weight says that it is quantized (ef.format_of)"
        dense = ef.dequantize(quantized)
        before, after, changed = ef.params(case.model), ef.params(dense), 0
        for path, value in before.items():
            off = np.linalg.norm(np.asarray(after[path] - value, np.float32)) / np.linalg.norm(
                np.asarray(value) + 1e-12
            )
            assert off <= ERRORS.get(method, 0.2), f"{method}: {path} is off by {off:.3g}"
            changed += int(off > 0)
        assert changed, f"{method} changed no weight"
        tolerance = ROUNDED_INPUT.get(method, 1e-3)
        what = f"{method} against its dense weights"
        same(case, case.answers(quantized), case.answers(dense), what, tolerance=tolerance)


@law()
def quantize_twice_is_refused(case: Case) -> None:
    """Quantizing a quantized model is an error, not a second loss."""
    quantized = case.quantized(case.quantization[0])
    for method in case.quantization:
        try:
            ef.quantize(quantized, ef.QuantConfig(method))
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"a model in {case.quantization[0]} was quantized to {method} once more")


@law()
def quantize_commutes_with_stack(case: Case) -> None:
    """Quantize then stack, or stack then quantize: the same model."""
    for method in case.quantization:
        one, other = ef.stack(case.quantized(method)), ef.quantize(case.stacked(), ef.QuantConfig(method))
        assert jax.tree.structure(one) == jax.tree.structure(other), f"{method}: the structures differ"
        same_trees(one, other, f"{method} and stack in either order")


@law()
def fresh_lora_changes_nothing(case: Case) -> None:
    """A new adapter answers zero, and leaves the weights under it as they were."""
    fresh = ef.apply_lora(case.model, case.lora, rank=4, key=case.key)
    assert ef.has_lora(fresh) and not ef.has_lora(case.model), "has_lora is wrong"
    same(case, case.answers(fresh), case.answers(case.model), "a fresh adapter against none")
    same_trees(ef.remove_lora(fresh), case.model, "an adapter put on and taken off")


@law()
def merged_lora_is_lora(case: Case) -> None:
    """Folding adapters into their weights changes the form of the model, and no answer."""
    adapted = case.adapted()
    merged = ef.merge_lora(adapted)
    assert not ef.has_lora(merged) and jax.tree.structure(merged) == jax.tree.structure(case.model)
    got, want, base = (case.answers(model) for model in (merged, adapted, case.model))
    assert any(np.any(want[name] != base[name]) for name in want), "the adapters change nothing"
    same(case, got, want, "merged against unmerged adapters", tolerance=1e-4)
    same_trees(ef.join_lora(*ef.split_lora(adapted)), adapted, "split and joined adapters")


@law()
def lora_rests_on_quantized(case: Case) -> None:
    """An adapter on a quantized weight is the quantized model plus the adapter: QLoRA is nesting."""
    quantized = case.quantized(case.quantization[-1])
    fresh = ef.apply_lora(quantized, case.lora, rank=4, key=case.key)
    same(case, case.answers(fresh), case.answers(quantized), "a fresh adapter on a quantized model", tolerance=1e-4)
    trains = ef.params(ef.split(fresh, ef.trainable(fresh))[0])
    assert trains and len(trains) == len(ef.params(ef.split_lora(fresh)[1])), "not just the adapters train"


@law()
def shard_changes_nothing(case: Case) -> None:
    """Over eight devices the model is the same function with the same gradients and tokens, really split, and comes back
    whole; with adapters on quantized weights too."""
    if (count := jax.device_count()) < 8:
        raise AssertionError(f"{count} devices: start pytest with -p easyfn.testing.plugin, which makes eight of a CPU")
    rules = case.rules or dataclasses.replace(ef.default_rules(case.model), indivisible="replicate")
    mesh = ef.make_mesh(**case.mesh)
    split, report = ef.shard(case.model, rules, mesh, report=True)
    spread = [p for p, v in ef.params(split).items() if v.addressable_shards[0].data.size < v.size]
    assert spread, f"every array is on every device whole. {report}"
    same_trees(ef.gather(split), case.model, "sharded and gathered")
    inputs = case.given()
    answers, slopes = answers_and_gradient(split, inputs)
    wanted, wanted_slopes = answers_and_gradient(case.model, inputs)
    same(case, answers, wanted, "eight devices against one", tolerance=1e-4)
    assert set(slopes) == set(wanted_slopes), "other arrays train on eight devices than on one"
    largest = max(np.abs(g).max(initial=0) for g in wanted_slopes.values())
    for path, want in wanted_slopes.items():  # a gradient may be zero by nature, and then is rounding
        off, limit = np.abs(slopes[path] - want).max(initial=0), 1e-4 * max(np.abs(want).max(initial=0), 1e-2 * largest)
        assert off <= limit, f"the gradient of {path} is off by {off:.3g} on eight devices"
    if "input_ids" in inputs and ef.can_generate(case.model):
        prompt = inputs["input_ids"][:, : case.half]
        got, want = (ef.generate(m, prompt, max_new_tokens=case.half).sequences for m in (split, case.model))
        assert np.array_equal(got, want), "eight devices generate other tokens than one"
    adapted = ef.apply_lora(case.quantized(case.quantization[-1]), case.lora, rank=4, key=case.key)
    adapted = shaken(adapted, case.key)
    split = ef.shard(adapted, rules, mesh)
    same(case, case.answers(split), case.answers(adapted), "adapters on a quantized model", tolerance=1e-3)
