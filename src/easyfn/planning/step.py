"""The step that is planned: the model, the state and the batch that it takes, all without a number in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ..core.stack import stack
from ..core.tree import near
from ..core.verb import verb
from ..generation.model import decode_step, encodes, prefill
from ..inputs.sample import sample_inputs
from ..io.configs import abstract
from ..lora import apply_lora
from ..nn.context import MANY_SCORES, Runtime
from ..quant import QuantConfig, quantize
from ..sharding import ShardingRules, shard, shard_batch
from ..tasks.cross_entropy import LossConfig
from ..tasks.task import facts, task
from ..train.step import to_state, train_step

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "adam": optax.adam,
    "sgd": optax.sgd,
    "lion": optax.lion,
    "adafactor": optax.adafactor,
}


class Job(NamedTuple):
    """What is to run, in words that JSON can hold: how another process is told of it."""

    config: Any  # what `ef.abstract` takes
    batch: int
    sequence_length: int
    task: str | None = None
    dtype: str | None = None
    rules: Any = None
    optimizer: Any = "adamw"
    remat: str | None = "full"
    lora: Mapping[str, Any] | None = None
    quantize: Mapping[str, Any] | None = None
    accumulate: int = 1
    compute_dtype: str | None = None
    loss: Mapping[str, Any] = {}
    generate: int | None = None


class Step(NamedTuple):
    """A function to compile, its arguments, and which of them it may overwrite."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...]


@verb(example='@ef.planning.sample_batch.register({type})\ndef _(model, rows, length): return {{"input_ids": ...}}')
def sample_batch(model: Any, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `rows` examples of `length` tokens that `ef.compute_loss` takes: inputs and labels.

    By default what [`easyfn.sample_inputs`][] answers, and labels by the model's task. The base of a model has no loss.

    ```python
    import easyfn as ef
    config = ef.testing.tiny().config
    batch = ef.planning.sample_batch(ef.abstract(config, task="sequence-classification"), 2, 8)
    assert batch["labels"].shape == (2,)
    ```
    """
    kind = task(model)
    inputs = sample_inputs(model, rows, length)
    if kind in ("base", "encoder"):
        raise ValueError(f"plan: a model of task {kind!r} has no loss; name a head with task=, as ef.load does")
    inputs.pop("decoder_input_ids", None)  # made of the labels
    shapes = {"row": (rows,), "token": (rows, length)}
    return {
        **inputs,
        **{key: jax.ShapeDtypeStruct(shapes[per], jnp.int32) for key, per in facts(kind).labels.items()},
    }


def model_of(job: Job, mesh: Mesh | None) -> Any:
    """The abstract model of a job, its layers stacked, quantized and adapted as the job says, on the mesh."""
    model = stack(abstract(job.config, dtype=job.dtype, task=job.task))
    if job.quantize is not None:
        model = quantize(model, QuantConfig(**job.quantize))
    if job.lora is not None:
        model = apply_lora(model, key=jax.random.key(0), **job.lora)
    return model if mesh is None else shard(model, rules_of(job.rules), mesh)


def rules_of(said: Any) -> Any:
    if not isinstance(said, Mapping):
        return said
    paths = {
        pattern: jax.P(*(tuple(a) if isinstance(a, list) else a for a in spec))
        for pattern, spec in said["paths"].items()
    }
    axes = {name: tuple(a) if isinstance(a, list) else a for name, a in said["axes"].items()}
    return ShardingRules(axes, paths, said["indivisible"])


def optimizer_of(name: Any) -> Any:
    if not isinstance(name, str):
        return name
    if name not in OPTIMIZERS:
        raise ValueError(f"plan: no optimizer {name!r}. {near(name, OPTIMIZERS)} Names: {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[name](1e-4)


def training(job: Job, mesh: Mesh | None) -> Step:
    """One `ef.train_step` of the job."""
    model = model_of(job, mesh)
    batch = sample_batch(model, job.batch, job.sequence_length)
    state = to_state(model, optimizer_of(job.optimizer))
    step = functools.partial(
        train_step,
        loss=LossConfig(**job.loss),
        accumulate=job.accumulate,
        compute_dtype=job.compute_dtype,
        runtime=Runtime(remat=job.remat, attention_chunk=MANY_SCORES),
    )
    return Step(step, (state, batch if mesh is None else shard_batch(batch, mesh)), (0,))


def prompt(job: Job, mesh: Mesh | None) -> Step:
    """The pass over the prompt of a job that generates."""
    model = model_of(job, mesh)
    total = job.sequence_length + (job.generate or 0)
    inputs = {"ids": jax.ShapeDtypeStruct((job.batch, job.sequence_length), jnp.int32)}
    if encodes(model):
        inputs["decoder_input_ids"] = jax.ShapeDtypeStruct((job.batch, 1), jnp.int32)

    def run(model: Any, inputs: Any) -> Any:
        inputs = dict(inputs)
        return prefill(model, inputs.pop("ids"), max_length=total, **inputs)

    return Step(run, (model, inputs if mesh is None else shard_batch(inputs, mesh)), ())


def token(model: Any, cache: Any, rows: int, mesh: Mesh | None) -> Step:
    """One more token for every row."""
    tokens = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return Step(decode_step, (model, tokens if mesh is None else shard_batch(tokens, mesh), cache), (2,))
