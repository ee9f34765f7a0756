"""Operators of `ef.torch_op` beside torch's own: dtypes, broadcasting, negative axes, empty and zero-dimensional arrays."""

import itertools

import jax
import numpy as np
import pytest
import torch

import easyfn as ef
from easyfn.io.torch.delta import token_by_token
from easyfn.io.torch.experts import one_by_one

A = torch.ops.aten
F, I, B = torch.float32, torch.int64, torch.bool  # noqa: E741


def t(*shape, dtype=F, seed=0, low=-3, high=4):
    g = torch.Generator().manual_seed(seed + sum(shape))
    if dtype == B:
        return torch.rand(shape, generator=g) > 0.5
    if dtype in (I, torch.int32, torch.uint8):
        return torch.randint(0 if dtype == torch.uint8 else low, high, shape, generator=g).to(dtype)
    return (torch.randn(shape, generator=g) * 2).to(dtype)


def both(op, *args, **kwargs):
    """The result of torch and of ours for the same arguments."""
    name = str(op)

    def ours(value):
        if isinstance(value, torch.Tensor):
            return (
                jax.numpy.asarray(value.float().numpy()).astype("bfloat16")
                if value.dtype == torch.bfloat16
                else value.numpy()
            )
        if isinstance(value, torch.dtype):
            return jax.dtypes.canonicalize_dtype(str(value).removeprefix("torch.").replace("bool", "bool_"))
        return [ours(v) for v in value] if isinstance(value, (list, tuple)) else value

    lifted = lambda v: (
        jax.numpy.asarray(v) if isinstance(v, np.ndarray) else [lifted(x) for x in v] if isinstance(v, list) else v
    )
    with jax.numpy_rank_promotion("allow"):
        got = ef.torch_op[name].function(
            *(lifted(ours(a)) for a in args), **{k: lifted(ours(v)) for k, v in kwargs.items()}
        )
    return op(*args, **kwargs), got


def same(wanted, got, tolerance=1e-5):
    if isinstance(wanted, (tuple, list)):
        assert len(wanted) == len(got)
        for a, b in zip(wanted, got, strict=True):
            same(a, b, tolerance)
        return
    name = str(wanted.dtype).removeprefix("torch.")
    assert tuple(wanted.shape) == tuple(got.shape), f"{tuple(wanted.shape)} {tuple(got.shape)}"
    assert str(got.dtype) == {"int64": "int32", "float64": "float32", "complex128": "complex64"}.get(name, name)
    wanted = wanted.float().numpy() if name == "bfloat16" else wanted.numpy()
    loose = 2e-2 if name == "bfloat16" else tolerance
    np.testing.assert_allclose(np.asarray(got).astype(wanted.dtype), wanted, atol=loose, rtol=loose)


def check(op, *args, **kwargs):
    same(*both(op, *args, **kwargs))


PAIRS = [
    (t(2, 3), t(3)),
    (t(2, 3), t(1, dtype=I)),
    (t(2, 1, dtype=I), t(1, 3, dtype=I)),
    (t(2, 3, dtype=torch.bfloat16), t(3)),
    (t(2, 3, dtype=torch.bfloat16), torch.tensor(1.5)),
    (t(2, 3, dtype=I), torch.tensor(1.5)),
    (t(3, dtype=torch.uint8), t(3, dtype=torch.int32)),
    (torch.tensor(2.0), torch.tensor(3)),
    (t(0, 3), t(3)),
    (t(2, 3, dtype=B), t(2, 3, dtype=I)),
]


@pytest.mark.parametrize(
    "op",
    [A.add.Tensor, A.mul.Tensor, A.maximum.default, A.max.other, A.min.other, A.eq.Tensor, A.lt.Tensor, A.div.Tensor],
    ids=str,
)
def test_two_arguments_promote_as_in_torch(op):
    for x, y in PAIRS:
        check(op, x, y)


