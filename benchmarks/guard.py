"""Two commits of easyfn side by side on the main cases: what became faster or slower by more than the noise.

    python benchmarks/guard.py OLD [NEW] [--rounds 9] [--cases "forward 1 512 float32" ...]

`OLD` and `NEW` are whatever git knows; without `NEW`, the files as they lie here. Three processes take turns at each case
(those of compare.py): the new sources, the old ones, and the old ones once more. What the last two differ by is noise: a
case has *moved* where new and old differ by more. Exits with 1 if a case became slower. `import easyfn` is timed the same
way, in fresh processes.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import compare

ROOT = Path(__file__).parent.parent
CASES = [
    "forward 1 512 float32", "forward 8 128 float32", "forward 1 512 bfloat16", "decode 1 32 64 float32",
    "decode 8 32 64 float32", "decode8bit 1 32 64", "decodenf4 1 32 64", "train 4 256 float32", "lora 4 256 float32", "load",
]  # fmt: skip
LEAST = 0.01  # a difference that is nobody's concern


def sources(commit: str | None, folder: Path) -> Path:
    """The `src` of a commit, written to `folder`."""
    if commit is None:
        return ROOT / "src"
    packed = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def judged(old: list[float], again: list[float], new: list[float]) -> tuple[float, float]:
    """The median ratio of new to old by rounds, and what it has to differ from 1 by to be more than noise.

    The noise is that of a median of as many ratios of old to old: its offset, and twice its standard error, which is taken
    from the median absolute deviation (1.4826 of it is a normal's standard deviation, 1.2533 a median's error over a mean's).
    """
    same = [math.log(b / a) for a, b in zip(old, again, strict=True)]
    centre = statistics.median(same)
    spread = 1.4826 * statistics.median(abs(x - centre) for x in same)
    noise = abs(centre) + 2 * 1.2533 * spread / math.sqrt(len(same))
    return statistics.median(b / a for a, b in zip(old, new, strict=True)), max(math.expm1(noise), LEAST)


def rounds_of(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(rounds):
        names: Iterable[str] = sides if n % 2 == 0 else reversed(list(sides))
        for name in names:
            samples[name].append(sides[name]())
    return samples


def case(words: str, source: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    running = {name: compare.Side("easyfn", compare.__file__, path) for name, path in source.items()}
    try:
        for side in running.values():
            side.ask(f"prepare {words}")
        return rounds_of({name: lambda s=side: s.ask("sample") for name, side in running.items()}, rounds)
    finally:
        for side in running.values():
            side.stop()


def imports(source: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    def once(path: Path) -> float:
        began = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(path)}
        subprocess.run([sys.executable, "-c", "import easyfn; easyfn.load"], check=True, env=environment)
        return time.perf_counter() - began

    for path in source.values():
        subprocess.run([sys.executable, "-m", "compileall", "-q", path], check=True)
    return rounds_of({name: lambda p=path: once(p) for name, path in source.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", default=["import", *CASES])
    args = parser.parse_args()
    compare.checkpoint()
    slower = []
    with tempfile.TemporaryDirectory() as folder:
        old = sources(args.old, Path(folder) / "old")
        source = {"old": old, "new": sources(args.new, Path(folder) / "new"), "again": old}
        print("| case | new over old | noise | |\n|---|---|---|---|", flush=True)
        for words in args.cases:
            samples = imports(source, args.rounds) if words == "import" else case(words, source, args.rounds)
            ratio, noise = judged(samples["old"], samples["again"], samples["new"])
            moved = "slower" if ratio > 1 + noise else "faster" if ratio < 1 / (1 + noise) else ""
            slower += [words] * (moved == "slower")
            print(f"| {words} | {ratio:.3f} | {noise:.3f} | {moved} |", flush=True)
    sys.exit(f"slower: {', '.join(slower)}" if slower else 0)


if __name__ == "__main__":
    main()
