"""Saves killed at random moments, and loads during saves: what is read is the old or the new, whole, never a mixture.

    python benchmarks/kills.py --kills 500 --loads 2000          # over all kinds of saves; some twenty minutes on two cores
    python benchmarks/kills.py --kinds state --minutes 2 --seed 3
    python benchmarks/kills.py --together 4                       # four processes save to one place, and one is killed
    python benchmarks/kills.py --one-by-one                       # as on systems that cannot exchange two folders

Save number `n` fills every array with `n` and says `n` in its settings, too; every second one has other shapes. So a
reader sees of which save each part is. Writers are forked, which costs less than to import everything for each kill, and
say in a log what they begin and what they have done. Wrong is: a read that fails, parts of two saves, a save that was done
and is gone, and files of the dead that stay after the next save.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np

import easyfn as ef
from easyfn.core import atomic

PATIENCE = 60  # seconds for a save to begin


def config(number: int) -> Any:
    return ef.models.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1 + number % 2,
        num_attention_heads=2,
        max_position_embeddings=1000 + number,
    )


def filled(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda x: jax.numpy.asarray(np.full(x.shape, number, x.dtype)), tree)


def model(number: int) -> Any:
    return filled(ef.abstract(config(number)), number)


def adapted(number: int) -> Any:
    """An adapter whose rank and scale tell the number, on a model that does not."""
    rank, key = 2 + 2 * (number % 2), jax.random.key(0)
    return filled(ef.apply_lora(ef.abstract(config(0)), "q_proj|down_proj", rank=rank, alpha=number, key=key), number)


def state(number: int) -> dict[str, Any]:
    return filled({name: jax.ShapeDtypeStruct((16, 16), np.float32) for name in "abcdef"}, number)


def numbers(tree: Any) -> set[int]:
    return {int(n) for leaf in jax.tree.leaves(tree) for n in np.unique(np.asarray(leaf))}


def of_model(found: Any) -> set[int]:
    said = found.config.max_position_embeddings - 1000
    return numbers(found) | {said} | ({-1} if len(found.model.layers) != 1 + said % 2 else set())


def of_adapter(folder: Path) -> set[int]:
    weight = ef.load_adapter(model(0), folder).model.layers[0].self_attn.q_proj.weight
    return (
        numbers((weight.a, weight.b))
        | {int(weight.alpha)}
        | ({-1} if weight.rank != 2 + 2 * (weight.alpha % 2) else set())
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to save: `save(folder, number)`, which numbers a read finds, and what lies in the folder afterwards."""

    save: Callable[[Path, int], Any]
    read: Callable[[Path], set[int]]
    target: str = "m"
    kept: int = 1  # of the last saves, how many stay


KINDS = {
    "model": Kind(lambda f, n: ef.save(model(n), f / "m"), lambda f: of_model(ef.load(f / "m"))),
    "sharded": Kind(
        lambda f, n: ef.save(model(n), f / "m", max_shard_size="8KB"),
        lambda f: of_model(ef.load(f / "m")),
    ),
    "gguf": Kind(
        lambda f, n: ef.save(model(n), f / "m.gguf"),
        lambda f: of_model(ef.load(f / "m.gguf")),
        "m.gguf",
    ),
    "params": Kind(
        lambda f, n: ef.save(state(n), f / "m.safetensors"),
        lambda f: numbers(ef.load_params(state(0), f / "m.safetensors")),
        "m.safetensors",
    ),
    "adapter": Kind(lambda f, n: ef.save_adapter(adapted(n), f / "m"), lambda f: of_adapter(f / "m")),
    "state": Kind(
        lambda f, n: ef.save_state(state(n), f, step=7, overwrite=True, data_state=n),
        lambda f: numbers(ef.load_state(state(0), f)),
        "7",
    ),
    "steps": Kind(
        lambda f, n: ef.save_state(state(n), f, step=n, keep=2, data_state=n),
        lambda f: numbers(ef.load_state(state(0), f)),
        "",
        2,
    ),
}


# --- writers


def write(kind: Kind, folder: Path, log: Path, first: int, stride: int, count: int) -> None:
    """Saves `first`, `first + stride`, ... and says so."""
    said = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(first, first + count * stride, stride):
        os.write(said, f"begin {number}\n".encode())
        kind.save(folder, number)
        os.write(said, f"done {number}\n".encode())


def serve() -> None:
    """Forks a writer for each line of the input, and says its number; `wait` says when one has ended, and how."""
    import orbax.checkpoint  # noqa: F401  # before any fork

    for line in sys.stdin:
        word, *rest = line.split()
        if word == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(int(rest[0]), 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            name, folder, log, first, stride, count, one_by_one = rest
            if int(one_by_one):
                atomic.exchange = lambda *_: False
            try:
                write(KINDS[name], Path(folder), Path(log), int(first), int(stride), int(count))
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        print(child, flush=True)


class Writers:
    """The process that forks writers."""

    def __init__(self, one_by_one: bool) -> None:
        command = [sys.executable, __file__, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.one_by_one = int(one_by_one)

    def ask(self, *words: Any) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, name: str, folder: Path, log: Path, first: int, stride: int = 1, count: int = 10**6) -> int:
        return self.ask("write", name, folder, log, first, stride, count, self.one_by_one)

    def end(self, writer: int, how: int | None = signal.SIGKILL) -> int:
        if how is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(writer, how)
        return self.ask("wait", writer)


def said(log: Path, word: str) -> list[int]:
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(word)]


def begun(log: Path, more: int) -> None:
    """Waits until so many saves have begun."""
    until = time.monotonic() + PATIENCE
    while len(said(log, "begin")) < more:
        if time.monotonic() > until:
            raise SystemExit(f"no save began in {PATIENCE} s")
        time.sleep(0.001)


