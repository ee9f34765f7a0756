"""What a recipe is told: one dataclass of options, from flags, from a YAML file, or from both (flags win)."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

from .checked import Wrong
from .parts import extra

KINDS = {
    "pretrain": "a language model from scratch, on a folder with config.json and tokenizer.json",
    "finetune": "an adapter, or all weights (rank 0), on texts, completions or chats",
    "dpo": "preferences: answers chosen and rejected",
    "grpo": "rewards: the model's own answers, judged by a function of yours",
    "distill": "a student that agrees with a teacher",
}


LORA = ("finetune", "dpo", "grpo", "distill")
JUDGED = ("pretrain", "finetune", "dpo", "distill")  # by a loss on held-out data
DEFAULTS: dict[str, dict[str, Any]] = {"grpo": {"beta": 0.04}, "distill": {"beta": 0.0}}


def option(default: Any, words: str, *, only: tuple[str, ...] = (), **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": words, "only": only, **more})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The options of a run; each is a flag, and a key of a YAML file."""

    model: str = option("", "a folder or a hub id")
    data: str = option("", ".txt, .jsonl, .json, or tokens: .npy, .u16, .bin (uint16)")
    out: str = option("", "the folder of the result; beside it OUT.run keeps checkpoints, metrics and the curve")
    eval_data: str = option("", "a file like data, to judge by", only=JUDGED)
    eval_fraction: float = option(0.0, "of the data, held out to judge by", only=JUDGED, least=0.0, below=1.0)
    steps: int = option(100, "steps in all", least=1)
    batch_size: int = option(8, "rows of a step, over all devices (grpo: prompts)", least=1)
    length: int = option(128, "tokens of a row", least=2)
    pack: bool = option(False, "several examples to a row, by best fit", only=("pretrain", "finetune", "distill"))
    learning_rate: float = option(
        0.0, "the highest (default: 3e-3 of adapters, 1e-3 of pretraining, else 1e-4)", least=0.0
    )
    schedule: str = option("cosine", "of the learning rate after warmup", choices=("cosine", "linear", "constant"))
    warmup: float = option(0.05, "this part of the steps", least=0.0, below=1.0)
    weight_decay: float = option(0.0, "of AdamW", least=0.0)
    clip: float = option(1.0, "the longest gradient; 0 for none", least=0.0)
    spike: float = option(0.0, "skip steps whose gradients are so many times as long as usual; 0 for none", least=0.0)
    accumulate: int = option(1, "parts of a step, one after another", least=1)
    dtype: str = option("float32", "to compute in; weights are kept in float32", choices=("float32", "bfloat16"))
    rank: int = option(8, "of the LoRA adapter; 0 trains all weights", only=LORA, least=0)
    alpha: float = option(0.0, "of the adapter (default: twice the rank)", only=LORA)
    pattern: str = option("all-linear", "which weights get an adapter", only=LORA)
    quantize: str = option("", "train the adapter on a quantized base: 8bit, nf4", only=LORA)
    beta: float = option(0.1, "dpo: how near to the reference; grpo: of the divergence; distill: 0 forward, 1 reverse KL",
                         only=("dpo", "grpo", "distill"), least=0.0)  # fmt: skip
    kind: str = option("", "of the objective: ef.dpo_loss, ef.grpo_loss", only=("dpo", "grpo"))
    reward: str = option("", "FILE.py:FUNCTION or MODULE:FUNCTION, from (texts, examples) to numbers", only=("grpo",))
    group_size: int = option(8, "answers to each prompt", only=("grpo",), least=2)
    max_new_tokens: int = option(32, "of an answer", only=("grpo",), least=1)
    temperature: float = option(1.0, "of the answers, or of both distributions", only=("grpo", "distill"), least=1e-3)
    teacher: str = option("", "a folder or a hub id, of the same vocabulary", only=("distill",))
    top_k: int = option(0, "only the teacher's likeliest tokens; 0 for all", only=("distill",), least=0)
    seed: int = option(0, "of weights, adapters, the data's order and the answers", least=0)
    eval_every: int = option(0, "steps (default: ten times a run)", only=JUDGED, least=0)
    patience: int = option(0, "stop after so many evaluations without a better one; 0 never", only=JUDGED, least=0)
    save_every: int = option(0, "steps between checkpoints (default: five of a run)", least=0)
    keep: int = option(2, "checkpoints", least=1)
    track: str = option(
        "", "tell metrics to wandb, tensorboard, trackio, or a function log(step, metrics): FILE.py:FUNCTION"
    )
    peak: float = option(0.0, "operations per second of a device, as 989e12, for MFU (default: measured)", least=0.0)
    log_every: int = option(1, "steps between lines of metrics.jsonl", least=1)


BY_PLACE = ("model", "data", "out")
SAME = (
    "steps",
    "eval_every",
    "save_every",
    "keep",
    "log_every",
    "patience",
    "track",
    "peak",
)  # may change when a run goes on


