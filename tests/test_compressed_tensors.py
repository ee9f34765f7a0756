"""compressed-tensors, fp8 and mxfp4 files against the real libraries: both ways, every code and scale, the same logits."""

import contextlib
import functools
import json
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import easyfn as ef
from easyfn import quant
from easyfn.io.formats import layout_of
from easyfn.quant.compressed_tensors import pack_words

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

Q = ef.QuantConfig
IDS = np.arange(14).reshape(2, 7) * 3 % 64
CONFIG = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Theirs unpack 4 bits to bfloat16, and their scale of 8 bits reaches to -128.
LOW, ROUNDED = 0.03, 0.06


@contextlib.contextmanager
def quiet():
    """Both libraries warn, and one of them reports to a logger of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def hf_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    hf_model().save_pretrained(folder)
    return folder


def hf_logits(folder, dtype=torch.float32, **options):
    from transformers import AutoModelForCausalLM

    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()
        return model(torch.tensor(IDS)).logits.float().numpy()


@functools.cache
def _forward():
    return jax.jit(lambda model, ids: ef.forward(model, ids).logits)


def agree(model, theirs, tol):
    mine = np.asarray(_forward()(model, IDS))
    assert np.abs(mine - theirs).max() <= tol * np.abs(theirs).max(), np.abs(mine - theirs).max() / np.abs(theirs).max()


def same(a, b, tol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(ef.params(a).items(), ef.params(b).values(), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tol, atol=0, err_msg=path)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def rewrite(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


MIXED = [
    Q("int4", pattern="mlp"),
    Q("fp8", pattern="self_attn|embed_tokens"),
    Q("8bit", pattern="lm_head"),
]
WRITTEN = {
    "int4": ("int4", "pack-quantized", 1e-4),
    "a4q": ("a4q", "pack-quantized", ROUNDED),
    "a8bit": ("a8bit", "int-quantized", ROUNDED),
    "a8q": ("a8q", "int-quantized", ROUNDED),
    "fp8": ("fp8", "naive-quantized", 1e-4),
    "fp8-tensor": (Q("fp8", block="tensor"), "naive-quantized", 1e-4),
    "fp8-128": (Q("fp8", block="128x128"), "fp8", 1e-4),
    "mxfp4": ("mxfp4", "mxfp4-pack-quantized", LOW),
    "mxfp8": ("mxfp8", "mxfp8-quantized", LOW),
    "nvfp4": ("nvfp4", "nvfp4-pack-quantized", LOW),
    "mixed": (MIXED, "mixed-precision", 2e-4),
}


@pytest.mark.thinned("layouts that share a packer with their neighbours in the table")
@pytest.mark.parametrize("way", WRITTEN)
def test_they_read_what_we_write(dense, tmp_path, way, caplog):
    cfg, layout, tol = WRITTEN[way]
    ours = ef.load(dense, quantize=cfg)
    with caplog.at_level(logging.INFO, "easyfn"):
        ef.save(ours, tmp_path)
    settings = config_of(tmp_path)
    assert settings.get("format", settings["quant_method"]) == layout
    assert layout_of(ours) == settings["quant_method"] and settings["quant_method"] in caplog.text
    # The scale of int8 is a row's largest entry here, 127 steps of it there.
    same(ef.load(tmp_path), ours, 3e-7 if way in ("a8bit", "mixed") else 0)
    agree(ours, hf_logits(tmp_path, torch.bfloat16 if tol == LOW else torch.float32), tol)
    if way in ("int4", "fp8-128", "nvfp4"):
        ef.save(ef.stack(ours), tmp_path / "stacked")
        one, other = (load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / "stacked"))
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)), name
        stacked = ef.load(tmp_path, stack=True, dtype="bfloat16")
        assert ef.dtype_of(stacked) == jnp.bfloat16 and ef.is_quantized(stacked)
        assert ef.to_state_dict(jax.eval_shape(lambda: ours)).keys() == one.keys()


def compressed(folder, scheme, ignore=("lm_head",), **changes):
    """A checkpoint as llm-compressor leaves one: scales from the weights' range, then the library's own compressor."""
    import copy

    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    model = copy.deepcopy(hf_model())
    group = preset_name_to_scheme(scheme, ["Linear"])
    for key, value in changes.items():
        setattr(group.weights, key, value)
    with quiet():
        apply_quantization_config(
            model,
            QuantizationConfig(config_groups={"group_0": group}, ignore=list(ignore), quantization_status="frozen"),
            show_progress=False,
        )
        for module in model.modules():
            if getattr(module, "quantization_scheme", None) is None:
                continue
            args, w = module.quantization_scheme.weights, module.weight.data
            total = None
            if args.strategy in ("group", "tensor_group"):
                cut = w.unflatten(-1, (-1, args.group_size))
                low, high = cut.amin(-1), cut.amax(-1)
            elif args.strategy == "block":
                cut = w.reshape(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
                low, high = cut.amin((1, 3)), cut.amax((1, 3))
            elif args.strategy == "channel":
                low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
            else:
                low, high = w.amin().reshape(1), w.amax().reshape(1)
            if args.strategy == "tensor_group":
                total = generate_gparam(w.amin(), w.amax())
                module.weight_global_scale.data.copy_(total)
            scale, zero = calculate_qparams(low, high, args, total)
            module.weight_scale.data.copy_(scale)
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
            if hasattr(module, "input_scale"):
                module.input_scale.data.fill_(0.02)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(folder)
        compressor.update_config(folder)
    return folder


def decompressed(folder):
    """The weights as the library unpacks them, in the dtype of its scales."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    settings, held = config_of(folder), load_file(folder / "model.safetensors")
    scheme = QuantizationScheme(**settings["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry(scheme.format or settings["format"])
    out = {}
    for layer in {n.removesuffix(".weight_scale") for n in held if n.endswith(".weight_scale")}:
        mine = {n.removeprefix(layer + "."): t for n, t in held.items() if n.startswith(layer + ".")}
        out[layer + ".weight"] = compressor.decompress(mine, scheme)["weight"].float().numpy()
    return out


READ = {
    "W4A16": ({"group_size": 32}, "int4/32", 1e-4),
    "W4A16_ASYM": ({"group_size": 64}, "int4/64", 1e-4),
    "W3A16": ({"group_size": 32}, "int3/32", 1e-4),
    "W8A16": ({"group_size": 32}, "int8/32", 1e-4),
    "W4A8": ({}, "a4q/128", ROUNDED),
    "W8A8": ({}, "a8bit", ROUNDED),
    "FP8": ({}, "fp8/tensor+a8/static", 0.025),
    "FP8_DYNAMIC": ({}, "fp8/channel+a8/token", 0.025),
    "FP8_BLOCK": ({}, "fp8/128x128+a8/token/128", 0.025),
    "NVFP4A16": ({}, "nvfp4", LOW),
    "MXFP4A16": ({}, "mxfp4", LOW),
    "MXFP8A16": ({}, "mxfp8", LOW),
}


@pytest.mark.thinned("layouts that share a packer with their neighbours in the table")
@pytest.mark.parametrize("scheme", READ)
def test_we_read_what_they_write(tmp_path, scheme):
    changes, name, tol = READ[scheme]
    compressed(tmp_path, scheme, **changes)
    ours = ef.load(tmp_path)
    assert ef.format_of(ours.model.layers[1].mlp.up_proj.weight) == name
    assert not ef.is_quantized(ours.lm_head) and not ef.is_quantized(ours.model.embed_tokens)
    plain = ef.params(ef.dequantize(ours))
    theirs = decompressed(tmp_path)
    assert len(theirs) == 14
    for path, w in theirs.items():
        # 4-bit floats they unpack to bfloat16; int8 has another step here.
        tolerance = 0.01 if name in ("nvfp4", "mxfp4") else 3e-7
        np.testing.assert_allclose(np.asarray(plain[path]), w, rtol=tolerance, atol=0, err_msg=path)
    options = {}
    if scheme == "W4A16_ASYM":  # whose packed zeros transformers 5.23 takes for misshapen unless it unpacks at once
        from transformers import CompressedTensorsConfig

        options = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    agree(ours, hf_logits(tmp_path, torch.bfloat16 if tol == LOW else torch.float32, **options), tol)
    if scheme not in ("W8A8", "W4A8"):  # and back: the same tensors
        ef.save(ours, tmp_path / "again")
        one, other = (load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / "again"))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value.float(), other[key].float()), key
        again = config_of(tmp_path / "again")["config_groups"]["group_0"]
        first = config_of(tmp_path)["config_groups"]["group_0"]
        for key in ("num_bits", "type", "strategy", "symmetric"):
            assert again["weights"][key] == first["weights"][key]
        assert (again["input_activations"] is None) == (first["input_activations"] is None)


