"""Loading and training on several processes of this machine: `python benchmarks/processes.py [processes ...]`.

For 1, 2 and 4 processes (or those given), each with one CPU device, joined by `jax.distributed` over loopback: the bytes
that each reads of a checkpoint, over those of the file; the peak of resident memory of a process during the load, over
its own shards; the time of a load and of a training step (fsdp), over those of one process; the time of a save. The
processes share the cores, so the steps tell what the collectives cost and no speed-up.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, LENGTH, STEPS = 8, 128, 7


def work(folder: Path, address: str, processes: int, number: int) -> None:
    import jax
    import numpy as np
    import optax

    if processes > 1:
        jax.distributed.initialize(address, processes, number)
    import easyfn as ef
    from easyfn.io import safetensors

    read: list[int] = []
    fill = safetensors._fill

    def counted(file, info, target, start):
        read.append(len(target))
        fill(file, info, target, start)

    safetensors._fill = counted
    mesh = ef.make_mesh()
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    before = _status("VmRSS")
    start = time.perf_counter()
    model = jax.block_until_ready(ef.load(folder / "model", mesh=mesh, progress=False))
    found = {"load": time.perf_counter() - start, "read": sum(read)}
    own = sum(s.data.nbytes for leaf in jax.tree.leaves(model) for s in leaf.addressable_shards)
    found |= {"own": own, "peak": (_status("VmHWM") - before) / own}
    ids = np.random.RandomState(0).randint(0, 1000, (ROWS, LENGTH))
    state, step = ef.to_state(model, optax.adamw(1e-3)), jax.jit(ef.train_step, donate_argnums=0)
    batch, times = ef.shard_batch({"input_ids": ids}, mesh), []
    for _ in range(STEPS):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        found["loss"] = float(metrics["loss"])
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    ef.save(state.model, folder / f"saved-{processes}", max_shard_size="20MB")
    found |= {"step": statistics.median(times[2:]), "save": time.perf_counter() - start}
    (folder / f"{processes}-{number}.json").write_text(json.dumps(found))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def run(folder: Path, processes: int) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, __file__, "--work", str(folder), address, str(processes)]
    running = [subprocess.Popen([*command, str(n)], env=environment) for n in range(processes)]
    try:
        for process in running:
            if process.wait(600):
                raise SystemExit(f"a process of {processes} failed")
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"{processes}-{n}.json").read_text()) for n in range(processes)]


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        return
    import jax

    import easyfn as ef

    config = ef.models.LlamaConfig(
        vocab_size=16000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ef.save(ef.init(config, key=jax.random.key(0)), folder / "model")
        size = sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
        print(f"{size / 1e6:.0f} MB of float32; a step: {ROWS} rows of {LENGTH} tokens, adamw, fsdp")
        print("| processes | bytes read by each / file | peak / own shards | load | step | save | loss |")
        print("|---|---|---|---|---|---|---|")
        one: dict = {}
        for processes in [int(n) for n in sys.argv[1:]] or [1, 2, 4]:
            found = run(folder, processes)
            mean = {key: statistics.mean(each[key] for each in found) for key in found[0]}
            one = one or mean
            print(
                f"| {processes} | {mean['read'] / size:.3f} | {max(e['peak'] for e in found):.2f} "
                f"| {mean['load'] / one['load']:.2f} x | {mean['step'] / one['step']:.2f} x "
                f"| {mean['save'] / one['save']:.2f} x | {mean['loss']:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
