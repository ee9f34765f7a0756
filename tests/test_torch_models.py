"""Modules of transformers converted by `ef.from_torch(module, example_inputs)`, beside torch and beside the native family."""

import functools
import importlib
import json

import jax
import numpy as np
import pytest
import torch
import transformers as T

import easyfn as ef
from easyfn.io.torch import delta
from easyfn.testing import Case, laws

TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
SEPARATE = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}
LLAMA = {**TEXT, "hidden_size": 48, "num_attention_heads": 6, **SEPARATE}
MODULES = {
    "bert": lambda: T.BertForMaskedLM(T.BertConfig(**TEXT)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                                  bos_token_id=1, eos_token_id=2, pad_token_id=0)),
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**LLAMA)),
    "roberta": lambda: T.RobertaForSequenceClassification(T.RobertaConfig(**TEXT, max_position_embeddings=64)),
    "t5": lambda: T.T5EncoderModel(T.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**{k: v for k, v in TEXT.items() if k != "vocab_size"},
                                                           image_size=32, patch_size=8)),
    "bart": lambda: T.BartForCausalLM(T.BartConfig(vocab_size=99, d_model=32, decoder_layers=2, decoder_attention_heads=4,
                                                   decoder_ffn_dim=37, max_position_embeddings=64)),
    "lfm2": lambda: T.Lfm2ForCausalLM(T.Lfm2Config(**{**TEXT, "num_hidden_layers": 3}, num_key_value_heads=2,
                                                   layer_types=["conv", "full_attention", "conv"])),
    "dbrx": lambda: T.DbrxForCausalLM(T.DbrxConfig(
        vocab_size=99, d_model=32, n_heads=4, n_layers=1, max_seq_len=64,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2})),
    "jetmoe": lambda: T.JetMoeForCausalLM(T.JetMoeConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_key_value_heads=2, kv_channels=8, intermediate_size=16,
        num_local_experts=4, num_experts_per_tok=2)),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(
        **{**TEXT, "num_hidden_layers": 1, "intermediate_size": 36}, num_key_value_heads=2, num_local_experts=4)),
    "switch_transformers": lambda: T.SwitchTransformersEncoderModel(T.SwitchTransformersConfig(
        vocab_size=99, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=4, num_experts=3, num_sparse_encoder_layers=1)),
    "longcat_flash": lambda: T.LongcatFlashForCausalLM(T.LongcatFlashConfig(
        vocab_size=99, hidden_size=32, num_layers=1, num_attention_heads=4, ffn_hidden_size=48, q_lora_rank=16,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, head_dim=8, moe_topk=3,
        n_routed_experts=4, zero_expert_num=2, expert_ffn_hidden_size=16)),
}  # fmt: skip


def made(name):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, mean=0.0 if p.ndim > 1 else 0.5, std=0.2)
    return module


def batch(name, rows, length):
    torch.manual_seed(rows)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 32, 32)}
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[-1, length - 2 :] = 0
    return {"input_ids": torch.randint(3, 99, (rows, length)), "attention_mask": mask}


@functools.cache
def converted(name):
    module = made(name)
    return module, ef.from_torch(module, batch(name, 2, 7))


def arrays(inputs):
    return {name: value.numpy() for name, value in inputs.items()}


@pytest.mark.parametrize("name", MODULES)
def test_equals_torch_at_another_size(name, tmp_path):
    module, model = converted(name)
    other = batch(name, 3, 11)
    with torch.no_grad():
        wanted = module(**other)[0].numpy()
    run = jax.jit(lambda m, i: ef.forward(m, **i))
    out = run(model, arrays(other))
    got = np.asarray(out.last_hidden_state if out.logits is None else out.logits)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    ef.save(model, tmp_path)
    again = ef.load(tmp_path)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    back, report = type(module).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert (back.eval()(**other)[0].numpy() == wanted).all()


def test_a_type_with_a_family_is_the_same_model():
    module, model = converted("gpt2")
    example, native = batch("gpt2", 2, 7), ef.from_torch(module)
    given = arrays(batch("gpt2", 3, 9))
    loss = lambda m: ef.compute_loss(m, given)[0]
    np.testing.assert_allclose(loss(model), loss(native), atol=1e-5)
    ours, theirs = ef.to_state_dict(jax.grad(loss)(model)), ef.to_state_dict(jax.grad(loss)(native))
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
    prompt = {"attention_mask": np.array([[1] * 6, [0, 0, 1, 1, 1, 1]]), "max_new_tokens": 6}
    ids = example["input_ids"][:, :6].numpy()
    for more in ({}, {"do_sample": True, "key": jax.random.key(3)}):
        one, two = (ef.generate(m, ids, **prompt, **more).sequences for m in (model, native))
        assert (np.asarray(one) == np.asarray(two)).all()
    assert ef.forward(model, ids).logits.shape == (2, 6, 99)  # a mask that is left out hides nothing


