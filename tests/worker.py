"""One of several processes of a test: `python worker.py folder address processes number`. See test_processes.py.

Everything is done in one start, since starts are dear. What a process finds goes into `folder/<processes>-<number>.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import optax

CONFIG = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
)
OPTIMIZER = optax.adamw(1e-2)
PROMPT = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])


def batch(number):
    """The batch of a step: the same on every process, and on one."""
    return {"input_ids": np.random.RandomState(number).randint(0, 64, (4, 8))}


def counted(log):
    """Counts the bytes of tensors that this process reads."""
    from easyfn.io import safetensors

    read = safetensors._fill

    def fill(file, info, target, start):
        log.append(len(target))
        read(file, info, target, start)

    safetensors._fill = fill


def allocated(log):
    """The sizes of the host's arrays that a load reads into."""
    from easyfn.io import arrays

    aligned = arrays.aligned

    def make(shape, dtype):
        out = aligned(shape, dtype)
        log.append(out.nbytes)
        return out

    arrays.aligned = make


def own_bytes(model):
    """The bytes of the different shards that this process holds."""
    total = 0
    for leaf in jax.tree.leaves(model):
        total += sum({str(s.index): s.data.nbytes for s in leaf.addressable_shards}.values())
    return total


def same(a, b):
    """Whether two models hold the same shards here."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.array_equal(x.data, y.data)
        for a, b in pairs
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True)
    )


def run(folder, processes, number):
    import easyfn as ef

    found, log, held = {}, [], []
    counted(log), allocated(held)
    mesh = ef.make_mesh(fsdp=2, tp=2) if processes == 2 else ef.make_mesh(fsdp=-1, tp=1)
    model = ef.load(folder / "model", mesh=mesh)
    found["read"], found["own"], found["all"] = sum(log), own_bytes(model), ef.num_bytes(model)
    found["held"], found["most"] = sum(held), max(held)
    found["largest"] = max(s.data.nbytes for leaf in jax.tree.leaves(model) for s in leaf.addressable_shards)
    found["params"], found["table"] = ef.num_params(model), str(ef.show(model))
    if processes == 2:
        ef.save(ef.load(folder / "model", mesh=mesh, quantize="8bit"), folder / "quantized")
        found["quantized"] = ef.is_quantized(ef.load(folder / "quantized", mesh=mesh))
    state = ef.to_state(model, OPTIMIZER)
    start = 0
    if processes == 4:  # goes on with what two processes left, on another mesh
        state = ef.load_state(state, folder / "state")
        start = ef.load_data_state(folder / "state")["row"]
    step = jax.jit(ef.train_step, donate_argnums=0)
    found["losses"] = []
    for n in range(start, start + 2):
        state, metrics = step(state, ef.shard_batch(batch(n), mesh))
        found["losses"].append(float(metrics["loss"]))
    with ef.Checkpoints(folder / "state", keep=1) as checkpoints:
        checkpoints.save(state, data_state={"row": start + 2})
    trained = state.model
    out = ef.generate(trained, PROMPT, max_new_tokens=4, do_sample=False)
    found["tokens"] = np.asarray(out.sequences).tolist()
    if processes == 2:
        ids = ef.shard_batch({"ids": PROMPT}, mesh)["ids"]
        found["streamed"] = np.stack(list(ef.stream(trained, ids, max_new_tokens=4, do_sample=False)), 1).tolist()
        found["logits"] = ef.forward(trained, ids).logits.shape
    else:
        found["full"] = full(folder, trained, number)
    ef.save(trained, folder / "model", max_shard_size="20KB")
    found["alike"] = same(ef.load(folder / "model", mesh=mesh), trained)
    if processes == 2:
        whole = ef.init(ef.models.LlamaConfig(**CONFIG), key=jax.random.key(0))
        split = ef.shard(whole, mesh=mesh)
        back = ef.fully_gather(split)
        found["gathered"] = all(leaf.is_fully_replicated for leaf in jax.tree.leaves(ef.gather(split)))
        found["whole"] = jax.tree.all(jax.tree.map(np.array_equal, back, whole))
        if number == 1:  # what a process holds whole it saves without the others
            ef.save(back, folder / "alone")
    return found, trained


def full(folder, model, number):
    """The disk of process 2 is full: all of them must say so, and go on."""
    import easyfn as ef
    from easyfn.io import save

    write = save.write

    def refuse(path, shapes, arrays, metadata):
        raise OSError("no space left")

    if number == 2:
        save.write = refuse
    try:
        ef.save(model, folder / "model", max_shard_size="10KB")
    except (OSError, RuntimeError) as error:
        return str(error)
    finally:
        save.write = write


def killed(folder, model, number):
    """Process 1 is killed in the middle of a save; process 0 must say so."""
    import easyfn as ef
    from easyfn.io import save

    write = save.write

    def die(path, shapes, arrays, metadata):
        if number == 1:
            next(iter(arrays))
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, shapes, arrays, metadata)

    save.write = die
    try:
        ef.save(model, folder / "model", max_shard_size="10KB")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


def main():
    folder, address, processes, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if processes == 2:
        jax.distributed.initialize(
            address, processes, number, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=10
        )
    else:
        from easyfn.cli import main as command

        os.environ |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": str(number)}
        command(["--distributed", "--mesh", "fsdp=2,tp=2", "show", str(folder / "model")])
        sys.stdout.flush()
    found, model = run(folder, processes, number)
    (folder / f"{processes}-{number}.json").write_text(json.dumps(found))
    if processes == 2:
        (folder / f"killed-{number}.json").write_text(json.dumps(killed(folder, model, number)))
        os._exit(7)  # without waiting for the one that is gone


if __name__ == "__main__":
    main()