@pytest.mark.parametrize("scalar", [2, 2.5, True])
@pytest.mark.parametrize("dtype", [F, torch.bfloat16, I, B, torch.uint8])
def test_numbers_of_python_promote_as_in_torch(dtype, scalar):
    x = t(2, 3, dtype=dtype)
    check(A.add.Tensor, x, scalar)
    check(A.mul.Tensor, x, scalar)
    check(A.gt.Scalar, x, scalar)
    check(A.where.ScalarOther, x > 0, x, scalar)


@pytest.mark.parametrize("mode", [None, "floor", "trunc"])
@pytest.mark.parametrize("dtype", [F, I, torch.int32])
def test_division_modes(dtype, mode):
    x = torch.tensor([-7, -6, -1, 0, 1, 6, 7]).to(dtype)
    for y in (torch.tensor([2, -2, 3, 5, -4, 4, -3]).to(dtype), torch.tensor(3).to(dtype)):
        check(A.div.Tensor_mode, x, y, rounding_mode=mode)
        check(A.remainder.Tensor, x, y)
        check(A.fmod.Tensor, x, y)
        check(A.floor_divide.default, x, y)


@pytest.mark.parametrize("exponent", [2, 3.0, -1.0, 0.5, 0, 2.5])
def test_powers(exponent):
    check(A.pow.Tensor_Scalar, t(2, 3).abs() + 0.5, exponent)
    check(A.pow.Tensor_Scalar, t(2, 3, dtype=I).abs() + 1, exponent)
    check(A.pow.Scalar, exponent + 1, t(3))


@pytest.mark.parametrize("op", ["exp", "sqrt", "rsqrt", "sigmoid", "erf", "log1p", "tanh", "sin", "reciprocal", "silu"])
def test_functions_of_one_argument(op):
    for x in (
        t(2, 3).abs() + 0.1,
        torch.tensor(0.7),
        t(0, 2),
        t(3, dtype=I).abs() + 1,
        t(4, dtype=torch.bfloat16).abs() + 0.1,
    ):
        if op == "silu" and not x.is_floating_point():
            continue
        check(getattr(A, op).default, x)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_activations(approximate):
    x = t(3, 4)
    check(A.gelu.default, x, approximate=approximate)
    for op in (A.relu, A.hardswish, A.hardsigmoid, A.elu, A.leaky_relu, A.softplus, A.mish):
        check(op.default, x)
    check(A._softmax.default, x, -1, False)
    check(A._softmax.default, t(3, 4, dtype=torch.bfloat16), 0, False)
    check(A._log_softmax.default, x, 1, False)
    check(A.hardtanh.default, x, -1.0, 2.0)
    check(A.glu.default, x, -1)
    check(A.clamp.default, x, -0.5, None)
    check(A.clamp.default, t(3, dtype=I), 0.5)


@pytest.mark.parametrize("shape,dims", [((2, 3, 4), [-1]), ((2, 3, 4), [0, -1]), ((2, 0), [1]), ((), [])])
def test_reductions(shape, dims):
    x = t(*shape)
    for keep in (False, True):
        check(A.sum.dim_IntList, x, dims, keep)
        check(A.sum.dim_IntList, t(*shape, dtype=B), dims, keep)
        if 0 not in shape:
            check(A.mean.dim, x, dims, keep)
            check(A.amax.default, x, dims, keep)
        check(A.any.dims, x > 0, dims, keep)
    check(A.sum.default, t(*shape, dtype=torch.int32))


def test_variances_and_norms():
    x = t(3, 5)
    check(A.var.correction, x, [-1], correction=1, keepdim=True)
    check(A.var.correction, x, None, correction=0)
    check(A.std.correction, x, [0], correction=1)
    check(A.var_mean.correction, x, [1], correction=0, keepdim=True)
    for p in (2, 1, float("inf"), 0, 3):
        check(A.linalg_vector_norm.default, x, p, [-1], True)
    check(A.logsumexp.default, x, [-1])


TIES = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [float("nan"), 1.0, 5.0, 5.0]])


