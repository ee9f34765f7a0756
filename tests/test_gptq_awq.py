"""GPTQ and AWQ checkpoints, packed here as AutoGPTQ and AutoAWQ pack them: every code, zero and scale, and the logits."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import easyfn as ef
from cases import VOCAB, reference, tokens

torch = pytest.importorskip("torch")

SIZES = {
    "vocab_size": VOCAB - 1, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True))


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return reference(MixtralForCausalLM, MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return reference(GPT2LMHeadModel, config)


def rounded(w, bits, group, sym, seed):
    """Codes, zeros and scales of a matrix `(out, in)`: what a calibrator would leave, with zeros all over the range."""
    rng = np.random.RandomState(seed)
    out, width = w.shape
    groups = width // group
    cut = w.reshape(out, groups, group)
    low, high = np.minimum(cut.min(-1), 0), np.maximum(cut.max(-1), 0)
    scales = np.maximum((high - low) / (2**bits - 1), 1e-4).astype(np.float16)
    zeros = np.full((out, groups), 2 ** (bits - 1)) if sym else rng.randint(0, 2**bits, (out, groups))
    codes = np.clip(np.round(cut / scales[..., None].astype(np.float32)) + zeros[..., None], 0, 2**bits - 1)
    return codes.astype(np.int64).reshape(out, width), zeros, scales


def pack_rows(codes, bits):
    """AutoGPTQ's `QuantLinear.pack`, loop by loop: int32 `(rows * bits / 32, columns)`, rows packed."""
    codes = codes.astype(np.uint32)
    packed = np.zeros((codes.shape[0] * bits // 32, codes.shape[1]), np.uint32)
    i = row = 0
    while row < packed.shape[0]:
        if bits in (2, 4, 8):
            for j in range(i, i + 32 // bits):
                packed[row] |= codes[j] << (bits * (j - i))
            i += 32 // bits
            row += 1
        else:
            for j in range(i, i + 10):
                packed[row] |= codes[j] << (3 * (j - i))
            i += 10
            packed[row] |= codes[i] << 30
            row += 1
            packed[row] |= (codes[i] >> 2) & 1
            i += 1
            for j in range(i, i + 10):
                packed[row] |= codes[j] << (3 * (j - i) + 1)
            i += 10
            packed[row] |= codes[i] << 31
            row += 1
            packed[row] |= (codes[i] >> 1) & 3
            i += 1
            for j in range(i, i + 10):
                packed[row] |= codes[j] << (3 * (j - i) + 2)
            i += 10
            row += 1
    return packed.view(np.int32)


def gptq_tensors(w, bits, group, sym, act_order, version, seed):
    """The tensors of a layer, and the dense weight they stand for."""
    width = w.shape[1]
    perm = np.random.RandomState(7).permutation(width) if act_order else np.arange(width)
    codes, zeros, scales = rounded(w[:, perm], bits, group, sym, seed)
    g_idx = np.empty(width, np.int32)
    g_idx[perm] = np.arange(width) // group
    columns = np.empty_like(codes)
    columns[:, perm] = codes
    qzeros = pack_rows(zeros, bits).T.copy()
    if version == "gptq":  # as GPTQModel makes v1 of v2: a borrow goes through the whole word
        if bits == 3:
            qzeros = pack_rows((zeros - 1) & 7, bits).T.copy()
        else:
            step = np.uint32(sum(1 << s for s in range(0, 32, bits)))
            qzeros = (qzeros.view(np.uint32) - step).view(np.int32)
    dense = (columns - zeros[:, g_idx]).astype(np.float32) * scales[:, g_idx].astype(np.float32)
    parts = {"qweight": pack_rows(columns.T, bits), "qzeros": qzeros, "scales": scales.T.copy(), "g_idx": g_idx}
    return parts, dense, (columns, zeros, scales)


def awq_tensors(w, group, seed):
    """AutoAWQ's `WQLinear_GEMM.from_linear`."""
    codes, zeros, scales = rounded(w, 4, group, False, seed)
    packed = {}
    for name, part in {"qweight": codes.T, "qzeros": zeros.T}.items():
        out = np.zeros((part.shape[0], part.shape[1] // 8), np.uint32)
        for column in range(out.shape[1]):
            for i, at in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                out[:, column] |= part[:, column * 8 + at].astype(np.uint32) << (4 * i)
        packed[name] = out.view(np.int32)
    cut = (codes.reshape(*scales.shape, -1) - zeros[..., None]).astype(np.float32)
    dense = (cut * scales.astype(np.float32)[..., None]).reshape(w.shape)
    return {**packed, "scales": scales.T.copy()}, dense, (codes, zeros, scales)


def write(folder, hf, quantized, settings, make, conv1d=False, idle_bias=False):
    """Saves `hf` with the layers that `quantized(name)` chooses packed; puts the rounded weights into `hf` itself."""
    hf.save_pretrained(folder)
    held = load_file(folder / "model.safetensors")
    parts, truth = {}, {}
    for seed, name in enumerate(list(held)):
        if not name.endswith(".weight") or not quantized(name):
            continue
        w = held.pop(name)
        tensors, dense, integers = make(w.T if conv1d else w, seed)
        layer = name.removesuffix(".weight")
        parts |= {f"{layer}.{part}": np.ascontiguousarray(value) for part, value in tensors.items()}
        if idle_bias and f"{layer}.bias" not in held:
            parts[f"{layer}.bias"] = np.zeros(len(dense), np.float16)
        held_dense = dense.T if conv1d else dense
        truth[name] = (dense, integers)
        parts[f"{name}?"] = held_dense
    dense_state = {n.removesuffix("?"): v for n, v in parts.items() if n.endswith("?")}
    parts = {n: v for n, v in parts.items() if not n.endswith("?")}
    save_file({**held, **parts}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    dense_folder = folder / "dense"
    dense_folder.mkdir()
    save_file({**held, **{n: np.ascontiguousarray(v) for n, v in dense_state.items()}},
              dense_folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    (dense_folder / "config.json").write_text(json.dumps(config))
    return truth, type(hf).from_pretrained(dense_folder, attn_implementation="eager").eval()


def same_logits(model, hf):
    ids, _ = tokens(2, 9, pad=False)
    with torch.no_grad():
        theirs = hf(torch.tensor(ids)).logits.numpy()
    mine = np.asarray(ef.forward(model, jnp.asarray(ids)).logits)
    assert np.abs(mine - theirs).max() <= 1e-4 * np.abs(theirs).max()


def attention_and_mlp(name):
    return "_proj" in name


WAYS = {
    "4-v1": dict(bits=4, group=32, sym=True, act_order=False, version="gptq"),
    "4-asym": dict(bits=4, group=16, sym=False, act_order=False, version="gptq"),
    "4-act": dict(bits=4, group=32, sym=False, act_order=True, version="gptq_v2"),
    "3": dict(bits=3, group=32, sym=False, act_order=False, version="gptq"),
    "2-row": dict(bits=2, group=-1, sym=False, act_order=False, version="gptq_v2"),
    "8-act": dict(bits=8, group=16, sym=False, act_order=True, version="gptq"),
}


def gptq_settings(way):
    return {
        "quant_method": "gptq", "bits": way["bits"], "group_size": way["group"], "sym": way["sym"],
        "desc_act": way["act_order"], "checkpoint_format": way["version"],
    }  # fmt: skip


def gptq_maker(way):
    def make(w, seed):
        group = w.shape[1] if way["group"] == -1 else way["group"]
        return gptq_tensors(w, way["bits"], group, way["sym"], way["act_order"], way["version"], seed)

    return make


@pytest.mark.thinned("widths and groups of one packer")
@pytest.mark.parametrize("name", WAYS)
def test_gptq(tmp_path, name):
    way = WAYS[name]
    hf = llama()
    quantized = (lambda n: attention_and_mlp(n) or n == "lm_head.weight") if name == "4-act" else attention_and_mlp
    truth, dense = write(tmp_path, hf, quantized, gptq_settings(way), gptq_maker(way), idle_bias=name == "4-v1")
    model = ef.load(tmp_path)
    assert ef.dtype_of(model) == "float32" and ef.format_of(model.model.layers[0].mlp.up_proj.weight).startswith(
        "gptq/"
    )
    weights = {f.path: f.weight for f in ef.find_slots(model, ("linear", "head"))}
    for path, (values, (codes, zeros, scales)) in truth.items():
        w = weights[path]
        shift = 0 if w.zeros is not None else 2 ** (way["bits"] - 1)
        assert (w.zeros is None) == way["sym"] and (w.order is None) != way["act_order"]
        order = np.arange(codes.shape[1]) if w.order is None else np.asarray(w.order)[0]
        assert np.array_equal(np.asarray(ef.quant.integer_codes(w)).astype(int) + shift, codes[:, order])
        assert np.array_equal(np.asarray(w.scales), scales)
        assert w.zeros is None or np.array_equal(np.asarray(w.zeros), zeros)
        assert w.dtype == "float16"  # that of the scales
        assert np.array_equal(np.asarray(ef.dense(ef.cast(w, "float32"))), values)
    same_logits(ef.load(tmp_path, dtype="float32", stack=name == "4-act"), dense)


def test_gptq_of_experts_and_transposed_matrices(tmp_path):
    way = WAYS["4-act"]
    truth, dense = write(
        tmp_path / "a", mixtral(), lambda n: "experts." in n or "_proj" in n, gptq_settings(way), gptq_maker(way)
    )
    model = ef.load(tmp_path / "a", dtype="float32")
    experts = model.model.layers[1].mlp.experts.gate_up_proj
    assert ef.shape_of(experts) == (3, 320, 96) and experts.order.shape == (3, 1, 96)
    values = [truth[f"model.layers.1.block_sparse_moe.experts.{e}.w{i}.weight"][0] for e in range(3) for i in (1, 3)]
    assert np.array_equal(np.asarray(ef.dense(experts)), np.concatenate(values).reshape(3, 320, 96))
    same_logits(model, dense)
    way = WAYS["4-v1"]
    _, dense = write(tmp_path / "b", gpt2(), lambda n: ".c_" in n, gptq_settings(way), gptq_maker(way), conv1d=True)
    same_logits(ef.load(tmp_path / "b", dtype="float32"), dense)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_awq(tmp_path, kind):
    settings = {
        "quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": ["o_proj"],
    }  # fmt: skip
    chosen = lambda n: ("experts." in n or "_proj" in n) and "o_proj" not in n
    hf = llama() if kind == "llama" else mixtral()
    truth, dense = write(tmp_path, hf, chosen, settings, lambda w, seed: awq_tensors(w, 16, seed))
    model = ef.load(tmp_path, dtype="float32")
    assert ef.format_of(model.model.layers[0].self_attn.o_proj.weight) is None
    for layer in range(2):
        for part in "qkv":
            path = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            w = getattr(model.model.layers[layer].self_attn, f"{part}_proj").weight
            values, (codes, zeros, scales) = truth[path]
            assert np.array_equal(np.asarray(ef.quant.integer_codes(w)), codes)
            assert np.array_equal(np.asarray(w.zeros), zeros) and np.array_equal(np.asarray(w.scales), scales)
            assert np.array_equal(np.asarray(ef.dense(w)), values)
    same_logits(model, dense)


@pytest.mark.parametrize(
    "packing, way",
    [("auto_round:auto_gptq", "4-v1"), ("auto_round", "2-row"), ("auto_round:auto_awq", None)],
)
def test_auto_round_is_either(tmp_path, packing, way):
    """Its packers of 0.16.1 were run on the same weights once: what is read is what their layers multiply by."""
    settings = {"quant_method": "auto-round", "bits": 4, "data_type": "int", "packing_format": packing, "sym": True}
    if way is None:
        make = lambda w, seed: awq_tensors(w, 16, seed)
    else:
        settings |= {"bits": WAYS[way]["bits"], "sym": WAYS[way]["sym"]}
        given = gptq_maker(WAYS[way])

        def make(w, seed):
            tensors, *rest = given(w, seed)
            return ({k: v for k, v in tensors.items() if k != "g_idx"}, *rest)

    _, dense = write(tmp_path, llama(), attention_and_mlp, settings, make)
    same_logits(ef.load(tmp_path, dtype="float32"), dense)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"act_bits": 8}, {"packing_format": "auto_round:fp8_static"}, {"rotation_config": {"a": 1}}):
        config["quantization_config"] = settings | wrong
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="quantized with auto-round"):
            ef.load(tmp_path)


@pytest.mark.quick("quant", "GPTQ and AWQ refuse")
def test_refusals(tmp_path):
    way = WAYS["4-v1"]
    write(tmp_path, llama(), attention_and_mlp, gptq_settings(way), gptq_maker(way))
    config = json.loads((tmp_path / "config.json").read_text())

    def load(**changes):
        quantization = {**config["quantization_config"], **changes}
        return ef.load(tmp_path, config_overrides={"quantization_config": quantization})

    with pytest.raises(ValueError, match="'marlin'"):
        load(is_marlin_format=True)
    with pytest.raises(ValueError, match="bitblas"):
        load(checkpoint_format="bitblas")
    with pytest.raises(ValueError, match="version 'gemv'"):
        load(quant_method="awq", version="gemv")
    with pytest.raises(ValueError, match="sym=true"):
        load(checkpoint_format="gptq_v2")
    tensors = load_file(tmp_path / "model.safetensors")
    broken = {n: v for n, v in tensors.items() if n != "model.layers.1.mlp.up_proj.qzeros"}
    save_file(broken, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ef.LoadError, match=r"up_proj\.qzeros"):
        load()
    g_idx = tensors["model.layers.0.mlp.up_proj.g_idx"].copy()
    g_idx[0] = 1
    save_file({**tensors, "model.layers.0.mlp.up_proj.g_idx": g_idx}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="does not put 32 columns"):
        load()
