"""The gated delta rule of transformers in a form that `torch.export` follows at once and at any length.

Its chunks are a loop over 64 rows that write into an array, and over as many chunks as there are: thousands of operators, for
one length. While a module is exported, the rule is one operator, `easyfn::delta_rule`, which a program runs as the families do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

# What the rule is called in transformers' files: with a decay for each head, and for each channel of a key.
NAMES = ("torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention")


def define(library: Any) -> None:
    """`delta_rule(q, k, v, g, beta)`: `q`, `k` `(batch, seq, heads, key_dim)`; `v` `(batch, seq, heads, value_dim)`; `g` as
    `beta`, `(batch, seq, heads)`, or as `k`. All float32; the answers have the shape of `v`."""
    library.define("delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta) -> Tensor")
    library.impl("delta_rule", lambda q, k, v, g, beta: v.new_empty(v.shape), "Meta")
    library.impl("delta_rule", token_by_token, "CPU")


def token_by_token(q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
    """The rule as it is written: what an export that needs the example's numbers runs."""
    import torch

    state, out = q.new_zeros(q.shape[0], *k.shape[2:], v.shape[-1]), []
    for i in range(q.shape[1]):
        decay = g[:, i] if g.ndim == 4 else g[:, i, :, None]
        state = state * decay.exp()[..., None]
        told = torch.einsum("bhkv,bhk->bhv", state, k[:, i])
        state = state + k[:, i][..., None] * ((v[:, i] - told) * beta[:, i][..., None])[:, :, None]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]))
    return torch.stack(out, 1) if out else torch.zeros_like(v)


@contextlib.contextmanager
def one_operator(torch: Any, module: Any) -> Iterator[None]:
    """The rule as one operator in the files that the parts of a module come from, for the time of an export."""
    files = {type(part).__module__ for part in module.modules()}
    places = [sys.modules[f] for f in sorted(files) if f.startswith("transformers.") and f in sys.modules]
    before = [(place, name, getattr(place, name)) for place in places for name in NAMES if hasattr(place, name)]
    try:
        for place, name, theirs in before:
            setattr(place, name, _rule(torch, theirs))
        yield
    finally:
        for place, name, theirs in before:
            setattr(place, name, theirs)


def _rule(torch: Any, theirs: Any) -> Any:
    def rule(
        query: Any, key: Any, value: Any, g: Any, beta: Any, chunk_size: int = 64, initial_state: Any = None,
        output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        if initial_state is not None or output_final_state:  # a cache, which no program has
            return theirs(
                query, key, value, g=g, beta=beta, chunk_size=chunk_size, initial_state=initial_state,
                output_final_state=output_final_state, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **kwargs,
            )  # fmt: skip
        dtype = query.dtype
        query, key, value, g, beta = (x.float() for x in (query, key, value, g, beta))
        if use_qk_l2norm_in_kernel:
            query, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (query, key))
        group = value.shape[2] // key.shape[2]
        if group > 1:  # each head of the keys serves several of the values
            query, key = (x.repeat_interleave(group, dim=2) for x in (query, key))
        query = query * query.shape[-1] ** -0.5
        return torch.ops.easyfn.delta_rule(query, key, value, g, beta).to(dtype), None

    return rule
