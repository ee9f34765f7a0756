"""The recurrent layers of torch as one operator: `torch.export` follows them step by step, and so fixes how many there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

KINDS = {"lstm": "Tensor[] states", "gru": "Tensor state", "rnn_tanh": "Tensor state", "rnn_relu": "Tensor state"}
OPTIONS = "bool biased, int layers, float dropout, bool train, bool both_ways, bool batch_first"


def define(library: Any) -> None:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu` with the arguments of torch's own, and their results."""
    for kind, states in KINDS.items():
        results = "(Tensor, Tensor, Tensor)" if kind == "lstm" else "(Tensor, Tensor)"
        library.define(f"{kind}(Tensor x, {states}, Tensor[] weights, {OPTIONS}) -> {results}")
        library.impl(kind, _shapes, "Meta")
        library.impl(kind, _theirs(kind), "CPU")


def _theirs(kind: str) -> Any:
    import torch

    return getattr(torch._C._VariableFunctions, kind)


def _shapes(x: Any, states: Any, weights: Any, *options: Any) -> Any:
    states = states if isinstance(states, (list, tuple)) else [states]
    wide = states[0].shape[-1] * (2 if options[4] else 1)
    return x.new_empty(*x.shape[:2], wide), *(state.new_empty(state.shape) for state in states)


@contextlib.contextmanager
def at_any_length(torch: Any, own: Any) -> Iterator[None]:
    """For the time of an export, what `nn.LSTM` and its kin call is one of `own` operators. Packed rows are left to torch."""

    def layer(kind: str) -> Any:
        theirs, ours = _theirs(kind), getattr(own, kind)
        packed = lambda args: isinstance(args[3], (list, tuple))  # the numbers of rows in each step come second
        return lambda *args: theirs(*args) if packed(args) else ours(*args)

    try:
        for kind in KINDS:
            setattr(torch._VF, kind, layer(kind))
        yield
    finally:
        for kind in KINDS:
            delattr(torch._VF, kind)
