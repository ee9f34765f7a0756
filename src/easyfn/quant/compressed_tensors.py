"""compressed-tensors' layouts on disk (what llm-compressor writes, vLLM and transformers read), both ways.

Of a layer `P` with a weight `(out, in)`:

- `pack-quantized`: `P.weight_packed` int32 `(out, in * bits / 32)`, lowest bits first, codes raised by `2**(bits - 1)`;
  `P.weight_scale` `(out, groups)`; `P.weight_zero_point` int32, packed along `out`; `P.weight_shape`; before 0.20
  `P.weight_g_idx`, the group of every column.
- `int-quantized`, `float-quantized`, `naive-quantized`: `P.weight` int8 or float8_e4m3fn, `P.weight_scale`, and
  `P.weight_zero_point` int8, `P.input_scale`.
- `nvfp4-pack-quantized`: `P.weight_packed` uint8, two e2m1 a byte; `P.weight_scale` float8_e4m3fn `(out, in / 16)`, to be
  divided by `P.weight_global_scale`.
- `mxfp4-pack-quantized`, `mxfp8-quantized`: `P.weight_packed` uint8 or `P.weight` float8_e4m3fn; `P.weight_scale` uint8
  `(out, in / 32)`, an exponent plus 127.

Experts are such layers one by one. What the config may say is in `schemes`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.slots import find_slots
from ..core.tree import at, expand, is_leaf
from ..core.weight import format_of, shape_of
from ..io.formats import Packed, file_names, register
from ..names.rules import Tensors
from .fp8 import E4M3, FP8
from .gptq import unpack
from .grouped import Grouped, grouped, integer_codes
from .int8 import Int8
from .micro import Micro
from .pieces import by_row, cut, dense_dtype, flat, join, quantized
from .schemes import Rules, Scheme, activations_of, block_of, group_size, read_settings, why_not, write_scheme

PARTS = ("packed", "scale", "zero_point", "global_scale", "g_idx", "shape")
INPUTS = ("input_scale", "input_zero_point", "input_global_scale")  # of the layer, for an input that is rounded
ROLES = ("linear", "experts", "head", "router", "embedding", "conv")


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that a checkpoint of compressed-tensors holds quantized (see `easyfn.io.formats.Reader`).

    Raises `ValueError`, naming it, for whatever of the config easyfn does not know, for activations that no product
    rounds so, and for quantized tensors of layers that the config leaves out.
    """
    rules = read_settings(settings)
    roles = {f.path: f.slot.role for f in find_slots(model)}
    common = dense_dtype(header)
    found: dict[str, Packed] = {}
    for path, source in sources.items():
        if not quantized(source, lambda name: f"{name}_scale" in header or f"{name}_packed" in header):
            continue
        kind = "Embedding" if roles.get(path) == "embedding" else "Linear"
        schemes = [_scheme(rules, path, name, kind) for name in source.names]
        names = [_names(name, scheme, header) for name, scheme in zip(source.names, schemes, strict=True)]
        dtype = common or at(model, path).dtype
        make = functools.partial(_make, path, source, schemes, [tuple(own) for own in names], dtype)
        found[path] = Packed(tuple(name for own in names for name in own.values()), make)
    return found


def _scheme(rules: Rules, path: str, name: str, kind: str) -> Scheme:
    layers = (name.rpartition(".")[0], path.rpartition(".")[0])
    scheme = rules.of(layers, kind)
    if scheme is None:
        raise ValueError(
            f"{path}: the checkpoint has {name}_scale, and its quantization_config leaves {layers[0]!r} out "
            f"(ignore: {', '.join(rules.ignore[:6])}): there is no telling what the codes mean"
        )
    return scheme


