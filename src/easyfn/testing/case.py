"""`Case`: a model, its inputs, and what the laws may assume of it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

ROWS = 2  # every law uses as many, and the length of its case or half of it, so that compilations are shared
ANSWERS = (
    *("logits", "last_hidden_state", "start_logits", "end_logits", "pooler_output", "embeddings"),
    *("text_embeds", "image_embeds", "logits_per_image"),
)
PER_TOKEN = ("last_hidden_state", "start_logits", "end_logits")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One model to hold the laws against.

    **Arguments**

    - `make`: from a PRNG key to a model of a few layers. Left out, the model is `ef.from_torch(torch())`.
    - `torch`: from nothing to a transformers model of the same architecture, in eval mode: for the laws about torch.
    - `name`: how the case is called in test ids; by default the config's `model_type`.
    - `inputs`: what `ef.forward` gets beside what [`easyfn.sample_inputs`][] draws for 2 rows of `length` tokens (and an
      `attention_mask`, where there are tokens): arrays with 2 rows. An input named here replaces the random one.
    - `length`: how many tokens a row has, or samples where a model reads sound: an even number, by default 8.
    - `causal`: whether a token sees only tokens before it, as in a language model; `tokens` names the input of which
      this holds (`decoder_input_ids` for an encoder-decoder).
    - `tolerance`: how far numbers that should be equal may lie apart in float32, relative to the largest of them.
    - `quantization`: the methods that `ef.quantize` must know; `lora` is the pattern that adapters go to.
    - `rules`, `mesh`: for `ef.shard`; by default the model's own rules, on two devices each of `dp`, `fsdp` and `tp`.
    - `expected_failures`: law name -> the reason why this model does not keep it. Strict: a law that is kept after all
      is a failure.

    ```python
    import easyfn as ef
    from easyfn.testing import Case, laws

    config = ef.testing.tiny().config
    case = Case(make=lambda key: ef.init(config, key=key))
    laws.future_does_not_leak(case)
    ```
    """

    make: Callable[[jax.Array], Any] | None = None
    torch: Callable[[], Any] | None = None
    name: str = ""
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    causal: bool = True
    tokens: str = "input_ids"
    length: int = 8
    tolerance: float = 2e-5
    quantization: tuple[str, ...] = ("8bit", "nf4")
    lora: Any = "all-linear"
    rules: Any = None
    mesh: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"dp": 2, "fsdp": 2, "tp": 2})
    expected_failures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.make is None and self.torch is None:
            raise ValueError("Case: give make (a function from a PRNG key to a model), torch, or both")

    @property
    def half(self) -> int:
        return self.length // 2

    @property
    def label(self) -> str:
        """The name in test ids."""
        return self.name or getattr(self.model.config, "model_type", type(self.model).__name__)

    @property
    def key(self) -> jax.Array:
        """The seed of the session (`--easyfn-seed`)."""
        return jax.random.key(int(os.environ.get("EASYFN_SEED", "0")))

    @property
    def model(self) -> Any:
        """The model, made once."""
        return _model(self)

    @property
    def module(self) -> Any:
        """The transformers model, made once. Laws do not change it."""
        return _module(self)

    def stacked(self) -> Any:
        return _transformed(self, "stack")

    def quantized(self, method: str) -> Any:
        return _transformed(self, method)

    def adapted(self) -> Any:
        """The model with adapters that are not neutral."""
        return _transformed(self, "lora")

    def given(self) -> dict[str, Any]:
        """All inputs of a forward pass, `attention_mask` of ones included."""
        drawn = ef.sample_inputs(self.model, ROWS, self.length, key=jax.random.key(7))
        if "inputs_embeds" in self.inputs:
            drawn.pop("input_ids", None)
        given, stated = {**drawn, **self.inputs}, ef.inputs(self.model)
        if stated.sequence:
            first = next(given[name] for name in stated.main if name in given)
            given = {"attention_mask": np.ones(first.shape[:2], np.int32), **given}
        return {name: jnp.asarray(value) for name, value in given.items()}

    def moved(self, columns: slice, to: slice, length: int) -> dict[str, Any]:
        """The inputs with some of their columns moved to another place of a row of `length`; the rest is masked junk."""
        inputs = {}
        for name, value in self.given().items():
            if name.startswith("decoder_") or value.shape[:2] != (ROWS, self.length):
                inputs[name] = value
                continue
            junk = jnp.zeros_like if name == "attention_mask" else lambda v: v[:, ::-1]
            inputs[name] = junk(value)[:, :length].at[:, to].set(value[:, columns])
        return inputs

    def run(self, model: Any, inputs: Mapping[str, Any], cache: Any = None) -> tuple[dict[str, np.ndarray], Any]:
        """The answers of a model, and its cache: compiled once per kind of model and shape of inputs."""
        out, cache = run(model, dict(inputs), cache)
        return {name: np.asarray(value, np.float32) for name, value in out.items()}, cache

    def answers(self, model: Any, **changed: Any) -> dict[str, np.ndarray]:
        """The answers to the inputs of the case, some of them changed."""
        return self.run(model, {**self.given(), **changed})[0]


