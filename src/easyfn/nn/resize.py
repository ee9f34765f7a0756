"""Tables of learned positions for grids of another size: torch's bilinear and bicubic resampling as two small matrices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_CUBIC = -0.75  # torch's `a`; with antialiasing it takes -0.5 (Pillow's)


def _kernel(x: np.ndarray, method: str, a: float) -> np.ndarray:
    x = np.abs(x)
    if method == "bilinear":
        return np.maximum(0.0, 1.0 - x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def resize_matrix(old: int, new: int, method: str = "bicubic", antialias: bool = False) -> np.ndarray:
    """The `(new, old)` float32 matrix that resamples `old` places to `new` as `torch.nn.functional.interpolate` does, with
    `align_corners=False`. `method` is `bilinear` or `bicubic`; `antialias` widens the kernel when there are fewer new
    places than old ones.

    ```python
    import easyfn as ef
    assert (ef.nn.resize_matrix(2, 4, "bilinear").sum(1) == 1).all()
    ```
    """
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        wide = max(scale, 1.0)
        places = np.arange(old)
        weights = _kernel((places[None] - centers[:, None]) / wide, method, -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    taps = 2 if method == "bilinear" else 4
    if method == "bilinear":
        centers = np.maximum(centers, 0.0)
    first = np.floor(centers).astype(int) - (taps // 2 - 1)
    matrix = np.zeros((new, old))
    for t in range(taps):
        weight = _kernel(centers - (first + t), method, _CUBIC)
        np.add.at(matrix, (np.arange(new), np.clip(first + t, 0, old - 1)), weight)
    return matrix.astype(np.float32)


def resize_grid(
    table: jax.Array,
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    method: str = "bicubic",
    antialias: bool = False,
) -> jax.Array:
    """A table `(old height * old width, embed)` of positions on a grid, resampled to `(new height * new width, embed)`."""
    if old == new:
        return table
    rows, columns = (resize_matrix(o, n, method, antialias) for o, n in zip(old, new, strict=True))
    grid = table.reshape(*old, -1).astype(jnp.float32)
    grid = jnp.einsum("ah,bw,hwe->abe", rows, columns, grid, precision=jax.lax.Precision.HIGHEST)
    return grid.reshape(new[0] * new[1], -1).astype(table.dtype)


def resize_images(x: jax.Array, size: tuple[int, ...], *, method: str = "bilinear") -> jax.Array:
    """`x` `(batch, height, width, channels)` resampled to `size`, `(height, width)`."""
    old, new = (x.shape[1], x.shape[2]), (size[0], size[1])
    if old == new:
        return x
    rows, columns = (resize_matrix(o, n, method) for o, n in zip(old, new, strict=True))
    y = jnp.einsum("ah,bw,nhwe->nabe", rows, columns, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return y.astype(x.dtype)
