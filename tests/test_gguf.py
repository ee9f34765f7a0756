"""`.gguf` files against the gguf package (every byte and value) and against transformers' reader (the logits)."""

import contextlib
import dataclasses
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, SMALL, VOCAB, reference, tokens
from easyfn.io.gguf.read import KINDS, write_gguf

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

TYPES = gguf.GGMLQuantizationType
HALVES = {  # where in a block its float16 scales lie
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": (),
}  # fmt: skip


def blocks(kind, *shape, seed=0):
    """Random bytes of a kind, `(..., bytes of a row)`, with scales that make sense."""
    rng = np.random.RandomState(seed)
    _, entries, size = KINDS[kind]
    raw = rng.randint(0, 256, (*shape[:-1], shape[-1] // entries, size)).astype(np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = 116 + raw[..., 0] % 8  # an exponent
    for at in HALVES[kind]:
        step = 0.02 / 2 ** int(kind[1]) / (1 if kind[-1] != "K" else 16 if kind != "Q6_K" else 64)
        raw[..., at : at + 2] = (rng.randn(*raw.shape[:-1], 1) * step).astype(np.float16).view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


@pytest.mark.thinned("block formats, in the order of their bits")
@pytest.mark.parametrize("kind", HALVES)
def test_blocks(kind):
    raw = blocks(kind, 6, 512)
    want = gguf.quants.dequantize(raw, TYPES[kind])
    w = ef.quant.from_ggml(raw, kind)
    assert np.array_equal(np.asarray(ef.dense(w)), want)
    back, bytes_ = ef.quant.to_ggml("w", w)
    assert back == kind and np.array_equal(bytes_, raw)
    assert ef.num_bytes(w) <= raw.nbytes * (1.6 if kind == "Q5_0" else 1.04)  # a byte for a code, or for a scale
    w = jax.tree.map(jnp.asarray, w)
    x = np.random.RandomState(1).randn(3, 512).astype(np.float32)
    y, back = jax.vjp(lambda x: ef.dot(w, x), jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(y), x @ want.T, rtol=0, atol=1e-5 * np.abs(x @ want.T).max())
    g = np.ones((3, 6), np.float32)
    np.testing.assert_allclose(
        np.asarray(back(jnp.asarray(g))[0]), g @ want, rtol=0, atol=1e-5 * np.abs(want).sum(0).max()
    )
    assert np.array_equal(np.asarray(ef.take(w, jnp.array([[5, 0]]))), want[[[5, 0]]])
    assert all(part.ndim == 2 for part in jax.tree.leaves(w))


def permuted(w, heads):
    """convert_hf_to_gguf.py's `permute`."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


KQ = {**SMALL, "hidden_size": 768, "intermediate_size": 256, "head_dim": 32, "vocab_size": 96}
MIX = {  # what llama.cpp's mixes do: another kind for every matrix; heads of 6 * 32 take no blocks of 256
    "attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q8_0", "ffn_gate": "Q2_K", "ffn_up": "Q3_K",
    "ffn_down": "Q5_0", "token_embd": "Q6_K", "output": "F16",
}  # fmt: skip
SECOND = {"attn_q": "Q4_0", "attn_k": "Q8_0", "attn_v": "Q4_1", "ffn_down": "Q5_1", "ffn_up": "BF16"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A llama file of many kinds by the gguf package, with the names of transformers' tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hf = reference(LlamaForCausalLM, LlamaConfig(**{**KQ, "num_hidden_layers": 2}))
    c = hf.config
    path = tmp_path_factory.mktemp("gguf") / "mixed.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("a llama of many kinds")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    w.add_rope_dimension_count(c.head_dim)
    w.add_rope_freq_base(500000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("gpt2")
    w.add_token_list([f"t{i}" for i in range(c.vocab_size)])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_eot_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    dense = {}
    for seed, (name, tensor) in enumerate(hf.state_dict().items()):
        stem, _, last = name.rpartition(".")
        array, found = tensor.numpy(), names.get_name(stem)
        part = found.rpartition(".")[2]
        kind = (SECOND if "blk.1" in found else MIX).get(part, MIX.get(part)) if array.ndim > 1 else "F32"
        if kind in ("F32", "F16", "BF16"):
            held = gguf.quants.quantize(array, TYPES[kind])
        else:
            held = blocks(kind, *array.shape, seed=seed)
        dense[f"{found}.{last}"] = gguf.quants.dequantize(held, TYPES[kind]).reshape(array.shape)
        w.add_tensor(f"{found}.{last}", held, raw_dtype=TYPES[kind])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path, dense


def theirs(path, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


def same_logits(model, want, ids):
    mine = np.asarray(ef.forward(model, jnp.asarray(ids)).logits)
    assert np.abs(mine - want).max() <= 2e-4 * np.abs(want).max()


def tensors_of(path):
    return {t.name: (t.tensor_type.name, tuple(t.shape), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.quick("io", "GGUF: several kinds in a file")
def test_a_file_of_many_kinds(mixed, tmp_path):
    path, dense = mixed
    model = ef.load(path)
    formats = [ef.format_of(f.weight) for f in ef.find_slots(model, ("linear", "embedding", "head"))]
    assert formats == [
        "q6_k", "q4_k", "q5_k", "q6_k", "q8_0/32", "q2_k", "q3_k", "q5_0/32",
        "q4_0/32", "q8_0/32", "q4_1", "q8_0/32", "q2_k", None, "q5_1", None,
    ]  # fmt: skip
    plain = ef.params(ef.dequantize(model))
    assert np.array_equal(np.asarray(plain["model.layers.0.mlp.up_proj.weight"]), dense["blk.0.ffn_up.weight"])
    for name, heads in (("q", 6), ("k", 2)):
        w = np.asarray(plain[f"model.layers.0.self_attn.{name}_proj.weight"])
        assert np.array_equal(permuted(w, heads), dense[f"blk.0.attn_{name}.weight"])
    assert model.config.rms_norm_eps == 1e-5 and model.config.rope_parameters["rope_theta"] == 500000
    assert ef.read_config(path) == ef.read_config(path.parent)
    assert model.config.generation["eos_token_id"] == (2, 3) and model.config.generation["bos_token_id"] == 1
    assert ef.shapes(ef.abstract(path)) == {p: tuple(a.shape) for p, a in plain.items()}
    ids, _ = tokens(2, 9, pad=False)
    want = theirs(path, ids % 96)
    same_logits(model, want, ids % 96)
    with pytest.raises(ValueError, match="holds quantized already"):
        ef.load(path, quantize="nf4")
    # To the byte, unstacked and stacked: packed rows are only moved.
    again = ef.save(model, tmp_path / "again.gguf")
    assert tensors_of(again) == tensors_of(path)
    keys = (
        "general.architecture",
        "llama.rope.freq_base",
        "llama.attention.head_count_kv",
        "tokenizer.ggml.eos_token_id",
    )
    old, new = ef.read_gguf(path).metadata, ef.read_gguf(again).metadata
    assert [old[k] for k in keys] == [new[k] for k in keys] and "tokenizer.ggml.tokens" not in new
    more = ef.save_gguf(model, tmp_path / "more.gguf", metadata=old)
    assert ef.read_gguf(more).metadata["tokenizer.ggml.tokens"][5] == "t5"
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["again.gguf", "more.gguf"]


def test_floats_are_read_as_any_others(tmp_path):
    case = CASES["llama"].model()
    path = ef.save(case, tmp_path / "f16.gguf", dtype="float16")
    sharded = ef.load(path, stack=True, mesh=ef.make_mesh(fsdp=2, devices=jax.devices()[:2]), quantize="8bit")
    assert {ef.format_of(f.weight) for f in ef.find_slots(sharded, ("linear",))} == {"int8"}
    assert ef.dtype_of(ef.load(path, dtype="bfloat16")) == "bfloat16"
    w = np.asarray(case.model.layers[2].self_attn.q_proj.weight).astype(np.float16).astype(np.float32)
    assert np.array_equal(np.asarray(ef.load(path).model.layers[2].self_attn.q_proj.weight), w)
    dense = ef.save(ef.load(path), tmp_path / "folder")
    config = ef.load(dense).config
    assert dataclasses.replace(config, extra=ef.Frozen(), generation=ef.Frozen()) == dataclasses.replace(
        case.config, extra=ef.Frozen(), generation=ef.Frozen()
    )


def families():
    import transformers as hf

    deep = {**SMALL, "num_hidden_layers": 2}
    dense = {k: v for k, v in deep.items() if k != "rms_norm_eps"}
    return {
        "llama": lambda: reference(hf.LlamaForCausalLM, hf.LlamaConfig(**deep, head_dim=16)),
        "mistral": lambda: reference(hf.MistralForCausalLM, hf.MistralConfig(**deep, sliding_window=None)),
        "qwen2": lambda: reference(hf.Qwen2ForCausalLM, hf.Qwen2Config(**deep, tie_word_embeddings=True)),
        "qwen3": lambda: reference(hf.Qwen3ForCausalLM, hf.Qwen3Config(**deep, head_dim=128)),
        "qwen2_moe": lambda: reference(  # transformers takes the default for the width of experts
            hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig(**deep, num_experts=4, num_experts_per_tok=2)
        ),
        "qwen3_moe": lambda: reference(
            hf.Qwen3MoeForCausalLM,
            hf.Qwen3MoeConfig(**deep, head_dim=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True),
        ),
        "gemma2": lambda: reference(
            hf.Gemma2ForCausalLM, hf.Gemma2Config(**deep, head_dim=256, sliding_window=4)
        ),
        "starcoder2": lambda: reference(
            hf.Starcoder2ForCausalLM,
            hf.Starcoder2Config(**dense, sliding_window=None),
        ),
        "nemotron": lambda: reference(hf.NemotronForCausalLM, hf.NemotronConfig(**dense)),
        "stablelm": lambda: reference(hf.StableLmForCausalLM, hf.StableLmConfig(**dense, use_qkv_bias=True)),
        "phi3": lambda: reference(hf.Phi3ForCausalLM, hf.Phi3Config(**deep)),
        "gemma3": lambda: reference(
            hf.Gemma3ForCausalLM,
            hf.Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 7}, head_dim=256, sliding_window=4),
        ),
        "falcon": lambda: reference(
            hf.FalconForCausalLM,
            hf.FalconConfig(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, eos_token_id=2),
        ),
        "bloom": lambda: reference(
            hf.BloomForCausalLM,
            hf.BloomConfig(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=6, bos_token_id=1, eos_token_id=2),
        ),
        "mamba": lambda: reference(
            hf.MambaForCausalLM,
            hf.MambaConfig(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2, state_size=8, bos_token_id=1, eos_token_id=2),
        ),
        "lfm2": lambda: reference(
            hf.Lfm2ForCausalLM,
            hf.Lfm2Config(**dense, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        ),
        "minimax_m2": lambda: reference(
            hf.MiniMaxM2ForCausalLM,
            hf.MiniMaxM2Config(**deep, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
        ),
        "gpt2": lambda: reference(
            hf.GPT2LMHeadModel,
            hf.GPT2Config(vocab_size=VOCAB, n_positions=1024, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        ),
    }  # fmt: skip


@pytest.mark.thinned("families whose names differ, and no more")
@pytest.mark.parametrize(
    "name",
    [
        *("llama", "qwen2_moe", "mistral", "qwen2", "qwen3_moe", "qwen3", "starcoder2", "gemma3", "gemma2"),
        *("nemotron", "stablelm", "phi3", "gpt2", "falcon", "bloom", "mamba", "lfm2", "minimax_m2"),
    ],
)
def test_transformers_reads_what_we_write(tmp_path, name):
    hf = families()[name]()
    hf.save_pretrained(tmp_path / "hf")
    model = ef.load(tmp_path / "hf")
    path = ef.save(ef.stack(model) if name in ("llama", "gpt2") else model, tmp_path / "m.gguf")
    meta = ef.read_gguf(path).metadata | {"tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)]}
    path = ef.save_gguf(model, tmp_path / "m.gguf", metadata=meta)
    ids, _ = tokens(2, 9, pad=False)
    same_logits(model, theirs(path, ids), ids)
    again = ef.load(path)
    for (p, a), b in zip(ef.params(model).items(), ef.params(again).values(), strict=True):
        # One is added to norms in float32; `A` is written and not its logarithm.
        rounded = name[:5] in ("gemma", "nemot", "mamba")
        assert np.allclose(a, b, rtol=0, atol=1e-6) if rounded else np.array_equal(a, b), p
    same_logits(again, np.asarray(ef.forward(model, jnp.asarray(ids)).logits), ids)


def test_longrope_is_said_in_tensors(tmp_path):
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 16, "short_factor": [1.5, 1.25, 1.0, 2.0], "long_factor": [3.0, 2.5, 4.0, 7.0],
    }  # fmt: skip
    for factor in ({}, {"attention_factor": 1.5}):
        model = ef.init(
            ef.models.Phi3Config(
                vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
                num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=16, sliding_window=7,
                rope_parameters=ef.Frozen(rope | factor),
            ),
            key=jax.random.key(0),
        )  # fmt: skip
        path = ef.save(model, tmp_path / "m.gguf")
        assert "phi3.rope.scaling.attn_factor" in ef.read_gguf(path).metadata
        again = ef.load(path)
        assert again.config.sliding_window == 7
        assert ef.Frozen(again.config.rope_parameters) == ef.Frozen(model.config.rope_parameters)


OF_LLAMA_CPP = (  # benchmarks/greedy_gguf.py
    *("gemma", "olmo2", "granite", "glm4", "exaone4", "exaone4-full", "ernie4_5", "falcon-7b"),
    *("falcon-one-norm", "falcon_h1", "jamba", "glm4_moe", "granitemoe", "granitemoeshared"),
)
LATENT = {
    "num_key_value_heads": 6, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "first_k_dense_replace": 1, "moe_intermediate_size": 20, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
NEMOTRON_H = ("linear_attention", "mlp", "full_attention", "linear_attention", "mlp")
SSM = {
    "ssm_state_size": 10,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "conv_kernel": 3,
    "chunk_size": 4,
}
DRAWN = {  # whose cases have what llama.cpp has not
    "seed_oss": ("SeedOss", {}),
    "smollm3": ("SmolLM3", {}),
    "cohere2": ("Cohere2", {"sliding_window": 4}),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 4, "sliding_window": 8, "rope_parameters": ef.Frozen(YARN | {"truncate": False})},
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        {"layer_types": ("conv", "full_attention", "conv"), "num_dense_layers": 1, "num_experts": 4, "moe_intermediate_size": 20},
    ),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
    "deepseek_v2-lite": ("DeepseekV2", {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "deepseek_v3": (
        "DeepseekV3",
        {**LATENT, "n_group": 4, "topk_group": 2, "rope_parameters": ef.Frozen(YARN | {"mscale": 1.0, "mscale_all_dim": 1.0})},
    ),
    "glm4_moe_lite": ("Glm4MoeLite", LATENT | {"mlp_layer_types": ("dense", "sparse", "sparse")}),
    "falcon_mamba": ("FalconMamba", {"intermediate_size": 96, "state_size": 8}),
    "ernie4_5_moe": ("Ernie4_5_Moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 20, "moe_layer_interval": 2}),
    "qwen3_next": (
        "Qwen3Next",
        {
            "head_dim": 8, "full_attention_interval": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 20, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "mpt": ("Mpt", {"d_model": 48, "n_layers": 3, "n_heads": 6, "attn_config": ef.models.MptAttentionConfig(clip_qkv=0.3)}),
    "nemotron_h": ("NemotronH", {"layers_block_type": NEMOTRON_H, "head_dim": 12, "mlp_bias": True, **SSM}),
    "nemotron_h-experts": (
        "NemotronH",
        {
            "layers_block_type": ("linear_attention", "moe", "full_attention", "moe"), "head_dim": 12, **SSM, "n_group": 2,
            "n_routed_experts": 6, "moe_intermediate_size": 20, "moe_shared_expert_intermediate_size": 28, "moe_latent_size": 24,
        },
    ),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": ef.Frozen(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.25)}),
}  # fmt: skip


def drawn(name, **more):
    """A random model, of the sizes of `SMALL` that its config has."""
    kind, own = DRAWN[name]
    config = getattr(ef.models, f"{kind}Config")
    fields = {f.name for f in dataclasses.fields(config)} - {"bos_token_id", "eos_token_id"}
    return ef.init(config(**{k: v for k, v in SMALL.items() if k in fields} | own | more), key=jax.random.key(0))


@pytest.mark.thinned("one reader and one writer over tables")
@pytest.mark.parametrize("name", ["mixtral", "mamba2", "t5", "t5-v1.1", *DRAWN, *OF_LLAMA_CPP])
def test_families_that_transformers_does_not_read(tmp_path, name):
    model = drawn(name) if name in DRAWN else CASES[name].model()
    if name == "mixtral":
        model = dataclass_with(model, sliding_window=None)
    if name.startswith("t5"):
        model = dataclass_with(model, relative_attention_max_distance=128)
    path = ef.save(model, tmp_path / "m.gguf")
    held = {t.name: t for t in gguf.GGUFReader(path).tensors}
    if name == "mixtral":
        experts = np.asarray(model.model.layers[1].mlp.experts.gate_up_proj)
        assert np.array_equal(held["blk.1.ffn_gate_exps.weight"].data, experts[:, : experts.shape[1] // 2])
        assert np.array_equal(held["blk.1.ffn_up_exps.weight"].data, experts[:, experts.shape[1] // 2 :])
    if name == "mamba2":
        mixer = model.model.layers[2].mixer
        np.testing.assert_allclose(held["blk.2.ssm_a"].data[:, 0], -np.exp(np.asarray(mixer.A_log)), rtol=1e-6)
        assert held["blk.2.ssm_norm.weight"].data.shape == (4, 24)
        assert np.array_equal(held["blk.2.ssm_conv1d.weight"].data, np.asarray(mixer.conv1d.weight)[:, 0])
    again = ef.load(path)
    assert type(again) is type(model)
    if name == "falcon_h1":  # its factors are in the weights of the file
        c, (ours, theirs) = model.config, (ef.params(m) for m in (model, again))
        assert again.config.ssm_in_multiplier == 1 and again.config.ssm_multipliers is None
        factors = {
            "embed_tokens": c.embedding_multiplier,
            "layers.1.self_attn.k_proj": c.key_multiplier * c.attention_in_multiplier,
            "layers.1.feed_forward.down_proj": c.mlp_multipliers[1],
        }
        for name, factor in factors.items():
            assert np.allclose(ours[f"model.{name}.weight"] * factor, theirs[f"model.{name}.weight"], rtol=1e-6)
        steps = [m["model.layers.1.mamba.in_proj.weight"][-1] for m in (ours, theirs)]
        assert np.allclose(steps[0] * c.ssm_in_multiplier * c.ssm_multipliers[4], steps[1], rtol=1e-6)
        return
    for (p, a), b in zip(ef.params(model).items(), ef.params(again).values(), strict=True):
        assert np.allclose(a, b, rtol=1e-6, atol=1e-6), p


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "qwen3_next"])
def test_matrices_that_a_file_has_in_parts(tmp_path, name):
    """Parts of our arrays from parts of the file's, which are other rows, or turned."""
    model = drawn(name, vocab_size=96)
    path = ef.save(model, tmp_path / "m.gguf")
    sharded = ef.load(path, mesh=ef.make_mesh(fsdp=2, tp=2, devices=jax.devices()[:4]))
    for (p, a), b in zip(ef.params(model).items(), ef.params(sharded).values(), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6) if name == "qwen3_next" else np.array_equal(a, b), p
    if name != "deepseek_v3":
        return
    file = ef.read_gguf(path)  # older files: one matrix for keys and values, and the widths of heads
    kv = {f"blk.{i}.attn_kv_b.weight": layer.self_attn.kv_b_proj.weight for i, layer in enumerate(model.model.layers)}
    keep = {n: i for n, i in file.tensors.items() if not n.endswith(("attn_k_b.weight", "attn_v_b.weight"))}
    changes = {n: ("F32", w.shape, np.asarray(w)) for n, w in kv.items()}
    old = {**file.metadata, "deepseek2.attention.key_length": 12, "deepseek2.attention.value_length": 6}
    old = {k: v for k, v in old.items() if not k.endswith("_mla")}
    infos = dict.fromkeys(kv, next(iter(keep.values())))
    rewrite(ef.read_gguf(path)._replace(tensors=keep | infos, metadata=old), tmp_path / "old.gguf", changes)
    for (p, a), b in zip(ef.params(model).items(), ef.params(ef.load(tmp_path / "old.gguf")).values(), strict=True):
        assert np.array_equal(a, b), p


def test_mxfp4_experts(tmp_path):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    model = ef.quantize(drawn("gpt_oss", **sizes), ef.QuantConfig("mxfp4", pattern="experts"))
    path = ef.save_gguf(model, tmp_path / "m.gguf")
    held = {t.name: t for t in gguf.GGUFReader(path).tensors}
    want = np.asarray(ef.dense(model.model.layers[1].mlp.experts.gate_up_proj))
    for first, part in enumerate(("gate", "up")):
        found = held[f"blk.1.ffn_{part}_exps.weight"]
        assert found.tensor_type == TYPES.MXFP4
        assert np.array_equal(gguf.quants.dequantize(found.data, TYPES.MXFP4), want[:, first::2])
    again = ef.load(path)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert tensors_of(ef.save(again, tmp_path / "n.gguf")) == tensors_of(path)
    latent = ef.quantize(drawn("deepseek_v3", kv_lora_rank=32), ef.QuantConfig("a8q", pattern="kv_b_proj"))
    with pytest.raises(ValueError, match="a part of it turned"):
        ef.save_gguf(latent, path)
    assert ef.load(ef.save_gguf(latent, path, kind="Q8_0")).config.kv_lora_rank == 32


def dataclass_with(model, **changes):
    """The model with another config in all its parts."""
    from easyfn.core.tree import leaves, replace
    from easyfn.registry.family import abstract_config

    config = dataclasses.replace(model.config, **changes)
    return replace(abstract_config(config, ef.task(model), None), leaves(model))


def test_experts_stay_packed(tmp_path):
    """Gate and up of two tensors in one weight; of two kinds they are dense."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**{**KQ, "num_hidden_layers": 1}, num_local_experts=3, num_experts_per_tok=2)
    reference(MixtralForCausalLM, config).save_pretrained(tmp_path / "hf")
    path = ef.save(ef.load(tmp_path / "hf"), tmp_path / "plain.gguf")
    file = ef.read_gguf(path)
    raw = {"gate": blocks("Q4_K", 3, 256, 768, seed=1), "up": blocks("Q4_K", 3, 256, 768, seed=2)}
    want = {k: gguf.quants.dequantize(v, TYPES.Q4_K) for k, v in raw.items()}
    for kind in ("Q4_K", "Q8_0"):
        up = raw["up"] if kind == "Q4_K" else gguf.quants.quantize(want["up"], TYPES[kind])
        rewrite(file, tmp_path / "q.gguf", {
            "blk.0.ffn_gate_exps.weight": ("Q4_K", (3, 256, 768), raw["gate"]),
            "blk.0.ffn_up_exps.weight": (kind, (3, 256, 768), up),
        })  # fmt: skip
        model = ef.load(tmp_path / "q.gguf")
        w = model.model.layers[0].mlp.experts.gate_up_proj
        assert ef.format_of(w) == ("q4_k" if kind == "Q4_K" else None)
        assert np.array_equal(np.asarray(ef.dense(w))[:, :256], want["gate"])
        if kind == "Q4_K":
            assert np.array_equal(np.asarray(ef.dense(w))[:, 256:], want["up"])
            assert tensors_of(ef.save(model, tmp_path / "r.gguf")) == tensors_of(tmp_path / "q.gguf")
            ids = jnp.arange(14).reshape(2, 7)
            same_logits(model, np.asarray(ef.forward(ef.dequantize(model), ids).logits), ids)
            with pytest.raises(ValueError, match=r"does not round to it.*merge_lora\(model, dequantize=True\)"):
                ef.requantize(w, ef.dense(w))


def rewrite(file, path, changes, metadata=None):
    """A file again, with other tensors in places, or other metadata."""
    from easyfn.io.gguf.read import Written
    from easyfn.io.safetensors import read

    plan, arrays = {}, []
    for name, info in file.tensors.items():
        kind, shape, array = changes.get(name, (info.kind, info.shape, None))
        array = read(info) if array is None else array
        plan[name] = Written(kind, shape, array.nbytes)
        arrays.append(array)
    write_gguf(path, {**file.metadata, **(metadata or {})}, plan, arrays)


def test_a8q_is_q8_0(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**SMALL, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}
    hf = reference(LlamaForCausalLM, LlamaConfig(**sizes, head_dim=32))
    hf.save_pretrained(tmp_path / "hf")
    dense = ef.load(tmp_path / "hf")
    model = ef.quantize(dense, ef.QuantConfig("a8q", pattern="_proj|lm_head"))
    path = ef.save_gguf(model, tmp_path / "a8q.gguf")
    held = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    up = np.asarray(dense.model.layers[1].mlp.up_proj.weight)
    assert np.array_equal(held["blk.1.ffn_up.weight"], gguf.quants.quantize(up, TYPES.Q8_0))
    assert ef.read_gguf(path).metadata["general.file_type"] == 7
    again = ef.load(path)
    ids, _ = tokens(2, 9, pad=False)
    same_logits(again, theirs(path, ids), ids)
    for a, b in zip(jax.tree.leaves(model.lm_head), jax.tree.leaves(again.lm_head), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
CONFIG = ef.models.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=131072,
)  # fmt: skip


@pytest.mark.thinned("one writer of keys")
@pytest.mark.parametrize("kind", ROPES)
def test_rotary_settings(tmp_path, kind, key):
    rope = ef.Frozen({"rope_theta": 500000.0, **ROPES[kind]})
    config = dataclasses.replace(CONFIG, rope_parameters=rope)
    path = ef.save(ef.init(config, key=key), tmp_path / "m.gguf")
    assert ef.read_config(path).rope_parameters == rope
    file = ef.read_gguf(path)
    if kind == "llama3":  # factors of no known recipe are taken as they are
        factors = np.linspace(1, 3, 4).astype(np.float32)
        rewrite(file, tmp_path / "n.gguf", {"rope_freqs.weight": ("F32", (4,), factors)})
        found = ef.load(tmp_path / "n.gguf").config.rope_parameters
        assert found["rope_type"] == "longrope" and np.allclose(found["short_factor"], factors)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    model = ef.init(CONFIG, key=jax.random.key(0))
    return model, ef.save(model, tmp_path_factory.mktemp("small") / "small.gguf")


@pytest.mark.quick("io", "GGUF: refused in words")
def test_files_that_are_refused(small, tmp_path, monkeypatch):
    _, path = small
    data, file = path.read_bytes(), ef.read_gguf(path)
    bad = tmp_path / "bad.gguf"

    def load(content):
        bad.write_bytes(content)
        return ef.load(bad)

    for end in (3, 20, 100, 400, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=r"truncated|no GGUF file|header claims"):
            load(data[:end])
    with pytest.raises(ValueError, match="big endian"):
        load(data[:4] + struct.pack(">I", 3) + data[8:])
    with pytest.raises(ValueError, match="version 1"):
        load(data[:4] + struct.pack("<I", 1) + data[8:])
    with pytest.raises(ValueError, match="claims 18446744073709551615 tensors"):
        load(data[:8] + b"\xff" * 8 + data[16:])
    rng = np.random.RandomState(0)
    for place in rng.randint(4, 1400, 60):  # anything may happen but a crash or a hang
        broken = bytearray(data)
        broken[place] ^= 1 << rng.randint(8)
        bad.write_bytes(broken)
        with contextlib.suppress(ValueError):
            ef.read_gguf(bad)
    at = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 16
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight \(IQ4_XS\)"):
        load(data[:at] + struct.pack("<I", 23) + data[at + 4 :])

    def with_metadata(**changes):
        rewrite(file, bad, {}, {k.replace("__", "."): v for k, v in changes.items()})
        return bad

    with pytest.raises(ValueError, match="architecture 'lama'"):
        ef.load(with_metadata(general__architecture="lama"))
    with pytest.raises(ef.UnknownConfigKey, match=r"llama\.attention\.clamp_kqv"):
        ef.load(with_metadata(llama__attention__clamp_kqv=8.0))
    assert ef.load(with_metadata(llama__logit_scale=8.0), config_overrides={"llama.logit_scale": None})
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(ef.LoadError, match=r"several .*bad\.gguf, other\.gguf"):
        ef.load(tmp_path)
    assert ef.load(tmp_path, gguf_file="other.gguf")
    assert ef.read_config(tmp_path, gguf_file="other.gguf") == ef.abstract(path).config
    with pytest.raises(ef.LoadError, match=r"no file 'x\.gguf'; its \.gguf files: bad\.gguf"):
        ef.load(tmp_path, gguf_file="x.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ImportError, match=r"easyfn\[gguf\]"):
        ef.load(path)


def test_a_model_in_several_files(small, tmp_path):
    model, path = small
    file = ef.read_gguf(path)
    names = list(file.tensors)
    for n, part in enumerate((names[:4], names[4:])):
        split = {"split.no": n, "split.count": 2, "split.tensors.count": len(names)}
        one = file._replace(
            tensors={name: file.tensors[name] for name in part}, metadata=file.metadata if n == 0 else {}
        )
        rewrite(one, tmp_path / f"m-{n + 1:05d}-of-00002.gguf", {}, split)
    again = ef.load(tmp_path)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert np.array_equal(a, b)


def test_tokenizers(tmp_path):
    """A byte-level vocabulary goes into a file and comes back; a SentencePiece one is built of its scores."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = Path(__file__).parent.parent / "examples" / "tiny"
    text = (folder / "tokenizer.json").read_text("utf-8")
    metadata = ef.tokenizer_metadata(text, vocab_size=1030)
    path = ef.save_gguf(ef.init(CONFIG, key=jax.random.key(0)), tmp_path / "m.gguf", metadata=metadata)
    ours, theirs = ef.gguf_tokenizer(path), tokenizers.Tokenizer.from_str(text)
    for words in ("def f(x):\n    return x + 1  # \u00e9\u4e2d", "</s>import os", " a  b\t12345's"):
        assert ours.encode(words).ids == theirs.encode(words).ids
        assert ours.decode(ours.encode(words).ids) == theirs.decode(theirs.encode(words).ids)
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    pieces = ["\u2581", "a", "b", "c", "ab", "\u2581a", "\u2581ab", "abc"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *bytes_, *pieces],
        "tokenizer.ggml.scores": [0.0] * 259 + [-8.0, -7.0, -6.0, -5.0, -1.0, -3.0, -2.0, -4.0],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 8],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    path = ef.save_gguf(ef.init(CONFIG, key=jax.random.key(0)), tmp_path / "m.gguf", metadata=metadata)
    llama = ef.gguf_tokenizer(path)
    assert llama.encode("ab abc").tokens == ["<s>", "\u2581ab", "\u2581ab", "c"]
    assert llama.encode("\u00e9").tokens == ["<s>", "\u2581", "<0xC3>", "<0xA9>"]
    assert llama.decode(llama.encode("ab \u00e9 abc").ids) == "ab \u00e9 abc"
    with pytest.raises(ValueError, match="kind 'bert'"):
        ef.gguf_tokenizer(ef.save_gguf(ef.load(path), path, metadata={"tokenizer.ggml.model": "bert"}))


def test_from_the_shell(small, tmp_path, capsys):
    from easyfn.cli import main

    folder = Path(__file__).parent.parent / "examples" / "tiny"
    path, again = tmp_path / "tiny.gguf", tmp_path / "again"
    main(["convert", str(folder), str(path), "--dtype", "float16"])
    main(["convert", str(path), str(again)])
    assert (again / "tokenizer.json").is_file() and (again / "model.safetensors").is_file()
    main(["show", str(path), "--abstract"])
    assert "embed_tokens" in capsys.readouterr().out


def test_models_that_are_refused(tmp_path, small, key):
    model, _ = small
    out = tmp_path / "x.gguf"
    with pytest.raises(ValueError, match="nf4/64"):
        ef.save(ef.quantize(model, ef.QuantConfig("nf4", pattern="down_proj")), out)
    with pytest.raises(ValueError, match="would round"):
        ef.save(ef.quantize(model, ef.QuantConfig("int4", group_size=32)), out)
    with pytest.raises(ValueError, match="sequence-classification"):
        ef.save(CASES["llama-classifier"].model(), out)
    with pytest.raises(ValueError, match=r"sliding_window=4"):
        ef.save(CASES["mistral"].model(), out)
    with pytest.raises(ValueError, match="this is one for masked-lm"):
        ef.save(ef.init(ef.models.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                intermediate_size=8), key=key, task="masked-lm"), out)  # fmt: skip
    with pytest.raises(ValueError, match="hidden_act='gelu'"):
        ef.save(ef.init(dataclasses.replace(CONFIG, hidden_act="gelu"), key=key), out)
    with pytest.raises(ValueError, match="no step"):
        ef.save(model, out, step=3)
    with pytest.raises(ValueError, match="merge_lora"):
        ef.save(ef.apply_lora(model, key=key), out)
    assert not list(tmp_path.iterdir())