@eqx.filter_jit
def run(model: Any, inputs: dict[str, Any], cache: Any = None) -> tuple[dict[str, jax.Array], Any]:
    return forward(model, inputs, cache)


def forward(model: Any, inputs: Mapping[str, Any], cache: Any = None) -> tuple[dict[str, jax.Array], Any]:
    """The outputs that answer something, by name."""
    out = ef.forward(model, cache=cache, **inputs)
    return {name: value for name in ANSWERS if (value := getattr(out, name)) is not None}, out.cache


def per_token(answers: Mapping[str, Any]) -> dict[str, Any]:
    """The answers that speak of single tokens."""
    return {k: v for k, v in answers.items() if k in PER_TOKEN or (k == "logits" and v.ndim == 3)}


def same(case: Case, got: Mapping[str, Any], want: Mapping[str, Any], why: str, tolerance: float = 0.0) -> None:
    """Asserts that two sets of answers are equal up to rounding."""
    assert got and set(got) == set(want), f"{why}: the outputs are {sorted(got)}, expected {sorted(want)}"
    for name in got:
        a, b = np.asarray(got[name], np.float32), np.asarray(want[name], np.float32)
        assert a.shape == b.shape, f"{why}: {name} has shape {a.shape}, expected {b.shape}"
        assert np.all(np.isfinite(a)), f"{why}: {name} is not finite"
        off, scale = np.abs(a - b).max(initial=0), np.abs(b).max(initial=1e-6)
        limit = max(tolerance, case.tolerance) * scale
        assert off <= limit, f"{why}: {name} differs by {off:.3g} where at most {limit:.3g} is rounding"


def same_trees(got: Any, want: Any, why: str) -> None:
    """Asserts that two models are equal: the same arrays, bit by bit, in the same places."""
    ours, theirs = ef.params(got), ef.params(want)
    assert list(ours) == list(theirs), f"{why}: the paths differ: {sorted(set(ours) ^ set(theirs))[:4]}"
    for path, value in ours.items():
        other = theirs[path]
        assert value.dtype == other.dtype, f"{why}: {path} is {value.dtype}, expected {other.dtype}"
        assert np.array_equal(np.asarray(value), np.asarray(other)), f"{why}: {path} differs"


def shaken(model: Any, key: jax.Array, scale: float = 0.05) -> Any:
    """The model with noise on everything that trains."""
    train, frozen = eqx.partition(model, ef.trainable(model))
    leaves, treedef = jax.tree.flatten(train)
    keys = jax.random.split(key, len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return eqx.combine(treedef.unflatten(moved), frozen)


@functools.cache
def _model(case: Case) -> Any:
    return case.make(case.key) if case.make is not None else ef.from_torch(case.module)


@functools.cache
def _module(case: Case) -> Any:
    if case.torch is None:
        raise ValueError("this law needs Case(torch=...)")
    return case.torch()


@functools.cache
def _transformed(case: Case, how: str) -> Any:
    if how == "stack":
        return ef.stack(case.model)
    if how == "lora":
        return shaken(ef.apply_lora(case.model, case.lora, rank=4, key=case.key), case.key)
    return ef.quantize(case.model, ef.QuantConfig(how))