def test_ties_and_not_a_number():
    check(A.max.dim, TIES, -1)
    check(A.min.dim, TIES, 0, True)
    check(A.argmax.default, TIES, -1)
    check(A.argmax.default, TIES)
    for descending in (False, True):
        values, order = torch.sort(TIES, dim=-1, descending=descending, stable=True)
        same((values, order), ef.torch_op["aten.sort.default"].function(TIES.numpy(), -1, descending))
    check(A.cummax.default, TIES, 1)
    check(A.cummin.default, TIES, 0)
    check(A.max.dim, torch.tensor(3.0), 0)


NAN, INF = float("nan"), float("inf")
ODD = torch.tensor([NAN, INF, -INF, -0.0, 0.0, 0.5, 1.5, 2.5, -0.5, -2.5, 20.5, -20.5, 1e30, -1e30, 1e-30])
WHOLE = torch.tensor([0, 1, -1, 5, -7, 2**31 - 1, -(2**31)], dtype=torch.int32)
NO_NUMBERS = (
    "_local_scalar_dense",
    "item",
    "sym_numel",
    "_assert_tensor_metadata",
    "one_hot",
    "bincount",
    "empty_like",
    "_conj",
)


def of_one_array():
    """Operators of torch that ask for one array and nothing else."""
    for name in ef.torch_op.names():
        if name.startswith("aten.") and name.split(".")[1] not in NO_NUMBERS:
            found = getattr(getattr(A, name.split(".")[1]), name.split(".")[2])  # each is an operator of torch
            asked = [str(a.type) for a in found._schema.arguments if not a.has_default_value()]
            if asked == ["Tensor"]:
                yield found


def test_functions_of_one_array_of_odd_numbers():
    """Of what torch takes; entries that are no numbers, infinite, -0.0, at ties of rounding, and beyond."""
    tried = 0
    for op in of_one_array():
        for x in (ODD, WHOLE):
            try:
                op(x)
            except (RuntimeError, IndexError, TypeError):
                continue
            tried += 1
            check(op, x)
    assert tried > 150


def test_quotients_that_are_whole_are_whole():
    """Compiled, by a number and by an array that is broadcast."""
    x = torch.arange(1, 400) / 2
    for by in (20.5, 41.0, 47, torch.tensor(41.0), x[:, None], 0.0):
        other = by if isinstance(by, (int, float)) else jax.numpy.asarray(by.numpy())
        with jax.numpy_rank_promotion("allow"):
            got = jax.jit(lambda x, o=other: jax.numpy.floor(ef.torch_op["aten.div.Tensor"].function(x, o)))(x.numpy())
        assert (np.asarray(got) == torch.floor(x / by).numpy()).all()
        check(A.div.Tensor_mode, x, by if isinstance(by, torch.Tensor) else torch.tensor(by), rounding_mode="trunc")
    check(A.div.Tensor, ODD[:, None], ODD[None])
    slope = jax.grad(lambda x: ef.torch_op["aten.div.Tensor"].function(x, 4.0))(jax.numpy.float32(8.0))
    assert slope == 0.25


def test_what_was_wrong_once():
    for op in (A.div.Scalar, A.copysign.Scalar):
        check(op, torch.tensor([1, 255], dtype=torch.uint8), -1)
    check(A.float_power.Tensor_Scalar, torch.tensor([1, 255], dtype=torch.uint8), -1)
    check(A.lerp.Scalar, ODD, t(1), 0.7)
    check(A.pow.Tensor_Scalar, ODD, -0.5)
    check(A.cummax.default, t(3, 4, dtype=B), 1)
    long = torch.full((2, 600), 1.01).bfloat16()
    same(
        A.cumsum.default(long, 1).float(),
        ef.torch_op["aten.cumsum.default"]
        .function(jax.numpy.asarray(long.float().numpy()).astype("bfloat16"), 1)
        .astype("float32"),
    )
    check(A.celu.default, ODD, 0.5)
    for op in (A.any.default, A.all.default, A.any.dim, A.all.dim):
        check(op, torch.tensor([3, 0], dtype=torch.uint8), *([0] if op in (A.any.dim, A.all.dim) else []))
    check(A.sgn.default, t(3, dtype=B))
    check(A.threshold.default, ODD, 0.5, 7.0)
    for dim in (0, 1):
        check(A.median.dim, TIES, dim, True)
    check(A.median.dim, torch.tensor(NAN), 0)
    check(A.cross.default, t(3, 3, 2), t(3, 3, 2, seed=1))
    check(A.cross.default, t(2, 3, 3), t(2, 3, 3, seed=1))
    check(A.linalg_cross.default, t(2, 1, 3), t(1, 3, 3, seed=1), dim=-1)
    turned = torch.complex(t(3), t(3, seed=1))
    check(A.vdot.default, turned, turned.flip(0) * 1j)
    check(A.var.correction, turned)
    check(A.addmm.default, torch.full((2, 3), NAN), t(2, 4), t(4, 3), beta=0)
    check(A.baddbmm.default, torch.full((1, 2, 3), NAN), t(1, 2, 4), t(1, 4, 3), beta=0, alpha=2)
    u, s, h = A._linalg_svd.default(t(3, 4))
    got = ef.torch_op["aten._linalg_svd.default"].function(t(3, 4).numpy())
    assert [x.shape for x in got] == [tuple(x.shape) for x in (u, s, h)]
    singular = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert (
        A.linalg_cholesky_ex.default(singular)[1]
        and ef.torch_op["aten.linalg_cholesky_ex.default"].function(singular.numpy())[1]
    )


