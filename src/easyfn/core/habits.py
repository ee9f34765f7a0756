"""The wrong call that comes naturally: what users of other libraries write first, and what it is here.

One table by function and by the name of an argument. A name in it is refused with the right one before anything runs;
others are left to Python, which names them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
F = TypeVar("F", bound=Callable[..., Any])

_QUANT = "quantize='8bit' or 'nf4' (or a QuantConfig) quantizes while loading"
_LOADED = "a checkpoint says it itself; ef.load(path, config_overrides={...}) replaces keys of its config"
_OUTPUT = "the result is always an ef.Output, and output_hidden_states=, output_attentions= choose what it holds"
_CACHE = "cache=ef.init_cache(model, batch_size, max_length) is what transformers calls past_key_values"
_PATTERN = "pattern, the second argument, selects by path: 'q_proj|v_proj', a list, or 'all-linear'"

HABITS: dict[str, dict[str, str]] = {
    "load": {
        "torch_dtype": "dtype='bfloat16' is the name here",
        "device_map": "mesh=ef.make_mesh() and rules= place a model over devices",
        "trust_remote_code": "no code of a checkpoint is run; teach an architecture with ef.family(...)",
        "load_in_4bit": _QUANT,
        "load_in_8bit": _QUANT,
        "quantization_config": _QUANT,
        "attn_implementation": "attention is chosen at each call: ef.forward(model, ids, runtime=ef.Runtime(...))",
        "num_labels": _LOADED,
        "id2label": _LOADED,
        "output_hidden_states": "say it at the call: ef.forward(model, ids, output_hidden_states=True)",
        "low_cpu_mem_usage": "leave it out: every array is read once, into the memory where it stays",
        "use_safetensors": "leave it out: nothing else is read",
        "ignore_mismatched_sizes": "a head that the file lacks is drawn with key=jax.random.key(0) and task=",
        "subfolder": "give the path of the folder itself",
        "max_memory": "ef.plan(path, mesh=, batch=, sequence_length=) says what fits where; mesh= and rules= place it",
        "from_tf": "safetensors only",
        "name": "the path is the first argument",
    },
    "init": {"seed": "key=jax.random.key(0)", "rng": "key=jax.random.key(0)", "rngs": "key=jax.random.key(0)"},
    "forward": {
        "past_key_values": _CACHE,
        "use_cache": _CACHE,
        "labels": "the loss is ef.compute_loss(model, {'input_ids': ids, 'labels': labels})",
        "return_dict": _OUTPUT,
        "train": "dropout is on where a key is given: ef.forward(model, ids, key=key)",
        "training": "dropout is on where a key is given: ef.forward(model, ids, key=key)",
        "deterministic": "dropout is on where a key is given: ef.forward(model, ids, key=key)",
        "rngs": "dropout is on where a key is given: ef.forward(model, ids, key=key)",
        "params": "a model holds its parameters; apply, params = ef.pure(model) parts them",
    },
    "generate": {
        "input_ids": "the ids are the second argument: ef.generate(model, ids)",
        "max_tokens": "max_new_tokens= counts new tokens",
        "generation_config": "config=ef.GenerationConfig(...)",
        "past_key_values": "cache= goes on from a prompt that was run: _, cache = ef.prefill(model, ids)",
        "logits_processor": "processors=[...], functions of (tokens, scores)",
        "stopping_criteria": "stop_strings= with tokenizer=, eos_token_id=, or the loop over ef.stream(model, ids)",
        "streamer": "for token in ef.stream(model, ids): ...",
        "seed": "key=jax.random.key(seed)",
        "prng_key": "key=jax.random.key(seed)",
        "stop": "stop_strings= with tokenizer=",
        "params": "the model holds its parameters: ef.generate(model, ids)",
        "synced_gpus": "leave it out: a model on a mesh generates on all of it",
    },
    "compute_loss": {
        "labels": "labels are a key of the batch: {'input_ids': ids, 'labels': labels}",
        "input_ids": "the batch is one dict: ef.compute_loss(model, {'input_ids': ids})",
        "return_outputs": "it returns (loss, metrics)",
    },
    "save": {
        "safe_serialization": "leave it out: nothing else is written",
        "save_directory": "the folder is the second argument: ef.save(model, directory)",
        "is_main_process": "leave it out: the processes share the work",
        "state_dict": "ef.save(ef.with_params(model, params), directory)",
        "push_to_hub": "ef.push_to_hub(model, 'user/name')",
    },
    "apply_lora": {
        "r": "rank= is the name here",
        "lora_alpha": "alpha= is the name here",
        "target_modules": _PATTERN,
        "lora_dropout": "dropout= is the name here",
        "use_dora": "dora=True",
        "use_rslora": "rslora=True",
        "init_lora_weights": "init='pissa', 'olora', ...",
        "layers_to_transform": "layers=",
        "exclude_modules": "exclude=",
        "peft_config": "give the values themselves: ef.apply_lora(model, pattern, rank=8, alpha=16, key=key)",
        "task_type": "leave it out: the model knows its task",
        "adapter_name": "ef.with_adapters(model, {name: adapter}) holds several by name",
    },
    "load_adapter": {
        "adapter_name": "ef.load_adapters(model, {name: path}) holds several by name",
        "is_trainable": "leave it out: ef.trainable(model) selects the adapters",
    },
    "merge_lora": {
        "safe_merge": "leave it out: a merge that is not finite shows in the result, and the model stays as it was",
        "adapter_names": "ef.use_adapter(model, name) chooses one first",
    },
    "quantize": {
        "bits": "the method names the bits: ef.quantize(model, '8bit'), 'nf4', 'int4', ...",
        "method": "the second argument: ef.quantize(model, 'nf4')",
        "pattern": "ef.quantize(model, ef.QuantConfig('nf4', pattern='mlp'))",
        "group_size": "ef.quantize(model, ef.QuantConfig('int4', group_size=64))",
        "load_in_4bit": "ef.quantize(model, 'nf4')",
        "load_in_8bit": "ef.quantize(model, '8bit')",
    },
    "shard": {
        "device_mesh": "mesh=ef.make_mesh(...)",
        "partition_rules": "rules=ef.ShardingRules({'mlp': 'tp'}, {pattern: ef.P(...)})",
        "axis_rules": "rules=ef.ShardingRules({'mlp': 'tp'})",
    },
    "plan": {
        "batch_size": "batch= is the rows of a step, over all devices",
        "seq_len": "sequence_length= is the name here",
        "max_length": "sequence_length= is the name here",
        "num_devices": "mesh={'fsdp': 8} says how many and how, or devices=8 with mesh='search'",
        "gradient_accumulation_steps": "accumulate= is the name here",
        "max_new_tokens": "generate= plans a generation of so many tokens instead of a training step",
    },
    "make_mesh": {
        "data": "dp= replicates weights and splits the batch, fsdp= splits both",
        "model": "tp= splits the wide axes of weights",
        "axis_names": "the axes are dp fsdp ep tp sp: ef.make_mesh(fsdp=4, tp=2)",
        "axis_shapes": "the axes are dp fsdp ep tp sp: ef.make_mesh(fsdp=4, tp=2)",
        "shape": "the axes are dp fsdp ep tp sp: ef.make_mesh(fsdp=4, tp=2)",
    },
    "Engine": {
        "max_num_seqs": "max_batch_size= is the name here",
        "max_model_len": "max_model_length= is the name here",
        "gpu_memory_utilization": "memory_fraction= is the name here",
        "block_size": "page_size= is the name here",
        "max_num_batched_tokens": "prefill_chunk= is the name here",
        "enable_prefix_caching": "prefix_cache= is the name here",
        "tensor_parallel_size": "leave it out: a model on a mesh, ef.load(path, mesh=ef.make_mesh(tp=2)), runs on all of it",
    },
    "to_state": {
        "tx": "the optimizer is the second argument: ef.to_state(model, optax.adamw(1e-3))",
        "params": "the model is the first argument: ef.to_state(model, optax.adamw(1e-3))",
        "apply_fn": "leave it out: ef.train_step runs the model",
    },
    "train_step": {
        "gradient_accumulation_steps": "accumulate= is the name here",
        "grads": "it computes them itself: ef.train_step(state, batch)",
        "loss_fn": "loss=, a function of (model, batch)",
    },
}

# What a call without the arguments that it needs is told.
EXAMPLES = {
    "quantize": "ef.quantize(model, '8bit'), or 'nf4', 'fp4', 'int4', 'fp8', 'mxfp4', ... (ef.QuantConfig says all)",
    "plan": "ef.plan('org/name', mesh={'fsdp': 8}, batch=16, sequence_length=4096)",
}

# Names of other libraries that somebody looks for in this module.
ELSEWHERE = {
    "from_pretrained": "ef.load(path)",
    "AutoModel": "ef.load(path, task='base')",
    "AutoModelForCausalLM": "ef.load(path)",
    "AutoConfig": "ef.read_config(path)",
    "AutoTokenizer": "ef.tokenizer(path)",
    "save_pretrained": "ef.save(model, directory)",
    "Trainer": "ef.to_state and ef.train_step, in a loop of your own",
    "pipeline": "ef.generate, ef.stream_text or ef.embed",
    "LoraConfig": "ef.apply_lora(model, 'q_proj|v_proj', rank=8, alpha=16, key=key)",
    "get_peft_model": "ef.apply_lora(model, 'q_proj|v_proj', rank=8, alpha=16, key=key)",
    "PeftModel": "ef.load_adapter(model, path)",
    "merge_and_unload": "ef.merge_lora(model)",
    "BitsAndBytesConfig": "ef.quantize(model, 'nf4') or ef.load(path, quantize='nf4')",
    "print_trainable_parameters": "ef.show(model), or ef.trainable(model)",
    "apply": "ef.pure(model) -> (apply, params)",
    "filter_jit": "eqx.filter_jit, or jax.jit: a model is a pytree of arrays",
    "tree_at": "eqx.tree_at(where, model, new), or ef.with_params(model, {path: new})",
    "create_train_state": "ef.to_state(model, optimizer)",
    "state_dict": "ef.to_state_dict(model), or ef.params(model)",
    "load_state_dict": "ef.from_state_dict(config, tensors), or ef.with_params(model, params)",
    "SentenceTransformer": "ef.load(path), and ef.embed(model, texts, tokenizer=ef.tokenizer(path))",
    "num_parameters": "ef.num_params(model)",
}


def refuse(verb: str, given: Mapping[str, Any]) -> None:
    """Raises `TypeError` for an argument that another library has, with what it is here."""
    words = HABITS.get(verb)
    if words and (wrong := [name for name in given if name in words]):
        raise TypeError(f"ef.{verb} has no argument {wrong[0]!r}: {words[wrong[0]]}.")


def taught(function: F) -> F:
    """A function that says what was meant where it is called as another library's: by the names of `HABITS`, with too many
    arguments by position, or without the PRNG key and what else it needs."""
    verb = function.__qualname__.removesuffix(".__init__")
    parameters = inspect.signature(function).parameters
    by_place = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    by_name = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    needed = [p.name for p in parameters.values() if p.kind in _NAMED and p.default is inspect.Parameter.empty]
    words = HABITS.get(verb, {}).keys() - parameters.keys()
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    most = len(by_place) + ("self" in parameters)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if wrong := words & kwargs.keys():
            refuse(verb, dict.fromkeys(wrong))
        if len(args) > most:
            first = f"{', '.join(by_place)} by position, and the rest" if by_place else "everything"
            raise TypeError(f"ef.{verb} takes {first} by name: {', '.join(f'{name}=' for name in by_name[:6])}.")
        if "key" in needed and "key" not in kwargs:
            raise TypeError(f"ef.{verb} draws at random: give key=jax.random.key(0).")
        if isinstance(key := kwargs.get("key"), int) and "key" in parameters:
            raise TypeError(f"ef.{verb}: key is a PRNG key, jax.random.key(seed): here key=jax.random.key({key}).")
        if not anything and (unknown := [name for name in kwargs if name not in parameters]):
            close = difflib.get_close_matches(unknown[0], by_place + by_name, 3)
            known = f"Near misses: {', '.join(close)}" if close else f"It takes {', '.join(by_place + by_name)}"
            raise TypeError(f"ef.{verb} has no argument {unknown[0]!r}. {known}.")
        if verb in EXAMPLES and (missing := [n for n in needed if n not in (*kwargs, *by_place[: len(args)])]):
            raise TypeError(f"ef.{verb} needs {', '.join(missing)}, as in {EXAMPLES[verb]}.")
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if traced := _traced(error, kwargs):
                raise TypeError(
                    f"ef.{verb}: jax.jit traces {traced}=, and it shapes the program: close over it, jax.jit(lambda model, "
                    f"*inputs: ef.{verb}(model, *inputs, {traced}=...)), or jax.jit(ef.{verb}, static_argnames={traced!r})."
                ) from error
            raise

    return called  # type: ignore[return-value]


def _traced(error: Exception, given: Mapping[str, Any]) -> str | None:
    """The option that a caller's `jit` traces, if that is why a call failed: numbers and switches become tracers there."""
    import jax

    said = str(error)
    asked = (n for n, v in given.items() if n != "key" and isinstance(v, jax.core.Tracer) and v.shape == ())
    if isinstance(error, jax.errors.ConcretizationTypeError):  # names the arguments of the jit that it comes from
        return next((n for n in asked if n in said), None)
    return next(asked, None) if "Non-hashable static arguments" in said else None


def no_path(model: Any) -> None:
    """Raises `TypeError` for a path where a model belongs: a tree may hold texts, but none is a model."""
    if isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"a model belongs here, and {os.fspath(model)!r} is a path or a name: ef.load(path) reads the model, "
            "ef.abstract(path) its shapes without weights (for ef.show and the like), and ef.plan takes the path itself"
        )


def elsewhere(module: str, name: str) -> AttributeError:
    """The error for a name that the module does not have."""
    if name in ELSEWHERE:
        return AttributeError(f"module {module!r} has no {name}: it is {ELSEWHERE[name]}")
    return AttributeError(f"module {module!r} has no attribute {name!r}")
