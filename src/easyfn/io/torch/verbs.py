"""What the verbs of easyfn do with a converted module."""

from __future__ import annotations

from typing import Any

import jax

from ...core.rows import by_row
from ...forward.forward import forward, with_keys
from ...inputs.statement import Input, Inputs, accepted, by_custom, inputs
from ...nn.output import Output
from ...tasks.task import task
from .history import run_with_history
from .interpret import Program, optional, run
from .lengths import length_of

ONLY = {
    "output_hidden_states": False,
    "output_attentions": False,
    "output_router_logits": False,
    "segment_ids": None,
}


@accepted.register(Program)
def _(model: Program) -> set[str]:
    return {i.name for i in model.config.graph.inputs}


@task.register(Program)
def _(model: Program) -> str:
    return str(model.config.graph.info.get("task", "base"))


@forward.register(Program)
def run_program(
    model: Program,
    *args: Any,
    key: jax.Array | None = None,
    runtime: Any = None,
    adapter_ids: Any = None,
    cache: Any = None,
    fresh: bool = False,
    **given: Any,
) -> Any:
    """The module's result, in its own structure: an [`easyfn.Output`][] where it is one of transformers'.

    Inputs have the names of the module's own arguments; positional ones come in the order of the example. `key` turns on
    the dropout of adapters: the module's own is off, as it was exported in eval mode.
    """
    names = [i.name for i in model.config.graph.inputs]
    if len(args) > len(names):
        raise TypeError(f"forward: {len(args)} inputs in order, and the module was converted with {', '.join(names)}")
    given = {**dict(zip(names, args, strict=False)), **given}
    for name, off in ONLY.items():
        if name not in names and given.pop(name, off) not in (off, None):
            raise TypeError(
                f"forward: {name} needs a family of easyfn; a converted module gives what it gave at its conversion. "
                "Convert it with its config set to give that, e.g. config.output_hidden_states = True"
            )
    given = {name: value for name, value in given.items() if value is not None}
    if key is not None:
        model = with_keys(model, key)
    if adapter_ids is not None:
        first = next(v for v in given.values() if hasattr(v, "shape"))
        model = by_row(model, adapter_ids, first.shape[0])
    return run(model, given) if cache is None else run_with_history(model, given, cache)


@inputs.register(Program)
def _(model: Program) -> Inputs:
    """The arguments it was converted with, of the sizes that the program takes; a mask may be left out."""
    graph = model.config.graph
    fields = {}
    axes: dict[Any, str] = {}
    if model.config.others:
        axes[length_of(graph)] = "seq"
    for n, one in enumerate(graph.inputs):
        custom = by_custom(one.name, model.config)
        for axis, size in enumerate(one.shape):
            if isinstance(size, str):
                axes.setdefault(size, ("batch", "seq")[axis] if n == 0 and axis < 2 else size)
        shape = tuple(
            axes[size] if isinstance(size, str) or (axis == 1 and size in axes) else size
            for axis, size in enumerate(one.shape)
        )
        floating = one.dtype in ("float16", "bfloat16", "float32", "float64")
        kind = "features" if floating else "index"
        if (
            custom.kind in ("tokens", "embeddings", "mask", "image")
            and (custom.kind in ("embeddings", "image")) == floating
        ):
            kind = custom.kind
        fields[one.name] = Input(kind, shape, custom.below, optional=optional(one.name))
    return Inputs(fields, tuple(name for name in fields if not optional(name))[:1])


def logits_of(out: Any) -> jax.Array:
    """The scores among a module's results."""
    if isinstance(out, Output) and out.logits is not None:
        return out.logits
    if isinstance(out, dict) and "logits" in out:
        return out["logits"]
    if isinstance(out, jax.Array):
        return out
    raise TypeError("the module gives no logits: it returns neither one array nor an output with that name")