def _names(name: str, scheme: Scheme, header: Mapping[str, Any]) -> dict[str, str]:
    """The tensors of a matrix, by what they are."""
    each = {part: f"{name}_{part}" for part in PARTS if f"{name}_{part}" in header}
    if "packed" not in each:
        each = {"plain": name, **each}
    layer = name.rpartition(".")[0]
    if activations_of(scheme) == "static":
        each["input_scale"] = f"{layer}.input_scale"
    elif scheme.activations is None:  # taken out of the config, to read the weights alone
        each |= {part: f"{layer}.{part}" for part in INPUTS if f"{layer}.{part}" in header}
    return each


def _make(
    path: str,
    source: Tensors,
    schemes: list[Scheme],
    names: list[tuple[str, ...]],
    common: Any,
    parts: list[np.ndarray],
    dtype: Any,
) -> Any:
    weights, rest = [], list(parts)
    for scheme, own in zip(schemes, names, strict=True):
        mine, rest = dict(zip(own, rest[: len(own)], strict=True)), rest[len(own) :]
        if scheme.activations is None:
            mine = {part: value for part, value in mine.items() if part not in INPUTS}
        name = jnp.dtype(dtype or common).name
        read: Any = _float if scheme.weights.get("type", "int") == "float" else _integer
        weights.append(read(path, scheme, name, **mine))
    return join(source, by_row(weights, source.together))


def _float(
    path: str,
    scheme: Scheme,
    dtype: str,
    scale: np.ndarray,
    plain: np.ndarray | None = None,
    packed: np.ndarray | None = None,
    global_scale: np.ndarray | None = None,
    input_scale: np.ndarray | None = None,
) -> Any:
    if packed is not None:
        if global_scale is None:
            return Micro(packed, scale.view(np.uint8), kind="mxfp4", dtype=dtype)
        divisor = global_scale.astype(np.float32).reshape(1, 1)
        return Micro(packed, scale.view(np.uint8), divisor, "nvfp4", dtype)
    if plain is None or plain.dtype != E4M3:
        raise ValueError(f"{path}: its codes are {None if plain is None else plain.dtype}, not float8_e4m3fn")
    codes = plain.view(np.uint8)
    if scale.dtype.itemsize == 1:
        return Micro(codes, scale.view(np.uint8), kind="mxfp8", dtype=dtype)
    block = block_of(scheme)
    scale = scale.astype(np.float32).reshape(-1, 1) if scale.ndim < 2 else scale.astype(np.float32)
    point = None if input_scale is None else input_scale.astype(np.float32).reshape(1, 1)
    return FP8(codes, scale, point, block, activations_of(scheme), dtype)


def _integer(
    path: str,
    scheme: Scheme,
    dtype: str,
    scale: np.ndarray,
    plain: np.ndarray | None = None,
    packed: np.ndarray | None = None,
    zero_point: np.ndarray | None = None,
    shape: np.ndarray | None = None,
    g_idx: np.ndarray | None = None,
) -> Any:
    bits, symmetric = int(scheme.weights.get("num_bits", 8)), scheme.weights.get("symmetric", True)
    raised = 1 << (bits - 1)
    if packed is None:
        codes = np.asarray(plain)
    else:
        width = int(shape.reshape(-1)[-1]) if shape is not None else packed.shape[1] * 32 // bits
        codes = (_unpack(packed, bits, width).astype(np.int16) - raised).astype(np.int8)
    out, width = codes.shape
    if scale.ndim < 2 or scale.shape[0] != out:
        scale = np.broadcast_to(scale.reshape(-1, 1), (out, 1))  # one for the tensor
    activations = activations_of(scheme)
    if bits == 8 and symmetric and scale.shape[1] == 1 and g_idx is None:
        return Int8(codes, scale.astype(np.float32) * np.float32(127), dtype, activations=activations)
    order = None
    if g_idx is not None:
        plainly = np.arange(width) // group_size(scheme, width)
        order = np.argsort(g_idx, kind="stable").astype(np.int32)
        if not np.array_equal(g_idx[order], plainly):
            raise ValueError(f"{path}: its weight_g_idx does not put {group_size(scheme, width)} columns in each group")
        codes, order = (codes, None) if np.array_equal(g_idx, plainly) else (codes[:, order], order[None])
    zeros = None
    if not symmetric:
        if zero_point is None:
            raise ValueError(f"{path}: its codes are not symmetric and there is no weight_zero_point")
        if packed is None:
            zeros = np.broadcast_to(zero_point.reshape(-1, scale.shape[1]), scale.shape).astype(np.int16)
        else:
            zeros = np.ascontiguousarray(_unpack(np.ascontiguousarray(zero_point.T), bits, out).T).astype(np.int16)
            zeros = zeros - raised
        zeros = (zeros + raised).astype(np.uint8)
        codes = (codes.astype(np.int16) + raised).astype(np.uint8)
    name = {"int8": f"a{bits}q", "int8/32": "a8q", None: f"int{bits}"}[activations]
    return grouped(codes, scale, zeros, bits=bits, order=order, dtype=dtype, activations=activations, name=name)


