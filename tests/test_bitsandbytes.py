"""NF4, fp4 and Int8 against bitsandbytes itself: every code and scale, and checkpoints both ways."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import easyfn as ef
from easyfn import quant
from easyfn.quant.nf4 import LEVELS, dynamic_map

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    F = pytest.importorskip("bitsandbytes.functional")
    from bitsandbytes.backends.default import ops

CONFIG = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False,
}  # fmt: skip


def matrix(*shape):
    rng = np.random.default_rng(0)
    w = (rng.standard_normal(shape) * rng.uniform(0.1, 3, (shape[0], 1))).astype(np.float32)
    w[1] = 0  # a row, and so some blocks, of zeros
    return w


@pytest.mark.quick("quant", "bitsandbytes' tables")
def test_tables():
    for levels, table in LEVELS.items():
        assert np.array_equal(table, F.get_4bit_type(levels, device="cpu").numpy())
    assert np.array_equal(dynamic_map(), F.create_dynamic_map().numpy())


@pytest.mark.parametrize(
    "shape, block, levels",
    [((96, 256), 64, "nf4"), ((33, 96), 32, "fp4"), ((7, 40), 64, "nf4"), ((6, 256), 256, "fp4")],
)
def test_4_bit_every_code_and_scale(shape, block, levels):
    w = matrix(*shape)
    packed, state = F.quantize_4bit(torch.tensor(w), blocksize=block, quant_type=levels)
    ours = jax.jit(lambda w: quant.to_nf4(w, block, levels=levels))(w)
    assert np.array_equal(np.asarray(ours.codes).reshape(-1), packed.numpy().reshape(-1))
    assert np.array_equal(np.asarray(ours.scales).reshape(-1), state.absmax.numpy())
    # Their generic kernel: their CPU kernel starts a new block with every row, also where the packing does not.
    theirs = ops._get_4bit_code(levels, torch.device("cpu"))
    codes = np.stack([packed.numpy() >> 4, packed.numpy() & 15], -1).reshape(-1)
    scales = np.repeat(state.absmax.numpy(), block)[: codes.size]
    assert np.array_equal(np.asarray(ef.dense(ours)), (theirs.numpy()[codes] * scales).reshape(shape))


def test_double_quantization():
    """Their generic kernel and CUDA round to the nearest level; their CPU kernel looks 65536 values up, and so do "
    "not agree."""
    w = matrix(64, 1024)
    _, state = F.quantize_4bit(torch.tensor(w), quant_type="nf4", compress_statistics=True)
    ours = jax.jit(lambda w: quant.to_nf4(w, double_quant=True))(w)
    plain = np.asarray(quant.to_nf4(jnp.asarray(w)).scales).reshape(-1)
    close = {"rtol": 1e-6, "atol": 0}
    np.testing.assert_allclose(
        float(ours.offset[0, 0]), float(state.offset), **close
    )  # a mean: the order of the sum differs
    np.testing.assert_allclose(np.asarray(ours.nested).reshape(-1), state.state2.absmax.numpy(), rtol=1e-5)
    centred = torch.tensor(plain) - float(ours.offset[0, 0])
    generic = np.concatenate(
        [
            np.searchsorted((c := F.create_dynamic_map().numpy())[:-1] / 2 + c[1:] / 2, b / np.abs(b).max())
            for b in centred.numpy().reshape(-1, 256)
        ]
    )
    codes = np.asarray(ours.scales).reshape(-1)
    assert np.mean(codes != generic) < 0.002
    assert np.mean(codes != state.absmax.numpy()) < 0.01
    assert np.abs(codes.astype(int) - state.absmax.numpy()).max() <= 1


@pytest.mark.quick("quant", "bitsandbytes' codes")
def test_8_bit_every_code_and_scale():
    w = matrix(97, 130)
    codes, scales, _ = F.int8_vectorwise_quant(torch.tensor(w))
    ours = jax.jit(quant.to_int8)(w)
    assert np.array_equal(np.asarray(ours.scales)[:, 0], scales.numpy())
    rows = np.arange(97) != 1  # of a row of zeros theirs are NaN made integers
    assert np.array_equal(np.asarray(ours.codes)[rows], codes.numpy()[rows])
    assert not np.asarray(ours.codes)[1].any()


