#!/usr/bin/env bash
# JAX: jnp.asarray of an array of NumPy's compiles a program for each shape it meets; jax.device_put does not.
# Guess: asarray copies to the device and compiles nothing, as it did until 0.9.
# Seen: jax 0.9.0 compiles none for fifty shapes, 0.10.2 fifty, some 20 ms each; device_put none in either.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
for version in 0.9.0 0.10.2; do
  python3 -m venv "$dir/$version"
  "$dir/$version/bin/pip" install -q --disable-pip-version-check "jax==$version" "jaxlib==$version"
  JAX_PLATFORMS=cpu "$dir/$version/bin/python" - <<'PY'
import sys, time
import jax, jax.numpy as jnp, numpy as np

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
)


def programs(move):
    compiled.clear()
    begin = time.perf_counter()
    for rows in range(2, 52):  # as batches of fifty lengths would
        move(np.ones((rows, 3), np.float32)).block_until_ready()
    return len(compiled), (time.perf_counter() - begin) / 50


found = {"jnp.asarray": programs(jnp.asarray), "jax.device_put": programs(jax.device_put)}
print(f"jax {jax.__version__}, 50 shapes")
for name, (count, seconds) in found.items():
    print(f"{name}: {count} programs compiled, {1e3 * seconds:.1f} ms a call")
want = {"0.9.0": (0, 0), "0.10.2": (50, 0)}[jax.__version__]
sys.exit(0 if tuple(count for count, _ in found.values()) == want else "this has changed")
PY
done