def _unpack(packed: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Codes, uint8 `(rows, width)`, of int32 `(rows, words)`: the lowest bits first, codes across words."""
    if bits in (2, 4, 8):
        return unpack(packed, bits)[:, :width]
    each = np.unpackbits(np.ascontiguousarray(packed).view(np.uint8), axis=-1, bitorder="little")
    each = each[:, : width * bits].reshape(-1, width, bits)
    return functools.reduce(np.bitwise_or, [each[..., i] << i for i in range(bits)])


def pack_words(codes: Any, bits: int) -> Any:
    """The inverse of `_unpack`, for NumPy and JAX arrays of uint8: int32 `(rows, ceil(width * bits / 32))`."""
    xp = np if isinstance(codes, np.ndarray) else jnp
    rows, width = codes.shape
    size = bits if bits in (2, 4, 8) else 1  # what is put into bytes: whole codes, or their bits one by one
    if size == 1:
        codes = ((codes[..., None] >> np.arange(bits, dtype=np.uint8)[None, None]) & 1).reshape(rows, -1)
    words = -(-width * bits // 32)
    each = xp.pad(codes, ((0, 0), (0, words * 32 // size - codes.shape[1]))).reshape(rows, words * 4, 8 // size)
    whole = functools.reduce(xp.bitwise_or, [each[..., i] << np.uint8(i * size) for i in range(8 // size)])
    if xp is np:
        return np.ascontiguousarray(whole).view(np.int32)
    return lax.bitcast_convert_type(whole.reshape(rows, words, 4), jnp.int32)


def write(source: Tensors, weight: Any) -> dict[str, Any]:
    """The tensors that hold a weight, or one layer of a stacked one (see `easyfn.io.formats.Writer`)."""
    pieces = cut(source, weight)
    out: dict[str, Any] = {}
    for name, piece in zip(source.names, pieces, strict=True):
        integers = isinstance(piece, (Int8, Grouped))
        each = _integer_tensors(flat(source, piece)) if integers else _float_tensors(piece)
        out |= {f"{name}_{part}" if part else name: value for part, value in each.items()}
        if isinstance(piece, FP8) and piece.input_scale is not None:
            out[f"{name.rpartition('.')[0]}.input_scale"] = piece.input_scale.reshape(1)
    return out


def _float_tensors(w: FP8 | Micro) -> dict[str, Any]:
    if isinstance(w, FP8):
        return {"": as_dtype(w.codes, E4M3), "scale": w.scales.reshape(1) if w.block == (0, 0) else w.scales}
    if w.kind == "mxfp8":
        return {"": as_dtype(w.codes, E4M3), "scale": w.scales}
    if w.kind == "mxfp4":
        return {"packed": w.codes, "scale": w.scales}
    return {"packed": w.codes, "scale": as_dtype(w.scales, E4M3), "global_scale": w.divisor[:1, 0]}  # type: ignore[index]


def _integer_tensors(w: Grouped | Int8) -> dict[str, Any]:
    shape = np.array(shape_of(w), np.int64 if isinstance(w.codes, np.ndarray) else np.int32)
    if isinstance(w, Int8):
        scales = w.scales / 127
        if w.activations is not None:
            return {"": w.codes, "scale": scales}
        raised = (w.codes.astype(np.int16) + 128).astype(np.uint8)
        return {"packed": pack_words(raised, 8), "scale": scales, "shape": shape}
    codes, raised_by = integer_codes(w), 1 << (w.bits - 1)
    if w.activations is not None and w.bits == 8:
        return {"": codes, "scale": w.scales}
    raised = (codes.astype(np.int16) + (raised_by if w.zeros is None else 0)).astype(np.uint8)
    out = {"packed": pack_words(raised, w.bits), "scale": w.scales, "shape": shape}
    if w.zeros is not None:
        out["zero_point"] = pack_words(w.zeros.astype(np.uint8).T, w.bits).T
    return out


def as_dtype(codes: Any, dtype: Any) -> Any:
    """Bytes as the dtype of one byte that they have in a file."""
    return codes.view(dtype) if isinstance(codes, np.ndarray) else lax.bitcast_convert_type(codes, dtype)


def settings(model: Any) -> dict[str, Any]:
    """The `quantization_config` of a model, as compressed-tensors 0.20 reads it.

    Every group names its layers by a regular expression, or one by one, and `ignore` names all others. Raises
    `ValueError` for matrices that transformers has in no `Linear` or `Embedding` (GPT-2's `Conv1D`).
    """
    names = file_names(model)
    schemes: list[dict[str, Any]] = []
    chosen: dict[str, int | None] = {}  # by layer: the number of its scheme
    for found in find_slots(model, ROLES):
        number = None
        if not is_leaf(found.weight):
            scheme = write_scheme(found.weight)
            schemes += [] if scheme in schemes else [scheme]
            number = schemes.index(scheme)
        for path in expand(found.path):
            source = names[path]
            if number is not None and source.transposed:
                what = "no Conv1D" if len(source.shape) == 2 else "no experts that plain files hold as (in, out)"
                raise ValueError(
                    f"save: {path} is {format_of(found.weight)}, and compressed-tensors reads {what}. Methods that "
                    "it can be saved in: 8bit, nf4, fp4; or save ef.dequantize(model)"
                )
            own = (path, *source.names) if source.plain else source.names
            chosen |= dict.fromkeys((name.rpartition(".")[0] for name in own), number)
    groups = {f"group_{n}": {"targets": targets(chosen, n), **scheme} for n, scheme in enumerate(schemes)}
    formats = {scheme["format"] for scheme in schemes}
    embeddings = {p.rpartition(".")[0] for f in find_slots(model, ("embedding",)) for p in expand(f.path)}
    plain = [layer for layer, number in chosen.items() if number is None and layer not in embeddings]
    return {
        "quant_method": "compressed-tensors",
        "version": "0.20.0",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(dict.fromkeys([*plain, *(["lm_head"] if chosen.get("lm_head") is None else [])])),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def targets(chosen: Mapping[str, int | None], number: int) -> list[str]:
    """The layers of a scheme: one pattern for those that differ in their numbers alone, if they are all there."""
    kinds: dict[str, set[int | None]] = {}
    for layer, scheme in chosen.items():
        kinds.setdefault(_kind(layer), set()).add(scheme)
    out = [layer if kinds[_kind(layer)] != {number} else _kind(layer) for layer, n in chosen.items() if n == number]
    return list(dict.fromkeys(out))


def _kind(layer: str) -> str:
    return "re:^" + r"\.".join(r"\d+" if part.isdigit() else part for part in layer.split(".")) + "$"


register(
    "compressed-tensors",
    reader=read,
    writer=write,
    types=(Grouped, Int8, FP8, Micro),
    settings=settings,
    refuses=why_not,
)