def fields(command: str) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(Recipe) if not f.metadata["only"] or command in f.metadata["only"]]


def options(command: str, recipe: Recipe) -> dict[str, Any]:
    """A recipe as a file has it."""
    return {f.name: getattr(recipe, f.name) for f in fields(command)}


def add(commands: Any, command: str, run: Any) -> None:
    """The parser of one recipe."""
    p = commands.add_parser(
        command,
        help=KINDS[command],
        description=f"{KINDS[command]}. Give CONFIG.yaml, or MODEL DATA OUT, or flags; flags win over the file.",
    )
    p.add_argument("what", nargs="*", metavar="CONFIG.yaml | MODEL DATA OUT")
    for f in fields(command):
        flag = f"--{f.name.replace('_', '-')}"
        words = f.metadata["help"] + ("" if f.default in ("", 0, 0.0, False) else f" (default: {f.default})")
        if isinstance(f.default, bool):
            p.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
        else:
            p.add_argument(flag, default=None, help=words)
    p.add_argument("--dry-run", action="store_true", help="what a step takes in memory and time, and nothing else")
    p.add_argument("--hardware", default="h100", help="of --dry-run: a100, h100, tpu-v6e, ...")
    p.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    p.add_argument("--force", action="store_true", help="put the result in the place of what is there")
    p.set_defaults(run=run, command=command)


def read(args: argparse.Namespace) -> Recipe:
    """The recipe of a command line, checked."""
    said: dict[str, Any] = {}
    if len(args.what) == 1:
        said = load(Path(args.what[0]))
    elif len(args.what) in (2, 3):
        said = dict(zip(BY_PLACE, args.what, strict=False))
    elif args.what:
        raise Wrong(f"give CONFIG.yaml, or MODEL DATA OUT, not {len(args.what)} names")
    known = {f.name: f for f in fields(args.command)}
    for name in said:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise Wrong(
                f"{args.what[0]}: {args.command} has no {name!r}{f'; did you mean {near[0]!r}?' if near else ''}"
            )
    flags = {name: getattr(args, name) for name in known if getattr(args, name) is not None}
    recipe = Recipe(
        **{
            name: value_of(known[name], value)
            for name, value in {**DEFAULTS.get(args.command, {}), **said, **flags}.items()
        }
    )
    for name in BY_PLACE:
        if not getattr(recipe, name):
            raise Wrong(f"{args.command} needs {name}: {args.command} MODEL DATA OUT, or {name}: in a YAML file")
    if Path(recipe.out).resolve() in {Path(p).resolve() for p in (recipe.model, recipe.data, recipe.teacher) if p}:
        raise Wrong(f"out is {recipe.out}, which is read: choose another folder")
    for needed, command in (("reward", "grpo"), ("teacher", "distill")):
        if args.command == command and not getattr(recipe, needed):
            raise Wrong(f"{command} needs {needed}: {Recipe.__dataclass_fields__[needed].metadata['help']}")
    if recipe.quantize and not recipe.rank:
        raise Wrong("quantized weights are not trained: give --rank, for an adapter on them")
    if recipe.patience and not (recipe.eval_data or recipe.eval_fraction):
        raise Wrong("patience judges by held-out data: give eval_data, or eval_fraction")
    return recipe


def load(path: Path) -> dict[str, Any]:
    """A YAML file (JSON is YAML) as a dict."""
    yaml = extra("yaml", "train")
    try:
        said = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise Wrong(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Wrong(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(said, dict):
        raise Wrong(f"{path}: a recipe is `name: value` lines, not a {type(said).__name__}")
    return {str(name).replace("-", "_"): value for name, value in said.items()}


def value_of(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value of a file or a flag in the type of its option, or `Wrong`."""
    wanted = type(field.default)
    name, limits = field.name, field.metadata
    try:
        if wanted is bool or isinstance(value, bool):
            if wanted is not bool or not isinstance(value, bool):
                raise ValueError
        elif wanted is str:
            value = "" if value is None else str(value)
        elif wanted is int:
            if float(value) != int(float(value)):
                raise ValueError
            value = int(float(value))
        else:
            value = float(value)  # YAML reads 1e-3 as a text
            if not math.isfinite(value):
                raise ValueError
    except (TypeError, ValueError, OverflowError):
        kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[wanted]
        raise Wrong(f"{name} is {kind}, not {value!r}") from None
    if "choices" in limits and value not in limits["choices"]:
        raise Wrong(f"{name} is one of {', '.join(limits['choices'])}, not {value!r}")
    if "least" in limits and value < limits["least"]:
        raise Wrong(f"{name} is {limits['least']} or more, not {value}")
    if "below" in limits and value >= limits["below"]:
        raise Wrong(f"{name} is below {limits['below']}, not {value}")
    return value
