"""A differential fuzzer: configurations drawn from the reference's own config classes, computed by both.

    python benchmarks/fuzz_configs.py --minutes 120                 # all families
    python benchmarks/fuzz_configs.py --families llama phi3 --cases 50 --seed 7

A case is the small config of the family's tests with one to four keys changed, among them keys that nobody sets. The
reference makes a model of it with random weights and saves it; easyfn loads the folder, and both are compared: logits
with rows padded on the left and on the right, greedy tokens through the cache, the gradient of a loss, and the folder
that easyfn saves, read by the reference. What the reference itself does not run counts for nothing, what easyfn
refuses by name is listed, and a difference is shrunk to the fewest keys that show it.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

# Keys that change no number of a forward pass, that are ids, or that say what the whole thing is.
LEFT = frozenset(
    """model_type architectures transformers_version dtype torch_dtype id2label label2id problem_type use_cache
    initializer_range initializer_factor bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
    return_dict output_hidden_states output_attentions is_encoder_decoder chunk_size_feed_forward name_or_path
    router_aux_loss_coef router_jitter_noise output_router_logits pretraining_tp tokenizer_class finetuning_task
    _name_or_path attn_implementation num_labels is_decoder add_cross_attention cross_attention_hidden_size""".split()  # noqa: SIM905
)
ACTIVATIONS = [
    "silu",
    "relu",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu2",
    "tanh",
    "sigmoid",
    "mish",
]
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]
SIZES = {
    "num_hidden_layers": [1, 2, 3, 4],
    "n_layer": [1, 2, 3],
    "num_layers": [1, 2, 3],
    "num_decoder_layers": [1, 2, 3],
    "hidden_size": [24, 48, 72, 96],
    "intermediate_size": [1, 40, 80, 96],
    "num_attention_heads": [1, 2, 3, 6],
    "num_key_value_heads": [1, 2, 3, 6],
    "head_dim": [4, 8, 12, 16],
    "vocab_size": [97, 98, 128],
    "max_position_embeddings": [16, 32, 64],
    "sliding_window": [1, 3, 5, 16],
    "num_experts": [2, 4, 8],
    "num_local_experts": [2, 4, 8],
    "num_experts_per_tok": [1, 2],
    "top_k_experts": [1, 2],
}


def keys_of(config: Any) -> dict[str, Any]:
    """What can be changed: the keys of the reference's config and their values."""
    data = config.to_dict()
    return {k: v for k, v in data.items() if k not in LEFT and not k.startswith("_") and "dropout" not in k}


def draw(key: str, value: Any, data: dict[str, Any], rng: random.Random) -> Any:
    """Another value for a key, of the kind that it has."""
    if key in SIZES:
        return rng.choice([*SIZES[key], None] if value is None or key in ("sliding_window", "head_dim") else SIZES[key])
    if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        if any(isinstance(v, dict) for v in value.values()):
            return {kind: draw(key, v, data, rng) if isinstance(v, dict) else v for kind, v in value.items()}
        new = {"rope_theta": value.get("rope_theta", 10000.0), **rng.choice(ROPES)}
        if rng.random() < 0.3 or "partial_rotary_factor" in value:
            new["partial_rotary_factor"] = rng.choice([0.25, 0.5, 0.75, 1.0])
        return new
    if isinstance(value, bool):
        return not value
    if key.endswith(("_act", "activation", "activation_function", "hidden_activation")):
        return rng.choice(ACTIVATIONS)
    if key in ("layer_types", "layers_block_type") and value:
        return [rng.choice(sorted(set(value))) for _ in value]
    if isinstance(value, int):
        return rng.choice([max(0, value - 1), value + 1, 1, 2, value * 2])
    if isinstance(value, float):
        return rng.choice([value * 2, value / 2, 1.0, 0.5, 3.0])
    if value is None:
        return rng.choice([1, 2, 0.5, True, None])
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        return [rng.randrange(0, 3)] if len(value) != data.get("num_hidden_layers") else value
    return value


def cases(base: Any, rng: random.Random) -> dict[str, Any]:
    """The changes of one case: one to four keys."""
    data = keys_of(base)
    chosen = rng.sample(sorted(data), min(len(data), rng.choice([1, 1, 2, 3, 4])))
    return {k: new for k in chosen if (new := draw(k, data[k], data, rng)) != data[k]}


