"""What `fuzz_configs.py` compares beside the answers: files, and one more thing a case."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_draws import pixels, said_in_tables

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


def files(model: Any, folder: Path, read_by_them: Any, want: dict[str, np.ndarray], mask: Any) -> str:
    """What differs between the folder that easyfn saves and the reference's: tensors by bits, the config by keys.

    Numbers that the reference writes and does not read (of experts that compute nothing) may differ: its answers from our
    folder are the same.
    """
    from safetensors.numpy import load_file
    from transformers import AutoConfig

    import easyfn as ef

    ef.save(model, folder / "b")
    both = (load_file(folder / n / "model.safetensors") for n in "ab")
    theirs, ours = ({k: v for k, v in held.items() if v.size} for held in both)
    if theirs.keys() != ours.keys():
        return f"files: tensors {sorted(theirs.keys() ^ ours.keys())[:6]} in one file only"
    if lost := [k for k in theirs if theirs[k].shape != ours[k].shape or not np.array_equal(theirs[k], ours[k])]:
        answered = read_by_them(folder / "b")
        if any(off(answered[k], want[k], mask) > 1e-5 for k in want):  # by another attention than the eager one
            return f"files: other numbers in {lost[:6]}"
    read = [AutoConfig.from_pretrained(folder / n) for n in "ab"]
    left = {"transformers_version", "dtype"} | said_in_tables(read[0].to_dict())
    fields = {f.name for f in dataclasses.fields(read[0])} - left  # not what is left of old keys
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
