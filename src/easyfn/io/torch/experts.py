"""Mixtures of experts of transformers in a form that `torch.export` can follow: how many rows an expert gets depends on values.

While a module is exported, rows are sorted by expert and multiplied by one operator, `easyfn::grouped_linear`, which a program
runs as [`easyfn.ragged_dot`][]: weights stay where they are, whatever the number of tokens, and may be quantized or adapted.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

from .delta import define as define_delta_rule
from .recurrent import define as define_recurrent
from .values import define as define_places

_library: list[Any] = []


def operators(torch: Any) -> Any:
    """`torch.ops.easyfn` with its operators defined.

    `grouped_linear(x, weight, ends)`: rows `x` `(rows, in)` sorted by expert times `weight` `(experts, out, in)`; those of
    expert `e` end before `ends[e]`. `stop_gradient(x)`: where gradients stop, for which core ATen has nothing.
    """
    if not _library:
        library = torch.library.Library("easyfn", "FRAGMENT")
        library.define("stop_gradient(Tensor x) -> Tensor")
        library.impl("stop_gradient", lambda x: x.clone(), "CompositeExplicitAutograd")
        library.define("grouped_linear(Tensor x, Tensor weight, Tensor ends) -> Tensor")
        library.impl("grouped_linear", lambda x, w, ends: x.new_empty(x.shape[0], w.shape[1]), "Meta")
        library.impl("grouped_linear", one_by_one, "CPU")
        define_delta_rule(library)
        define_places(library)
        define_recurrent(library)
        _library.append(library)
    return torch.ops.easyfn


def one_by_one(x: Any, weight: Any, ends: Any) -> Any:
    """`grouped_linear` of numbers: what an export that needs the example's runs."""
    out, first = x.new_zeros(x.shape[0], weight.shape[1]), 0
    for expert, end in enumerate(ends.tolist()):
        out[first:end] = x[first:end] @ weight[expert].T
        first = end
    return out


@contextlib.contextmanager
def followed(torch: Any, module: Any) -> Iterator[str]:
    """The experts of a module replaced for the time of an export; gives transformers' name of an implementation that can be
    followed."""
    grouped = operators(torch).grouped_linear
    changed = [m for m in module.modules() if _known(m)]
    for part in changed:
        part.forward = types.MethodType(FORWARD[type(part).__name__], part)
    moe: Any = None
    with contextlib.suppress(ImportError):  # older than its choice of experts
        from transformers.integrations import moe as known

        moe = known
    before = getattr(moe, "_grouped_linear", None)

    def linear(input: Any, weight: Any, offs: Any, bias: Any = None, is_transposed: bool = False) -> Any:
        out = grouped(input.to(weight.dtype), weight.transpose(-2, -1) if is_transposed else weight, offs)
        return out if bias is None else out + bias

    if before is not None:
        moe._grouped_linear = linear
    try:
        yield "grouped_mm" if before is not None else "batched_mm"
    finally:
        if before is not None:
            moe._grouped_linear = before
        for part in changed:
            del part.forward


def _known(part: Any) -> bool:
    return type(part).__module__.startswith("transformers.") and type(part).__name__ in FORWARD


def _sorted(torch: Any, chosen: Any, experts: int) -> tuple[Any, Any, Any]:
    """The pairs of token and expert in the order of experts, their experts, and where the rows of each expert end."""
    ids, order = torch.sort(chosen.reshape(-1), stable=True)
    ends = (ids[None, :] <= torch.arange(experts)[:, None]).sum(1)
    return order, ids, ends


def _added(torch: Any, y: Any, order: Any, weights: Any) -> Any:
    """The answers `y` in sorted order, weighted and added up for each token. `weights`: `(tokens, k)`."""
    back = torch.argsort(order)
    return (y[back].reshape(*weights.shape, -1) * weights[..., None]).sum(1)


def _dbrx(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    import torch

    grouped = operators(torch).grouped_linear
    x = hidden_states.reshape(-1, self.hidden_size)
    order, _, ends = _sorted(torch, top_k_index, self.num_experts)
    rows = x[order // top_k_index.shape[-1]]
    each = lambda w: w.view(self.num_experts, self.ffn_hidden_size, self.hidden_size)
    mlp = self.mlp
    inner = mlp.activation_fn(grouped(rows, each(mlp.w1), ends)) * grouped(rows, each(mlp.v1), ends)
    y = grouped(inner, each(mlp.w2).transpose(1, 2), ends)
    return _added(torch, y, order, top_k_weights).view(hidden_states.shape[0], -1, self.hidden_size)


def _longcat(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """Those of the chosen that come after the routed experts give back what they get."""
    import torch

    grouped, experts = operators(torch).grouped_linear, self.num_routed_experts
    order, ids, ends = _sorted(torch, top_k_index, experts)
    rows = hidden_states[order // top_k_index.shape[-1]]
    y = rows
    if self.gate_up_proj is not None:
        gate, up = grouped(rows, self.gate_up_proj[:experts], ends).chunk(2, dim=-1)
        y = torch.where(ids[:, None] < experts, grouped(self.act_fn(gate) * up, self.down_proj, ends), rows)
    return _added(torch, y, order, top_k_weights).to(hidden_states.dtype)


def _all(self: Any, hidden_states: Any, weights: Any) -> Any:
    """Experts that are modules of their own, each with every row: those of an expert that was not chosen have the weight 0.
    `weights`: `(rows, experts)`."""
    each = (self[f"expert_{n}"](hidden_states) * weights[:, n, None] for n in range(self.num_experts))
    return sum(each).to(hidden_states.dtype)


def _switch(self: Any, hidden_states: Any, selected_experts: Any, routing_weights: Any) -> Any:
    return _all(self, hidden_states, (selected_experts * routing_weights[..., None]).sum(1))


def _nllb(self: Any, hidden_states: Any, router_mask: Any, router_probs: Any) -> Any:
    import torch

    chosen = torch.nn.functional.one_hot(router_mask, num_classes=self.num_experts)
    kept = 1 - max(self.moe_token_dropout, 0)
    return _all(self, hidden_states, (chosen * router_probs[..., None]).sum(1) * kept)


def _sizes(self: Any, hidden_states: Any) -> Any:
    """A gate that counts the rows of each expert in an array, where transformers takes them out as numbers."""
    import torch

    logits = self.layer(hidden_states).float()
    top, chosen = logits.topk(self.top_k, dim=1)
    gates = torch.softmax(top, dim=1).type_as(hidden_states)
    order, _, ends = _sorted(torch, chosen, self.num_experts)
    return order, order // self.top_k, gates.flatten()[order], ends, logits


def _rows(self: Any, inputs: Any, expert_size: Any) -> Any:
    import torch

    return operators(torch).grouped_linear(inputs, self.weight, expert_size)


FORWARD: dict[str, Callable[..., Any]] = {
    "DbrxExperts": _dbrx,
    "LongcatFlashExperts": _longcat,
    "NllbMoeExperts": _nllb,
    "SwitchTransformersExperts": _switch,
    "JetMoeTopKGating": _sizes,
    "JetMoeParallelExperts": _rows,
}
