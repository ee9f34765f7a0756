"""`flops`: the arithmetic of a forward pass, counted in the program that runs, not by a formula per architecture."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from ..core.kernels import plain_programs
from ..core.trainable import trainable
from ..core.tree import as_shapes
from ..forward.forward import check_runs, forward
from ..inputs.sample import sample_inputs
from ..tasks.loss import compute_loss


def flops(model: Any, batch_size: int, sequence_length: int, *, training: bool = False) -> int:
    """The floating point operations of one forward pass over `(batch_size, sequence_length)` tokens.

    Counted: every matrix product and convolution of the traced program, two operations per multiply-add, loops as often
    as they run, whatever the weights' format. Not counted: elementwise work, norms, softmax (a few per cent of a model
    of real size, which XLA's `cost_analysis` includes; that in turn counts a loop's body once). Half-masked attention
    counts whole, as it is computed. In a mixture of experts each token counts for the experts it chooses.

    `training`: the loss and its gradient for the trainable arrays, so that a LoRA costs less than a full step, and
    rematerialisation more. Works on abstract models: a 405B model is counted in a second.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.flops(model, 2, 8) == 2 * ef.flops(model, 1, 8)
    ```
    """
    check_runs(model)
    abstract = as_shapes(model)
    inputs = sample_inputs(model, batch_size, sequence_length)
    with plain_programs():  # the same count with and without kernels
        return _counted(abstract, inputs, training)


def _counted(abstract: Any, inputs: dict[str, Any], training: bool) -> int:
    if not training:
        return count(jax.make_jaxpr(lambda m, x: forward(m, **x))(abstract, inputs).jaxpr)
    params, frozen = eqx.partition(abstract, trainable(abstract))
    batch = {**inputs, "labels": inputs.get("decoder_input_ids", inputs.get("input_ids"))}
    batch.pop("decoder_input_ids", None)
    slope = jax.value_and_grad(lambda p, f, b: compute_loss(eqx.combine(p, f), b), has_aux=True)
    return count(jax.make_jaxpr(slope)(params, frozen, batch).jaxpr)


def flops_per_token(model: Any, sequence_length: int = 1024, *, training: bool = False) -> float:
    """`ef.flops(model, 1, sequence_length)` over its tokens: about twice the parameters in matrices, and attention.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.flops_per_token(model, 8) == ef.flops(model, 1, 8) / 8
    ```
    """
    return flops(model, 1, sequence_length, training=training) / sequence_length


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """The floating point operations of `function(*args)`, counted as [`easyfn.flops`][] does: of a training step of yours, say.

    A jitted function is traced once for this and for its call. Shapes do for arguments.

    ```python
    import jax.numpy as jnp, easyfn as ef
    assert ef.count_flops(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4))) == 2 * 2 * 3 * 4
    ```
    """
    traced = function.trace(*args) if hasattr(function, "trace") else jax.jit(function).trace(*args)
    return count(traced.jaxpr.jaxpr)


def matmul_peak(dtype: Any = jnp.float32) -> float:
    """Floating point operations per second of one device in a square matrix product, measured in a fraction of a second.

    The best of a few products that are long enough to be timed: what a training step can hope for, and the denominator
    of its utilisation (MFU), where no data sheet is at hand.

    ```python
    import easyfn as ef
    assert ef.matmul_peak() > 1e8
    ```
    """
    product = jax.jit(lambda a, b: a @ b)
    size, took = 256, 0.0
    while took < 5e-3 and size < 16384:
        size *= 2
        matrix = jnp.full((size, size), 0.5, dtype)
        product(matrix, matrix).block_until_ready()
        took = min(_seconds(product, matrix) for _ in range(3))
    return 2.0 * size**3 / took


def _seconds(product: Callable[..., Any], matrix: jax.Array) -> float:
    began = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    return time.perf_counter() - began


def count(jaxpr: Any) -> int:
    """The operations of all matrix products and convolutions in a jaxpr, those in inner ones included."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _COUNT:
            total += _COUNT[name](equation)
            continue
        inner = [count(j) for j in inner_jaxprs(equation)]
        if not any(inner):
            continue
        if name == "while":
            total += _while(equation, sum(inner))
            continue
        total += max(inner) if name == "cond" else sum(inner) * _repeats(equation)
    return total


def _while(equation: Any, turn: int) -> int:
    """A loop whose turns depend on numbers counts as often as its scope says, `jax.named_scope("turns=512/32")`."""
    said = re.findall(r"turns=(\d+)/(\d+)", str(equation.source_info.name_stack))
    if not said:
        raise ValueError(
            "flops: the model has matrix products in a while loop, whose number of turns is not known before it runs; "
            "write it as jax.lax.scan or a fori_loop with constant bounds"
        )
    over, under = map(int, said[-1])
    return turn * over // under


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _repeats(equation: Any) -> int:
    if equation.primitive.name == "scan":
        return int(equation.params["length"])
    if equation.primitive.name == "shard_map":
        return int(equation.params["mesh"].size)
    grid = getattr(equation.params.get("grid_mapping"), "grid", ())
    return math.prod(int(n) for n in grid)


def _dot_general(equation: Any) -> int:
    if jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.integer):
        return 0  # int8's way of a float product, counted in the branch that other platforms take
    left, _ = (v.aval.shape for v in equation.invars[:2])
    contracted, _ = equation.params["dimension_numbers"][0]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _ragged_dot(equation: Any) -> int:
    # Each row meets the weight of one group, so the groups' sizes do not matter. (If they divide the contracted
    # dimension instead, as in the gradient of the weight, each row still makes one outer product.)
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    left, right = (v.aval.shape for v in equation.invars[:2])
    used = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(left) * math.prod(n for i, n in enumerate(right) if i not in used)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // out_features)


_COUNT = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
