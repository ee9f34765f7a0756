#!/usr/bin/env bash
# JAX on a mesh of two axes: the gradient of a grouped convolution's weight, with the batch split over one of the axes.
# Guess: that of one device, up to rounding; where to add up is the partitioner's affair.
# Seen (jax 0.10.2, CPU; 0.12.0 alike): it is too large by the size of the other axis, 4 times on a mesh of 2 by 4, without a word. With one
# group, or on a mesh of one axis, it is right; in a shard_map over the rows it is right too.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "jax==0.10.2" "jaxlib==0.10.2"
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$dir/env/bin/python" - <<'PY'
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

random = np.random.RandomState(0)
x = random.randn(8, 10, 10, 16).astype(np.float32)


def ratio(groups, shape, by_hand=False):
    weight = random.randn(16, 16 // groups, 3, 3).astype(np.float32)
    mesh = jax.make_mesh(shape, ("rows", "other")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))

    def conv(x, w):
        names = ("NHWC", "OIHW", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups)

    split = jax.shard_map(conv, mesh=mesh, in_specs=(P("rows"), P()), out_specs=P("rows"))
    slope = lambda run: jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.tanh(run(x, w)))))
    alone = slope(conv)(weight, x)
    placed = jax.device_put(weight, NamedSharding(mesh, P())), jax.device_put(x, NamedSharding(mesh, P("rows")))
    found = slope(split if by_hand else conv)(*placed)
    return round(float(np.vdot(found, alone) / np.vdot(alone, alone)), 3)


print(f"jax {jax.__version__}: the gradient on the mesh over that of one device")
want = {(1, (2, 4), False): 1, (16, (2, 4), False): 4, (4, (4, 2), False): 2, (16, (8,), False): 1, (16, (2, 4), True): 1}
found = {key: ratio(*key) for key in want}
for (groups, shape, by_hand), value in found.items():
    print(f"{groups} groups, mesh {shape}{', shard_map over rows' if by_hand else ''}: {value}")
sys.exit(0 if found == want else "this has changed")
PY
