"""Steps of a training run on disk: written while it goes on, kept or dropped, and whole whenever the process is killed."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef

SHAPES = {"a": (64, 64), "b": (3,)}


def state(value):
    return {name: jnp.full(shape, value, jnp.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def add():
    return jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)


def test_written_beside_a_loop_that_donates(tmp_path, add):
    now = state(0)
    with ef.Checkpoints(tmp_path / "run", keep=2, every=3) as checkpoints:
        assert ef.saved_steps(tmp_path / "run") == ()
        did = []
        for step in range(1, 11):
            now = add(now)
            did.append(checkpoints.save(now, step=step, data_state={"row": 32 * step, "seen": ["a.txt"]}))
    assert did == [step % 3 == 0 for step in range(1, 11)]
    assert ef.saved_steps(tmp_path / "run") == (6, 9)
    for step in (6, 9):
        found = ef.load_state(state(0), tmp_path / "run", step=step)
        assert all((leaf == step).all() for leaf in jax.tree.leaves(found))
        assert ef.load_data_state(tmp_path / "run", step=step) == {"row": 32 * step, "seen": ["a.txt"]}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["6", "9"]


def test_the_count_of_the_state_is_the_step(tmp_path):
    model = ef.init(ef.nn.Linear(4, 4), key=jax.random.key(0))
    run = ef.to_state(model, optax.adam(1e-3))
    with ef.Checkpoints(tmp_path, every=5) as checkpoints:
        assert checkpoints.save(run)  # 0
        with pytest.raises(FileExistsError, match="0 exists"):
            checkpoints.save(run)
    assert ef.load_data_state(tmp_path) is None
    assert int(ef.load_state(run, tmp_path).step) == 0
    ef.save_state(run, tmp_path, overwrite=True, data_state=7)
    assert ef.load_data_state(tmp_path) == 7


def test_another_mesh(tmp_path):
    """Every array goes where the fresh state has it, whatever mesh it was saved from."""
    config = ef.models.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    make = lambda: ef.init(config, key=jax.random.key(0))
    split = lambda model, **mesh: ef.to_state(ef.shard(model, mesh=ef.make_mesh(**mesh)), optax.adam(1e-3))
    saved = split(make(), fsdp=8)
    ef.save_state(saved, tmp_path)
    for mesh in (dict(fsdp=4, tp=2), dict(fsdp=2, devices=jax.devices()[:2])):
        like = split(jax.eval_shape(make), **mesh)
        found = ef.load_state(like, tmp_path)
        for a, b, c in zip(*map(jax.tree.leaves, (found, like, saved)), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
            np.testing.assert_array_equal(np.asarray(a), np.asarray(c))


@pytest.mark.quick("train", "a step is a name")
def test_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="keep nothing"):
        ef.Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="every=0"):
        ef.Checkpoints(tmp_path, every=0)
    with pytest.raises(FileNotFoundError, match="no steps"):
        ef.load_data_state(tmp_path)


# Saves on and on, in a child that is killed at a random moment, as often as it is asked to. Everything is imported once:
# a child is a fork of this process, which has not started JAX.
PROGRAM = """
import os, random, signal, sys, time
import numpy as np
import orbax.checkpoint
import easyfn as ef

def work(folder, report):
    step = max(ef.saved_steps(folder), default=0)
    with ef.Checkpoints(folder, keep=2) as checkpoints:
        while True:
            step += 1
            checkpoints.save({"a": np.full((64, 64), step, np.float32), "b": np.full(3, step, np.float32)}, step=step,
                             data_state={"row": step})
            os.write(report, b"%d\\n" % (step - 1))  # which is written when the next save has begun

for line in sys.stdin:
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        work(sys.argv[1], into)
    os.close(into)
    seen = os.fdopen(out, "rb")
    seen.readline(), seen.readline()
    time.sleep(random.Random(line).uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print((seen.read().split() or [b"0"])[-1].decode(), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_at_any_moment(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        try:
            for turn in range(12):
                process.stdin.write(f"{turn}\n")
                process.stdin.flush()
                line = process.stdout.readline()
                assert line, process.stderr.read()[-2000:]
                steps = ef.saved_steps(tmp_path)
                assert steps[-1] >= int(line), "a step that was written is gone"
                for step in steps[-2:]:
                    found = ef.load_state(state(0), tmp_path, step=step)
                    assert all((np.asarray(leaf) == step).all() for leaf in jax.tree.leaves(found))
                    assert ef.load_data_state(tmp_path, step=step) == {"row": step}
        finally:
            process.kill()
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    (tmp_path / "notes.txt").write_text(json.dumps("mine"))
    with ef.Checkpoints(tmp_path):
        assert all(p.name.isdigit() or p.name == "notes.txt" for p in tmp_path.iterdir())
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("how", ["overwritten", "pruned"])
def test_a_step_that_goes_while_it_is_read_is_read_again(how, tmp_path):
    """Another process replaces the step, or removes it for a newer one, after its shapes were read and before its arrays."""
    from easyfn.train import state

    like = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    value = lambda n: jax.tree.map(lambda x: jnp.full_like(x, n), like)
    ef.save_state(value(1), tmp_path, step=1, data_state=1)
    real, turns = state.compare, iter([2, 3])

    def between(*args):
        real(*args)
        if (n := next(turns, None)) is not None:
            more = {"step": 1, "overwrite": True} if how == "overwritten" else {"step": n, "keep": 1}
            ef.save_state(value(n), tmp_path, data_state=n, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "compare", between)
        found = ef.load_state(like, tmp_path)
    assert {float(x) for leaf in found.values() for x in leaf} == {3.0}
    assert ef.load_data_state(tmp_path) == 3


def test_what_orbax_changes_comes_back_as_it_was(tmp_path):
    """Orbax gives lists for tuples and refuses arrays without entries; a state is saved by paths, and read like `like`."""
    state = {"a": (jnp.arange(3), [jnp.ones(2), None]), "b": {}, "c": jnp.zeros(())}
    ef.save_state(state, tmp_path, step=1)
    found = ef.load_state(jax.tree.map(jnp.zeros_like, state), tmp_path)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, state))
    with pytest.raises(ValueError, match="x"):
        ef.save_state({"x": jnp.zeros((0, 3))}, tmp_path, step=2)
    assert ef.saved_steps(tmp_path) == (1,)
