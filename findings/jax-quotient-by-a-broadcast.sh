#!/usr/bin/env bash
# Division by a number or by an array that is broadcast, then floor: which step a position is in, how many windows fit.
# Guess: 41 / 41 is 1, as IEEE says and as numpy, torch and JAX itself for two whole arrays have it.
# Seen (jax 0.10.2, CPU): XLA multiplies by 1 / 41, which gives a little less than 1, and the floor is 0. Also uncompiled, where a
# divisor is broadcast.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "jax==0.10.2"
"$dir/env/bin/python" - <<'PY'
import sys
import jax, jax.numpy as jnp, numpy as np

x = np.arange(1, 1000, dtype=np.float32)
by_number = np.asarray(jax.jit(lambda x: jnp.floor(x / 41.0))(x))
by_arrays = np.asarray(jax.jit(lambda x, y: jnp.floor(x / y))(x, np.full_like(x, 41)))
wanted = np.floor(x / np.float32(41))
wrong = x[by_number != wanted]
print(f"jax {jax.__version__}: floor(x / 41) is wrong at {wrong.astype(int).tolist()}, by a whole array at {x[by_arrays != wanted].tolist()}")
sys.exit(0 if wrong.size and (by_arrays == wanted).all() else "this has changed")
PY