def hf_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def hf_logits(folder, ids):
    """What transformers computes: the classes of two layers, the logits, and those of the dequantized weights."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        kinds = [type(m).__name__ for m in (model.model.layers[0].mlp.up_proj, model.lm_head)]
        logits = run(model, ids)  # which repacks the weights, so that dequantize needs new ones
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return kinds, logits, run(model.dequantize(dtype=torch.float32), ids)


def run(model, ids):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(torch.tensor(np.asarray(ids))).logits.numpy()


def agree(mine, theirs, tol):
    assert np.abs(np.asarray(mine) - theirs).max() <= tol * np.abs(theirs).max()


# Their kernels round activations to 8 bits, and on some CPUs the 4-bit weights to bfloat16.
ROUNDED = 0.03


IDS = jnp.arange(14).reshape(2, 7) * 3 % 64
WAYS = {
    "8bit": ("8bit", {"load_in_8bit": True, "llm_int8_threshold": 0.0}),
    "nf4": ("nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "nested": (ef.QuantConfig("nf4", double_quant=True), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True}), "fp4": ("fp4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    hf_model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_they_read_what_we_write(dense, tmp_path, way):
    cfg, _ = WAYS[way]
    ours = ef.load(dense, quantize=cfg)
    ef.save(ours, tmp_path)
    again = ef.load(tmp_path)
    for (path, a), b in zip(ef.params(ours).items(), ef.params(again).values(), strict=True):
        assert a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)), path
    ef.save(ef.stack(ours), tmp_path / "stacked")
    one, other = (load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / "stacked"))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    kinds, theirs, exact = hf_logits(tmp_path, IDS)
    assert kinds == ["Linear8bitLt" if way == "8bit" else "Linear4bit", "Linear"]
    mine = ef.forward(ours, IDS).logits
    agree(mine, theirs, ROUNDED)
    agree(mine, exact, 1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_we_read_what_they_write(dense, tmp_path, way):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _, settings = WAYS[way]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            dense, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32, device_map="cpu"
        )
        model.save_pretrained(tmp_path)
    ours = ef.load(tmp_path)
    assert (
        ef.format_of(ours.model.layers[1].mlp.up_proj.weight)
        == {"8bit": "int8", "nf4": "nf4/64", "nested": "nf4/64+dq", "fp4": "fp4/64"}[way]
    )
    mine = ef.forward(ours, IDS).logits
    _, theirs, exact = hf_logits(tmp_path, IDS)
    agree(mine, theirs, ROUNDED)
    agree(mine, exact, 1e-4)
    stacked = ef.load(tmp_path, stack=True, dtype="bfloat16")
    assert ef.dtype_of(stacked) == jnp.bfloat16 and ef.is_quantized(stacked)


@pytest.mark.parametrize("method", ["8bit", "nf4"])
def test_the_dtype_is_kept(dense, tmp_path, method):
    model = ef.quantize(ef.load(dense), method)
    half = ef.cast(model, jnp.bfloat16)
    ef.save(half, tmp_path / "cast")
    ef.save(model, tmp_path / "written", dtype="bfloat16")
    for folder in ("cast", "written"):
        assert jax.tree.structure(ef.load(tmp_path / folder)) == jax.tree.structure(half)


def test_refusals(dense, tmp_path):
    model = ef.load(dense)
    with pytest.raises(ValueError, match="no embeddings on disk"):
        ef.save(ef.quantize(model, ef.QuantConfig("nf4", pattern="embed_tokens|q_proj")), tmp_path)
    mixed = ef.quantize(model, [ef.QuantConfig("8bit", pattern="q_proj"), ef.QuantConfig("nf4")])
    with pytest.raises(ValueError, match="mixes int8, nf4/64"):
        ef.save(mixed, tmp_path)
    with pytest.raises(ValueError, match="mixes int8, nf4/64"):
        ef.io.formats.layout_of(mixed)
    assert not list(tmp_path.iterdir())
    ef.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "quip"}}))
    with pytest.raises(ValueError, match="quip"):
        ef.load(tmp_path)
