"""What a training step costs on more devices: compile time, and what one device sends, by kind and axis of the mesh.

    python benchmarks/scaling.py                    # meshes of 1, 2, 4 and 8 fake devices, strong and weak
    python benchmarks/scaling.py --only pp tp

Nothing runs: each size is a process of its own that compiles the step of an abstract, stacked model for so many fake
devices of the CPU, and reads the collectives from the program. Strong scaling keeps the batch, weak scaling gives each
device as many tokens as the single one has: `sp` a longer sequence, the others more rows. (The exchange of `ep` lies in
conditions of the program, whose branches are not all counted.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

AXES = ("fsdp", "tp", "pp", "sp", "ep")
SIZES = (1, 2, 4, 8)
ROWS, TOKENS = 8, 128


def measure(count: int, axes: list[str]) -> None:
    """One line of JSON for every step, in a process with `count` devices."""
    import jax
    import jax.numpy as jnp
    import optax

    import easyfn as ef

    sizes = dict(
        vocab_size=4096, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip
    llama = ef.models.LlamaConfig(**sizes)
    mixtral = ef.models.MixtralConfig(**sizes, num_local_experts=8, num_experts_per_tok=2)
    for axis in axes:
        for scaling in ("strong", "weak"):
            more = count if scaling == "weak" else 1
            rows, tokens = (ROWS, TOKENS * more) if axis == "sp" else (ROWS * more, TOKENS)
            mesh = ef.make_mesh(**{"fsdp": 1, axis: count})
            model = ef.abstract(mixtral if axis == "ep" else llama, dtype="float32")
            model = ef.pipeline(model, count, microbatches=ROWS) if axis == "pp" and count > 1 else ef.stack(model)
            state = ef.to_state(ef.shard(model, None, mesh), optax.adamw(1e-3))
            ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=ef.data_sharding(mesh))
            start = time.perf_counter()
            compiled = jax.jit(ef.train_step, donate_argnums=0).lower(state, {"input_ids": ids}).compile()
            seconds = time.perf_counter() - start
            sent: dict[str, int] = {}
            for c in ef.planning.read_collectives(compiled.as_text(), mesh.shape):
                sent[c.kind] = sent.get(c.kind, 0) + c.bytes
            facts = dict(axis=axis, devices=count, scaling=scaling, compile=seconds, sent=sent)
            facts["weights"] = compiled.memory_analysis().argument_size_in_bytes
            print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return measure(options.worker, options.only)
    from easyfn.planning.collectives import KINDS

    found = []
    for count in options.sizes:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        command = [sys.executable, __file__, "--worker", str(count), "--only", *options.only]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found += [json.loads(line) for line in out.splitlines()]
    print(f"| axis | devices | scaling | compile s | state MB | {' | '.join(f'{kind} MB' for kind in KINDS)} |")
    print("|---" * (5 + len(KINDS)) + "|")
    for f in sorted(found, key=lambda f: (AXES.index(f["axis"]), f["scaling"], f["devices"])):
        mb = lambda n: f"{n / 2**20:.1f}" if n else ""
        sent = " | ".join(mb(f["sent"].get(kind, 0)) for kind in KINDS)
        print(f"| {f['axis']} | {f['devices']} | {f['scaling']} | {f['compile']:.1f} | {mb(f['weights'])} | {sent} |")


if __name__ == "__main__":
    main()