def scores(model, given):
    """Logits of what is no padding, which the two treat each in its own way."""
    logits = ef.forward(model, **given).logits
    return logits * given["attention_mask"][..., None] if "attention_mask" in given else logits


SCORES = jax.jit(scores)


@pytest.mark.parametrize("name", ["llama"])
def test_numbers_gradients_adapters_and_quantized_files_are_the_natives(name, tmp_path):
    from safetensors.numpy import load_file

    module, model = converted(name)
    native, given = ef.from_torch(module), arrays(batch(name, 2, 7))
    np.testing.assert_allclose(SCORES(model, given), SCORES(native, given), atol=1e-4)
    slope = jax.jit(jax.grad(lambda m, i: jax.numpy.sin(scores(m, i)).sum()))
    ours, theirs = (ef.to_state_dict(slope(m, given)) for m in (model, native))
    assert set(ours) == set(theirs)
    for path, got in ours.items():
        np.testing.assert_allclose(got, theirs[path], atol=1e-4 * max(1, np.abs(theirs[path]).max()), err_msg=path)
    adapted = ef.apply_lora(native, "attention|attn", rank=2, key=jax.random.key(0))
    adapted = ef.with_params(adapted, {k: v + 0.05 for k, v in ef.params(adapted).items() if k.endswith(".b")})
    ef.save_adapter(adapted, tmp_path / "adapter")
    wanted, got = SCORES(adapted, given), SCORES(ef.load_adapter(model, tmp_path / "adapter"), given)
    assert np.abs(wanted - SCORES(native, given)).max() > 1e-3
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    folders = tmp_path / "ours", tmp_path / "theirs"
    quantized = [ef.quantize(m, "8bit") for m in (model, native)]
    for each, folder in zip(quantized, folders, strict=True):
        ef.save(each, folder)
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert set(one) == set(two) and all((one[k] == two[k]).all() for k in one)
    np.testing.assert_allclose(*(SCORES(ef.load(f, progress=False), given) for f in folders), atol=1e-4)