def test_floats_are_rounded_to_blocks(tmp_path):
    """As the gguf package rounds them; what is read back are those values, packed."""
    from gguf import GGMLQuantizationType, quants

    model = ef.load("examples/tiny", dtype="float32", progress=False)
    weight = np.asarray(model.model.layers[0].mlp.up_proj.weight)
    for kind in ("Q4_0", "Q4_1", "Q5_0", "Q8_0"):
        path = ef.save_gguf(model, tmp_path / f"{kind}.gguf", kind=kind)
        tensors = ef.read_gguf(path).tensors
        assert tensors["blk.0.ffn_up.weight"].kind == kind and tensors["token_embd.weight"].kind == "Q8_0"
        each = GGMLQuantizationType[kind]
        want = quants.dequantize(quants.quantize(weight, each), each)
        assert np.array_equal(ef.dense(ef.load(path).model.layers[0].mlp.up_proj.weight), want)
    with pytest.raises(ValueError, match="kind is one of Q4_0"):
        ef.save_gguf(model, tmp_path / "x.gguf", kind="Q3_K")


@pytest.mark.quick("io", "GGUF: rounded to Q4_K")
def test_rounding_to_q4_k(tmp_path):
    """The file is read back bit by bit, by us and by the gguf package; the error is llama.cpp's, below Q4_0's."""
    from gguf import GGMLQuantizationType, quants

    model = ef.load("examples/tiny", dtype="float32", progress=False)
    path = ef.save_gguf(model, tmp_path / "k.gguf", kind="Q4_K", tokenizer="examples/tiny")
    kinds = {name: info.kind for name, info in ef.read_gguf(path).tensors.items()}
    # Rows of 192 are no blocks of 256: llama.cpp falls back to Q5_0, too.
    assert kinds["blk.0.ffn_down.weight"] == "Q4_K" and kinds["blk.0.ffn_up.weight"] == "Q5_0"
    assert kinds["token_embd.weight"] == "Q8_0"
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    again = ef.load(path, progress=False)
    error = {"Q4_K": 0.0, "Q4_0": 0.0}
    for n, layer in enumerate(again.model.layers):
        held = found[f"blk.{n}.ffn_down.weight"]
        want = quants.dequantize(held.data, GGMLQuantizationType.Q4_K)
        assert np.array_equal(ef.dense(layer.mlp.down_proj.weight), want)
        weight = np.asarray(model.model.layers[n].mlp.down_proj.weight)
        plain = quants.dequantize(quants.quantize(weight, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
        for kind, value in (("Q4_K", want), ("Q4_0", plain)):
            error[kind] += np.linalg.norm(value - weight) / np.linalg.norm(weight) / 6
    # llama.cpp's own blocks of the third layer: 0.0736, and 0.0897 of Q4_0.
    assert 0.070 < error["Q4_K"] < 0.076 and error["Q4_K"] < 0.84 * error["Q4_0"]
    back = ef.save(again, tmp_path / "back.gguf", tokenizer="examples/tiny")
    same = {t.name: t for t in gguf.GGUFReader(back).tensors}
    assert all(np.array_equal(t.data, same[name].data) for name, t in found.items())
    packed = ef.quantize(model, "nf4")
    with pytest.raises(ValueError, match=r"nf4.*kind='Q4_K'"):
        ef.save_gguf(packed, tmp_path / "nf4.gguf")
    rounded = ef.load(ef.save_gguf(packed, tmp_path / "nf4.gguf", kind="Q4_K"), progress=False)
    want = ef.dense(ef.quant.to_q4_k(ef.dense(packed.model.layers[0].mlp.down_proj.weight)))
    assert np.array_equal(ef.dense(rounded.model.layers[0].mlp.down_proj.weight), want)


def test_blocks_of_q4_k_at_the_edges():
    """Zeros, one value, one sign, tiny numbers: finite, and no further off than a step."""
    rng = np.random.RandomState(0)
    tiny = (rng.randn(1, 256) * 1e-4).astype(np.float32)
    for row, bound in ((np.zeros((1, 256)), 0), (np.ones((1, 256)), 0.01), (-np.ones((1, 256)), 0.01), (tiny, 3e-5)):
        back = np.asarray(ef.dense(ef.quant.to_q4_k(jnp.asarray(row, jnp.float32))))
        assert np.abs(back - row).max() <= bound
    with pytest.raises(ValueError, match="256 entries, which do not divide rows of 192"):
        ef.quant.to_q4_k(jnp.zeros((2, 192)))