def test_words():
    """Codes of any width in words of 32 bits, as the library packs and unpacks them."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    from easyfn.quant.compressed_tensors import _unpack

    rng = np.random.default_rng(0)
    for bits in (2, 3, 4, 5, 6, 8):
        codes = rng.integers(0, 2**bits, (5, 37)).astype(np.uint8)
        signed = torch.tensor(codes.astype(np.int16) - 2 ** (bits - 1)).to(torch.int8)
        words = pack_words(codes, bits)
        assert np.array_equal(words, pack_to_int32(signed, bits).numpy())
        assert np.array_equal(words, np.asarray(jax.jit(functools.partial(pack_words, bits=bits))(jnp.asarray(codes))))
        assert np.array_equal(_unpack(words, bits, 37), codes)


def state(config, tensors, settings):
    return ef.from_state_dict({**config, "quantization_config": settings}, tensors)


ONE = {"model_type": "llama", **CONFIG, "num_hidden_layers": 1}


@functools.cache
def one_layer():
    """The tensors of a small model, as arrays of numpy."""
    held = {name: value.numpy() for name, value in hf_model().state_dict().items()}
    return {name: value for name, value in held.items() if "layers.1" not in name}


def group(weights, targets=("Linear",), **more):
    return {"targets": list(targets), "weights": {"dynamic": False, "symmetric": True, **weights}, **more}


def ct(*groups, **more):
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    return {**settings, "config_groups": {f"group_{n}": g for n, g in enumerate(groups)}, **more}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
UP = "model.layers.0.mlp.up_proj"


def packed_up(**more):
    """One layer packed by hand; the others are plain."""
    w = one_layer()[f"{UP}.weight"]
    codes = np.random.default_rng(0).integers(-8, 8, w.shape).astype(np.int8)
    scale = np.full((w.shape[0], 4), 0.5, np.float32) * np.arange(1, 5, dtype=np.float32)
    tensors = {n: v for n, v in one_layer().items() if n != f"{UP}.weight"}
    tensors[f"{UP}.weight_packed"] = pack_words((codes + 8).astype(np.uint8), 4)
    tensors[f"{UP}.weight_scale"] = scale
    tensors[f"{UP}.weight_shape"] = np.array(w.shape)
    return codes, scale, tensors | more


def test_act_order_of_older_files():
    g_idx = np.random.default_rng(1).permutation(np.arange(128) // 32).astype(np.int32)
    codes, scale, tensors = packed_up(**{f"{UP}.weight_g_idx": g_idx})
    model = state(ONE, tensors, ct(group({**INT4, "actorder": "group"}, [UP])))
    w = model.model.layers[0].mlp.up_proj.weight
    np.testing.assert_array_equal(ef.dense(w), codes * scale[:, g_idx])
    with pytest.raises(ValueError, match=r"compressed-tensors has no act-order any more"):
        layout_of(model)


def test_ignore_and_targets():
    _, _, tensors = packed_up()
    model = state(ONE, tensors, ct(group(INT4, [r"re:.*up_proj$"]), ignore=["lm_head", "re:.*self_attn.*"]))
    assert ef.is_quantized(model.model.layers[0].mlp.up_proj) and not ef.is_quantized(
        model.model.layers[0].mlp.down_proj
    )
    with pytest.raises(ValueError, match=r"leaves 'model.layers.0.mlp.up_proj' out"):
        state(ONE, tensors, ct(group(INT4), ignore=[UP]))
    with pytest.raises(ValueError, match=r"leaves 'model.layers.0.mlp.up_proj' out"):
        state(ONE, tensors, ct(group(INT4, ["re:.*down_proj"])))
    # The first match by name, then by pattern, then by class.
    eight = group({**INT4, "num_bits": 8}, ["Linear"])
    both = state(ONE, tensors, ct(eight, group(INT4, [UP])))
    assert ef.format_of(both.model.layers[0].mlp.up_proj.weight) == "int4/32"
    # Names of a model without its head.
    base = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
    headless = state({**ONE, "architectures": ["LlamaModel"]}, base, ct(group(INT4)))
    assert ef.format_of(headless.layers[0].mlp.up_proj.weight) == "int4/32"
    # Weights alone, where the config's `input_activations` were taken out.
    scales = {f"{UP}.input_global_scale": np.ones(1, np.float32), f"{UP}.input_scale": np.ones(1, np.float32)}
    same(state(ONE, tensors | scales, ct(group(INT4, [UP]))), state(ONE, tensors, ct(group(INT4, [UP]))))


@pytest.mark.quick("quant", "compressed-tensors in words")
@pytest.mark.parametrize(
    "settings, words",
    [
        (ct(group(INT4), kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme="),
        (ct(group(INT4), format="marlin-24"), "the format 'marlin-24'.*easyfn reads pack-quantized"),
        (ct(group(INT4, format="mxfp6-pack-quantized")), "mxfp6-pack-quantized"),
        (ct(group(INT4), sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config="),
        (ct(group(INT4), transform_config={"config_groups": {"u": {}}}), "transform_config="),
        (ct(group(INT4), version="1.2.0"), "version '1.2.0'"),
        (ct(group(INT4), quantization_status="frozen"), "quantization_status 'frozen'"),
        (ct(group({**INT4, "codebook": "lloyd"})), "codebook='lloyd'"),
        (ct(group(INT4, output_activations={"num_bits": 8})), "output_activations="),
        (ct(group(INT4, input_activations={"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": True})),
         r"input_activations int8 by tensor \(static\) beside int4 weights"),
        (ct(group(INT4, input_activations={"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True})),
         r"input_activations float8 by token \(dynamic\) beside int4"),
        (ct(["Linear"]), "the preset 'group_0'"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(settings, words):
    _, _, tensors = packed_up()
    with pytest.raises(ValueError, match=words):
        state(ONE, tensors, settings)


def test_saves_that_no_layout_holds(dense, tmp_path, key):
    model = ef.load(dense)
    smooth = jnp.ones((1, 128))
    up = ef.quantize(model, Q("a8bit", pattern="up_proj"))
    with_smooth = jax.tree.map(
        lambda w: quant.Int8(w.codes, w.scales, w.dtype, smooth, "int8") if isinstance(w, quant.Int8) else w,
        up,
        is_leaf=lambda w: isinstance(w, quant.Int8),
    )
    for bad, words in [
        (with_smooth, r"no disk format holds all of a8bit.*no place for the scales of a smoothed input"),
        (ef.quantize(model, [Q("nf4", pattern="up_proj"), Q("int4")]), r"nf4/64.*compressed-tensors has no nf4"),
        (
            ef.init(ef.models.GPT2Config(vocab_size=64, n_positions=8, n_embd=64, n_layer=1, n_head=2), key=key),
            "Conv1D",
        ),
    ]:
        bad = bad if ef.is_quantized(bad) else ef.quantize(bad, "int4")
        with pytest.raises(ValueError, match=words):
            ef.save(bad, tmp_path / "none")
    assert not list(tmp_path.iterdir())


# --- fp8 files


def fp8_tensors(**changes):
    """What transformers' own operation makes of the linear layers."""
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = FineGrainedFP8Config(modules_to_not_convert=["lm_head"], **changes)
    operation = Fp8Quantize(SimpleNamespace(quantization_config=config))
    out = {}
    for name, value in hf_model().state_dict().items():
        linear = "_proj" in name
        out |= operation.convert({name: value}) if linear else {name: value}
    return out, config


