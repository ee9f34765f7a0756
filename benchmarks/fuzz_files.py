"""Damaged files by the hundred thousand: each is read or refused with words, and nothing hangs or takes the memory.

    python benchmarks/fuzz_files.py --minutes 60 --log files.jsonl
    python benchmarks/fuzz_files.py --kinds tokenizer.json model.gguf --count 500 --seed 3
    python benchmarks/fuzz_files.py --again 'model.gguf 3 17'             # one input, with the whole traceback

The kinds of file, and how each is damaged, are those of `tests/damage.py`; an input is known by its kind, the seed, and a
number. A child process reads them, with ten seconds of a processor for each and 2 GiB beyond what it needs to start; this
one watches it. What is reported, once for each kind of fault: an error that is no clear one (anything but a `ValueError` or
`FileNotFoundError` that a reader raised on purpose), a hang, a crash, more memory than the limit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:] = [str(ROOT / "tests"), *(p for p in sys.path if Path(p) != ROOT / "benchmarks")]  # which has a families.py
SECONDS, MEMORY = 10, 2 * 2**30  # of a processor: a busy machine is no fault of a reader
PATIENCE = 90  # seconds on the clock until an input that does not end by itself is given up
TURN = 30  # seconds of one child that reads, so that slow kinds take no more of the time than fast ones
BATCH = 2000  # inputs of one child: what JAX compiled for odd shapes goes with it


class Hang(BaseException):
    """No `Exception`: what catches those must not catch this."""


def late(*_: Any) -> None:
    raise Hang


def place(error: BaseException) -> str:
    """The deepest line of easyfn in a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/easyfn/" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"


def attempt(kind: Any, content: bytes) -> tuple[str, str]:
    """What reading that content ends in: `("read" | "refused" | "wrong" | "hang", what)`."""
    from damage import clear

    kind.file.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        kind.read()
        return "read", ""
    except Hang as error:
        return "hang", place(error)
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if clear(error):
            return "refused", ""
        return "wrong", f"{type(error).__name__} at {place(error)}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def seeded(name: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{name} {seed} {number}")


def child(name: str, seed: int, start: int, count: int) -> None:
    """Reads inputs, with a line of JSON before and after each."""
    from damage import KINDS, damage

    signal.signal(signal.SIGPROF, late)
    warnings.filterwarnings("ignore")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[name](Path(folder) / "whole")
        whole = kind.file.read_bytes()
        kind.read()
        with open("/proc/self/statm", encoding="ascii") as file:
            own = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
        for number in range(start, start + count):
            content = damage(kind, whole, seeded(name, seed, number))
            out.write(f"{number}\n")
            how, what = attempt(kind, content)
            out.write(json.dumps([number, how, what]) + "\n")


def batch(name: str, seed: int, start: int, count: int, end: float) -> tuple[list[tuple[int, str, str]], int]:
    """Runs one child: what became of its inputs, and the number to go on with."""
    command = [sys.executable, __file__, "--child", name, str(seed), str(start), str(count)]
    found: list[tuple[int, str, str]] = []
    current, silent = start - 1, time.time() + 2 * PATIENCE
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        rest = b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], max(0.1, silent - time.time()))
            data = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not ready and time.time() > silent:
                process.kill()
                found.append((current, "hang", "it does not even answer a signal"))
                return found, current + 1
            if ready and not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if isinstance(said, int):
                    end = min(end, time.time() + TURN) if current < start else end
                    current, silent = said, time.time() + PATIENCE
                else:
                    found.append(tuple(said))
            if time.time() > end:
                process.kill()
                return found, current + 1
        code = process.wait()
    if code:
        found.append((current, "crash", f"exit {code}"))
    return found, current + 1


def fuzz(names: list[str], count: int, minutes: float, seed: int, log: Path | None) -> dict[str, Any]:
    """Goes over the kinds in turns until each has `count` inputs or the time is over."""
    end, tally = time.time() + 60 * minutes, collections.defaultdict(collections.Counter)
    at, seen = dict.fromkeys(names, 0), set()
    while time.time() < end and any(at[n] < count for n in names):
        for name in names:
            if at[name] >= count or time.time() > end:
                continue
            found, at[name] = batch(name, seed, at[name], min(BATCH, count - at[name]), end)
            for number, how, what in found:
                tally[name][how] += 1
                if (
                    how in ("wrong", "hang", "crash")
                    and (name, what.partition(":")[0] + what.partition(":")[2][:6]) not in seen
                ):
                    seen.add((name, what.partition(":")[0] + what.partition(":")[2][:6]))
                    line = {"kind": name, "seed": seed, "number": number, "how": how, "what": what}
                    print(json.dumps(line), flush=True)
                    if log:
                        with log.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
            if log:
                with contextlib.suppress(OSError):
                    log.with_suffix(".counts").write_text(json.dumps(tally))
    return tally


def again(what: str) -> None:
    """One input, in this process, with all that it says."""
    from damage import KINDS, damage

    *words, seed, number = what.split()
    name = " ".join(words)
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[name](Path(folder) / "whole")
        content = damage(kind, kind.file.read_bytes(), seeded(name, int(seed), int(number)))
        print(content[:3000])
        kind.file.write_bytes(content)
        signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            kind.read()
            print("read")
        except BaseException:
            traceback.print_exc(limit=-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--count", type=int, default=10**6, help="inputs of each kind")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a file that gets a line of JSON for every fault")
    parser.add_argument("--again", nargs="*", help="'KIND SEED NUMBER'")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.child:
        name, seed, start, count = args.child
        return child(name, int(seed), int(start), int(count))
    for one in args.again or ():
        again(one)
    if args.again:
        return
    from damage import KINDS

    tally = fuzz(args.kinds or list(KINDS), args.count, args.minutes, args.seed, args.log)
    hows = ("read", "refused", "wrong", "hang", "crash")
    print(f"{'kind':34}" + "".join(f"{h:>9}" for h in hows))
    for name, counts in [*tally.items(), ("all", sum(tally.values(), collections.Counter()))]:
        print(f"{name:34}" + "".join(f"{counts[h]:9}" for h in hows))
    sys.exit(any(counts[h] for counts in tally.values() for h in hows[2:]))


if __name__ == "__main__":
    main()