def test_a_module_without_numbers_is_an_abstract_model():
    config = T.LlamaConfig(**{**LLAMA, "num_hidden_layers": 1})
    with torch.device("meta"):
        module = T.LlamaForCausalLM(config)
    model = ef.from_torch(module, batch("llama", 2, 7), dtype="bfloat16")
    assert {type(leaf) for leaf in jax.tree.leaves(model)} == {jax.ShapeDtypeStruct}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model)} == {"bfloat16"}
    assert module.model.rotary_emb.inv_freq.is_meta  # put back
    real, other = T.LlamaForCausalLM(config).eval(), batch("llama", 3, 9)
    with torch.no_grad():
        wanted = real(**other).logits
    given = ef.from_state_dict(model.config, real.state_dict())
    np.testing.assert_allclose(ef.forward(given, **arrays(other)).logits, wanted, atol=1e-5)
    part = torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta"))
    part.register_buffer("table", torch.ones(2, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="table are on meta, and no file holds"):
        ef.from_torch(part, (torch.ones(3, 2),))
    part.append(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"others are not: 1\.weight"):
        ef.from_torch(part, (torch.ones(3, 2),))


DELTA = {"hidden_size": 16, "linear_conv_kernel_dim": 3, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 4, "linear_value_head_dim": 6}  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3_next.Qwen3NextGatedDeltaNet", "kimi_linear.KimiLinearDeltaAttention"])
def test_a_delta_rule_is_one_operator_at_any_length(name):
    file, cls = name.split(".")
    module = importlib.import_module(f"transformers.models.{file}.modeling_{file}")
    before = {k: getattr(module, k) for k in delta.NAMES if hasattr(module, k)}
    config = T.Qwen3NextConfig(**DELTA) if "qwen" in file else T.KimiLinearConfig(
        hidden_size=16, linear_num_heads=2, linear_head_dim=6, num_hidden_layers=1, layer_types=["linear_attention"])  # fmt: skip
    torch.manual_seed(0)
    layer = getattr(module, cls)(config, 0).eval()
    gate = layer if "qwen" in file else layer.forget_gate
    for p in (gate.A_log, gate.dt_bias):  # transformers leaves them as memory has them
        torch.nn.init.normal_(p, std=0.3)
    model = ef.from_torch(layer, {"hidden_states": torch.randn(2, 7, 16)})
    assert model.config.graph.operators()["easyfn.delta_rule.default"] == 1 and len(model.config.graph.nodes) < 120
    x = torch.randn(3, 70, 16)
    with torch.no_grad():
        wanted = layer(hidden_states=x)
    np.testing.assert_allclose(ef.forward(model, hidden_states=x.numpy()), wanted, atol=1e-5)
    assert before and before == {k: getattr(module, k) for k in before}


@functools.cache
def ctrl():
    """A type without a family, as a third party's model is held to the laws."""
    torch.manual_seed(0)
    config = T.CTRLConfig(vocab_size=99, n_embd=32, dff=64, n_layer=1, n_head=4, n_positions=64)
    model = ef.from_torch(T.CTRLLMHeadModel(config).eval(), batch("ctrl", 2, 7))
    return Case(make=lambda key: model, name="ctrl")


NOT_ITS = {
    "padding_is_invisible": "the module counts its positions through padding on the left",
    "documents_do_not_see_each_other": "a converted module takes no segment_ids, and says so",
    "bfloat16_is_close": "the module keeps its table of positions in float32, and so its answers",
    "torch_agrees": "asks for the family of a model",
    "torch_round_trip": "asks for the family of a model",
}
LAWS = [
    pytest.param(name, marks=pytest.mark.every_family if name == "shard_changes_nothing" else ())  # on many devices
    for name in laws.known()
    if name not in NOT_ITS
]


@pytest.mark.parametrize("name", LAWS)
def test_a_converted_model_keeps_the_laws(name):
    law = laws.known()[name]
    assert law.applies(ctrl())
    law(ctrl())


def test_generating_is_refused_in_words():
    model = ef.from_torch(made("bert"), batch("bert", 2, 7))
    with pytest.raises(ValueError, match="is no causal language model"):
        ef.init_cache(model, 1, 8)
    fixed = ef.from_torch(made("gpt2"), batch("gpt2", 2, 7), dynamic=False)
    with pytest.raises(ValueError, match="needs batch and length free"):
        ef.init_cache(fixed, 1, 8)


def test_load_via_torch(tmp_path):
    """A type without a family: read by transformers, converted, saved, and loaded without torch."""
    from transformers import CTRLConfig, CTRLLMHeadModel

    torch.manual_seed(0)
    config = CTRLConfig(vocab_size=99, n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=64)
    module = CTRLLMHeadModel(config).eval()
    module.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"'ctrl'.*via='torch'"):
        ef.load(tmp_path / "theirs")
    model = ef.load(tmp_path / "theirs", via="torch", progress=False)
    ids = np.random.RandomState(0).randint(3, 99, (3, 9))
    mask = np.ones_like(ids)
    with torch.no_grad():
        want = module(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    np.testing.assert_allclose(ef.forward(model, ids, attention_mask=mask).logits, want, atol=1e-5)
    ef.save(ef.merge_lora(ef.apply_lora(model, "all-linear", rank=2, key=jax.random.key(0))), tmp_path / "ours")
    again = ef.load(tmp_path / "ours", progress=False)
    np.testing.assert_allclose(ef.forward(again, ids, attention_mask=mask).logits, want, atol=1e-5)
    back = CTRLLMHeadModel.from_pretrained(tmp_path / "ours")
    assert all(a.equal(b) for a, b in zip(module.state_dict().values(), back.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"via": "jax"}, "via is 'torch' or None"),
        ({"via": "torch", "mmap": True}, "takes no mmap"),
        ({"via": "torch", "task": "summarization"}, "task is one of audio-classification, .*causal-lm"),
    ],
)
def test_what_via_torch_refuses(options, message, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
    with pytest.raises(ValueError, match=message):
        ef.load(tmp_path, **options)


def test_load_via_torch_runs_no_code_of_a_checkpoint(tmp_path):
    """Code beside the weights is refused at once: transformers would ask the terminal whether to run it."""
    names = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model", "AutoModelForCausalLM": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": names}))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")
    for task in (None, "causal-lm"):
        with pytest.raises(ef.LoadError, match="custom code"):
            ef.load(tmp_path, via="torch", task=task, progress=False)
    assert not (tmp_path / "it ran").exists()