def arrays(tensor):
    dtype = {torch.float8_e4m3fn: jnp.float8_e4m3fn, torch.float8_e8m0fnu: jnp.float8_e8m0fnu}.get(tensor.dtype)
    return tensor.numpy() if dtype is None else tensor.view(torch.uint8).numpy().view(dtype)


@pytest.mark.parametrize(
    "changes", [{}, {"scale_fmt": "ue8m0"}, {"weight_block_size": None}], ids=["float", "ue8m0", "one"]
)
def test_we_read_transformers_fp8(dense, tmp_path, changes):
    tensors, config = fp8_tensors(**changes)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    data = json.loads((dense / "config.json").read_text()) | {"quantization_config": config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(data, default=str))
    (tmp_path / "generation_config.json").write_bytes((dense / "generation_config.json").read_bytes())
    ours = ef.load(tmp_path)
    w = ours.model.layers[1].mlp.up_proj.weight
    assert ef.format_of(w) == ("fp8/tensor" if changes.get("weight_block_size", 1) is None else "fp8/128x128")
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(np.asarray(w.codes), tensors[name].view(torch.uint8).numpy())
    assert np.array_equal(np.asarray(w.scales).reshape(-1), tensors[f"{name}_scale_inv"].float().numpy().reshape(-1))
    agree(ours, hf_logits(tmp_path), 1e-4)
    if not changes:
        same(ours, ef.quantize(ef.load(dense), Q("fp8", block="128x128")))


