"""Load against a plain read of the same file: `python benchmarks/load.py [folder]`.

Prints the ratio of `ef.load` (and of safetensors' own readers) to reading the file into one fresh numpy array,
medians of interleaved runs with the file in the page cache, and the peak memory of a load over the size of the
file, each in a process of its own.
Without a folder it writes the Llama of the benchmarks (vocabulary 32000, 8 layers of 512).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def plain(folder: Path) -> list[np.ndarray]:
    arrays = []
    for file in sorted(folder.glob("*.safetensors")):
        out = np.empty(file.stat().st_size, np.uint8)
        with open(file, "rb", buffering=0) as f:
            view, done = memoryview(out), 0
            while done < len(view):
                done += f.readinto(view[done:])
        arrays.append(out)
    return arrays


def safetensors_numpy(folder: Path) -> list[dict[str, np.ndarray]]:
    from safetensors.numpy import load_file

    return [load_file(file) for file in sorted(folder.glob("*.safetensors"))]


def safetensors_torch(folder: Path) -> list[dict]:
    from safetensors.torch import load_file

    return [{k: v.clone() for k, v in load_file(file).items()} for file in sorted(folder.glob("*.safetensors"))]


def easyfn(folder: Path, **options: object) -> object:
    import jax

    import easyfn as ef

    return jax.block_until_ready(ef.load(folder, progress=False, **options))


WAYS = {
    "plain read": plain,
    "ef.load": easyfn,
    "ef.load stack=True": lambda folder: easyfn(folder, stack=True),
    "ef.load mmap=True": lambda folder: easyfn(folder, mmap=True),
    "ef.load dtype=bfloat16": lambda folder: easyfn(folder, dtype="bfloat16"),
    "safetensors.numpy": safetensors_numpy,
    "safetensors.torch, copied": safetensors_torch,
}


def times(folder: Path, rounds: int = 9) -> dict[str, float]:
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way, read in WAYS.items():
            start = time.perf_counter()
            kept = read(folder)
            if turn:
                taken[way].append(time.perf_counter() - start)
            del kept
    return {way: statistics.median(t) for way, t in taken.items()}


def peak(folder: Path, way: str) -> float:
    """The peak of resident memory during a load over what it was before, by the size of the file."""
    out = subprocess.run(
        [sys.executable, __file__, "--peak", str(folder), way], capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def _peak(folder: Path, way: str) -> None:
    import jax

    import easyfn as ef

    ef.params({"warm": jax.numpy.ones(3) + 1})
    before = _status("VmRSS")
    kept = WAYS[way](folder)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    print((_status("VmHWM") - before) / size)
    del kept


def _status(key: str) -> int:
    """Bytes of resident memory now (VmRSS) or at most so far (VmHWM); in getrusage a child inherits its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def report(folder: Path) -> None:
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    found = times(folder)
    base = found["plain read"]
    print(f"{size / 1e6:.0f} MB, plain read {size / base / 1e9:.2f} GB/s")
    for way, seconds in found.items():
        print(f"{way:28} {seconds / base:5.2f} x the time, peak {peak(folder, way):5.2f} x the file")


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        _peak(Path(sys.argv[2]), sys.argv[3])
    elif len(sys.argv) > 1:
        report(Path(sys.argv[1]))
    else:
        import jax

        import easyfn as ef

        config = ef.models.LlamaConfig(
            vocab_size=32000,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
        with tempfile.TemporaryDirectory() as folder:
            ef.save(ef.init(config, key=jax.random.key(0)), folder)
            report(Path(folder))


if __name__ == "__main__":
    main()
