"""The loop of a recipe: steps, progress, metrics, checkpoints, what happens when it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import easyfn as ef

from .checked import Wrong, free
from .objectives import examples_of, learning_rate, model_of, objective, other_of, rollouts
from .parts import extra, save, tokenizer_of
from .recipe import SAME, Recipe, options, read
from .together import is_first, places, sizes_of
from .track import Log, find, tracked


class Stopped(Exception):
    """The run was stopped by a signal, its state saved."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.code = 128 + number


def run(args: argparse.Namespace) -> None:
    recipe = read(args)
    if args.dry_run:
        print(_planned(args, recipe))
        if beside := _NOT_PLANNED.get(args.command):
            print(f"\n{args.command}: {beside}")
        return
    folder = Path(f"{recipe.out}.run")
    begun = _begun(args, recipe, folder)
    args.checkpoint = recipe.model
    tracker = find(recipe.track) if recipe.track else None
    placed = places(args)
    loop = Loop(args.command, recipe, folder, placed, begun)
    _write(args, recipe, folder)
    bar = extra("tqdm").tqdm(total=recipe.steps, initial=begun, unit="step", disable=None)
    told = tracked(recipe.track, tracker, folder, options(args.command, recipe))
    with bar, told as log, _signals() as heard:
        try:
            loop.go(bar, heard, log)
        except Stopped as stopped:
            bar.close()
            _say(f"easyfn {args.command}: {stopped}")
            sys.exit(stopped.code)
    model = ef.fully_gather(loop.state.model) if placed and jax.process_count() == 1 else loop.state.model
    if recipe.rank and args.command != "pretrain":
        ef.save_adapter(model, recipe.out, config={"base_model_name_or_path": str(recipe.model)})
    else:
        save(model, recipe.out, recipe.model)
    _show(folder, recipe)


# What the plan of a step on texts leaves out.
_NOT_PLANNED = {
    "dpo": "this is a step on --batch-size texts. A pair is two, and the reference's forward pass comes to it",
    "grpo": "this is a step on --batch-size texts. A prompt has --group-size answers, and drawing them comes to it",
    "distill": "this is the student's step. The teacher's weights and its forward pass come to it",
}


def _planned(args: argparse.Namespace, recipe: Recipe) -> Any:
    adapted = args.command != "pretrain" and recipe.rank
    return ef.plan(
        recipe.model,
        mesh=sizes_of(args.mesh) if args.mesh else {"fsdp": 1},
        batch=recipe.batch_size,
        sequence_length=recipe.length,
        dtype="float32",
        compute_dtype=None if recipe.dtype == "float32" else recipe.dtype,
        remat=None,
        lora=recipe.rank if adapted else None,
        quantize=recipe.quantize or None,
        accumulate=recipe.accumulate,
        hardware=args.hardware,
    )


def _begun(args: argparse.Namespace, recipe: Recipe, folder: Path) -> int:
    """The step from which to go on: 0, or, with --resume, the last that is saved."""
    saved, kept = ef.saved_steps(folder / "checkpoints"), folder / "recipe.json"
    if args.resume:
        if not saved or not kept.is_file():
            raise Wrong(f"{folder} has no run to go on with")
        before, now = json.loads(kept.read_text("utf-8")), options(args.command, recipe)
        changed = [name for name in now if name not in SAME and now[name] != before.get(name, now[name])]
        if changed:
            name = changed[0]
            raise Wrong(f"the run in {folder} has {name} {before[name]!r}, not {now[name]!r}; --force starts anew")
        if saved[-1] > recipe.steps:
            raise Wrong(f"the run in {folder} is at step {saved[-1]}, beyond --steps {recipe.steps}")
        if (steps := before.get("steps", recipe.steps)) != recipe.steps and recipe.schedule != "constant":
            _say(f"--steps {recipe.steps}, not {steps}: from here on the learning rate of a run so long")
        return saved[-1]
    if not args.force:
        if saved:
            raise Wrong(f"{folder} has a run at step {saved[-1]}: --resume goes on, --force starts anew")
        free(recipe.out, False)
    return 0