def test_a_row_that_is_used_often_learns_the_mean_of_its_uses():
    weight, ids, by = t(5, 3), torch.tensor([[1, 4, 1], [1, 0, 4]]), t(2, 3, 3, seed=1)
    leaf = weight.clone().requires_grad_()
    (torch.nn.functional.embedding(ids, leaf, scale_grad_by_freq=True) * by).sum().backward()
    run = ef.torch_op["aten.embedding.default"].function
    ids, by = jax.numpy.asarray(ids.numpy()), by.numpy()
    same(leaf.grad, jax.grad(lambda w: (run(w, ids, -1, True) * by).sum())(jax.numpy.asarray(weight.numpy())))


def test_what_draws_at_random_is_refused():
    q = t(1, 2, 3, 4)
    for op, args in ((A.scaled_dot_product_attention.default, (q, q, q, None, 0.5)), (A.rrelu.default, (q, 0.1, 0.3, True)),
                     (A.dropout.default, (q, 0.5, True))):  # fmt: skip
        with pytest.raises(ValueError, match="drops out at random"):
            both(op, *args)


@pytest.mark.parametrize("largest", [True, False])
def test_topk(largest):
    x = torch.randperm(20).reshape(4, 5)
    for dtype in (F, I, torch.int32):
        check(A.topk.default, x.to(dtype), 3, -1, largest, True)
        check(A.topk.default, x.to(dtype), 2, 0, largest, True)
    wanted, got = both(A.topk.default, TIES[:2], 2, -1, largest, True)
    same(wanted[0], got[0])
    check(A.topk.default, x, 0)


@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put(accumulate):
    x = t(4, 3)
    rows = torch.tensor([0, 2, 3])
    check(A.index_put.default, x, [rows], t(3, 3, seed=1), accumulate)
    check(A.index_put.default, x, [rows, torch.tensor([-1, 0, 1])], torch.tensor(7.0), accumulate)
    check(A.index_put.default, x, [None, torch.tensor([1])], t(4, 1, seed=1), accumulate)
    check(A.index_put.default, x, [x > 0], torch.tensor(9.0), accumulate)
    mask = torch.tensor([True, False, True, True])
    check(A.index_put.default, x, [mask], t(3, 3, seed=2), accumulate)
    check(A.index_put.default, x, [mask & False], t(0, 3), accumulate)
    wide, second, number = t(2, 4, 3), torch.tensor([False, True, True]), torch.tensor([-1])
    check(A.index_put.default, wide, [None, mask], t(2, 3, 3, seed=4), accumulate)
    check(A.index_put.default, wide, [None, mask], t(3, 1, seed=4), accumulate)
    check(A.index_put.default, wide, [None, number, second], t(2, 2, seed=5), accumulate)
    check(A.index_put.default, wide, [None, mask, number], t(3, seed=6), accumulate)
    if accumulate:
        check(A.index_put.default, x, [torch.tensor([1, 1, 1])], t(3, 3, seed=3), True)


