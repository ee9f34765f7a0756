"""Nothing lost: what is on the disk is the old or the new, whole, whoever is killed, and what the dead left goes."""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.core import atomic
from easyfn.io.checkpoint import one_version
from easyfn.io.place import write_document

CONFIG = ef.models.LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
)


def model(value=0.0, config=CONFIG):
    return jax.tree.map(lambda x: jnp.full_like(x, value), ef.init(config, key=jax.random.key(0)))


def value_of(model):
    (found,) = {float(np.asarray(x).flat[0]) for x in jax.tree.leaves(model)}
    return found


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed(code, *arguments):
    """Runs a program that kills itself."""
    lines = f"import os, signal, sys\nimport jax, jax.numpy as jnp, easyfn as ef\n{code}"
    done = subprocess.run([sys.executable, "-c", lines, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


SAVES = {
    "model": lambda folder: ef.save(model(), folder / "m"),
    "gguf": lambda folder: ef.save(model(), folder / "m.gguf"),
    "adapter": lambda folder: ef.save_adapter(adapted(), folder / "m"),
}
OTHERS = {
    "params": lambda folder: ef.save({"x": jnp.zeros(1000)}, folder / "m.safetensors"),
    "state": lambda folder: ef.save_state({"x": jnp.zeros(1000)}, folder / "m", step=7, overwrite=True),
}


def adapted(alpha=4, rank=2):
    return ef.apply_lora(model(), "q_proj", rank=rank, alpha=alpha, key=jax.random.key(0))


@pytest.mark.parametrize("kind", SAVES)
def test_what_a_killed_save_left_goes_with_the_next(kind, tmp_path):
    target = "m.gguf" if kind == "gguf" else "m"
    code = """
from easyfn.core import atomic
from pathlib import Path
with atomic.beside(Path(sys.argv[1]), "save") as folder:
    (folder / "half").write_bytes(bytes(100))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed(code, tmp_path / target)
    assert len(names(tmp_path)) == 1
    with atomic.beside(tmp_path / target, "save") as mine:  # a saver that lives
        SAVES[kind](tmp_path)
        assert names(tmp_path) == sorted([mine.name, target])
    assert names(tmp_path) == [target]


@pytest.mark.quick("io", "a save is an adapter, the old or the new")
def test_an_adapter_is_the_old_or_the_new(tmp_path):
    """Killed after any of its renames: weights and settings are of one save."""
    ef.save_adapter(adapted(alpha=4, rank=2), tmp_path / "a")
    code = """
c = ef.models.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
m = ef.apply_lora(ef.init(c, key=jax.random.key(0)), "q_proj", rank=4, alpha=64, key=jax.random.key(1))
real = os.replace
def die(*names, **more): real(*names, **more); os.kill(os.getpid(), signal.SIGKILL)
os.replace = os.rename = die
from easyfn.core import atomic
swap = atomic.exchange
def exchange(*names): swap(*names); os.kill(os.getpid(), signal.SIGKILL)
atomic.exchange = exchange
ef.save_adapter(m, sys.argv[1])
"""
    killed(code, tmp_path / "a")
    again = ef.load_adapter(model(), tmp_path / "a").model.layers[0].self_attn.q_proj.weight
    assert (again.rank, again.alpha) in ((2, 4), (4, 64))
    ef.save_adapter(adapted(), tmp_path / "a")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["adapter_config.json", "adapter_model.safetensors"]


def test_threads_that_save_to_one_new_place_all_succeed(tmp_path):
    errors = []

    def work(value):
        try:
            for _ in range(3):
                ef.save(models[value], tmp_path / "m")
        except Exception as error:
            errors.append(error)

    models = [model(float(value)) for value in range(4)]
    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert value_of(ef.load(tmp_path / "m")) in (0, 1, 2, 3) and names(tmp_path) == ["m"]


def test_a_load_during_saves_is_one_model(tmp_path):
    """The folder is exchanged after the headers are read, and after the config is: never a mixture."""
    from easyfn.io import build, load

    small = dataclasses.replace(CONFIG, num_hidden_layers=1)
    ef.save(model(1.0), tmp_path / "m")
    real, turns = load.open_checkpoint, iter([model(2.0, small), model(3.0)])

    def between(*args, **kwargs):
        if (new := next(turns, None)) is not None:  # after config.json was read, before the tensors are found
            ef.save(new, tmp_path / "m")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "open_checkpoint", between)
        assert value_of(ef.load(tmp_path / "m")) == 3.0
    real = build.assemble

    def late(*args, **kwargs):
        ef.save(model(4.0), tmp_path / "m")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "assemble", late)
        assert value_of(ef.load(tmp_path / "m")) == 3.0  # the one that was opened
    assert value_of(ef.load(tmp_path / "m")) == 4.0


def test_a_folder_that_never_rests_is_an_error(tmp_path):
    def read():
        (tmp_path / "config.json").unlink(missing_ok=True)
        (tmp_path / "config.json").write_text("{}" + " " * next(sizes))

    sizes = iter(range(100))
    with pytest.raises(ef.LoadError, match="another process saves into it"):
        one_version(tmp_path, read)


@contextlib.contextmanager
def full(most):
    """A disk on which no file gets longer than that: as with one that is full, what is written last fails."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("kind", "most", "file"),
    [
        ("model", 1000, "model.safetensors"),
        ("model", 0, "model.safetensors"),
        ("gguf", 1000, "m.gguf"),
        ("params", 1000, "m.safetensors"),
        ("adapter", 1000, "adapter_model.safetensors"),
        ("state", 10, "m/7"),
    ],
)
def test_a_full_disk_names_the_file(kind, most, file, tmp_path):
    save = {**SAVES, **OTHERS}[kind]
    save(tmp_path)
    before = contents(tmp_path)
    with full(most), pytest.raises(OSError, match=re.escape(file)):
        save(tmp_path)
    assert before.items() <= contents(tmp_path).items()
    save(tmp_path)
    assert len(contents(tmp_path)) == len(before)  # what the failed one left is gone
    with full(0), pytest.raises(OSError, match=r"config\.json"):
        write_document(tmp_path / "config.json", {})


# --- training states


def test_threads_that_save_one_step_all_succeed_or_say_who_was_first(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    errors = []

    def work(value, overwrite):
        try:
            ef.save_state({"x": jnp.full(3, value)}, tmp_path, step=1, overwrite=overwrite)
        except Exception as error:
            errors.append(error)

    for overwrite, failed in ((False, 3), (True, 0)):
        threads = [threading.Thread(target=work, args=(float(value), overwrite)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] == [FileExistsError] * failed
        errors.clear()
        assert ef.load_state({"x": jnp.zeros(3)}, tmp_path)["x"][0] in range(4) and names(tmp_path) == ["1"]


@pytest.mark.parametrize("swap", [True, False])
def test_an_overwritten_step_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, swap):
    pytest.importorskip("orbax.checkpoint")
    from easyfn.train import state

    like = {"x": jnp.zeros(3)}
    ef.save_state({"x": jnp.full(3, 1.0)}, tmp_path, step=1)
    if not swap:
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    ef.save_state({"x": jnp.full(3, 2.0)}, tmp_path, step=1, overwrite=True)
    assert ef.load_state(like, tmp_path)["x"][0] == 2 and names(tmp_path) == ["1"]

    def dies(new, path):
        if not swap:  # between the two renames
            path.rename(path.with_name(f"{path.name}.old"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "_take", dies)
        with pytest.raises(KeyboardInterrupt):
            ef.save_state({"x": jnp.full(3, 3.0)}, tmp_path, step=1, overwrite=True)
    assert ef.saved_steps(tmp_path) == (1,)
    assert ef.load_state(like, tmp_path)["x"][0] == 2
    ef.save_state({"x": jnp.full(3, 4.0)}, tmp_path, step=2)
    assert names(tmp_path) == ["1", "2"] and ef.load_state(like, tmp_path, step=1)["x"][0] == 2


def test_what_a_killed_save_of_a_state_left_goes_with_the_next(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    code = """
from pathlib import Path
from easyfn.train.state import _writing
with _writing(Path(sys.argv[1]), "save_state"):
    os.makedirs(sys.argv[1] + "/7.orbax-checkpoint-tmp/state")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed(code, tmp_path)
    from easyfn.train.state import _writing

    with _writing(tmp_path, "save_state"):
        os.makedirs(tmp_path / "8.orbax-checkpoint-tmp")
        ef.save_state({"x": jnp.zeros(3)}, tmp_path, step=9)
        assert "8.orbax-checkpoint-tmp" in names(tmp_path)  # of one that lives
    ef.save_state({"x": jnp.zeros(3)}, tmp_path, step=10)
    assert names(tmp_path) == ["10", "9"]


DAMAGE = {
    "no _METADATA": lambda step: (step / "state/_METADATA").unlink(),
    "half a _METADATA": lambda step: (step / "state/_METADATA").write_text("{"),
    "null in array_metadatas": lambda step: next((step / "state/array_metadatas").iterdir()).write_text(
        '{"array_metadatas": [null]}'
    ),
    "half a data_state": lambda step: (step / "data_state/metadata").write_text("{"),
    "no data_state": lambda step: (step / "data_state/metadata").unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_step_is_named(tmp_path, name):
    pytest.importorskip("orbax.checkpoint")
    like = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
    ef.save_state(like, tmp_path, step=3, data_state={"n": 1})
    DAMAGE[name](tmp_path / "3")
    with pytest.raises(ValueError, match=f"{tmp_path.name}/3.* is damaged") as error:
        ef.load_state(like, tmp_path), ef.load_data_state(tmp_path)
    assert type(error.value) is ValueError
