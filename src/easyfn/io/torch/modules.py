"""To torch and back: transformers' models with the numbers of ours. Needs the extra `easyfn[torch]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ...config.config import numbers
from ...core.habits import no_path
from ...registry.family import family_of
from ..build import from_state_dict
from ..configs import abstract, read_config
from ..described import as_described
from ..dtypes import to_numpy
from ..save import architecture_of, config_json
from ..weights import entries


def torch_class(model: Any) -> Any:
    """The transformers class of a model, e.g. `transformers.LlamaForCausalLM`.

    ```python
    import easyfn as ef
    config = ef.testing.tiny().config
    assert ef.torch_class(ef.abstract(config, task="base")).__name__ == "LlamaModel"
    ```
    """
    no_path(model)
    known = family_of(model)
    name = architecture_of(model, known)
    if name is None:
        raise ValueError(
            f"torch_class: the family {known.model_type!r} names no transformers class for this task; "
            "give ef.family(..., architectures={'TheClass': task})"
        )
    transformers = _transformers("torch_class")
    if not hasattr(transformers, name):  # a class of long ago: its successor has the same task
        same = (other for other, kind in known.architectures.items() if kind == known.architectures[name])
        name = next((other for other in same if hasattr(transformers, other)), name)
    if not hasattr(transformers, name):
        raise ValueError(f"torch_class: transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)


def to_torch(model: Any) -> Any:
    """A transformers model with the numbers of `model`, in eval mode, every tensor in the dtype of ours.

    The numbers are copied: the two do not share memory. Adapters are refused (see `ef.merge_lora`), and so are
    quantized weights (see `ef.dequantize`).

    ```python
    import easyfn as ef
    module = ef.to_torch(ef.testing.tiny())
    assert module.lm_head.weight.shape == (64, 32)
    ```
    """
    cls = torch_class(model)
    torch = _torch("to_torch")
    found = entries(model)
    as_described(model, family_of(model), "to_torch")
    data = config_json(model, found=found)
    if "quantization_config" in data:
        raise ValueError("to_torch: the model has quantized weights; write ef.to_torch(ef.dequantize(model))")
    kinds = {e.dtype for e in found if str(e.dtype) in ("float32", "bfloat16", "float16", "float64")}
    data["dtype"] = str(next(iter(kinds))) if len(kinds) == 1 else "float32"
    config = cls.config_class.from_dict({k: numbers(v) for k, v in data.items()})
    tensors = {e.name: _tensor(torch, e.read()) for e in found}
    module, report = _from_pretrained(cls, config, tensors, getattr(torch, data["dtype"]))
    wrong = {
        kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[kind]
    }
    if wrong:
        raise ValueError(f"to_torch: {cls.__name__} and this model do not have the same tensors: {wrong}")
    if len(kinds) > 1:  # transformers gives one dtype to all: put back each one's own
        for name, parameter in module.named_parameters():
            if name in tensors:
                parameter.data = tensors[name].clone()
    if generation := dict(getattr(model.config, "generation", {})):
        module.generation_config = _transformers("to_torch").GenerationConfig.from_dict(generation)
    return module.eval()


def _from_pretrained(cls: Any, config: Any, tensors: dict[str, Any], dtype: Any) -> Any:
    """transformers' own loader, because it also turns the tensors of a file into those of a module (fused experts)."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return cls.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def from_torch(
    module: Any,
    example_inputs: Any = None,
    *,
    task: str | None = None,
    dtype: Any = None,
    dynamic: Any = None,
    lengths: Sequence[int] | None = None,
    **more: Any,
) -> Any:
    """A model with the numbers of a module of torch.

    **Without `example_inputs`**: the inverse of [`easyfn.to_torch`][], for a transformers module whose type has a family
    here. `task`, `dtype` and `more` as in [`easyfn.from_state_dict`][]. Nothing is written to the disk.

    **With them**, any `nn.Module`: its forward pass is exported (`torch.export`, in eval mode, so without dropout) and
    becomes an [`easyfn.Program`][], a pytree whose leaves have the module's own names. `example_inputs` are a dict by the
    names of the arguments of `module.forward`, or a tuple in their order; numbers, booleans and `None` among them are
    fixed. Of `dynamic` axes the size may differ from the example's: by default the batch, and every axis of arrays with up
    to three, as far as the module allows; `{"x": (0, 2)}` names them, `False` fixes all. Give examples whose dynamic sizes
    are at least 2 and differ from each other. A module on torch's `meta` device becomes an abstract model, of
    `jax.ShapeDtypeStruct`, for `ef.from_state_dict(model.config, tensors)`. With `lengths=[16, 64]` a module that allows one
    length only (a loop over the tokens) is converted for each, and the shortest that fits is run, padded behind. Where the module
    decides by values (`if x.sum() > 0`,
    `.item()`, `x[mask]`), the program does what it did for the example, and a call for which it would do something else is an
    error. See docs/torch.md.

    Raises `NotImplementedError` for an operator that easyfn does not know, with the way to teach it ([`easyfn.torch_op`][]),
    and `ValueError` where `torch.export` cannot follow the module.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()
    same = ef.from_torch(ef.to_torch(model))

    import torch
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    model = ef.from_torch(module, (torch.ones(3, 4),))
    assert ef.forward(model, jax.numpy.ones((5, 4))).shape == (5, 2)
    assert list(ef.params(model)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    ```
    """
    if example_inputs is not None:
        if task is not None:
            raise ValueError("from_torch: a converted module has the task of its class; task= is for families")
        return _convert(module, example_inputs, dynamic, dtype, lengths, more)
    if lengths is not None:
        raise ValueError("from_torch: lengths= are for a module that is converted: give example_inputs")
    if not hasattr(module, "config") or not hasattr(module, "state_dict"):
        raise TypeError(
            f"from_torch: a {type(module).__name__} is no model of transformers, so there is no telling what it takes: give "
            "example_inputs, ef.from_torch(module, {'x': torch.ones(2, 3)}). Bare tensors: ef.from_state_dict"
        )
    if getattr(module.config, "rescale_every", 0) and any(
        getattr(m, "layers_are_rescaled", 0) for m in module.modules()
    ):
        raise ValueError(
            "from_torch: this RWKV has run in eval mode, which divides weights in place, and easyfn would divide them once more: "
            "load it again, or run it once in train mode, which multiplies them back"
        )
    data, generation = config_of(module)
    return from_state_dict(read_config(data, generation=generation), tensors_of(module), task=task, dtype=dtype, **more)