def test_fp8_files_refuse_and_round(dense, tmp_path):
    tensors, config = fp8_tensors()
    data = json.loads((dense / "config.json").read_text())
    numpy = {n: arrays(t) for n, t in tensors.items()}
    settings = {k: v for k, v in config.to_dict().items() if k != "quant_method"} | {"quant_method": "fp8"}
    static = {
        f"{n.removesuffix('.weight')}.activation_scale": np.float32(0.02) for n in numpy if "_proj.weight" in n[-14:]
    }
    model = state(data, numpy | static, settings | {"activation_scheme": "static"})
    assert ef.format_of(model.model.layers[0].mlp.up_proj.weight) == "fp8/128x128+a8/static"
    assert layout_of(model) == "compressed-tensors"
    for key, value in {"fmt": "e5m2", "expert_dtype": "fp6", "rotation": "hadamard"}.items():
        with pytest.raises(ValueError, match=f"{key}={value!r}"):
            state(data, numpy, settings | {key: value})
    plain = {n: v for n, v in numpy.items() if not n.endswith("up_proj.weight_scale_inv")}
    with pytest.raises(ValueError, match=r"holds float8_e4m3fn, which is not what the model computes with"):
        state(data, plain, settings)
    small = ef.init(ef.models.LlamaConfig(vocab_size=8, hidden_size=200, intermediate_size=136, num_hidden_layers=1,
                    num_attention_heads=2, num_key_value_heads=2), key=jax.random.key(0))  # fmt: skip
    assert layout_of(ef.quantize(small, Q("fp8", block="128x128"))) == "compressed-tensors"  # blocks at the edge