def test_lookups():
    x = t(4, 3, 2)
    check(A.index.Tensor, x, [torch.tensor([-1, 0]), None, torch.tensor([1])])
    check(A.index.Tensor, x, [None, torch.tensor([[0, 2], [1, 1]])])
    check(A.index_select.default, x, -2, torch.tensor([2, 0, 0]))
    check(A.gather.default, x, 1, torch.tensor([[[0, 1]], [[2, 2]]]))
    check(A.embedding.default, t(5, 3), torch.tensor([[1, 4], [0, 0]]))
    check(A.masked_fill.Scalar, x, x > 0, float("-inf"))
    mask = t(4, 3, dtype=B)
    check(A.masked_scatter.default, t(4, 3), mask, t(4, 3, seed=5))
    check(A.bucketize.Tensor, t(6), torch.tensor([-1.0, 0.0, 1.0]), right=True)
    check(A.searchsorted.Tensor, torch.sort(t(2, 5)).values, t(2, 3))


def test_scatters():
    x, index, source = t(3, 4), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]]), t(2, 4, seed=1)
    check(A.scatter.src, x, 0, torch.tensor([[0, 1, 2, 0]]), source)
    check(A.scatter.value, x, -2, index, 5.0)
    check(A.scatter_add.default, x, 0, index, source)
    for reduce in ("sum", "prod", "amax", "amin", "mean"):
        for include in (True, False):
            check(A.scatter_reduce.two, x, 0, index, source, reduce, include_self=include)
    check(A.slice_scatter.default, x, t(3, 2), 1, 1, 3)
    check(A.select_scatter.default, x, t(4), 0, -1)


def test_what_is_assigned_has_the_shape_and_dtype_of_its_place():
    for source in (t(4), t(3, 1, dtype=I), t(3, 4, dtype=torch.bfloat16), torch.tensor(2.7)):
        check(A.copy.default, t(3, 4), source)
        check(A.copy.default, t(3, 4, dtype=I), source)
    check(A.copy.default, t(0, 4), t(4))
    check(A.fill.Scalar, t(3, 4, dtype=I), 2)
    check(A.fill.Tensor, t(3, 4), torch.tensor(2))


def test_patches_are_added_into_an_image():
    check(A.col2im.default, t(2, 12, 6), [3, 4], [2, 2], [1, 1], [0, 0], [1, 1])
    check(A.col2im.default, t(2, 12, 9), [5, 7], [2, 2], [2, 2], [1, 1], [2, 3])
    check(A.col2im.default, t(12, 6), [3, 4], [2, 2], [1, 1], [0, 0], [1, 1])


def test_counting():
    check(A.histc.default, t(50), 7, -2, 2)
    check(A.histc.default, t(50), 5)
    check(A.histc.default, torch.tensor([0.0, 1.0, 1.0, 2.0, 3.0]), 4, 0, 3)
    for dim in (0, -1):
        check(A.cumsum.default, t(3, 4), dim)
        check(A.cumsum.default, t(3, 4, dtype=B), dim)
        check(A.cumprod.default, t(3, 4), dim)
        check(A.logcumsumexp.default, t(3, 4), dim)
    check(A.cumsum.default, torch.tensor(3.0), 0)