def _write(args: argparse.Namespace, recipe: Recipe, folder: Path) -> None:
    """The folder of a run, with its recipe."""
    if is_first():
        if not args.resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(options(args.command, recipe), indent=2) + "\n", "utf-8")


class Loop:
    """A run in memory."""

    def __init__(self, command: str, recipe: Recipe, folder: Path, placed: dict[str, Any], begun: int) -> None:
        self.command, self.recipe, self.folder, self.begun = command, recipe, folder, begun
        self.mesh = placed.get("mesh")
        self.save_every = recipe.save_every or max(1, recipe.steps // 5)
        self.eval_every = recipe.eval_every or max(1, recipe.steps // 10)
        words = lambda: tokenizer_of(recipe.model)
        rows = examples_of(command, recipe.data, recipe, words)
        if command == "grpo" and max(len(row["input_ids"]) for row in rows) > recipe.length:
            raise Wrong(f"a prompt has more than --length {recipe.length} tokens")
        rows, held = _divided(rows, recipe)
        if recipe.eval_data:
            held = examples_of(command, recipe.eval_data, recipe, words)
        with _told(recipe):
            self.stream = iter(self._batches(rows, None, recipe.seed))
            self.held = None if held is None else list(self._batches(held, 1, None))
        self.answers = rollouts(recipe, words()) if command == "grpo" else None
        model = model_of(command, recipe, placed)
        self.other = other_of(command, recipe, model, placed)
        self.rate = _schedule(learning_rate(command, recipe), recipe)
        parts = [optax.clip_by_global_norm(recipe.clip)] if recipe.clip else []
        adam = optax.chain(*parts, optax.adamw(self.rate, weight_decay=recipe.weight_decay))
        self.state = ef.to_state(model, ef.guard(adam, spike=recipe.spike or None))
        measure = objective(command, recipe)
        compute = None if recipe.dtype == "float32" else jnp.dtype(recipe.dtype)

        def step(state: Any, batch: Any, other: Any) -> Any:
            loss = lambda model, part, key=None: measure(model, part, other)
            return ef.train_step(state, batch, loss, compute_dtype=compute, accumulate=recipe.accumulate)

        self.step = jax.jit(step, donate_argnums=0)
        self.measure = jax.jit(measure)
        self.best, self.bad, self.cost = float("inf"), 0, 0.0

    def _batches(self, rows: Any, epochs: int | None, seed: int | None) -> Any:
        recipe = self.recipe
        return ef.batches(
            rows, batch_size=recipe.batch_size, length=recipe.length, pack=recipe.pack, seed=seed, epochs=epochs
        )

    def go(self, bar: Any, heard: list[int], log: Log) -> None:
        """All steps that are left."""
        recipe = self.recipe
        lines = Lines(self.folder / "metrics.jsonl", self.begun, log)
        with ef.Checkpoints(self.folder / "checkpoints", keep=recipe.keep) as checkpoints, lines:
            if self.begun:
                self._restore()
            elif self.held is not None:
                self._judge(0, lines, bar)
            began, seen, at = time.perf_counter(), 0.0, self.begun
            for at in range(self.begun + 1, recipe.steps + 1):
                told = self._one(at)
                if at == self.begun + 1:  # compiled by now
                    began = time.perf_counter()
                else:
                    seen += told.get("num_tokens", recipe.batch_size * recipe.length)
                passed = max(time.perf_counter() - began, 1e-9)
                speed, used = seen / passed, self.cost * (at - self.begun - 1) / passed
                if at % recipe.log_every == 0 or at == recipe.steps:
                    rates = {"tokens_per_second": round(speed, 1), **({"mfu": round(used, 4)} if self.cost else {})}
                    lines.add(at, **told, learning_rate=float(self.rate(at - 1)), **rates)
                name = "reward" if "reward" in told else "loss"
                words = {
                    name: f"{told[name]:.3f}",
                    "tokens/s": f"{speed:.0f}",
                    **({"MFU": f"{used:.1%}"} if used else {}),
                }
                bar.set_postfix(words, refresh=False)
                bar.update()
                tenth = max(1, recipe.steps // 10)
                if bar.disable and (at % tenth == 0 or at == recipe.steps):
                    left = (time.perf_counter() - began) / max(1, at - self.begun - 1) * (recipe.steps - at)
                    said = "  ".join(f"{key} {value}" for key, value in words.items())
                    _say(f"step {at}/{recipe.steps}  {said}  {left:.0f} s left")
                if self.held is not None and (at % self.eval_every == 0 or at == recipe.steps):
                    self._judge(at, lines, bar)
                enough = bool(recipe.patience) and self.bad >= recipe.patience
                if at % self.save_every == 0 or at == recipe.steps or heard or enough:
                    checkpoints.save(self._kept(), step=at, data_state=self._place())
                if heard:
                    checkpoints.wait()
                    raise Stopped(heard[0], self._how_to_go_on(at))
                if enough:
                    _say(f"no better since {recipe.patience} evaluations: stopped at step {at}, the best is kept")
                    break
        if recipe.patience and np.isfinite(self.best):
            params = ef.load_state(self.state.params, self.folder / "best")
            self.state = dataclasses.replace(self.state, params=params)

    def _one(self, at: int) -> dict[str, float]:
        batch: Any = next(self.stream)
        more: dict[str, float] = {}
        if self.answers is not None:
            batch, more = self.answers(self.state.model, batch, at)
        batch = {name: value for name, value in batch.items() if name != "index"}
        if self.mesh is not None:
            batch = ef.shard_batch(batch, self.mesh)
        if at == self.begun + 1:
            self.cost = self._cost(batch)
        self.state, metrics = self.step(self.state, batch, self.other)
        return {name: float(value) for name, value in metrics.items()} | more

    def _cost(self, batch: Any) -> float:
        """The seconds that the products of a step take at the peak of the devices; 0 where they cannot be counted."""
        try:
            products = ef.count_flops(self.step, self.state, batch, self.other)
        except ValueError:  # a loop that runs until the numbers say so
            return 0.0
        peak = self.recipe.peak or ef.matmul_peak(self.recipe.dtype)
        return products / (peak * (1 if self.mesh is None else self.mesh.size))

    def _judge(self, at: int, lines: Lines, bar: Any) -> None:
        total, number = 0.0, 0.0
        for batch in self.held or ():
            given = batch if self.mesh is None else ef.shard_batch(batch, self.mesh)
            loss, metrics = self.measure(self.state.model, given, self.other)
            weight = float(metrics.get("num_tokens", metrics.get("num_examples", 1.0)))
            total, number = total + weight * float(loss), number + weight
        loss = total / max(number, 1.0)
        lines.add(at, eval_loss=loss)
        bar.write(f"step {at}: held-out loss {loss:.4f}", file=sys.stderr)
        better = loss < self.best
        self.best, self.bad = (loss, 0) if better else (self.best, self.bad + 1)
        if better and self.recipe.patience:
            ef.save_state(self.state.params, self.folder / "best", step=0, overwrite=True)

    def _kept(self) -> dict[str, Any]:
        """What a run cannot make anew: the base of an adapter is in its own file."""
        return {"params": self.state.params, "optimizer": self.state.opt_state, "step": self.state.step}

    def _place(self) -> dict[str, Any]:
        best = self.best if np.isfinite(self.best) else None
        return {"stream": self.stream.get_state(), "best": best, "bad": self.bad}

    def _restore(self) -> None:
        where = self.folder / "checkpoints"
        found = ef.load_state(self._kept(), where, step=self.begun)
        self.state = dataclasses.replace(
            self.state, params=found["params"], opt_state=found["optimizer"], step=found["step"]
        )
        place = ef.load_data_state(where, step=self.begun)
        self.stream.set_state(place["stream"])
        self.best, self.bad = float("inf") if place["best"] is None else place["best"], place["bad"]

    def _how_to_go_on(self, at: int) -> str:
        command = f"easyfn {self.command} {shlex.quote(str(self.folder / 'recipe.json'))} --resume"
        return f"stopped at step {at} of {self.recipe.steps}, which is saved; go on with: {command}"


class Lines:
    """`metrics.jsonl`: one JSON object a line, told to a tracker, too. Lines after `begun`, of a run that was killed, go."""

    def __init__(self, path: Path, begun: int, log: Log) -> None:
        self.path, self.begun, self.log = path, begun, log

    def __enter__(self) -> Lines:
        old = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in old if self.begun and _step_of(line) <= self.begun]
        self.file = self.path.open("w", encoding="utf-8") if is_first() else None
        for line in kept:
            print(line, file=self.file)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, step: int, **numbers: float) -> None:
        if self.file is not None:
            print(json.dumps({"step": step, **numbers}), file=self.file, flush=True)
            self.log(step, numbers)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
        return float("inf")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals to stop that came; the second of them stops at once."""
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        _say("stopping after this step")

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        before = {each: signal.signal(each, hear) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _told(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Wrong(f"{str(error).removeprefix('batches: ')}; see batch_size, length, eval_fraction") from None


def _divided(rows: Any, recipe: Recipe) -> tuple[Any, Any]:
    """What is learned and what is held out: of a list every so-manieth, of tokens the end."""
    if not recipe.eval_fraction:
        return rows, None
    if isinstance(rows, np.ndarray):
        cut = round(len(rows) * (1 - recipe.eval_fraction))
        return rows[:cut], rows[cut:]
    out = np.zeros(len(rows), bool)
    count = max(1, round(len(rows) * recipe.eval_fraction))
    out[np.random.default_rng(recipe.seed).permutation(len(rows))[:count]] = True
    return [row for row, held in zip(rows, out, strict=True) if not held], [
        row for row, held in zip(rows, out, strict=True) if held
    ]


def _schedule(rate: float, recipe: Recipe) -> Any:
    warm = round(recipe.steps * recipe.warmup)
    if recipe.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warm else rate, rate, warm, max(recipe.steps, warm + 1))
    end = rate if recipe.schedule == "constant" else 0.0
    after = optax.linear_schedule(rate, end, max(1, recipe.steps - warm))
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(1, warm)), after], [warm])


def _say(text: str) -> None:
    if is_first():
        print(text, file=sys.stderr, flush=True)


def _show(folder: Path, recipe: Recipe) -> None:
    """The curve, and how it began and ended."""
    if not is_first():
        return
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    name = "reward" if any("reward" in line for line in lines) else "loss"
    values = [line[name] for line in lines if name in line]
    tenth = max(1, len(values) // 10)
    first, last = float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))
    if len(values) > 1:
        from .demo import curve, picture

        print(curve(values))
        if importlib.util.find_spec("matplotlib"):
            title = f"{Path(recipe.model).name}: {Path(recipe.data).name}"
            picture(values, folder / "curve.png", title=title, label=name)
    done = max(int(line["step"]) for line in lines)
    print(f"{recipe.out}: {name} {first:.3f} to {last:.3f} in {done} steps; {folder / 'metrics.jsonl'}")
    equal = [line["equal_groups"] for line in lines if "equal_groups" in line]
    if equal and np.mean(equal) > 0.5:
        said = f"{np.mean(equal):.0%} of the prompts' answers all earned the same, and nothing was learned from them"
        print(f"{said}: a reward in smaller steps?", file=sys.stderr)
    if name == "loss" and last > first:
        print("the loss went up: a lower --learning-rate, or longer --warmup?", file=sys.stderr)