# --- experts

MOE = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2,
}  # fmt: skip


@functools.cache
def experts():
    return ef.init(ef.models.MixtralConfig(**MOE), key=jax.random.key(0))


@pytest.mark.parametrize("method, tol", [("int4", 1e-4), ("fp8", 1e-4)])
def test_experts_are_layers_one_by_one(tmp_path, method, tol):
    from transformers import CompressedTensorsConfig

    ours = ef.quantize(experts(), method)
    ef.save(ours, tmp_path)
    again = ef.load(tmp_path)
    same(again, ours)
    held = load_file(tmp_path / "model.safetensors")
    part = "weight_packed" if method == "int4" else "weight_scale"
    assert f"model.layers.0.block_sparse_moe.experts.2.w3.{part}" in held
    assert any("gate" in name for name in config_of(tmp_path)["ignore"])
    theirs = hf_logits(tmp_path, quantization_config=CompressedTensorsConfig(dequantize=True))
    agree(ours, theirs, tol)


def test_experts_with_scales_of_their_own(tmp_path):
    """The parts of one array have each its own scale for the whole matrix: it becomes one of rows."""
    small = experts()
    names = {n: np.asarray(v) for n, v in ef.to_state_dict(small).items()}
    for method, settings, make in [
        (
            "nvfp4",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            "nvfp4-pack-quantized",
        ),
        ("fp8", {"num_bits": 8, "type": "float", "strategy": "tensor"}, "naive-quantized"),
    ]:
        tensors, dense = {}, {}
        for name, value in names.items():
            if ".experts." not in name:
                tensors[name] = dense[name] = value
                continue
            w = Q(method, block="tensor" if method == "fp8" else None).encode(jnp.asarray(value))
            dense[name] = np.asarray(ef.dense(w))
            if method == "fp8":
                tensors |= {name: np.asarray(w.codes).view(jnp.float8_e4m3fn), f"{name}_scale": np.asarray(w.scales[0])}
            else:
                tensors |= {f"{name}_packed": np.asarray(w.codes), f"{name}_global_scale": np.asarray(w.divisor[0])}
                tensors[f"{name}_scale"] = np.asarray(w.scales).view(jnp.float8_e4m3fn)
        model = state({"model_type": "mixtral", **MOE}, tensors, ct(group(settings), format=make))
        want = ef.from_state_dict({"model_type": "mixtral", **MOE}, dense)
        for path, value in ef.params(want).items():
            np.testing.assert_allclose(ef.params(ef.dequantize(model))[path], value, rtol=1e-6, err_msg=path)
        ef.save(model, tmp_path / method)
        same(ef.load(tmp_path / method), model)