@pytest.mark.quick("io", "operators of torch")
def test_shapes():
    check(A.view_as.default, t(2, 6), t(3, 4))
    check(A.reshape_as.default, t(2, 6), t(4, 3))
    x = t(2, 3, 4)
    check(A.slice.Tensor, x, -1, -3, 9223372036854775807, 2)
    check(A.slice.Tensor, x, 1, 5, 2)
    check(A.select.int, x, -1, -2)
    check(A.split_with_sizes.default, x, [1, 3], -1)
    check(A.split.Tensor, x, 3, -1)
    check(A.squeeze.dims, t(1, 3, 1), [0, 1])
    check(A.expand.default, t(3, 1), [2, -1, 4])
    check(A.repeat.default, t(2), [3, 2])
    check(A.roll.default, x, [1, -1], [0, 2])
    check(A.flip.default, x, [-1])
    check(A.cat.default, [t(0), t(2, 3).reshape(-1)])
    check(A.cat.default, [t(2, 3), t(2, 1, dtype=I)], -1)
    check(A.constant_pad_nd.default, x, [1, -1, 0, 2], 3.0)
    check(A.reflection_pad1d.default, t(2, 5), [2, 1])
    check(A.unfold.default, t(2, 7), -1, 3, 2)
    check(A.as_strided.default, t(12), [3, 2], [2, 1], 1)
    check(A.tril.default, t(3, 4), -1)
    check(A.diagonal.default, t(3, 4), 1)
    check(A.pixel_shuffle.default, t(1, 8, 2, 2), 2)
    check(A.arange.start_step, 5, -2, -3)
    check(A.arange.start_step, 0.0, 1.0, 0.25)
    check(A.full.default, [2], True)


def test_products_and_attention():
    q, k, v = t(2, 4, 5, 8), t(2, 4, 6, 8, seed=1), t(2, 4, 6, 8, seed=2)
    mask = t(2, 1, 5, 6, dtype=B)
    mask[..., 0] = True
    check(A.scaled_dot_product_attention.default, q, k, v)
    check(A.scaled_dot_product_attention.default, q, k, v, mask)
    check(A.scaled_dot_product_attention.default, q, k, v, t(5, 6), scale=0.3)
    check(A.scaled_dot_product_attention.default, q, k[..., :5, :], v[..., :5, :], None, 0.0, True)
    check(A.scaled_dot_product_attention.default, q, k[:, :2], v[:, :2], None, 0.0, False, scale=None, enable_gqa=True)
    check(A.addmm.default, t(3), t(2, 4), t(4, 3), beta=2, alpha=3)
    check(A.linear.default, t(2, 3, 4), t(5, 4), t(5))
    check(A.linear.default, t(4), t(5, 4))
    for x, y in [(t(4), t(4)), (t(2, 4), t(4)), (t(4), t(4, 3)), (t(3, 1, 2, 4), t(2, 4, 5)), (t(0, 4), t(4, 3))]:
        check(A.matmul.default, x, y)
    check(A.to.device, t(2, dtype=I), "cpu", F)


