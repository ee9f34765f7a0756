"""A differential fuzzer: configurations drawn from the reference's own config classes, computed by both.

    python benchmarks/fuzz_configs.py --minutes 120 --log runs.jsonl     # all families, in turns; every case is a line
    python benchmarks/fuzz_configs.py --families llama phi3 --cases 50 --seed 7
    python benchmarks/fuzz_configs.py --again 'llama 7 12.0'             # one case: family, seed, number.turn
    python benchmarks/fuzz_configs.py --table runs.jsonl                 # docs/fuzzing.md from the lines

A case is a small config of the family's tests with a few keys changed together, by the types that the reference's class
states: sizes of heads apart from the width, depths with their lists of layers, windows of one, kinds of rotary positions,
values that nobody sets. The reference makes a model of it with random weights and saves it; easyfn loads the folder. Then
the answers are compared on inputs that are drawn too (padding left, right, none; no mask; pad ids among tokens for
classifiers; own positions; one row, one token, more tokens than `max_position_embeddings` where positions rotate), under any
head that both have, the folder that easyfn saves with the reference's, and one of: the logits of tokens decoded greedily
through the cache, beams, the scores after options of sampling, the loss and its gradient by every parameter, an adapter that
PEFT saved, the same weights in bfloat16. Some folders get the keys of rotary positions as files had them before transformers
5. What the reference itself does not run is drawn again, what easyfn refuses by name is listed, and a difference is shrunk to
the fewest keys that show it.

The judge of a difference is the reference in float64: easyfn is wrong where it is off by more than rounding may explain,
which the reference's own float32 shows.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import importlib.metadata
import inspect
import json
import os
import random
import re
import sys
import tempfile
import time
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:] = [str(ROOT / "tests"), *(p for p in sys.path if Path(p) != ROOT / "benchmarks")]  # which has a families.py

# Keys that change no number of a forward pass, that are ids, or that say what the whole thing is.
LEFT = frozenset(
    """model_type architectures transformers_version dtype torch_dtype id2label label2id problem_type use_cache
    initializer_range initializer_factor bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    return_dict output_hidden_states output_attentions is_encoder_decoder chunk_size_feed_forward name_or_path
    output_router_logits pretraining_tp tokenizer_class finetuning_task _name_or_path attn_implementation num_labels
    cross_attention_hidden_size image_token_id image_token_index video_token_id
    vision_start_token_id vision_end_token_id forced_eos_token_id forced_bos_token_id initializer_std init_std
    use_mamba_kernels router_jitter_noise gradient_checkpointing""".split()  # noqa: SIM905
)
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
ROTARY = frozenset(
    """rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings low_freq_factor high_freq_factor
    beta_fast beta_slow mscale mscale_all_dim attention_factor truncate short_factor long_factor""".split()  # noqa: SIM905
)
WINDOW = re.compile("window|attention_chunk_size")
ACTIVATION = re.compile("(_act|activation|activation_function|act_fn)$")
SIZES = {
    "intermediate_size": [1, 40, 80, 97],
    "vocab_size": [97, 98, 128],
    "max_position_embeddings": [8, 32, 33, 64, 4096],
    "n_positions": [32, 33, 64],
    "num_experts": [1, 2, 3, 4, 8],
    "num_local_experts": [1, 2, 3, 4, 8],
    "n_routed_experts": [2, 4, 8],
    "num_experts_per_tok": [1, 2, 3],
    "top_k_experts": [1, 2],
}
WORDS = {  # of keys that are strings and whose class does not list them
    "position_embedding_type": ["absolute", "relative_key", "relative_key_query"],
    "feed_forward_proj": ["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu", "silu"],
    "scoring_func": ["softmax", "sigmoid"],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "norm_type": ["layer_norm", "rms_norm"],
}


# Heads that a case may get instead of its own, and the class of transformers that knows which model it is.
OTHER_HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "base": "AutoModel",
}


class Outcome(NamedTuple):
    """`invalid` (the reference does not run it), `refused` (by name), `equal`, or `wrong`."""

    kind: str
    text: str


# Drawing a config.


def keys_of(data: dict[str, Any]) -> list[str]:
    """What can be changed in a config's JSON, without what is nested."""
    return sorted(
        k for k in data if k not in LEFT and not k.startswith("_") and "dropout" not in k and "pdrop" not in k
    )


def parts(config: Any) -> Iterator[tuple[str, Any]]:
    """The config and the configs inside it, each with its place: `""`, `"text_config."`."""
    yield "", config
    for name in getattr(type(config), "sub_configs", None) or {}:
        if (inner := getattr(config, name, None)) is not None:
            yield f"{name}.", inner


def hints_of(config: Any) -> dict[str, Any]:
    """The types that the reference's class states."""
    try:
        return typing.get_type_hints(type(config))
    except Exception:
        return {}


def changes_of(base: Any, rng: random.Random) -> dict[str, Any]:
    """The changes of one case, by dotted key: one to five draws, some of which change keys that belong together."""
    changes: dict[str, Any] = {}
    places = list(parts(base))
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        place, config = rng.choice(places)
        data = {k: changes.get(place + k, v) for k, v in config.to_dict().items()}
        moves = [heads, depth, rotary, mixed_layers]
        if rng.random() < 0.4:
            new = rng.choice(moves)(data, config, rng)
        else:
            keys = [k for k in keys_of(data) if not (isinstance(data[k], dict) and "rope" not in k)]
            if not keys:
                continue
            key = rng.choice(keys)
            if key in DEPTHS and rng.random() < 0.9:
                new = depth(data, config, rng)
            else:
                new = {key: draw(key, data[key], data, hints_of(config), rng)}
        changes |= {place + k: v for k, v in new.items() if v != data.get(k, ...)}
    return changes


