"""AutoRound's files, read (Cheng et al. 2023, arXiv 2309.05516): the layouts of GPTQ and AWQ under another name.

`packing_format` says which: `auto_round:auto_gptq` has GPTQ's zeros less one (v1), `auto_round` and
`auto_round:gptqmodel` have them as they are (v2), `auto_round:auto_awq` is AWQ's `gemm` (auto-round 0.16,
`inference/backend.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..io.formats import Packed, register
from ..names.rules import Tensors
from . import awq, gptq

_GPTQ = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2"}
_AWQ = "auto_round:auto_awq"


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that an AutoRound checkpoint holds quantized (see `easyfn.io.formats.Reader`).

    Which layers, and how many bits each has, is read from the tensors. Raises `ValueError` for other layouts, for inputs that
    are rounded, too, and for rotated weights.
    """
    packing = settings.get("packing_format") or "auto_round:auto_gptq"
    kind, acts = settings.get("data_type") or "int", settings.get("act_bits") or 16
    if packing not in (*_GPTQ, _AWQ) or kind != "int" or acts < 16 or settings.get("rotation_config"):
        raise ValueError(
            f"the checkpoint is quantized with auto-round, packing_format={packing!r}, data_type={kind!r}, act_bits={acts}"
            f"{', rotated' if settings.get('rotation_config') else ''}; easyfn reads integers in {', '.join(_GPTQ)} and {_AWQ}. "
            "Load the unquantized checkpoint with ef.load(..., quantize=...)"
        )
    if packing == _AWQ:
        return awq.read(model, {"bits": settings.get("bits", 4)}, sources, header)
    layers = (settings.get("extra_config") or {}).values()
    symmetric = settings.get("sym", True) and not any(own.get("sym") is False for own in layers)
    return gptq.read(model, {"checkpoint_format": _GPTQ[packing], "sym": symmetric}, sources, header)


register("auto-round", reader=read)
