#!/usr/bin/env bash
# JAX on CPU: device_put(x, may_alias=False) of an array of NumPy's shares its memory where it starts at a multiple of 64 bytes.
# Guess: "If False, `x` will be copied", as its docstring says; a later write into x changes nothing.
# Seen (jax 0.10.2): the write shows through, of small arrays for about one in four; jnp.array(x) copies.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
JAX_PLATFORMS=cpu "$dir/env/bin/python" - <<'PY'
import sys
import jax, jax.numpy as jnp, numpy as np


def changed(move, start):
    room = np.zeros(4096 + 128, np.uint8)
    first = -room.ctypes.data % 64 + start
    x = room[first : first + 4096].view(np.float32)
    moved = move(x).block_until_ready()
    x[:] = 7
    return bool(moved[0] == 7)


moves = {
    "device_put(x)": jax.device_put,
    "device_put(x, may_alias=False)": lambda x: jax.device_put(x, may_alias=False),
    "jnp.array(x)": jnp.array,
}
found = {(name, start): changed(move, start) for name, move in moves.items() for start in (0, 4)}
print(f"jax {jax.__version__}")
for (name, start), shared in found.items():
    print(f"{name}, memory at a multiple of 64 bytes plus {start}: {'shared' if shared else 'copied'}")
want = {key: key[0] != "jnp.array(x)" and key[1] == 0 for key in found}
sys.exit(0 if found == want else "this has changed")
PY
