"""What every weight format owes the verbs, whatever its codes are: shared by the tests of all rooms of formats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef


def matrix(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def encoded(cfg, *shape):
    return jax.jit(cfg.encode)(matrix(*shape))


def close(a, b, tol=1e-4):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tol * max(np.abs(b).max(), 1e-30), np.abs(a - b).max() / np.abs(b).max()


def check_tables_and_experts(cfg, rows, out, into):
    """`take` on a table of `rows`, `ragged_dot` and `take` on three experts `(out, into)`."""
    table, ids = encoded(cfg, rows, into), jnp.array([[1, rows - 1], [0, 1], [3, 3]])
    close(ef.take(table, ids), ef.dense(table)[ids], 1e-6)
    experts = encoded(cfg, 3, out, into)
    assert ef.shape_of(experts) == (3, out, into) and all(p.ndim == 3 for p in jax.tree.leaves(experts))
    x, sizes = matrix(7, into, seed=1), jnp.array([3, 0, 4])
    close(ef.ragged_dot(experts, x, sizes), ef.ragged_dot(ef.dense(experts), x, sizes))
    close(ef.dense(ef.take(experts, jnp.array([2, 0]))), ef.dense(experts)[jnp.array([2, 0])], 1e-6)
    # A leading axis is quantized as if each matrix were alone.
    close(ef.dense(experts)[1], ef.dense(cfg.encode(matrix(3, out, into)[1])), 1e-6)


def check_vmap_scan_and_gradient(cfg, out, into):
    q, x = encoded(cfg, 3, out, into), matrix(3, 5, into, seed=1)
    loop = jnp.stack([ef.dot(jax.tree.map(lambda p, i=i: p[i], q), x[i]) for i in range(3)])
    close(jax.vmap(ef.dot)(q, x), loop)
    close(jax.lax.scan(lambda c, qx: (c, ef.dot(*qx)), 0, (q, x))[1], loop)
    one = encoded(cfg, out, into)
    linear = jax.jit(jax.grad(lambda x: jnp.vdot(ef.dot(one, x), jnp.ones((5, out)))))(x[0])
    close(linear, jnp.ones((5, out)) @ ef.dense(one), 1e-5)