@pytest.mark.parametrize("groups,stride,padding,dilation", [(1, 1, 0, 1), (2, 2, 1, 2)])
def test_convolutions(groups, stride, padding, dilation):
    check(A.conv1d.default, t(2, 4, 9), t(6, 4 // groups, 3), t(6), [stride], [padding], [dilation], groups)
    check(
        A.conv2d.default, t(1, 4, 7, 8), t(6, 4 // groups, 3, 2), None, [stride, 1], [padding, 0], [dilation, 1], groups
    )
    check(
        A.conv_transpose1d.default,
        t(2, 4, 5),
        t(4, 6 // groups, 3),
        t(6),
        [stride],
        [padding],
        [stride - 1],
        groups,
        [dilation],
    )
    check(
        A.conv_transpose2d.input,
        t(1, 4, 5, 4),
        t(4, 6 // groups, 3, 3),
        None,
        [stride] * 2,
        [padding] * 2,
        [0, 0],
        groups,
    )


def test_norms_pools_and_resizing():
    x = t(2, 4, 6, 7)
    check(A.native_layer_norm.default, t(2, 3, 8), [8], t(8), t(8, seed=1), 1e-5)
    check(A.native_group_norm.default, x, t(4), t(4, seed=1), 2, 4, 42, 2, 1e-5)
    check(A._native_batch_norm_legit_no_training.default, x, t(4), t(4), t(4), t(4).abs(), 0.1, 1e-5)
    for ceil in (False, True):
        check(A.max_pool2d_with_indices.default, x, [3, 2], [2, 2], [1, 1], [1, 1], ceil)
        check(A.avg_pool2d.default, x, [3, 2], [2, 2], [1, 1], ceil, True)
        check(A.avg_pool2d.default, x, [3, 2], [2, 2], [1, 1], ceil, False)
    check(A._adaptive_avg_pool2d.default, x, [4, 7])
    for corners in (False, True):
        check(A.upsample_bilinear2d.vec, x, [9, 4], corners, None)
        check(A.upsample_bicubic2d.vec, x, [9, 4], corners, None)
        for size in ([9, 4], [2, 3], [1, 1]):
            check(A._upsample_bilinear2d_aa.vec, x, size, corners, None)
            check(A._upsample_bicubic2d_aa.default, x, size, corners)
    check(A.upsample_nearest2d.vec, x, None, [2.0, 1.5])
    for way in itertools.product((0, 1, 2), (0, 1, 2), (False, True)):  # places, padding, corners
        check(A.grid_sampler_2d.default, x, t(2, 3, 3, 2) / 2, *way)


@pytest.mark.parametrize("sizes", [[2, 0, 3], [0, 0, 5], [5, 0, 0]])
def test_rows_of_experts(sizes):
    x, w = t(5, 4), t(3, 6, 4)
    ends = np.cumsum(sizes)
    wanted = one_by_one(x, w, ends)
    run = ef.torch_op["easyfn.grouped_linear.default"].function
    same(wanted, run(*(jax.numpy.asarray(v) for v in (x.numpy(), w.numpy(), ends))))


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("rows,length", [(2, 1), (1, 70), (0, 3), (2, 0)])
def test_the_delta_rule_of_several_chunks(rows, length, by_channel):
    shape, unit = (rows, length, 2), torch.nn.functional.normalize
    q, k, v = t(*shape, 4), unit(t(*shape, 4, seed=1), dim=-1), t(*shape, 3, seed=2)
    g, beta = -t(*shape, *([4] if by_channel else []), seed=3).abs(), torch.sigmoid(t(*shape, seed=4))
    run = ef.torch_op["easyfn.delta_rule.default"].function
    same(token_by_token(q, k, v, g, beta), run(*(jax.numpy.asarray(x.numpy()) for x in (q, k, v, g, beta))))


def test_as_many_entries_as_values_say():
    mask, repeats = torch.tensor([[1, 0, 1, 1], [0] * 4, [0, 1, 0, 0]]) > 0, torch.tensor([2, 0, 3])
    check(A.repeat_interleave.Tensor, repeats, output_size=5)
    check(A.repeat_interleave.self_Tensor, t(2, 3), repeats, 1, output_size=5)
    run = ef.torch_op["easyfn.places.default"].function
    for x in (mask, repeats, torch.tensor(True)):
        same(x.nonzero(), run(jax.numpy.asarray(x.numpy()), len(x.nonzero())))


def test_what_depends_on_values_is_refused_in_words():
    with pytest.raises(TypeError, match=r"x\[mask\] has as many entries"):
        both(A.index.Tensor, t(3), [t(3) > 0])


@pytest.mark.parametrize(("kind", "biased", "narrow"), [
    ("lstm", True, 0), ("lstm", False, 2), ("gru", True, 0), ("rnn_tanh", False, 0), ("rnn_relu", True, 0),
])  # fmt: skip
def test_recurrent_layers(kind, biased, narrow):
    """Two layers of both directions, from a state; of the LSTM also one that projects its state."""
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(kind, torch.nn.RNN)
    more = {"nonlinearity": kind[4:]} if kind.startswith("rnn") else {"proj_size": narrow} if narrow else {}
    layer = module(3, 4, num_layers=2, bias=biased, bidirectional=True, **more)
    states = [t(4, 2, narrow or 4), t(4, 2, 4, seed=1)] if kind == "lstm" else t(4, 2, 4)
    weights = [w.detach() for w in layer._flat_weights]
    for batch_first in (True, False):
        x = t(2, 5, 3) if batch_first else t(5, 2, 3)
        check(getattr(A, kind).input, x, states, weights, biased, 2, 0.0, False, True, batch_first)


def test_matrices():
    x, b, v = t(2, 3, 3), t(2, 3, 2), t(3, 3)[0]
    near = lambda *args, **kwargs: same(*both(*args, **kwargs), 1e-4)
    for op in (
        A.linalg_det,
        A.linalg_slogdet,
        A.linalg_inv,
        A.linalg_svdvals,
        A.linalg_matrix_exp,
        A.logdet,
    ):
        near(op.default, x)
    near(A.linalg_pinv.atol_rtol_tensor, x)
    near(A.pinverse.default, x)
    near(A.linalg_solve.default, x, b)
    near(A.linalg_solve.default, x, t(2, 3))
    near(A.linalg_solve.default, x[0], v)
    near(A.linalg_solve.default, x, b.mT, left=False)
    near(A.linalg_pinv.atol_rtol_float, t(2, 3, 4), atol=2.5, rtol=0.1)
    whole = x @ x.mT + torch.eye(3)
    near(A.linalg_eigvalsh.default, whole)
    for upper in (False, True):
        near(A.linalg_cholesky.default, whole, upper=upper)
        near(A.linalg_solve_triangular.default, x + 4 * torch.eye(3), b, upper=upper)
        near(A.linalg_solve_triangular.default, x, b.mT, upper=upper, left=False, unitriangular=True)
        near(A.cholesky_solve.default, b, whole.tril() if not upper else whole.triu(), upper)
    parts = lambda op, x: ef.torch_op[str(op)].function(jax.numpy.asarray(x.numpy()))  # signs are nobody's
    (w, q), (u, s, h), (o, r) = (
        parts(*a) for a in [(A.linalg_eigh.default, whole), (A.svd.default, b), (A.linalg_qr.default, b)]
    )
    same(whole, (q * w[..., None, :]) @ q.mT, 1e-4)
    same(b, (u * s[..., None, :]) @ h.mT, 1e-4)
    same(b, o @ r, 1e-4)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_bags_of_embeddings(mode):
    ids, starts = torch.tensor([1, 4, 2, 0, 4, 3]), torch.tensor([0, 2, 2, 6])
    scales = t(6) if mode == 0 else None
    for last, padding in ((False, None), (True, -1)):
        args = (t(5, 3), ids, starts, False, mode, False, scales, last, padding)
        wanted, got = both(A.embedding_bag.padding_idx, *args)
        same(wanted[0], got[0])


def test_products_of_three_distances_and_whole_numbers():
    x, y = t(4, 3), t(4, 2)
    check(A.bilinear.default, x, y, t(5, 3, 2), t(5))
    check(A._trilinear.default, x, t(5, 3, 2), y, [1, 3], [0], [1, 2], [2, 3])
    for p in (1.0, 2.0, float("inf")):
        check(A.dist.default, x, x.flip(0), p)
        same(torch.pdist(x, p), ef.torch_op["aten.pdist.default"].function(jax.numpy.asarray(x.numpy()), p))
    whole = t(2, 3, dtype=I, low=0, high=30)
    check(A.gcd.default, whole, torch.tensor([[12, 8, 9]]))
    check(A.lcm.default, whole, torch.tensor([[12, 8, 9]]))
    check(A.ldexp.Tensor, x, whole[0] % 5)
    check(A.rrelu.default, x)


def test_a_pool_has_a_gradient_when_compiled_and_kernels_of_less_bits_meet_float32():
    x = t(2, 3, 6, 5)
    for op, args in ((A.max_pool2d.default, ([2, 2], [1, 1])), (A.avg_pool2d.default, ([2, 2],))):
        ours = jax.jit(jax.grad(lambda x, o=op, a=args: jax.numpy.sin(ef.torch_op[str(o)].function(x, *a)).sum()))
        leaf = x.clone().requires_grad_()
        torch.sin(op(leaf, *args)).sum().backward()
        with jax.numpy_rank_promotion("allow"):
            same(leaf.grad, ours(x.numpy()))
    for op, shape in ((A.conv2d.default, (4, 3, 2, 2)), (A.conv_transpose2d.input, (3, 4, 2, 2))):
        weight = jax.numpy.asarray(t(*shape).numpy()).astype("bfloat16")
        assert ef.torch_op[str(op)].function(jax.numpy.asarray(x.numpy()), weight).dtype == np.float32