def config_of(module: Any) -> tuple[dict[str, Any], Any]:
    """The content of `config.json` and `generation_config.json` of a transformers module."""
    data = module.config.to_diff_dict()  # with keys that are None: they are not the default, or were left out
    data |= {"architectures": [type(module).__name__], "model_type": module.config.model_type}
    generation = getattr(module, "generation_config", None)
    return data, generation.to_diff_dict() if generation is not None and module.can_generate() else None


def _convert(module: Any, example_inputs: Any, dynamic: Any, dtype: Any, lengths: Any, more: dict[str, Any]) -> Any:
    """The `Program` of a module, its tensors copied; of one on `meta`, without numbers."""
    _torch("from_torch")
    from .export import export
    from .interpret import abstract_program, config_of as program_config, run_graph
    from .lengths import resized, together
    from .prepare import example_dict

    example = example_dict(module, example_inputs)
    sizes = sorted(set(lengths or ()))
    if lengths is not None and not (sizes and all(isinstance(n, int) and n > 0 for n in sizes)):
        raise ValueError(f"from_torch: lengths={lengths!r} is a list of lengths, [16, 64, 256]")
    examples = [resized(example, n) for n in sizes] or [example]
    graphs, (tensors, *_) = zip(*(export(module, each, dynamic=dynamic) for each in examples), strict=True)
    known = hasattr(module, "config") and hasattr(module.config, "to_diff_dict")
    data, generation = config_of(module) if known else (None, None)
    if lengths is not None:
        empty = abstract_program(program_config(graphs[0], None))
        graphs = together(
            graphs, lambda graph, given: jax.eval_shape(lambda m, i: run_graph(m, graph, i), empty, given)
        )
    config = program_config(graphs[0], data, generation, graphs[1:])
    if any(tensor.is_meta for tensor in tensors.values()):
        if more:
            raise ValueError(f"from_torch: a module on meta has no numbers for {', '.join(more)}")
        return abstract(config, dtype=dtype)
    return from_state_dict(config, tensors, dtype=dtype, **more)


def tensors_of(module: Any) -> dict[str, np.ndarray]:
    """The tensors that `module.save_pretrained` would write: tied ones once, under the names of the files."""
    state = module.state_dict()
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    shared = lambda name: (
        name in tied and tied[name] in state and state[name].data_ptr() == state[tied[name]].data_ptr()
    )
    state = {name: tensor for name, tensor in state.items() if not shared(name)}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        pass
    else:
        state = revert_weight_conversion(module, state)
    return {name: to_numpy(tensor) for name, tensor in state.items()}


def _tensor(torch: Any, array: np.ndarray) -> Any:
    """A torch tensor with the bits of an array, in memory of its own."""
    array = np.array(array, order="C", copy=True)
    if array.dtype.type.__module__ == "numpy":
        return torch.from_numpy(array)
    width = {1: np.uint8, 2: np.int16}[array.dtype.itemsize]
    return torch.from_numpy(array.view(width)).view(getattr(torch, str(array.dtype)))


def _torch(verb: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"ef.{verb} needs torch and transformers: pip install 'easyfn[torch]'") from error
    return torch


def _transformers(verb: str) -> Any:
    _torch(verb)
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"ef.{verb} needs torch and transformers: pip install 'easyfn[torch]'") from error
    return transformers