class Outcome(tuple):  # (kind, text)
    """`invalid` (the reference does not run it), `refused` (by name), `equal`, or `wrong`."""

    kind = property(lambda self: self[0])
    text = property(lambda self: self[1])


def run(case: Any, base: Any, changes: dict[str, Any], seed: int) -> Outcome:
    """Compares one config."""
    import torch

    from cases import reference, tokens

    cls = type(base)
    full = {**base.config.to_dict(), **changes}
    try:
        config = type(base.config).from_dict(full)
        module = reference(cls, config, seed)
        size = min(97, config.get_text_config().vocab_size)
        ids, mask = tokens(length=11, seed=seed)
        ids = ids % size
        with torch.no_grad():
            positions = np.where(mask > 0, mask.cumsum(1) - 1, 0)
            given = {"input_ids": ids, "attention_mask": mask}
            if case.encoder_decoder:
                given["decoder_input_ids"] = ids[:, :5]
            elif "position_ids" in inspect.signature(cls.forward).parameters:
                given["position_ids"] = positions
            want = module(**{k: torch.tensor(v) for k, v in given.items()})
        if not np.isfinite(want.logits.numpy()).all():
            return Outcome(("invalid", "not finite"))
    except Exception as error:
        return Outcome(("invalid", f"{type(error).__name__}: {error}"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            module.save_pretrained(folder / "a")
        except Exception as error:
            return Outcome(("invalid", f"save: {error}"))
        return compare(case, cls, module, folder, given, want.logits.numpy())


def compare(case: Any, cls: Any, module: Any, folder: Path, given: dict[str, Any], want: np.ndarray) -> Outcome:
    import jax.numpy as jnp
    import torch

    import easyfn as ef

    try:
        model = ef.load(folder / "a", progress=False)
    except (ValueError, ef.UnknownConfigKey) as error:
        return Outcome(("refused", str(error)))
    except Exception as error:
        return Outcome(("wrong", f"load: {type(error).__name__}: {error}"))
    try:
        inputs = {k: jnp.asarray(v) for k, v in given.items() if k != "position_ids"}
        got = np.asarray(ef.forward(model, **inputs).logits)
        real = given["attention_mask"] > 0 if not case.encoder_decoder else given["attention_mask"][:, :5] > 0
        scale = max(1.0, float(np.abs(want).max()))
        off = float(np.abs(got - want)[real].max()) / scale if got.shape == want.shape else np.inf
        if not off < 2e-4:
            return Outcome(("wrong", f"logits differ by {off:.2e} of {scale:.1f}"))
        prompt = given["input_ids"][2:]  # a row without padding
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            theirs = module.generate(torch.tensor(prompt), attention_mask=torch.ones(prompt.shape), **options).numpy()
        ours = np.asarray(ef.generate(model, prompt, **{**options, "eos_token_id": -1}).sequences)
        if not np.array_equal(ours, theirs) and not near_tie(module, theirs, ours, case):
            return Outcome(("wrong", f"greedy tokens {ours.tolist()} and not {theirs.tolist()}"))
        if message := gradients(model, module, prompt, case):
            return Outcome(("wrong", message))
        again = cls.from_pretrained(ef.save(model, folder / "b"), attn_implementation="eager").eval()
        with torch.no_grad():
            back = again(**{k: torch.tensor(v) for k, v in given.items()}).logits.numpy()
        if not np.abs(back - want)[real].max() / scale < 1e-5:
            return Outcome(("wrong", f"the saved folder differs by {np.abs(back - want)[real].max():.2e}"))
    except Exception as error:
        return Outcome(("wrong", f"{type(error).__name__}: {error}"[:400]))
    return Outcome(("equal", f"{off:.1e}"))


def near_tie(module: Any, theirs: np.ndarray, ours: np.ndarray, case: Any) -> bool:
    """Whether the first different token was chosen among two scores that differ by rounding."""
    import torch

    if case.encoder_decoder or theirs.shape != ours.shape:
        return False
    at = int(np.flatnonzero((theirs != ours)[0])[0])
    with torch.no_grad():
        scores = module(torch.tensor(theirs[:, :at])).logits[0, -1]
    return bool((scores[theirs[0, at]] - scores[ours[0, at]]).abs() < 1e-4 * max(1.0, float(scores.abs().max())))


def gradients(model: Any, module: Any, ids: np.ndarray, case: Any) -> str:
    """What differs in the gradient of the mean log-likelihood by the input embeddings; nothing if it is equal."""
    import jax
    import jax.numpy as jnp
    import torch

    import easyfn as ef

    if case.encoder_decoder or case.moe:  # the auxiliary loss of a mixture is another matter
        return ""
    table = module.get_input_embeddings().weight.requires_grad_(True)
    scores = module(torch.tensor(ids)).logits[:, :-1].log_softmax(-1)
    scores.gather(-1, torch.tensor(ids)[:, 1:, None]).mean().backward()
    want = table.grad.numpy()
    ours = ef.input_embeddings(model)

    def loss(weight: Any) -> Any:
        scores = jax.nn.log_softmax(ef.forward(ef.with_input_embeddings(model, weight), ids).logits[:, :-1])
        return jnp.take_along_axis(scores, jnp.asarray(ids)[:, 1:, None], -1).mean()

    got = np.asarray(jax.grad(lambda w: loss(type_of(ours, w)))(ours.weight))
    off = np.abs(got - want).max() / max(1e-3, np.abs(want).max())
    return "" if off < 1e-3 else f"gradients differ by {off:.2e} of the largest"


def type_of(layer: Any, weight: Any) -> Any:
    import equinox as eqx

    return eqx.tree_at(lambda layer: layer.weight, layer, weight)


def shrink(case: Any, base: Any, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """The fewest of the changes that are still wrong."""
    for key in list(changes):
        fewer = {k: v for k, v in changes.items() if k != key}
        if run(case, base, fewer, seed).kind == "wrong":
            changes = fewer
    return changes


def bases(wanted: list[str] | None) -> dict[str, Any]:
    """The case that stands for each family that makes text."""
    from cases import CASES

    found: dict[str, Any] = {}
    for case in CASES.values():
        if case.generates and not case.variant and case.inputs is None and case.family not in found:
            found[case.family] = case
    return {k: v for k, v in found.items() if not wanted or k in wanted}


def fuzz(families: list[str] | None, count: int, minutes: float, seed: int, show: Any = print) -> dict[str, Any]:
    """Runs cases, family after family in turns, until there are `count` of each or the time is over."""
    end, tally = time.time() + 60 * minutes, collections.defaultdict(collections.Counter)
    refused: dict[str, set[str]] = collections.defaultdict(set)
    wrong: list[dict[str, Any]] = []
    known = {name: (case, case.torch()) for name, case in bases(families).items()}
    for number in range(count):
        for family, (case, base) in known.items():
            if time.time() > end:
                return {"cases": tally, "refused": refused, "wrong": wrong}
            own = random.Random(f"{seed} {family} {number}")
            changes = cases(base.config, own)
            outcome = run(case, base, changes, number)
            tally[family][outcome.kind] += 1
            if outcome.kind == "refused":
                refused[family].add(outcome.text.partition("\n")[0][:160])
            if outcome.kind == "wrong":
                least = shrink(case, base, changes, number)
                wrong.append(
                    {"family": family, "changes": least, "seed": number, "what": run(case, base, least, number)[1]}
                )
                show(json.dumps(wrong[-1], default=str), flush=True)
    return {"cases": tally, "refused": refused, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--cases", type=int, default=10**6, help="of each family")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = fuzz(args.families, args.cases, args.minutes, args.seed)
    kinds = ("equal", "refused", "invalid", "wrong")
    print(f"\n{'family':24}" + "".join(f"{k:>9}" for k in kinds))
    for family, counts in sorted(found["cases"].items()):
        print(f"{family:24}" + "".join(f"{counts[k]:9}" for k in kinds))
    total = sum(found["cases"].values(), collections.Counter())
    print(f"{'all':24}" + "".join(f"{total[k]:9}" for k in kinds))
    for family, texts in sorted(found["refused"].items()):
        for text in sorted(texts):
            print(f"refused, {family}: {text}")
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
