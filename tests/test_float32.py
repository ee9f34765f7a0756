"""What stays in float32 in a model of half the width: what transformers loads so, whatever dtype it is asked for."""

import jax.numpy as jnp
import pytest

import easyfn as ef
from cases import CASES
from easyfn.io import safetensors


def wide(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= {name: info.dtype for name, info in safetensors.read_header(file)[0].items()}
    return {name for name, dtype in found.items() if dtype == jnp.float32}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("deepseek_v2", "bfloat16"),  # the router
        ("deepseek_v3", "bfloat16"),  # and its correction bias
        ("ernie4_5_moe", "float16"),
        ("hunyuan_v1_moe", "bfloat16"),
        ("lfm2_moe", "bfloat16"),  # the bias alone
        ("gpt_oss", "float16"),  # norms, in float16 only
        ("gpt_oss", "bfloat16"),
        ("minimax_m2", "bfloat16"),  # nothing
    ],
)
def test_the_same_as_in_transformers(name, dtype, tmp_path):
    import torch

    hf = CASES[name].torch()
    hf.save_pretrained(tmp_path / "full")
    type(hf).from_pretrained(tmp_path / "full", dtype=getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    model = ef.load(tmp_path / "full", dtype=dtype, progress=False)
    ef.save(model, tmp_path / "ours")
    want = wide(tmp_path / "theirs")
    assert wide(tmp_path / "ours") == want and bool(want) == (
        (name, dtype) not in [("gpt_oss", "bfloat16"), ("minimax_m2", "bfloat16")]
    )
    dtypes = lambda model: {path: x.dtype for path, x in ef.params(model).items()}
    full = ef.load(tmp_path / "full", progress=False)
    assert dtypes(ef.cast(full, dtype)) == dtypes(model) == dtypes(ef.abstract(model.config, dtype=dtype))
    ef.save(full, tmp_path / "cast", dtype=dtype)
    assert wide(tmp_path / "cast") == want
    assert not any(d == jnp.float32 for d in dtypes(ef.cast(full, dtype, ".")).values())  # asked for by name