def heads(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Heads, their width, and the model's, together: groups of any size, odd numbers, a width apart."""
    count, width = rng.choice([1, 2, 3, 4, 5, 6]), rng.choice([4, 6, 8, 10, 12, 16])
    apart = data.get("head_dim") is not None and rng.random() < 0.6
    size = rng.choice([20, 36, 50, 64]) if apart else count * width
    kv = rng.choice([k for k in range(1, count + 1) if count % k == 0])
    new = dict.fromkeys([k for k in WIDTHS if isinstance(data.get(k), int)], size)
    new |= dict.fromkeys([k for k in HEADS if isinstance(data.get(k), int)], count)
    new |= dict.fromkeys([k for k in KV_HEADS if k in data], kv)
    if "head_dim" in data:
        new["head_dim"] = width
    return new


def depth(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Another number of layers, and every list that has a value for each."""
    names = [k for k in DEPTHS if isinstance(data.get(k), int)]
    if not names:
        return {}
    old, new = data[names[0]], rng.choice([1, 2, 3, 4])
    lists = {k: v for k, v in data.items() if isinstance(v, list) and len(v) == old and k not in LEFT}
    return {names[0]: new, **{k: [rng.choice(v) for _ in range(new)] for k, v in lists.items()}}


def mixed_layers(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Kinds of layers in any order; where attention may slide, a window with them."""
    found = {}
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        if isinstance(data.get(key), list) and data[key]:
            kinds = set(data[key])
            if kinds <= {"full_attention", "sliding_attention"}:
                kinds = {"full_attention", "sliding_attention"}
            found[key] = [rng.choice(sorted(kinds, key=str)) for _ in data[key]]
    if "sliding_window" in data and rng.random() < 0.7:
        found["sliding_window"] = rng.choice([1, 2, 3, 5, 16])
        if "use_sliding_window" in data:
            found["use_sliding_window"] = True
    return found


def rotary(data: dict[str, Any], config: Any, rng: random.Random) -> dict[str, Any]:
    """Another kind of rotary positions, for each kind of layer that has its own."""
    value = data.get("rope_parameters")
    if not isinstance(value, dict):
        return {}
    if any(isinstance(v, dict) for v in value.values()):
        return {"rope_parameters": {k: turned(v, data, rng) if isinstance(v, dict) else v for k, v in value.items()}}
    return {"rope_parameters": turned(value, data, rng)}


def turned(value: dict[str, Any], data: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One table of rotary parameters."""
    kind = rng.choice(["default", "linear", "dynamic", "yarn", "yarn", "llama3", "longrope", "proportional"])
    # What the family has of its own there stays: parts of images, a temperature that grows.
    new = {k: v for k, v in value.items() if k not in ROTARY}
    new |= {"rope_type": kind, "rope_theta": rng.choice([value.get("rope_theta") or 10000.0, 10.0, 500.0, 1e6])}
    if rng.random() < 0.25 or "partial_rotary_factor" in value:
        new["partial_rotary_factor"] = rng.choice([0.25, 0.5, 0.75, 1.0])
    if kind in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        new["factor"] = rng.choice([1.0, 2.5, 4.0, 8.0])
    if kind in ("yarn", "llama3", "longrope") and rng.random() < 0.7:
        new["original_max_position_embeddings"] = rng.choice([4, 8, 16])
    if kind == "llama3":
        new |= {"low_freq_factor": rng.choice([1.0, 2.0]), "high_freq_factor": rng.choice([4.0, 8.0])}
    if kind == "yarn":
        more = {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3, "attention_factor": 1.2}
        new |= {k: v for k, v in {**more, "truncate": False}.items() if rng.random() < 0.3}
    if kind == "longrope":
        count = next((data[k] for k in HEADS if isinstance(data.get(k), int)), 1)
        width = data.get("qk_rope_head_dim") or data.get("head_dim") or (data.get("hidden_size") or 48) // count
        half = int(width * new.get("partial_rotary_factor", 1.0)) // 2
        new["short_factor"] = [round(1.0 + 0.1 * i, 3) for i in range(half)]
        new["long_factor"] = [round(2.0 + 0.5 * i, 3) for i in range(half)]
    return new


def draw(key: str, value: Any, data: dict[str, Any], hints: dict[str, Any], rng: random.Random) -> Any:
    """Another value for a key, of a kind that its class allows."""
    from transformers.activations import ACT2FN

    hint = hints.get(key, Any)
    kinds = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    if type(None) in kinds and rng.random() < 0.15:
        return None
    for one in (hint, *kinds):
        if typing.get_origin(one) is typing.Literal:
            return rng.choice(typing.get_args(one))
    if "rope" in key and isinstance(value, dict):
        return rotary(data, None, rng).get("rope_parameters", value)
    count = next((data[k] for k in HEADS if isinstance(data.get(k), int)), 1)
    if key in KV_HEADS and rng.random() < 0.9:
        return rng.choice([k for k in range(1, count + 1) if count % k == 0])
    if key in WIDTHS and isinstance(value, int) and rng.random() < 0.9:
        return 2 * count * rng.choice([1, 2, 3, 4, 5])
    if key in WORDS and isinstance(value, str):
        return rng.choice(WORDS[key])
    if ACTIVATION.search(key) and isinstance(value, str):
        return rng.choice(list(ACT2FN))
    if isinstance(value, bool):
        return not value
    if WINDOW.search(key) and (isinstance(value, int) or int in kinds):
        return rng.choice([1, 2, 3, 5, 16])
    if key in SIZES:
        return rng.choice(SIZES[key])
    if isinstance(value, int):
        return rng.choice([max(0, value - 1), value + 1, 1, 2, value * 2])
    if isinstance(value, float):
        small = [0.0, 1e-12, 1e-2] if "eps" in key else [0.0, value * 2, value / 2, 3.0]
        return rng.choice([*small, 1.0, 0.5])
    if isinstance(value, list) and value:
        if len(set(map(str, value))) > 1:
            return [rng.choice(value) for _ in value]
        return [draw(key, v, data, {}, rng) for v in value] if isinstance(value[0], float) else value
    if isinstance(value, list):  # of layers, nearly always
        return [rng.randrange(3)]
    if value is None:
        simple = [k for k in (hint, *kinds) if k in (int, float, bool)]
        choices: dict[Any, list[Any]] = {int: [1, 2, 3, 8], float: [0.5, 1.0, 3.0], bool: [True, False]}
        return rng.choice(choices[rng.choice(simple)]) if simple else None
    return value


def changed(base: Any, changes: dict[str, Any]) -> Any:
    """The reference's config with the changes."""
    full = copy.deepcopy(base.to_dict())
    for key, value in changes.items():
        *place, name = key.split(".")
        inner = full
        for step in place:
            inner = inner[step]
        inner[name] = value
    config = type(base).from_dict(full)
    config._experts_implementation = "eager"  # torch's grouped products take no odd sizes
    return config


def class_of(case: Any, base: Any) -> Any:
    """The reference's class for the task of the case, which may be another than that of the model it starts from."""
    import transformers

    from cases import CASES, IMAGES

    if case.task == (CASES | IMAGES)[case.name].task:
        return type(base)
    found = getattr(transformers, OTHER_HEADS[case.task])._model_mapping.get(type(base.config), None)
    return found[0] if isinstance(found, list | tuple) else found


def other_head(case: Any, rng: random.Random) -> Any:
    """The case under another head that both have, now and then; decoders and encoders of text alone."""
    import easyfn as ef

    if case.inputs is not None or pixels(case) or case.encoder_decoder or rng.random() > 0.25:
        return case
    known = ef.families().get(case.torch().config.model_type)
    heads = [dataclasses.replace(case, task=task) for task in OTHER_HEADS if known and task in known.tasks]
    heads = [one for one in heads if class_of(one, case.torch()) is not None]
    return rng.choice(heads) if heads else case


# Drawing inputs.


def text_inputs(case: Any, module: Any, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """What both are given, what only the reference must be told, and where there are tokens."""
    text = module.config.get_text_config()
    rows, length = rng.choice([1, 3]), rng.choice([1, 2, 7, 11, 17, 40])
    limit = None if getattr(text, "rope_parameters", None) else getattr(text, "max_position_embeddings", None) or 64
    length = max(1, min(length, limit - 4)) if isinstance(limit, int) else length
    numbers = np.random.RandomState(rng.randrange(2**31))
    ids = numbers.randint(3, min(97, text.vocab_size), (rows, length))
    mask = np.ones_like(ids)
    padding = rng.choice(["no mask", "none", "left", "right", "both"])
    if padding in ("left", "both") and case.causal:
        mask[0, : length // 3] = 0
    if padding in ("right", "both"):
        mask[-1, length - length // 4 :] = 0
    ids = np.where(mask > 0, ids, 0)
    if padding == "no mask" and case.task == "sequence-classification" and case.causal and text.pad_token_id == 0:
        ids = ids * (numbers.rand(rows, length) < 0.7)  # which row of scores is read, says the last that is no pad id
    given = {"input_ids": ids} if padding == "no mask" else {"input_ids": ids, "attention_mask": mask}
    told = {}
    takes = inspect.signature(module.forward).parameters
    if case.task == "multiple-choice":
        given = {k: np.stack([v, v[::-1]], axis=1) for k, v in given.items()}
        mask = given["input_ids"].reshape(-1, length) > 0
    elif case.encoder_decoder:
        given["decoder_input_ids"] = numbers.randint(3, 97, (rows, 5))
        mask = np.ones((rows, 5), int)
    elif "position_ids" in takes and case.causal:
        told["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
    if "token_type_ids" in takes and (kinds := getattr(module.config, "type_vocab_size", 0)) and rng.random() < 0.5:
        given["token_type_ids"] = numbers.randint(0, kinds, given["input_ids"].shape)
    return given, told, mask


ANSWERS = [
    *("logits", "last_hidden_state", "pooler_output", "start_logits", "end_logits", "seq_relationship_logits"),
    *("prediction_logits", "image_embeds", "text_embeds", "logits_per_image", "logits_per_text"),
    "encoder_last_hidden_state",
]


def answers(module: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The numbers of the reference's output."""
    import torch

    if hasattr(module, "rwkv"):
        module = copy.deepcopy(module)  # whose first call changes its weights
    with torch.no_grad():
        out = module(**tensors(inputs, module.dtype))
    found = {k: out[k] for k in ANSWERS if k in out and torch.is_tensor(out[k])}
    return {k: v.to(torch.float64).numpy() for k, v in found.items()}


def exactly(module: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """`answers` in float64, in the probabilities, too: in float32 its smallest number is -inf, and a row of nothing but such, of
    padding on the left, is no number."""
    import torch

    plain = torch.nn.functional.softmax

    def softmax(x: Any, *args: Any, dtype: Any = None, **options: Any) -> Any:
        return plain(x, *args, dtype=None if x.dtype == torch.float64 else dtype, **options)

    torch.nn.functional.softmax = softmax
    try:
        return answers(copy.deepcopy(module).double(), inputs)
    finally:
        torch.nn.functional.softmax = plain


def tensors(inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    import torch

    made = {k: torch.tensor(np.array(v)) for k, v in inputs.items()}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in made.items()}


# Comparing.


def off(got: Any, want: Any, mask: np.ndarray | None) -> float:
    """The largest difference where there are tokens, by the size of what is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return np.inf
    if mask is not None and got.shape[:2] == mask.shape:
        got, want = got[mask > 0], want[mask > 0]
    if not want.size:
        return 0.0
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def run(case: Any, base: Any, changes: dict[str, Any], seed: str, check: str | None = None) -> Outcome:
    """Compares one config: answers, files, and one more thing."""
    from cases import reference

    rng, number = random.Random(seed), random.Random(seed).randrange(2**31)
    try:
        config = changed(base.config, changes)
        module = reference(class_of(case, base), config, number)
        module.config._attn_implementation = base.config._attn_implementation  # eager, with a reason where it is not
        if case.family == "falcon" and config.alibi:
            module.config._attn_implementation = "sdpa"  # eager adds it twice: findings/
        given: dict[str, Any] | None = None
        told: dict[str, Any] = {}
        mask = None
        if case.inputs is not None:
            given = case.inputs()
            mask = given.get("attention_mask")
        elif not pixels(case):
            given, told, mask = text_inputs(case, module, rng)
        want = None if given is None else answers(module, {**given, **told})
        if want is not None and not all(np.isfinite(v).all() for v in want.values()):
            return Outcome("invalid", "not finite")
    except Exception as error:
        return Outcome("invalid", f"{type(error).__name__}: {error}"[:300])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            module.save_pretrained(folder / "a")
            if rng.random() < 0.3:
                spell_as_before(folder / "a")
        except Exception as error:
            return Outcome("invalid", f"save: {error}"[:300])
        try:
            return compare(case, module, folder, given, told, mask, want, check or rng.choice(CHECKS), rng)
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith("generate: beyond"):
                return Outcome("refused", str(error))
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            where = f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})" if at else ""
            return Outcome("wrong", f"{type(error).__name__}: {error}"[:600] + where)


# A third of a second, or three.
CHECKS = (*("decode", "decode", "gradient", "adapter", "beams", "options", "bfloat16"), *7 * ("none",))


def spell_as_before(folder: Path) -> None:
    """Rotary positions in a config.json as before transformers 5, where the reference reads the same from it."""
    from transformers import AutoConfig

    path = folder / "config.json"
    text, before = path.read_text(), AutoConfig.from_pretrained(folder)
    data = json.loads(text)
    table = data.pop("rope_parameters", None)
    if not isinstance(table, dict) or any(isinstance(v, dict) for v in table.values()):
        return
    table = dict(table)
    data |= {k: table.pop(k) for k in ("rope_theta", "partial_rotary_factor") if k in table}
    kind = table.pop("rope_type", "default")
    data["rope_scaling"] = None if kind == "default" else {"type": kind, **table}
    path.write_text(json.dumps(data))
    try:
        same = AutoConfig.from_pretrained(folder).rope_parameters == before.rope_parameters
    except Exception:
        same = False
    if not same:
        path.write_text(text)


def pixels(case: Any) -> bool:
    from cases import IMAGES

    return case.name in IMAGES


def compare(
    case: Any, module: Any, folder: Path, given: Any, told: Any, mask: Any, want: Any, check: str, rng: random.Random
) -> Outcome:
    import jax

    import easyfn as ef

    try:
        model = ef.load(folder / "a", task=case.task, progress=False)
    except ef.LoadError as error:
        return Outcome("wrong", f"load: {error}"[:600])
    except ValueError as error:
        return Outcome("refused", str(error))
    if given is None:
        drawn = ef.sample_inputs(model, rng.choice([1, 2]), 9, key=jax.random.key(rng.randrange(2**31)))
        given = {k: np.asarray(v) for k, v in drawn.items()}
        try:
            want = answers(module, given)
        except Exception as error:
            return Outcome("invalid", f"{type(error).__name__}: {error}"[:300])
        if not all(np.isfinite(v).all() for v in want.values()):
            return Outcome("invalid", "not finite")
    if not want:
        return Outcome("invalid", "no answer to compare")
    out = jax.jit(lambda m, x: ef.forward(m, **x))(model, given)
    worst = 0.0
    exact: dict[str, np.ndarray] | None = None
    for key, value in want.items():
        got = getattr(out, "logits" if key == "prediction_logits" else key, None)
        if got is None:
            if key in ("encoder_last_hidden_state", "pooler_output"):
                continue
            return Outcome("wrong", f"there is no {key}")
        side = None if key == "encoder_last_hidden_state" else mask
        if key == "encoder_last_hidden_state":
            side = given.get("attention_mask")
        apart = off(got, value, side)
        if not apart < 5e-5:
            exact = exactly(module, {**given, **told}) if exact is None else exact
            if not np.isfinite(exact[key]).all():
                return Outcome("invalid", "not finite in float64")
            theirs, apart = off(value, exact[key], side), off(got, exact[key], side)
            if not apart < 5e-5 + 30 * theirs:
                return Outcome(
                    "wrong", f"{key} {np.shape(got)} is off by {apart:.2e}, theirs in float32 by {theirs:.1e}"
                )
        worst = max(worst, apart)
    read_by_them = lambda path: answers(type(module).from_pretrained(path).eval(), {**given, **told})
    again = files(model, folder, read_by_them, want, mask) if case.files else ""
    for message in (again, more(case, model, module, folder, {**given}, told, mask, check, rng)):
        if message:
            return Outcome("wrong", message)
    return Outcome("equal", f"{worst:.1e} {check}")


def files(model: Any, folder: Path, read_by_them: Any, want: dict[str, np.ndarray], mask: Any) -> str:
    """What differs between the folder that easyfn saves and the reference's: tensors by bits, the config by keys.

    Numbers that the reference writes and does not read (of experts that compute nothing) may differ: its answers from our
    folder are the same.
    """
    from safetensors.numpy import load_file
    from transformers import AutoConfig

    import easyfn as ef

    ef.save(model, folder / "b")
    theirs, ours = (load_file(folder / n / "model.safetensors") for n in "ab")
    theirs = {k: v for k, v in theirs.items() if v.size}
    if theirs.keys() != ours.keys():
        return f"files: tensors {sorted(theirs.keys() ^ ours.keys())[:6]} in one file only"
    if lost := [k for k in theirs if theirs[k].shape != ours[k].shape or not np.array_equal(theirs[k], ours[k])]:
        answered = read_by_them(folder / "b")
        if any(off(answered[k], want[k], mask) > 1e-5 for k in want):  # by another attention than the eager one
            return f"files: other numbers in {lost[:6]}"
    read = [AutoConfig.from_pretrained(folder / n) for n in "ab"]
    fields = {f.name for f in dataclasses.fields(read[0])} - {
        "transformers_version",
        "dtype",
    }  # not what is left of old keys
    old, new = ({k: v for k, v in config.to_dict().items() if k in fields} for config in read)
    if apart := [k for k in old.keys() | new.keys() if old.get(k) != new.get(k)]:
        listed = ", ".join(f"{k}={new.get(k)!r} and not {old.get(k)!r}" for k in sorted(apart)[:3])
        return f"files: the reference reads from our config {listed}"[:400]
    return ""


def more(
    case: Any, model: Any, module: Any, folder: Path, given: Any, told: Any, mask: Any, check: str, rng: random.Random
) -> str:
    """What differs in one more thing; nothing where the model does not do it."""
    plain = case.inputs is None and not pixels(case)
    if check == "decode" and case.generates and plain:
        return decode(case, model, module, rng)
    if check in ("beams", "options") and case.generates and plain:
        return generated(case, model, module, rng, beams=check == "beams")
    if check == "bfloat16" and case.inputs is None:
        return rounded(case, module, folder, given, told, mask)
    if check == "gradient" and plain and given["input_ids"].shape[1] > 2:
        return gradient(case, model, module, given, told, mask)
    if check == "adapter" and case.inputs is None and not case.recurrent:
        return adapter(case, model, module, folder, given, told, mask, rng)
    return ""


def decode(case: Any, model: Any, module: Any, rng: random.Random) -> str:
    """Greedy tokens and the logits of each step, until the first that differs: those are of one prefix."""
    import torch

    import easyfn as ef

    size = min(97, module.config.get_text_config().vocab_size)
    ids = np.random.RandomState(rng.randrange(2**31)).randint(3, size, (rng.choice([1, 2]), rng.choice([1, 5, 8])))
    mask = np.ones_like(ids)
    if rng.random() < 0.6:
        mask[0, : ids.shape[1] // 2] = 0
        if not case.causal:
            mask = mask[:, ::-1].copy()
    ids = np.where(mask > 0, ids, 0)
    options: dict[str, Any] = {"max_new_tokens": rng.choice([3, 9]), "do_sample": False, "pad_token_id": 0}
    options |= {"eos_token_id": -1, "repetition_penalty": 1.3, "output_logits": True, "return_dict_in_generate": True}
    ours = ef.generate(model, ids, attention_mask=mask, **options)
    message = ""
    for cached in (not case.encoder_decoder, False):  # without its cache it is the judge of itself
        try:
            with torch.no_grad():
                theirs = module.generate(
                    torch.tensor(ids), attention_mask=torch.tensor(mask), use_cache=cached, **options
                )
        except Exception:
            return ""
        if not (message := apart_at(ours, theirs, mask)):
            return ""
    return message


def generated(case: Any, model: Any, module: Any, rng: random.Random, *, beams: bool) -> str:
    """What differs in the sequences of beams, or in the scores that options leave of the first token's logits."""
    import jax
    import torch

    import easyfn as ef

    size = min(97, module.config.get_text_config().vocab_size)
    ids = np.random.RandomState(rng.randrange(2**31)).randint(3, size, (2, rng.choice([1, 6])))
    mask = np.ones_like(ids)
    if ids.shape[1] > 1:
        mask[0, :2] = 0
        if not case.causal:
            mask = mask[:, ::-1].copy()
    ids = np.where(mask > 0, ids, 0)
    options: dict[str, Any] = {
        "max_new_tokens": 5 if beams else 1,
        "pad_token_id": 0,
        "eos_token_id": rng.choice([2, 7]),
    }
    options |= {"output_scores": True, "return_dict_in_generate": True}
    if beams:
        options |= {"num_beams": rng.choice([2, 3]), "length_penalty": rng.choice([1.0, 0.5, -1.0])}
        options |= {"do_sample": False, "early_stopping": rng.choice([True, False])}
    else:
        drawn = {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.7, "epsilon_cutoff": 0.01}
        drawn |= {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "suppress_tokens": [5, 9]}
        options |= {"do_sample": True, **{k: v for k, v in drawn.items() if rng.random() < 0.4}}
    key = {} if beams else {"key": jax.random.key(0)}
    ours = ef.generate(model, ids, attention_mask=mask, **options, **key)
    for cached in (not case.encoder_decoder, False):  # without its cache it is the judge of itself
        try:
            with torch.no_grad():
                tokens, seen = torch.tensor(ids), torch.tensor(mask)
                theirs = module.generate(tokens, attention_mask=seen, use_cache=cached, **options)
        except Exception:
            return ""
        if not (message := (beams_apart if beams else options_apart)(ours, theirs, options)):
            return ""
    return message


def beams_apart(ours: Any, theirs: Any, options: Any) -> str:
    got, want = np.asarray(ours.sequences_scores), theirs.sequences_scores.numpy()
    if off(got, want, None) > 5e-4:
        return f"beams: scores {got.tolist()} and not {want.tolist()} with {options}"
    return ""


def options_apart(ours: Any, theirs: Any, options: Any) -> str:
    got, want = np.asarray(ours.scores[0]), theirs.scores[0].numpy()
    if (
        np.isfinite(got) != np.isfinite(want)
    ).sum() > 1:  # one at the edge of a sum of probabilities may go by rounding
        return f"options: {np.isfinite(got).sum(1)} tokens are left and not {np.isfinite(want).sum(1)} with {options}"
    both = np.isfinite(got) & np.isfinite(want)
    apart = off(np.where(both, got, 0), np.where(both, want, 0), None)
    return f"options: scores are off by {apart:.2e} with {options}" if apart > 5e-4 else ""


def rounded(case: Any, module: Any, folder: Path, given: Any, told: Any, mask: Any) -> str:
    """What differs with the same weights in bfloat16: the median of our rounding is near that of theirs, and dtypes are."""
    import jax
    import torch

    import easyfn as ef

    low = copy.deepcopy(module).to(torch.bfloat16)
    try:
        theirs, exact = answers(low, {**given, **told}), exactly(low, {**given, **told})
        low.save_pretrained(folder / "low")
    except Exception:
        return ""
    model = ef.load(folder / "low", task=case.task, progress=False)
    out = jax.jit(lambda m, x: ef.forward(m, **x))(model, given)
    for key, value in theirs.items():
        got = getattr(out, key, None)
        if got is None or key == "encoder_last_hidden_state" or not np.isfinite(value).all():
            continue
        seen = mask > 0 if mask is not None and value.shape[:2] == mask.shape else slice(None)
        scale = np.abs(exact[key]).max()
        distance = [np.median(np.abs(np.asarray(v, np.float64) - exact[key])[seen]) / scale for v in (got, value)]
        if not distance[0] < 4 * distance[1] + 4e-3:
            return f"bfloat16: {key} is off by {distance[0]:.1e} in the median, theirs by {distance[1]:.1e}"
    return ""


def apart_at(ours: Any, theirs: Any, mask: np.ndarray) -> str:
    """Where the logits of two generations differ, while their tokens are the same."""
    got, want = np.asarray(ours.sequences), theirs.sequences.numpy()
    length, start = min(got.shape[1], want.shape[1]), want.shape[1] - len(theirs.logits)
    for row in range(len(mask)):
        for step, (a, b) in enumerate(zip(ours.logits, theirs.logits, strict=False)):
            if start + step > length or not np.array_equal(got[row, : start + step], want[row, : start + step]):
                break
            if (apart := off(a[row], b[row].numpy(), None)) > 5e-4:
                return f"decode: logits of row {row}, step {step} are off by {apart:.2e}; mask {mask[row].tolist()}"
    return ""


def gradient(case: Any, model: Any, module: Any, given: Any, told: Any, mask: Any) -> str:
    """What differs in the loss by labels, and in its gradient by the parameters stored as the reference stores them."""
    import jax

    import easyfn as ef
    from test_families import TRAINS

    if case.task not in TRAINS or case.task == "image-classification":
        return ""
    seen = given.get("attention_mask", np.ones_like(given["input_ids"]))
    given = {k: v for k, v in given.items() if k != "decoder_input_ids"}
    labels = TRAINS[case.task](given["input_ids"], seen)
    if np.ndim(labels) == 2 and not (labels[:, 1:] >= 0).any():
        return ""
    if case.encoder_decoder and labels.shape[1] < 2:
        return ""
    if case.task == "sequence-classification" and getattr(module.config, "num_labels", 2) == 1:
        return ""
    batch = {**given, "labels": labels}
    module = copy.deepcopy(module).requires_grad_(True)
    want = module(**tensors({**batch, **({} if case.encoder_decoder else told)}, module.dtype)).loss
    want.backward()
    loss, slopes = jax.jit(jax.value_and_grad(lambda m: ef.compute_loss(m, batch)[0], allow_int=True))(model)
    if abs(float(loss) - want.item()) > 1e-4 * max(1.0, abs(want.item())):
        return f"loss {float(loss):.6f} and not {want.item():.6f}"
    ours = ef.to_state_dict(jax.tree.map(lambda g: np.zeros(g.shape) if g.dtype == jax.dtypes.float0 else g, slopes))
    theirs = {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None and n in ours}
    largest = max((np.abs(g).max() for g in theirs.values()), default=0.0) + 1e-6
    for name, value in theirs.items():
        if ours[name].shape == value.shape and (apart := np.abs(np.asarray(ours[name]) - value).max() / largest) > 2e-3:
            return f"gradient of {name} is off by {apart:.2e} of the largest"
    return ""


def adapter(
    case: Any, model: Any, module: Any, folder: Path, given: Any, told: Any, mask: Any, rng: random.Random
) -> str:
    """What differs with an adapter that PEFT made and saved."""
    import jax
    import torch
    from peft import LoraConfig, get_peft_model

    import easyfn as ef

    options = {"r": rng.choice([1, 3]), "lora_alpha": rng.choice([1, 5]), "use_rslora": rng.random() < 0.3}
    options |= {"use_dora": rng.random() < 0.3, "target_modules": "all-linear"}
    try:
        torch.manual_seed(0)
        peft = get_peft_model(copy.deepcopy(module), LoraConfig(**options, init_lora_weights=False)).eval()
        want = answers(peft, {**given, **told})
        peft.save_pretrained(folder / "adapter")
    except Exception:
        return ""
    adapted = ef.load_adapter(model, folder / "adapter")
    out = jax.jit(lambda m, x: ef.forward(m, **x))(adapted, given)
    for key, value in want.items():
        got = getattr(out, key, None)
        if got is not None and key != "encoder_last_hidden_state" and (apart := off(got, value, mask)) > 1e-3:
            if off(answers(peft.merge_and_unload(), {**given, **told})[key], value, mask) > 1e-3:
                return ""  # nor is PEFT's own, merged (its adapters in torch's MultiheadAttention do nothing)
            return f"adapter: {key} is off by {apart:.2e} with {options}"
    return ""


# Running.


def shrink(case: Any, base: Any, changes: dict[str, Any], seed: str) -> dict[str, Any]:
    """The fewest of the changes that are still wrong."""
    for key in list(changes):
        fewer = {k: v for k, v in changes.items() if k != key}
        if run(case, base, fewer, seed).kind == "wrong":
            changes = fewer
    return changes


def bases(wanted: list[str] | None = None) -> dict[str, list[Any]]:
    """The cases of each family: the first stands for it, the others are more of its heads and settings."""
    from cases import CASES, IMAGES

    found: dict[str, list[Any]] = {}
    for case in [*CASES.values(), *IMAGES.values()]:
        if not wanted or case.family in wanted:
            found.setdefault(case.family, []).append(case)
    return {k: sorted(v, key=lambda case: case.variant) for k, v in sorted(found.items())}


def drawn(cases: list[Any], family: str, seed: int, number: int, turn: int = 0) -> tuple[Any, dict[str, Any], str]:
    """One case: the model it starts from, the changes, and the seed of all that is drawn later."""
    name = f"{seed} {family} {number}.{turn}"
    rng = random.Random(name)
    case = other_head(cases[0] if rng.random() < 0.6 else rng.choice(cases), rng)
    return case, changes_of(case.torch().config, rng) or changes_of(case.torch().config, rng), name


TURNS = 8  # a config that the reference does not run is drawn again so often


def fuzz(
    families: list[str] | None, count: int, minutes: float, seed: int, start: int = 0, note: Any = None
) -> list[dict[str, Any]]:
    """Runs cases, family after family in turns, until there are `count` of each or the time is over."""
    import jax

    end, lines, known = time.time() + 60 * minutes, [], bases(families)
    order = random.Random(seed).sample(sorted(known), len(known))  # so that a short run is not always of the same
    for number in range(start, start + count):
        for turn, family in enumerate(order):
            if time.time() > end:
                return lines
            began = time.time()
            for again in range(TURNS):
                case, changes, name = drawn(known[family], family, seed, number, again)
                outcome = run(case, case.torch(), changes, name)
                if outcome.kind != "invalid":
                    break
            if outcome.kind == "wrong":
                changes = shrink(case, case.torch(), changes, name)
                outcome = run(case, case.torch(), changes, name)
            line = {"family": family, "seed": seed, "number": number, "case": case.name, **outcome._asdict()}
            line |= {"turn": again, "task": case.task, "changes": changes, "seconds": round(time.time() - began, 1)}
            lines.append(line)
            if note is not None:
                note(line)
            if turn % 20 == 19:  # every config has programs of its own
                jax.clear_caches()
    return lines


HEAD = """# Drawn configurations

Written by `python benchmarks/fuzz_configs.py --table LOG ...` from the lines that its runs left (seeds {seeds}); the last
ended on {date}. A case is a config that the reference's own class allows, with random weights and inputs, under one of the
heads that both have: the answers, the files both ways and, of half the cases, greedy decoding through the cache, beams, the
scores after options of sampling, gradients, an adapter of PEFT, or the weights in bfloat16. *Equal*: easyfn and transformers
{transformers} agree, judged by transformers in float64. *Refused*: easyfn names the value that it does not implement.
*Invalid*: of up to {turns} draws the reference runs none, or its answer is not finite. *Wrong*: not equal when it was last
run, with the changes drawn then (`--repeat`).
A family that is missing was not drawn by these runs.

| family | equal | refused | invalid | wrong |
|---|---|---|---|---|
"""
KINDS = ("equal", "refused", "invalid", "wrong")


def read_logs(logs: list[Path]) -> list[dict[str, Any]]:
    """The lines of all logs; of a case that was run again, the last."""
    lines = (json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines())
    return list({(one["family"], one["seed"], one["number"]): one for one in lines}.values())


def page(lines: list[dict[str, Any]], date: str) -> str:
    """docs/fuzzing.md."""
    import transformers

    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    refused: dict[str, set[str]] = collections.defaultdict(set)
    for line in lines:
        counts[line["family"]][line["kind"]] += 1
        if line["kind"] == "refused":
            said = re.sub(r"\S*config\.json: ", "", line["text"].partition("\n")[0]).partition(". A key that")[0]
            refused[line["family"]].add(said[:200].replace("|", "\\|"))
    rows = [f"| `{name}` | " + " | ".join(str(c[k]) for k in KINDS) + " |" for name, c in sorted(counts.items())]
    total = sum(counts.values(), collections.Counter())
    rows.append("| all | " + " | ".join(str(total[k]) for k in KINDS) + " |")
    said = [f"- `{name}`: {'; '.join(sorted(texts))}" for name, texts in sorted(refused.items())]
    seeds = ", ".join(map(str, sorted({line["seed"] for line in lines})))
    body = HEAD.format(transformers=transformers.__version__, date=date, turns=TURNS, seeds=seeds) + "\n".join(rows)
    left = [line for line in lines if line["kind"] == "wrong"]
    wrong = [f"- `{one['family']}` `{json.dumps(one['changes'])}`: {shortened(one['text'])}" for one in left]
    found = {"refused": said, "wrong": wrong}
    parts = [f"## What was {kind}\n\n" + "\n".join(texts) + "\n" for kind, texts in found.items() if texts]
    return body + "\n\n" + "\n".join(parts)


def shortened(text: str) -> str:
    """A message for a list: without its folder, on one line."""
    return re.sub(r"/\S*/", "", " ".join(text.split()))[:200].replace("|", "\\|")


def repeat(logs: list[Path], note: Any) -> None:
    """Runs what was wrong in the logs again, from the changes that were written down, with every check."""
    from cases import CASES, IMAGES

    for line in read_logs(logs):
        if line["kind"] == "wrong":
            name = f"{line['seed']} {line['family']} {line['number']}.{line['turn']}"
            case = dataclasses.replace((CASES | IMAGES)[line["case"]], task=line["task"])
            found = [run(case, case.torch(), line["changes"], name, check) for check in sorted({*CHECKS})]
            worst = max(found, key=lambda one: KINDS.index(one.kind))
            note({**line, **worst._asdict()})
            print(line["case"], line["changes"], *worst, flush=True)


def flags() -> str:
    """Each program runs once: what makes it cheap to compile, as in tests/conftest.py."""
    older = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
    return "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * older


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--cases", type=int, default=10**6, help="of each family")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first number")
    parser.add_argument("--log", type=Path, help="a file that gets a line of JSON for every case")
    parser.add_argument("--again", nargs="*", help="'FAMILY SEED NUMBER.TURN': run that case, and say all")
    parser.add_argument("--table", type=Path, nargs="*", help="write docs/fuzzing.md from these logs, and run nothing")
    parser.add_argument("--repeat", type=Path, nargs="*", help="run what was wrong in these logs again")
    args = parser.parse_args()
    if args.table:
        last = time.strftime("%Y-%m-%d", time.localtime(max(log.stat().st_mtime for log in args.table)))
        (ROOT / "docs/fuzzing.md").write_text(page(read_logs(args.table), last), encoding="utf-8")
        return
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags()}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.again:
        for one in args.again:
            family, seed, number = one.split()
            number, _, turn = number.partition(".")
            case, changes, name = drawn(bases([family])[family], family, int(seed), int(number), int(turn or 0))
            print(case.name, case.task, json.dumps(changes, default=str))
            print(*run(case, case.torch(), changes, name))
        return

    def note(line: dict[str, Any]) -> None:
        if args.log:
            with args.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
        if line["kind"] == "wrong":
            print(json.dumps(line, default=str), flush=True)

    if args.repeat:
        return repeat(args.repeat, note)
    lines = fuzz(args.families, args.cases, args.minutes, args.seed, args.start, note)
    print(collections.Counter(line["kind"] for line in lines))
    sys.exit(any(line["kind"] == "wrong" for line in lines))


if __name__ == "__main__":
    main()
