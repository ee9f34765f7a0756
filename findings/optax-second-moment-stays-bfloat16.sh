#!/usr/bin/env bash
# Adam of optax on bfloat16 weights: `mu_dtype=float32` is for the first moment, and the second stays in bfloat16, where it
# cannot fall again: at b2 = 0.999 a step changes it by a thousandth, and the dtype has steps of 1/256.
# Guess: mu_dtype=float32 makes the optimizer's state float32, and training bfloat16 weights then learns but for rounding.
# Seen (optax 0.2.8, jax 0.10.2): after large gradients at the start it stalls far from the answer, without a warning.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "jax==0.10.2" "optax==0.2.8"
"$dir/env/bin/python" - <<'PY'import sys
import jax, jax.numpy as jnp, optax


def learned(dtype, mu_dtype=None):
    """The squared error of 32 weights, 1 at first, after 4000 steps of Adam whose gradients are large in the first twenty."""
    optimizer, key = optax.adam(1e-2, mu_dtype=mu_dtype), jax.random.key(0)
    right = jax.random.normal(key, (32,))

    def step(carry, n):
        weights, state = carry
        keys = jax.random.split(jax.random.fold_in(key, n))
        x = jax.random.normal(keys[0], (16, 32)) * jnp.where(n < 20, 10.0, 1.0)
        noise = 0.5 * jax.random.normal(keys[1], (16,))
        loss = lambda w: jnp.mean(jnp.square(x @ (w.astype(jnp.float32) - right) - noise))
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros(32, dtype)
    weights, state = jax.jit(lambda s: jax.lax.scan(step, (s, optimizer.init(s)), jnp.arange(4000))[0])(start)
    return float(jnp.mean(jnp.square(weights.astype(jnp.float32) - right))), state[0].nu.dtype


whole, _ = learned(jnp.float32)
plain, _ = learned(jnp.bfloat16)
asked, dtype = learned(jnp.bfloat16, mu_dtype=jnp.float32)
print(f"optax {optax.__version__}, jax {jax.__version__}")
print(f"squared error: float32 {whole:.2g}, bfloat16 {plain:.2g}, bfloat16 with mu_dtype=float32 {asked:.2g}; nu is {dtype}")
sys.exit(0 if dtype == jnp.bfloat16 and asked > 0.3 > 0.01 > whole else "this has changed")
PY
