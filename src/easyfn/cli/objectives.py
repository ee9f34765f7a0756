"""What each recipe trains: its model, its examples, its objective, and of GRPO the answers it judges."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

from .checked import Wrong
from .recipe import Recipe

RATES = {"pretrain": 1e-3, "adapter": 3e-3, "full": 1e-4}
TOKENS = (".npy", ".u16", ".bin")
_ROWS = {"dpo": "pairs (chosen, rejected)", "grpo": "prompts"}  # that no running text holds


def learning_rate(command: str, recipe: Recipe) -> float:
    kind = command if command == "pretrain" else "adapter" if recipe.rank else "full"
    return recipe.learning_rate or RATES[kind]


def model_of(command: str, recipe: Recipe, placed: dict[str, Any]) -> Any:
    """The model that a run starts from, its weights in float32."""
    if command == "pretrain":
        model = ef.init(ef.read_config(recipe.model), key=jax.random.key(recipe.seed), dtype=jnp.float32)
        return ef.shard(model, placed["rules"], placed["mesh"]) if placed else model
    model = ef.load(recipe.model, dtype=jnp.float32, quantize=recipe.quantize or None, **placed)
    if not recipe.rank:
        return model
    key = jax.random.key(recipe.seed)
    return ef.apply_lora(model, recipe.pattern, rank=recipe.rank, alpha=recipe.alpha or 2 * recipe.rank, key=key)


def other_of(command: str, recipe: Recipe, model: Any, placed: dict[str, Any]) -> Any:
    """The model beside it: a teacher, or the reference of one whose weights all change. Of an adapter it is the base."""
    if command == "distill":
        return ef.load(recipe.teacher, dtype=jnp.float32, **placed)
    wants = command == "dpo" or (command == "grpo" and recipe.beta)
    return jax.tree.map(jnp.copy, model) if wants and not recipe.rank else None


def objective(command: str, recipe: Recipe) -> Callable[[Any, Any, Any], Any]:
    """`(model, batch, other) -> (loss, metrics)`."""
    if command == "dpo":
        options: dict[str, Any] = {"beta": recipe.beta, "kind": recipe.kind or "sigmoid"}
        return lambda model, batch, other: ef.dpo_loss(model, batch, reference=_base(model, other), **options)
    if command == "grpo":
        of_it: dict[str, Any] = {"kind": recipe.kind or "dapo", "temperature": recipe.temperature, "beta": recipe.beta}

        def judged(model: Any, batch: Any, other: Any) -> Any:
            base = _base(model, other) if recipe.beta else None
            return ef.grpo_loss(model, batch, reference=base, max_new_tokens=recipe.max_new_tokens, **of_it)

        return judged
    if command == "distill":
        more: dict[str, Any] = {"beta": recipe.beta, "temperature": recipe.temperature, "top_k": recipe.top_k or None}
        return lambda model, batch, other: ef.distillation_loss(model, batch, teacher=other, **more)
    return lambda model, batch, other: ef.compute_loss(model, batch)


def _base(model: Any, other: Any) -> Any:
    return ef.remove_lora(model) if other is None else other


def examples_of(command: str, path: str, recipe: Recipe, tokenizer: Callable[[], Any]) -> Any:
    """The examples of a file: dicts of arrays, or one array of tokens."""
    file = Path(path)
    if not file.is_file():
        raise Wrong(f"there is no file {path}")
    if command in _ROWS and file.suffix not in (".json", ".jsonl"):
        raise Wrong(f"{path}: {command} learns from {_ROWS[command]}, in a .jsonl or .json file")
    if file.suffix in TOKENS:
        ids = np.load(file) if file.suffix == ".npy" else np.fromfile(file, np.uint16)
        return np.asarray(ids).reshape(-1).astype(np.int32)
    words = tokenizer()
    if file.suffix not in (".json", ".jsonl"):
        return np.asarray(words.encode(file.read_text("utf-8")).ids, np.int32)
    template, eos = ef.chat_template(recipe.model), _eos(recipe.model)
    found = []
    for n, row in enumerate(_rows(file), 1):
        try:
            if command == "grpo":
                found.append(_prompt(row, words, template) | {"index": np.asarray(n - 1)})
            else:
                found.append(ef.tokenize(row, words, template=template, eos=eos))
        except (ValueError, TypeError, KeyError) as error:
            raise Wrong(f"{path}, example {n}: {error}") from None
    if not found:
        raise Wrong(f"{path} has no examples")
    names = {"dpo": "chosen_input_ids"}.get(command, "input_ids")
    if names not in found[0]:
        raise Wrong(f"{path}: {command} learns from {_ROWS.get(command, 'texts')}")
    return found


def _rows(file: Path) -> list[Any]:
    text = file.read_text("utf-8")
    try:
        rows = (
            json.loads(text)
            if file.suffix == ".json"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except json.JSONDecodeError as error:
        raise Wrong(f"{file} is no {file.suffix[1:].upper()}: {error}") from None
    if not isinstance(rows, list):
        raise Wrong(f"{file}: examples are a list, not a {type(rows).__name__}")
    return rows


def _prompt(row: Any, tokenizer: Any, template: Any) -> dict[str, np.ndarray]:
    prompt = row["prompt"] if isinstance(row, dict) and "prompt" in row else row
    if isinstance(prompt, str):
        return {"input_ids": np.asarray(tokenizer.encode(prompt).ids, np.int32)}
    if template is None or not isinstance(prompt, list):
        raise ValueError("a prompt is a text, or messages for a model that has a chat template")
    return {"input_ids": np.asarray(tokenizer.encode(template(prompt), add_special_tokens=False).ids, np.int32)}


def _eos(model: str) -> int | None:
    """The token that ends a text, of the config."""
    config = ef.read_config(model)
    found = getattr(config, "eos_token_id", None)
    found = getattr(config, "extra", {}).get("eos_token_id") if found is None else found
    return found[0] if isinstance(found, tuple) else found


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Answers of a model to prompts, judged: batches for `ef.grpo_loss`."""

    recipe: Recipe
    rows: list[Any]
    tokenizer: Any
    reward: Callable[..., Any]

    def __call__(self, model: Any, batch: dict[str, np.ndarray], step: int) -> tuple[dict[str, Any], dict[str, float]]:
        recipe, size = self.recipe, self.recipe.group_size
        lengths = batch["attention_mask"].sum(1)
        ids, mask = (np.stack([np.roll(row, -n) for row, n in zip(v, lengths, strict=True)]) for v in
                     (batch["input_ids"], batch["attention_mask"]))  # fmt: skip
        ids, mask = np.repeat(ids, size, axis=0), np.repeat(mask, size, axis=0)
        out = ef.generate(
            model,
            ids,
            attention_mask=mask,
            key=jax.random.fold_in(jax.random.key(recipe.seed), step),
            do_sample=True,
            temperature=recipe.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=recipe.max_new_tokens,
        )
        start = out.prompt_length
        answers = [
            row[start:end].tolist() for row, end in zip(np.asarray(out.sequences), np.asarray(out.lengths), strict=True)
        ]
        texts = [self.tokenizer.decode(answer) for answer in answers]
        rewards = np.asarray(
            self.reward(texts, [self.rows[int(n)] for n in np.repeat(batch["index"], size)]), np.float32
        )
        if rewards.shape != (len(texts),) or not np.isfinite(rewards).all():
            raise Wrong(f"{recipe.reward} must give {len(texts)} finite numbers for {len(texts)} texts")
        judged = ef.rollout_batch(out, mask) | {"advantages": ef.group_advantages(rewards, size)}
        spread = rewards.reshape(-1, size).std(axis=1)
        told = {
            "reward": float(rewards.mean()),
            "reward_std": float(spread.mean()),
            "equal_groups": float(np.mean(spread == 0)),  # from these a step learns nothing
            "answer_length": float(np.mean([len(a) for a in answers])),
        }
        return judged, told


def rollouts(recipe: Recipe, tokenizer: Any) -> Rollouts:
    rows = _rows(Path(recipe.data)) if recipe.data.endswith((".json", ".jsonl")) else []
    if not rows:
        raise Wrong("grpo's data is .jsonl or .json: prompts, with whatever the reward needs to know")
    return Rollouts(recipe, rows, tokenizer, function_of(recipe.reward))


def function_of(name: str, words: str = "reward is FILE.py:FUNCTION or MODULE:FUNCTION") -> Callable[..., Any]:
    """`FILE.py:FUNCTION` or `MODULE:FUNCTION`; `words` say what was wanted."""
    where, _, what = name.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            if spec is None or spec.loader is None:
                raise ImportError(where)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        return getattr(module, what)
    except (ImportError, OSError, AttributeError, ValueError) as error:
        raise Wrong(f"{words}, and {name!r} is not found: {error}") from None
