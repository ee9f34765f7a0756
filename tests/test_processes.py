"""Two processes, then four, on this machine: they load, train, generate and save one model together, as one process does.

What each of them does is in worker.py. Two processes start from a model and end with one of them killed in the middle of
a save; four go on from what they left, on another mesh.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import easyfn as ef
import worker
from easyfn.names import part

LIMIT = 300  # seconds; far more than it takes


def start(folder, processes):
    """Runs the worker as so many processes, and returns their exit statuses and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={4 // processes} --xla_backend_optimization_level=0"
    cache = Path(__file__).parent.parent / ".cache" / "jax"  # which the processes share
    more = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    running = []
    try:
        for number in range(processes):
            command = [sys.executable, worker.__file__, str(folder), address, str(processes), str(number)]
            log = open(folder / f"log-{processes}-{number}.txt", "w+")  # noqa: SIM115
            running.append((subprocess.Popen(command, env={**os.environ, **more}, stdout=log, stderr=log), log))
        for process, _ in running:
            process.wait(LIMIT)
    finally:
        said = []
        for process, log in running:
            process.kill()
            process.wait()
            log.seek(0)
            said.append(log.read()[-3000:])
            log.close()
    return [process.returncode for process, _ in running], said


@pytest.fixture(scope="module")
def alone():
    """The same four steps in this process."""
    model = ef.init(ef.models.LlamaConfig(**worker.CONFIG), key=jax.random.key(0))
    state, models, losses = ef.to_state(model, worker.OPTIMIZER), [model], []
    step = jax.jit(ef.train_step)
    for n in range(4):
        state, metrics = step(state, worker.batch(n))
        losses.append(float(metrics["loss"]))
        models.append(state.model)
    return models, losses


@pytest.fixture(scope="module")
def folder(alone, tmp_path_factory):
    """What two processes left, and then four. Workers of pytest-xdist share it: the first that comes here makes it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes"
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + 2 * LIMIT
        while not (folder / "over").exists() and time.monotonic() < until:
            time.sleep(0.2)
        return folder
    try:
        ef.save(alone[0][0], folder / "model")
        # Where process 0 does not see that the other's connection is gone, JAX ends it for want of heartbeats.
        for processes, expected in ((2, ([7, -9], [-6, -9])), (4, ([0] * 4,))):
            status, said = start(folder, processes)
            assert status in expected, "\n\n".join(said)
            shutil.copytree(folder / "model", folder / f"model-after-{processes}")
            names = sorted(p.name for p in folder.iterdir() if p.name.startswith(".model"))
            assert not names or -6 in status, f"left behind: {names}"  # which the next save takes away
    finally:
        (folder / "over").touch()
    return folder


def found(folder, processes):
    """What each process found."""
    return [json.loads((folder / f"{processes}-{n}.json").read_text()) for n in range(processes)]


def close(model, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), model, other)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_process_reads_the_bytes_of_its_shards(folder, alone, processes):
    for each in found(folder, processes):
        assert each["read"] == each["own"] < each["all"]
        assert each["held"] == each["own"] and each["most"] == each["largest"]  # no copy, no whole tensor
        assert each["params"] == ef.num_params(alone[0][0]) and "fsdp" in each["table"]


def test_together_as_alone(folder, alone):
    models, losses = alone
    for processes, done in ((2, 2), (4, 4)):
        tokens = ef.generate(models[done], worker.PROMPT, max_new_tokens=4, do_sample=False).sequences
        for each in found(folder, processes):
            np.testing.assert_allclose(each["losses"], losses[done - 2 : done], rtol=1e-4)
            assert each["tokens"] == np.asarray(tokens).tolist()
            assert each["alike"]
        close(ef.load(folder / f"model-after-{processes}"), models[done])
    for each in found(folder, 2):
        assert each["gathered"] and each["whole"] and each["quantized"] and each["logits"] == [4, 4, 64]
        assert each["streamed"] == [row[4:] for row in each["tokens"]]
    jax.tree.map(np.testing.assert_array_equal, ef.load(folder / "alone"), models[0])
    jax.tree.map(np.testing.assert_array_equal, ef.load(folder / "quantized"), ef.quantize(models[0], "8bit"))


def test_the_command_joins_and_prints_once(folder):
    said = [(folder / f"log-4-{n}.txt").read_text() for n in range(4)]
    assert ["model.layers.0-1.self_attn.q_proj.weight" in text for text in said] == [True, False, False, False]
    assert "[tp, fsdp]" in said[0]


def test_a_state_of_other_processes(folder, alone):
    assert ef.saved_steps(folder / "state") == (4,) and ef.load_data_state(folder / "state") == {"row": 4}
    blank = ef.to_state(ef.abstract(ef.models.LlamaConfig(**worker.CONFIG)), worker.OPTIMIZER)
    state = ef.load_state(blank, folder / "state")
    assert int(state.step) == 4
    close(state.model, alone[0][4])


def test_a_save_that_loses_a_process_leaves_the_old_model(folder):
    found = folder / "killed-0.json"
    assert not found.exists() or json.loads(found.read_text()) != "saved"
    assert not (folder / "killed-1.json").exists()
    assert len(list((folder / "model-after-2").glob("*.safetensors"))) > 1


def test_an_error_of_one_is_everybodys(folder):
    for number, each in enumerate(found(folder, 4)):
        assert each["full"] == (
            "no space left" if number == 2 else "save: process 2 of 4 failed; its own error says why"
        )


def test_runs_of_bytes():
    """Every part of a tensor is read by the bytes that it is, and no others."""
    random = np.random.RandomState(0)
    for shape in ((), (7,), (4, 6), (3, 4, 5), (2, 1, 3, 4)):
        array = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)
        data = array.tobytes()
        for _ in range(30):
            ends = [sorted(random.randint(0, size + 1, 2)) for size in shape]
            index = tuple(slice(int(a), int(b)) for a, b in ends)
            starts, length = found = part.runs(shape, 2, index)
            assert b"".join(data[start : start + length] for start in starts) == array[index].tobytes()
            gaps = np.diff(starts) - length
            assert (gaps > 0).all(), "not the longest"
            groups = part.joined(found, 6)
            assert [n for group in groups for n in range(group.start, group.stop)] == list(range(len(starts)))
            assert all((gaps[group.start : group.stop - 1] <= 6).all() for group in groups)
            assert all(gaps[group.stop - 1] > 6 for group in groups[:-1])