# --- trials


class Place:
    """A folder that is saved into, of one kind, and what was found wrong with it."""

    def __init__(self, name: str, folder: Path, writers: Writers, chance: random.Random) -> None:
        self.name, self.kind, self.writers, self.chance = name, KINDS[name], writers, chance
        self.folder, self.log = folder / "here", folder / "log"
        folder.mkdir()
        self.next = 1
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.there: set[int] = set()  # what was read last
        self.finish()
        started = time.monotonic()
        self.finish()
        self.usual = time.monotonic() - started

    def finish(self) -> None:
        """A save that nobody disturbs, after which only what it made is there."""
        status = self.writers.end(self.writers.start(self.name, self.folder, self.log, self.next, count=1), None)
        if status:
            self.wrong.append(f"save {self.next} ended with {status}")
        self.next += 1
        there = sorted(p.name for p in self.folder.iterdir())
        if len(there) > self.kind.kept or not all(n == self.kind.target or not self.kind.target for n in there):
            self.wrong.append(f"after save {self.next - 1} there are {there}")

    def judge(self, allowed: Callable[[int], bool]) -> str:
        try:
            found = self.kind.read(self.folder)
        except Exception as error:
            kind = f"{type(error).__name__}: {str(error)[:300]}"
            self.wrong.append(kind)
            return "failed"
        if len(found) != 1:
            self.wrong.append(f"parts of saves {sorted(found)}")
            return "mixed"
        (number,) = self.there = found
        if not allowed(number):
            self.wrong.append(
                f"read {number}; begun {said(self.log, 'begin')[-3:]}, done {said(self.log, 'done')[-3:]}"
            )
            return "lost"
        return "right"

    def kill(self, together: int) -> None:
        """Kills one of so many writers that save to this place, at a random moment; then the others."""
        before = len(said(self.log, "begin"))
        count = len(said(self.log, "done"))
        writers = [
            self.writers.start(self.name, self.folder, self.log, self.next + n, stride=together)
            for n in range(together)
        ]
        begun(self.log, before + 1)
        time.sleep(self.chance.uniform(0, 1.5 * self.usual))
        self.chance.shuffle(writers)
        for writer in writers:
            self.writers.end(writer)
            if writer is writers[0] and together > 1:
                self.counts[self.judge(lambda n: n in said(self.log, "begin"))] += 1
        open_, done = set(said(self.log, "begin")) - set(said(self.log, "done")), said(self.log, "done")
        self.counts["kills"] += 1
        self.counts["in a save"] += bool(max(open_, default=0) >= self.next)
        newest = max(done)
        if together == 1:
            right = lambda n: n == newest or (n in open_ and n == newest + 1) or (n in open_ and n > newest)
        else:
            right = lambda n: n in done[-together:] or n in open_
        verdict = self.judge(right)
        self.counts[verdict] += 1
        self.counts["done meanwhile"] += len(done) - count
        self.next = max(said(self.log, "begin")) + 1
        settled = sorted(
            {*done[-together:], *self.there}
        )  # what was put in its place may not have been said to be done
        self.log.write_text("".join(f"{w} {n}\n" for n in settled for w in ("begin", "done")))

    def loads(self, count: int, until: float) -> None:
        """Reads so often while a writer saves without end."""
        before = len(said(self.log, "begin"))
        writer = self.writers.start(self.name, self.folder, self.log, self.next)
        begun(self.log, before + 1)
        for _ in range(count):
            if time.monotonic() > until:
                break
            oldest = max(said(self.log, "done"))
            self.counts["load " + self.judge(lambda n, oldest=oldest: oldest <= n <= max(said(self.log, "begin")))] += 1
            self.counts["loads"] += 1
        self.writers.end(writer)
        self.next = max(said(self.log, "begin")) + 1
        self.finish()


@contextlib.contextmanager
def places(names: list[str], writers: Writers, seed: int) -> Iterator[list[Place]]:
    with tempfile.TemporaryDirectory() as folder:
        yield [Place(name, Path(folder) / name, writers, random.Random(f"{name} {seed}")) for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--kills", type=int, default=500, help="over all kinds")
    parser.add_argument("--loads", type=int, default=2000, help="during saves, over all kinds")
    parser.add_argument("--together", type=int, default=1, help="how many processes save to one place")
    parser.add_argument("--one-by-one", action="store_true", help="without the exchange of two folders at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stops then, with fewer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    writers = Writers(options.one_by_one)
    until = time.monotonic() + 60 * options.minutes
    with places(options.kinds, writers, options.seed) as all_of_them:
        for n in range(options.kills):
            if time.monotonic() < until - 60 * options.minutes / 2 or options.minutes == float("inf"):
                all_of_them[n % len(all_of_them)].kill(options.together)
        for place in all_of_them:
            place.finish()
        for n, place in enumerate(all_of_them):
            left = (until - time.monotonic()) / (len(all_of_them) - n)
            place.loads(-(-options.loads // len(all_of_them)), time.monotonic() + left)
    print("| save | kills | of them in a save | loads during saves | wrong |\n|---|---|---|---|---|")
    total: collections.Counter[str] = collections.Counter()
    for place in all_of_them:
        total += place.counts + collections.Counter(wrong=len(place.wrong))
        print(f"| {place.name} | {row(place.counts + collections.Counter(wrong=len(place.wrong)))} |")
    print(f"| all | {row(total)} |")
    for place in all_of_them:
        for what, count in collections.Counter(place.wrong).most_common(10):
            print(f"{place.name}, {count} times: {what}")
    sys.exit(bool(total["wrong"]))


def row(counts: collections.Counter[str]) -> str:
    return " | ".join(str(counts[name]) for name in ("kills", "in a save", "loads", "wrong"))


if __name__ == "__main__":
    main()