def test_mxfp4_of_gpt_oss():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    small = experts()
    tensors = {n: np.asarray(v) for n, v in ef.to_state_dict(small).items() if ".experts." not in n}
    rng, want = np.random.default_rng(0), {}
    for name, out, width in (("gate_up_proj", 256, 64), ("down_proj", 64, 128)):
        path = f"model.layers.0.mlp.experts.{name}"
        blocks = rng.integers(0, 256, (3, out, width // 32, 16)).astype(np.uint8)
        scales = rng.integers(118, 124, (3, out, width // 32)).astype(np.uint8)
        tensors |= {f"{path}_blocks": blocks, f"{path}_scales": scales}
        theirs = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
        want[path] = theirs.numpy().swapaxes(1, 2)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    model = state({"model_type": "mixtral", **MOE}, tensors, settings)
    for path, value in want.items():
        assert np.array_equal(ef.params(ef.dequantize(model))[path], value)
    with pytest.raises(ValueError, match="swizzle=True"):
        state({"model_type": "mixtral", **MOE}, tensors, settings | {"swizzle": True})
    tensors[f"{path}_scales"] = tensors[f"{path}_scales"][:, :1]
    with pytest.raises(ValueError, match="the file blocks"):
        state({"model_type": "mixtral", **MOE}, tensors, settings)


def oss():
    sizes = {key: value for key, value in CONFIG.items() if not key.endswith("token_id")}
    return ef.init(
        ef.models.GptOssConfig(**sizes, num_local_experts=3, num_experts_per_tok=2, sliding_window=4),
        key=jax.random.key(0),
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_gpt_oss_is_saved_as_the_hub_has_it(tmp_path, stacked):
    """Experts in mxfp4, written as transformers reads them; read back, the bytes are the same."""
    from transformers import AutoModelForCausalLM, Mxfp4Config

    ours = ef.quantize(oss(), ef.QuantConfig("mxfp4", pattern="experts"))
    ef.save(ef.stack(ours) if stacked else ours, tmp_path)
    again = ef.load(tmp_path)
    same(again, ours)
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert held[f"{name}_blocks"].shape == (*held[f"{name}_scales"].shape, 16) and f"{name}_bias" in held
    assert config_of(tmp_path)["modules_to_not_convert"][-1] == "lm_head"
    if stacked:
        return
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    )
    ids = np.arange(1, 9)[None]
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ef.forward(ours, ids).logits, want, atol=1e-5, rtol=1e-5)


def test_mxfp4_that_transformers_would_not_read_is_refused(tmp_path):
    model = oss()
    with pytest.raises(
        ValueError, match=r"mxfp4 has mxfp4 for experts only, ef.QuantConfig\(\"mxfp4\", pattern=\"experts\"\)"
    ):
        ef.save(ef.quantize(model, "mxfp4"), tmp_path)
    with pytest.raises(ValueError, match="quantize all or none"):
        ef.save(ef.quantize(model, ef.QuantConfig("mxfp4", pattern="experts.down_proj")), tmp_path)
    some = ef.quantize(model, ef.QuantConfig("mxfp4", pattern=r"layers\.1\..*experts"))
    ef.save(some, tmp_path)
    assert "model.layers.0.mlp.experts" in config_of(tmp_path)["modules_to_not_convert"]
    same(ef.load(tmp_path), some)


def test_experts_in_four_bits_beside_fp8(tmp_path):
    """As DeepSeek-V4 has them: written as transformers reads them, read back byte for byte."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    config = ef.models.MixtralConfig(**{**MOE, "hidden_size": 128})
    both = [Q("mxfp4", pattern="experts"), Q("fp8", block="128x128", pattern="_proj")]
    ours = ef.quantize(ef.init(config, key=jax.random.key(0)), both)
    assert layout_of(ours) == "fp8"
    ef.save(ours, tmp_path)
    same(ef.load(tmp_path), ours)
    assert config_of(tmp_path)["expert_dtype"] == "fp4"
    held = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    assert held[name].dtype == torch.int8 and held[name].shape == (128, 64)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    ids = np.arange(1, 9)[None]
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ef.forward(ours, ids).logits, want, atol=1e-5, rtol=1e-5)

    settings = config_of(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    tensors = {n: arrays(v) for n, v in held.items()}
    scale = f"{name}_scale_inv"
    same(state(data, tensors | {scale: held[scale].float().numpy()}, settings), ours)
    with pytest.raises(ValueError, match="powers of two"):
        state(data, tensors | {scale: 1.5 * held[scale].float().numpy()}, settings)
    with pytest.raises(ValueError, match="one for 16 bytes"):
        state(data, tensors | {scale: tensors[scale][:, :1]}, settings)
    alone = ef.quantize(ef.init(config, key=jax.random.key(0)), Q("mxfp4", pattern="experts"))
    assert layout_of(alone) == "compressed-tensors"


def test_first_files_of_deepseek_v4_say_it_outside(tmp_path):
    data = {"model_type": "deepseek_v4", "expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert ef.read_config(tmp_path).extra["quantization_config"]["expert_dtype"] == "fp4"


def test_mxfp8_is_fp8_with_exponents(dense, tmp_path):
    """MXFP8's files: written here by hand from the codes of `compressed_tensors`, judged by transformers."""
    ours = ef.quantize(ef.load(dense), Q("mxfp8", pattern="_proj"))
    tensors = {n: torch.tensor(np.asarray(v)) for n, v in ef.to_state_dict(ef.dequantize(ours)).items()}
    for found in ef.find_slots(ours, ("linear",)):
        codes, scales = (torch.tensor(np.asarray(part)) for part in (found.weight.codes, found.weight.scales))
        tensors |= {found.path: codes.view(torch.float8_e4m3fn), f"{found.path}_scale_inv": scales}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "mxfp8", "weight_block_size": [1, 32], "modules_to_not_convert": ["lm_head"]}
    data = json.loads((dense / "config.json").read_text()) | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(data))
    (tmp_path / "generation_config.json").write_bytes((dense / "generation_config.json").read_bytes())
    read = ef.load(tmp_path)
    same(read, ours)
    agree(read, hf_logits(tmp_path), 1e-4)
    assert layout_of(read) == "compressed-tensors"