def test_load_via_torch_takes_models_alone(tmp_path):
    """`architectures` is a stranger's word: only a class of a model is looked up in transformers."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "ctrl", "architectures": ["Trainer", "CTRLConfig"]})
    )
    with pytest.raises(ef.LoadError, match="AutoModel"):
        ef.load(tmp_path, via="torch", progress=False)


class Steps(torch.nn.Module):
    """A loop over the tokens, which an export writes out."""

    def __init__(self):
        super().__init__()
        self.table, self.out = torch.nn.Embedding(99, 8), torch.nn.Linear(8, 5)

    def forward(self, input_ids, attention_mask):
        state, states = torch.zeros(input_ids.shape[0], 8), []
        for n in range(input_ids.shape[1]):
            keep = attention_mask[:, n, None]
            state = torch.where(keep > 0, 0.5 * state + self.table(input_ids[:, n]), state)
            states.append(self.out(state))
        return {"each": torch.stack(states, dim=1), "last": state, "turned": torch.stack(states, dim=2)}


def test_a_module_of_one_length_has_a_program_for_each_of_some(tmp_path):
    torch.manual_seed(0)
    module, example = Steps().eval(), batch("steps", 2, 3)
    model = ef.from_torch(module, example, lengths=[6, 3])
    ef.save(model, tmp_path)
    again = ef.load(tmp_path)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for length in (2, 3, 5, 6):
        given = batch("steps", 3, length)
        with torch.no_grad():
            wanted = {name: value.numpy() for name, value in module(**given).items()}
        for run in (ef.forward, jax.jit(lambda m, **i: ef.forward(m, **i))):
            got = run(again, **arrays(given))
            assert {name: value.shape for name, value in got.items()} == {n: v.shape for n, v in wanted.items()}
            for name in wanted:
                np.testing.assert_allclose(got[name], wanted[name], atol=1e-5)
    with pytest.raises(ValueError, match=r"input_ids is 7 long, .* lengths of \[3, 6\]"):
        ef.forward(model, **arrays(batch("steps", 2, 7)))
    text = json.loads((tmp_path / "easyfn_program.json").read_text())
    text["others"][0]["inputs"][0]["shape"][1] = 2
    (tmp_path / "easyfn_program.json").write_text(json.dumps(text))
    with pytest.raises(ef.BadProgram, match="others: its first inputs should have fixed lengths"):
        ef.load(tmp_path)
    text["others"][0]["weights"][0]["shape"] = [98, 8]
    (tmp_path / "easyfn_program.json").write_text(json.dumps(text))
    with pytest.raises(ef.BadProgram, match=r"others\[0\] has other weights"):
        ef.load(tmp_path)
    with pytest.raises(ValueError, match="takes any"):
        ef.from_torch(torch.nn.Sequential(torch.nn.Linear(4, 2)), (torch.ones(2, 4, 4),), lengths=[3, 5])
    with pytest.raises(ValueError, match=r"lengths=\[\] is a list of lengths"):
        ef.from_torch(module, example, lengths=[])
    with pytest.raises(ValueError, match="without an attention_mask"):
        ids = ef.from_torch(Unmasked(), (torch.ones(2, 3),), lengths=[3, 6])
        ef.forward(ids, np.ones((2, 5)))


class Unmasked(torch.nn.Module):
    def forward(self, x):
        return sum(x[:, n] for n in range(x.shape[1]))


def test_generating_with_a_program_for_each_length():
    torch.manual_seed(0)
    config = T.MambaConfig(vocab_size=99, hidden_size=8, state_size=4, num_hidden_layers=1, time_step_rank=2,
                           bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    module = T.MambaForCausalLM(config).eval()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    model, native = ef.from_torch(module, batch("mamba", 2, 2), lengths=[2, 5]), ef.from_torch(module)
    assert ef.inputs(model).fields["input_ids"].shape == ("batch", "seq")
    ids, mask = np.array([[5, 6, 7], [0, 8, 9]]), np.array([[1, 1, 1], [0, 1, 1]])
    one, two = (ef.generate(m, ids, attention_mask=mask, max_new_tokens=2).sequences for m in (model, native))
    assert (np.asarray(one) == np.asarray(two)).all()
    with pytest.raises(ValueError, match="5"):
        ef.generate(model, ids, attention_mask=mask, max_new_tokens=3)
