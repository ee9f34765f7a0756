"""Routers: which experts a token goes to, and how much the answer of each counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.verb import verb
from ...core.weight import HALF, Slot, Weight, affine, shape_of, slots
from ..context import Runtime
from ..linear import along_last, declare
from ..parallel.experts import by_token

SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softmax": functools.partial(jax.nn.softmax, axis=-1),
    "sigmoid": jax.nn.sigmoid,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
}


def route(
    logits: jax.Array,
    k: int,
    *,
    normalize: bool = True,
    correction: jax.Array | None = None,
    score: str = "softmax",
    groups: int = 1,
    topk_groups: int = 1,
    best: int = 2,
    scale: float = 1.0,
    floor: float = 1e-20,
) -> tuple[jax.Array, jax.Array]:
    """The `k` best experts of each token by `score`, computed in float32.

    `logits`: `(..., experts)`. Returns the weights `(..., k)` in float32 and the chosen experts `(..., k)`.

    - `correction`, `(experts,)` or `(1, experts)`, is added to the scores for the choice only, not to the weights: how
      DeepSeek-V3 keeps the load even without a loss (arXiv 2412.19437, equation 16).
    - With `groups`, only experts of the `topk_groups` best groups are chosen; a group is as good as the sum of its `best`
      best experts (DeepSeek-V2, arXiv 2405.04434, section 2.1.2, has `best=1`; V3 has 2).
    - `normalize`: the weights add up to 1 (their sum is taken to be at least `floor`). Then they are multiplied by `scale`.

    Softmax over the logits of the chosen experts only (gpt-oss, Granite) is softmax over all of them, normalized.

    ```python
    import jax.numpy as jnp, easyfn as ef
    weights, chosen = ef.nn.route(jnp.array([[0.0, 2.0, 1.0, 2.0]]), 2)
    assert chosen.tolist() == [[1, 3]] and jnp.allclose(weights, 0.5)
    ```
    """
    scores = SCORES[score](logits.astype(jnp.float32))
    choice = scores if correction is None else scores + along_last(correction.reshape(-1).astype(jnp.float32), scores)
    if groups > 1:
        choice = _best_groups(choice, groups, topk_groups, best)
    weights, chosen = jax.lax.top_k(choice, k)
    if choice is not scores:
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if normalize:
        weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), floor)
    return (weights if scale == 1.0 else weights * scale), chosen


def _best_groups(scores: jax.Array, groups: int, topk_groups: int, best: int) -> jax.Array:
    """`scores` with minus infinity for experts outside of the best groups."""
    grouped = scores.reshape(*scores.shape[:-1], groups, -1)
    rank = jnp.sum(jax.lax.top_k(grouped, best)[0], axis=-1)
    chosen = jax.lax.top_k(rank, topk_groups)[1]
    kept = jnp.any(jax.nn.one_hot(chosen, groups, dtype=bool), axis=-2)
    return jnp.where(kept[..., None], grouped, -jnp.inf).reshape(scores.shape)


class Routing(NamedTuple):
    """What a router says of tokens `(..., embed)`."""

    logits: Any  # [..., experts]; None of a router that does not choose by them
    weights: jax.Array  # [..., k], float32
    chosen: jax.Array  # [..., k]


class Router(eqx.Module):
    """A score for every expert, `weight` `(experts, embed)` and maybe a `bias`, and the choice that [`route`] makes of them.

    `correction`: with an `e_score_correction_bias`, `(experts,)` or of the shape given, a buffer: it is loaded, saved and
    moved, and no training step, quantization or adapter changes it. `float32`: the logits are computed in float32 whatever
    the model's dtype. `wide` names the parts that stay in float32 themselves, by default all that there are of a router that
    computes in it and none of another. `softcap` bounds the logits: `softcap * tanh(logits / softcap)`, in float32.

    ```python
    import jax, easyfn as ef
    router = ef.init(ef.nn.Router(32, 8, 2, score="sigmoid", correction=True), key=jax.random.key(0))
    routing = router(jax.numpy.ones((3, 32)))
    assert routing.logits.shape == (3, 8) and routing.chosen.shape == (3, 2)
    assert not ef.trainable(router).e_score_correction_bias
    ```
    """

    weight: Weight
    bias: Weight | None
    e_score_correction_bias: Weight | None
    k: int = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    score: str = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    topk_groups: int = eqx.field(static=True)
    best: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    floor: float = eqx.field(static=True)
    float32: bool = eqx.field(static=True)
    wide: tuple[str, ...] = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        k: int | None,
        *,
        bias: bool = False,
        correction: bool | tuple[int, ...] = False,
        normalize: bool = True,
        score: str = "softmax",
        groups: int | None = None,
        topk_groups: int | None = None,
        best: int = 2,
        scale: float = 1.0,
        floor: float = 1e-20,
        float32: bool = False,
        wide: tuple[str, ...] | None = None,
        softcap: float | None = None,
    ) -> None:
        groups = groups or 1
        topk_groups = topk_groups or groups
        if k is None:
            raise ValueError(f"num_experts_per_tok is null: say to how many of {num_experts} experts each token goes")
        if not 0 < k <= num_experts:
            raise ValueError(f"each token goes to {k} experts, and there are {num_experts}")
        if score not in SCORES:
            raise ValueError(f"a router has no scores {score!r}; known: {', '.join(SCORES)}")
        if num_experts % groups or topk_groups > groups:
            raise ValueError(f"{num_experts} experts in {groups} groups, of which {topk_groups} are chosen: impossible")
        if groups > 1 and k > topk_groups * (num_experts // groups):
            raise ValueError(f"each token goes to {k} experts, and {topk_groups} of {groups} groups have fewer")
        if groups > 1 and best > num_experts // groups:
            raise ValueError(f"a group of {num_experts // groups} experts has no best {best}")
        self.weight = declare(num_experts, hidden_size)
        self.bias = declare(num_experts) if bias else None
        shape = correction if isinstance(correction, tuple) else (num_experts,)
        self.e_score_correction_bias = declare(*shape) if correction else None
        self.k = k
        self.normalize = normalize
        self.score = score
        self.groups = groups
        self.topk_groups = topk_groups
        self.best = best
        self.scale = scale
        self.floor = floor
        self.float32 = float32
        self.wide = (("weight", "e_score_correction_bias") if float32 else ()) if wide is None else wide
        self.softcap = softcap

    def __call__(self, x: jax.Array, runtime: Runtime = Runtime()) -> Routing:
        logits = affine(self.weight, x.astype(jnp.float32) if self.float32 else x, self.bias)
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits.astype(jnp.float32) / self.softcap)

        def choose(logits: jax.Array, correction: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            return route(
                logits,
                self.k,
                normalize=self.normalize,
                correction=correction,
                score=self.score,
                groups=self.groups,
                topk_groups=self.topk_groups,
                best=self.best,
                scale=self.scale,
                floor=self.floor,
            )

        return Routing(logits, *by_token(choose, logits, runtime, self.e_score_correction_bias))


@slots.register(Router)
def _(router: Router) -> dict[str, Slot]:
    rank = 1 if router.e_score_correction_bias is None else len(shape_of(router.e_score_correction_bias))
    wide = lambda name: HALF if name in router.wide else ()
    return {
        "weight": Slot("router", (None, "embed"), float32=wide("weight")),
        "bias": Slot("bias", (None,), "zeros", wide("bias")),
        "e_score_correction_bias": Slot("buffer", (None,) * rank, "zeros", wide("e_score_correction_bias")),
    }


@verb(example="@ef.nn.experts_per_token.register({type})\ndef _(router): return router.k")
def experts_per_token(node: Any) -> int | None:
    """How many experts a router chooses for each token; `None` for whatever is no router.

    The load balancing loss of [`easyfn.compute_loss`][] asks the routers of a model.

    ```python
    import easyfn as ef
    assert ef.nn.experts_per_token(ef.nn.Router(32, 8, 2)) == 2
    ```
    """
    return None


@experts_per_token.register(Router)
def _(router: Router) -> int:
    return router.k
