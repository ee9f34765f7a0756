"""`pipeline` and `unpipeline`: a stacked run of layers in stages, and back. A transform, not an architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.habits import no_path
from ..core.stack import stack
from ..core.tree import Pipelined, Stacked, is_leaf, rebuild


def pipeline(model: Any, stages: int, *, microbatches: int, rounds: int = 1, axis: str = "pp") -> Any:
    """`model` with its runs of alike layers cut into `stages`, which a mesh holds along `axis`: pipeline parallelism.

    **Arguments**

    - `stages`: the size of the mesh's `pp`. The layers are stacked first, if they are not.
    - `microbatches`: how many parts a batch passes the stages in. Every batch must divide by it; with a cache, the largest
      number that divides both is taken.
    - `rounds`: 1 is GPipe's schedule (arXiv 1811.06965): each stage holds one piece of the run. With more, each holds
      that many smaller pieces, every stages-th, and a microbatch goes round that often: the interleaved, or circular,
      schedule (arXiv 2104.04473), which idles less and sends more often.

    A pass takes `microbatches * rounds + stages - 1` steps (`microbatches` a multiple of `stages`), of which a stage
    idles `stages - 1`. Then `ef.shard(model, rules, mesh)` puts every stage's layers on its devices. The same numbers,
    names, files, adapters and formats as before; without a mesh, or with `pp=1`, the layers run as a stacked run does.
    Outside of the stages `pp` splits the rows, as `dp` does. Masks of dropout are drawn per microbatch.

    Runs that do not divide into `stages * rounds` stay outside (Gemma's last few layers); if none does, a `ValueError`
    says what would. [`easyfn.unpipeline`][] is the inverse, [`easyfn.unstack`][] goes back to single layers.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny(num_hidden_layers=4)
    ids = jnp.ones((4, 6), int)
    logits = ef.forward(model, ids).logits
    if jax.device_count() % 2 == 0:
        model = ef.shard(ef.pipeline(model, 2, microbatches=2), mesh=ef.make_mesh(pp=2))
    assert jnp.allclose(ef.forward(model, ids).logits, logits, atol=1e-5)
    ```
    """
    for name, value in (("stages", stages), ("microbatches", microbatches), ("rounds", rounds)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"pipeline: {name} is a positive number, not {value!r}")
    found: list[Stacked] = []
    cut: list[Stacked] = []

    def go(node: Any) -> Any:
        if isinstance(node, Stacked):
            found.append(node)
            if node.repeats % (stages * rounds):
                return node
            cut.append(node)
            return Pipelined(_cut(node, rounds), stages, microbatches, axis)
        return rebuild(node, lambda _, child: go(child))

    result = go(stack(unpipeline(model)))
    if cut:
        return result
    runs = "; ".join(f"layers {n[0]} to {n[1]} are {n[2]} repeats of {n[3]}" for n in map(_facts, found))
    longest = max((run.repeats for run in found), default=1)
    able = [str(n) for n in range(2, longest + 1) if longest % n == 0]
    raise ValueError(
        f"pipeline: no run of alike layers divides into {stages} stages x {rounds} rounds. This model has "
        + (f"{runs}: stages x rounds may be {', '.join(able[:8])}" if found else "no run of alike layers")
    )


def unpipeline(model: Any) -> Any:
    """The inverse of [`easyfn.pipeline`][]: stacked runs as [`easyfn.stack`][] makes them.

    ```python
    import jax, easyfn as ef
    model = ef.stack(ef.testing.tiny(num_hidden_layers=4))
    back = ef.unpipeline(ef.pipeline(model, 2, microbatches=4, rounds=2))
    assert jax.tree.structure(back) == jax.tree.structure(model)
    ```
    """
    no_path(model)
    return _joined(model)


def _joined(model: Any) -> Any:
    if is_leaf(model):
        return model
    if isinstance(model, Pipelined):
        first, repeats = model.rounds[0], sum(run.repeats for run in model.rounds)
        blocks = [run.blocks for run in model.rounds]
        return first if len(blocks) == 1 else Stacked(jax.tree.map(_join, *blocks), first.start, repeats)
    return rebuild(model, lambda _, child: _joined(child))


def _facts(run: Stacked) -> tuple[int, int, int, int]:
    return run.start, run.start + run.num_layers - 1, run.repeats, len(run.blocks)


def _cut(run: Stacked, rounds: int) -> Sequence[Stacked]:
    if rounds == 1:
        return [run]
    size, period = run.repeats // rounds, len(run.blocks)

    def part(n: int) -> Stacked:
        def one(leaf: Any) -> Any:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)
            return leaf[n * size : (n + 1) * size]

        return Stacked(jax.tree.map(one, run.blocks), run.start + n * size * period, size)

    return [part(n) for n in range(rounds)]


def _join(*leaves: Any) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        first = leaves[0]
        rows = sum(leaf.shape[0] for leaf in leaves)
        return jax.ShapeDtypeStruct((rows, *first.shape[1:]), first.dtype, sharding=first.sharding)
    return jnp.concatenate(leaves)
