"""IA3, VeRA, LoHa, LoKr: the laws of adapters, and PEFT's files both ways, checked with PEFT itself."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import easyfn as ef
from cases import CASES, tokens
from easyfn.lora.vera import projections
from easyfn.registry.family import build
from test_peft import agree, ours, trained

peft = pytest.importorskip("peft")

BOTH = "q_proj|k_proj|v_proj|down_proj"
APPLY = {
    "ia3": lambda model, pattern=BOTH, **options: ef.apply_ia3(model, pattern, **options),
    "vera": lambda model, pattern="all-linear", **options: ef.apply_vera(model, pattern, rank=7, **options),
    "loha": lambda model, pattern="all-linear", **options: ef.apply_loha(
        model, pattern, rank=3, alpha=5, key=jax.random.key(1), **options
    ),
    "lokr": lambda model, pattern="all-linear", **options: ef.apply_lokr(
        model, pattern, rank=2, alpha=3, key=jax.random.key(1), **options
    ),
}
METHODS = list(APPLY)


def moved(model):
    """The model with what trains moved away from its start."""
    params, frozen = eqx.partition(model, ef.trainable(model))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return eqx.combine(treedef.unflatten(noisy), frozen)


def test_a_head_with_a_bias_is_a_layer_like_any():
    """IA3 scales the sum, bias included: the head's scores are those of its layer, of the merged model and of PEFT."""
    case = CASES["bert-untied"]
    ids, mask = tokens(2, 6, pad=False)
    tuned = moved(ef.apply_ia3(case.model(), "^decoder"))
    scores = ef.forward(tuned, ids, attention_mask=mask).logits
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 48))
    normed = tuned.norm(ef.nn.activation(tuned.act)(tuned.dense(hidden)))
    np.testing.assert_allclose(ef.nn.head_logits(tuned, hidden), tuned.decoder(normed), atol=1e-6)
    merged = ef.merge_lora(tuned)
    np.testing.assert_allclose(ef.forward(merged, ids, attention_mask=mask).logits, scores, atol=1e-5)
    layers = {"target_modules": ["cls.predictions.decoder"], "feedforward_modules": []}
    hf = peft.get_peft_model(case.make(), peft.IA3Config(**layers))
    module = hf.base_model.model.cls.predictions.decoder
    module.ia3_l["default"].data = torch.tensor(np.array(tuned.decoder.weight.scale)).reshape(-1, 1)
    with torch.no_grad():
        want = hf(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    np.testing.assert_allclose(np.asarray(scores)[mask > 0], want[mask > 0], atol=1e-4)


@pytest.mark.thinned("laws that test_lora.py holds on LoRA for all methods")
@pytest.mark.parametrize("method", METHODS)
def test_laws(method):
    """Fresh changes nothing, merged is unmerged (biases too), removed is as before, in any order with stack."""
    case = CASES["qwen2"]
    model = case.model()
    base = ours(case, model)
    fresh = APPLY[method](model)
    np.testing.assert_array_equal(ours(case, fresh), base)
    before, after = jax.tree.leaves(model), jax.tree.leaves(ef.remove_lora(fresh))
    assert all(a is b for a, b in zip(after, before, strict=True))
    tuned = moved(fresh)
    logits = ours(case, tuned)
    assert np.abs(logits - base).max() > 1e-2
    merged = ef.merge_lora(tuned)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    np.testing.assert_allclose(ours(case, merged), logits, atol=1e-5)
    stacked = APPLY[method](ef.stack(model))
    assert jax.tree.structure(stacked) == jax.tree.structure(ef.stack(fresh))
    for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(ef.stack(fresh)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(ours(case, ef.stack(tuned)), logits, atol=1e-5)
    body, adapter = ef.split_lora(tuned)
    np.testing.assert_allclose(ours(case, ef.join_lora(ef.stack(body), adapter)), logits, atol=1e-5)
    np.testing.assert_allclose(ours(case, ef.merge_lora(ef.stack(tuned))), logits, atol=1e-5)
    abstract = build(model.config, "causal-lm")
    assert ef.shapes(APPLY[method](abstract)) == ef.shapes(fresh)


@pytest.mark.thinned("laws that test_lora.py holds on LoRA for all methods")
@pytest.mark.parametrize("method", METHODS)
def test_on_quantized_and_sharded_weights(method):
    case = CASES["qwen2"]
    small = ef.quantize(case.model(), "8bit")
    tuned = moved(APPLY[method](small))
    assert ef.is_quantized(tuned)
    np.testing.assert_allclose(ours(case, ef.merge_lora(tuned, dequantize=True)), ours(case, tuned), atol=1e-4)
    rules = ef.ShardingRules(ef.default_rules(small).axes, indivisible="replicate")
    sharded = APPLY[method](ef.shard(small, rules, ef.make_mesh(fsdp=2, tp=2, dp=2)))
    adapted = eqx.combine(ef.split(tuned, ef.trainable(tuned))[0], sharded)
    np.testing.assert_allclose(ours(case, adapted), ours(case, tuned), atol=1e-4)


@pytest.mark.thinned("laws that test_lora.py holds on LoRA for all methods")
@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_what_trains(method):
    tuned = moved(APPLY[method](CASES["qwen2"].model()))
    params, frozen = eqx.partition(tuned, ef.trainable(tuned))
    ids = jnp.asarray(tokens()[0])
    loss = lambda params: jnp.mean(ef.forward(eqx.combine(params, frozen), ids).logits ** 2)
    grads = jax.jit(jax.grad(loss))(params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    names = {path.rsplit(".", 1)[-1] for path in ef.params(grads)}
    wanted = {
        "ia3": {"scale"},
        "vera": {"lambda_b", "lambda_d"},
        "loha": {"w1_a", "w1_b", "w2_a", "w2_b"},
        "lokr": {"w1", "w2_a", "w2_b"},
    }
    assert names <= wanted[method] | {"w2"} and len(names) >= 1


@pytest.mark.parametrize("method", ["ia3", "loha", "lokr"])
def test_on_experts(method):
    case = CASES["mixtral"]
    tuned = moved(APPLY[method](case.model(), "experts"))
    assert np.abs(ours(case, tuned) - ours(case, case.model())).max() > 1e-3
    np.testing.assert_allclose(ours(case, ef.merge_lora(tuned)), ours(case, tuned), atol=1e-5)


# --- PEFT's files

TARGETS = {
    "qwen2": ["q_proj", "k_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "t5": ["k", "v", "wo"],
}
CONFIGS = {
    "ia3": lambda name, **more: peft.IA3Config(
        target_modules=TARGETS[name],
        feedforward_modules=[t for t in TARGETS[name] if t in ("down_proj", "mlp.c_proj", "wo")],
        init_ia3_weights=False,
        fan_in_fan_out=name == "gpt2",
        **more,
    ),
    "vera": lambda name, **more: peft.VeraConfig(
        target_modules=TARGETS[name],
        r=7,
        init_weights=False,
        projection_prng_key=3,
        fan_in_fan_out=name == "gpt2",
        **more,
    ),
    "loha": lambda name, **more: peft.LoHaConfig(
        target_modules=TARGETS[name], r=3, alpha=5, init_weights=False, rank_pattern={TARGETS[name][1]: 2}, **more
    ),
    "lokr": lambda name, **more: peft.LoKrConfig(
        target_modules=TARGETS[name], r=2, alpha=5, init_weights=False, alpha_pattern={TARGETS[name][1]: 2}, **more
    ),
}
PAIRS = [*((m, "qwen2") for m in METHODS), ("ia3", "gpt2"), ("vera", "gpt2"), ("ia3", "t5")]


def from_peft(method, case, folder, **more):
    torch.manual_seed(0)
    module = peft.get_peft_model(case.make(), CONFIGS[method](case.name, **more)).eval()
    module.save_pretrained(folder)
    return module


def content(folder):
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
        return {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118


@pytest.mark.thinned("methods of one writer")
@pytest.mark.parametrize("method, name", PAIRS)
def test_both_ways(method, name, tmp_path):
    """We read PEFT's file, and PEFT reads ours, with the same tensors in it."""
    case = CASES[name]
    module = from_peft(method, case, tmp_path / "one")
    model = ef.load_adapter(case.model(), tmp_path / "one")
    assert np.abs(ours(case, model) - ours(case, case.model())).max() > 1e-3
    agree(case, model, module)
    ef.save_adapter(ef.stack(model), tmp_path / "two")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    agree(case, model, peft.PeftModel.from_pretrained(case.make(), tmp_path / "two").eval())
    agree(case, ef.merge_lora(model), module)


@pytest.mark.parametrize(
    "options", [{"decompose_both": True}, {"decompose_factor": 4}, {"init_weights": "lycoris"}], ids=str
)
def test_shapes_of_lokr(options, tmp_path):
    case = CASES["qwen2"]
    torch.manual_seed(0)
    config = peft.LoKrConfig(**{"target_modules": "all-linear", "r": 2, "init_weights": False, **options})
    module = peft.get_peft_model(case.make(), config).eval()
    module.save_pretrained(tmp_path / "one")
    model = ef.load_adapter(case.model(), tmp_path / "one")
    agree(case, model, module)
    ef.save_adapter(model, tmp_path / "two")
    agree(case, model, peft.PeftModel.from_pretrained(case.make(), tmp_path / "two").eval())
    fresh = ef.apply_lokr(
        case.model(), rank=2, key=jax.random.key(0), **{k: v for k, v in options.items() if "init" not in k}
    )
    assert jax.tree.map(jnp.shape, ef.split_lora(fresh)[1]) == jax.tree.map(jnp.shape, ef.split_lora(model)[1])


@pytest.mark.filterwarnings("ignore:Specified to not")
def test_the_projections_of_vera_are_pefts(tmp_path):
    """Drawn again without torch, number by number: a file need not hold them."""
    case = CASES["qwen2"]
    module = from_peft("vera", case, tmp_path, save_projection=False)
    assert not any("vera_A" in name for name in content(tmp_path))
    model = ef.load_adapter(case.model(), tmp_path)
    agree(case, model, module)
    theirs = [getattr(module.base_model, name)["default"].numpy() for name in ("vera_A", "vera_B")]
    for a, b in zip(projections(7, len(theirs[1]), theirs[0].shape[1], 3), theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    fresh = ef.apply_vera(case.model(), BOTH, rank=7, projection_prng_key=3)
    _, adapter = ef.split_lora(fresh)
    sizes = {(*w.b.shape, *w.a.shape) for w in adapter.values()}
    assert len({id(w.b) for w in adapter.values()}) == len(sizes)  # what layers share is one array


@pytest.mark.quick("lora", "methods of PEFT keep the laws")
def test_names_that_peft_would_confuse(tmp_path):
    """PEFT asks whether a module ends with a name: where that says too much, whole paths are written."""
    case = CASES["qwen2"]
    model = trained(ef.apply_ia3(case.model(), "q_proj|v_proj", feedforward=r"layers\.1\..*q_proj"))
    ef.save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["feedforward_modules"] == ["model.layers.1.self_attn.q_proj"]
    agree(case, model, peft.PeftModel.from_pretrained(case.make(), tmp_path).eval())


def test_wrong_uses_say_what_to_do(tmp_path):
    model = CASES["qwen2"].model()
    with pytest.raises(ValueError, match="adapter already"):
        ef.apply_ia3(ef.apply_vera(model, "q_proj", rank=4), "q_proj")
    with pytest.raises(ValueError, match="fits none"):
        ef.apply_loha(model, "q_proj", rank_pattern={"k_proj": 2}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="'embedding'"):
        ef.apply_lokr(model, "embed_tokens", key=jax.random.key(0))
    with pytest.raises(ValueError, match="rank must be"):
        ef.apply_vera(model, rank=0)
    mixed = ef.apply_ia3(ef.apply_vera(model, "q_proj", rank=4), "k_proj")
    with pytest.raises(ValueError, match="one kind"):
        ef.save_adapter(mixed, tmp_path)
    with pytest.raises(ValueError, match="experts"):
        ef.save_adapter(ef.apply_ia3(CASES["mixtral"].model(), "experts"), tmp_path)
    with pytest.raises(ValueError, match="Conv1D"):
        ef.save_adapter(ef.apply_loha(CASES["gpt2"].model(), "c_attn", key=jax.random.key(0)), tmp_path)
    ef.save_adapter(ef.apply_loha(model, "q_proj", rank=4, key=jax.random.key(0)), tmp_path)
    file = tmp_path / "adapter_config.json"
    for change, message in [({"r": 3}, "needs"), ({"rank_dropout": 0.1}, "training alone"), ({"new": 1}, "unknown")]:
        text = file.read_text()
        file.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(ef.LoadError, match=message):
            ef.load_adapter(model, tmp_path)
        file.write_text(text)


# --- prompt and prefix tuning

IDS = tokens(pad=False)[0]
VIRTUAL = {"prompt": ef.prompt_tuning, "prefix": ef.prefix_tuning}


@pytest.mark.parametrize("method, name", [("prompt", "llama"), ("prefix", "gemma3")])
def test_virtual_tokens_are_pefts(method, name, tmp_path):
    """The laws of a wrapper, and PEFT's file both ways: windows shorter than the sequence, stacked layers, gradients."""
    case = CASES[name]
    model = VIRTUAL[method](case.model(), 3, key=jax.random.key(2))
    assert model.base is case.model()
    run = jax.jit(lambda model, ids: ef.forward(model, ids).logits)
    logits = run(model, IDS)
    assert logits.shape == (*IDS.shape, model.config.vocab_size)
    assert np.abs(logits - ours(case, case.model())[:, -IDS.shape[1] :]).max() > 1e-2
    ef.save_adapter(model, tmp_path)
    module = peft.PeftModel.from_pretrained(case.make(), tmp_path).eval()
    with torch.no_grad():
        theirs = module(input_ids=torch.tensor(IDS)).logits[:, -IDS.shape[1] :].numpy()
    np.testing.assert_allclose(logits, theirs, atol=3e-5)
    stacked = VIRTUAL[method](ef.stack(case.model()), 3, key=jax.random.key(2))
    np.testing.assert_allclose(run(stacked, IDS), logits, atol=1e-5)
    again = ef.load_adapter(case.model(), tmp_path)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    np.testing.assert_array_equal(*(x.tokens if method == "prompt" else x.k for x in (again, model)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    kind = peft.PromptTuningConfig if method == "prompt" else peft.PrefixTuningConfig
    facts = {k: config[k] for k in ("token_dim", "num_attention_heads", "num_layers")}
    torch.manual_seed(0)
    fresh = peft.get_peft_model(case.make(), kind(num_virtual_tokens=3, task_type="CAUSAL_LM", **facts)).eval()
    fresh.save_pretrained(tmp_path / "theirs")
    assert content(tmp_path / "theirs") == content(tmp_path)
    with torch.no_grad():
        theirs = fresh(input_ids=torch.tensor(IDS)).logits[:, -IDS.shape[1] :].numpy()
    np.testing.assert_allclose(run(ef.load_adapter(case.model(), tmp_path / "theirs"), IDS), theirs, atol=1e-4)


@pytest.mark.thinned("prompts that differ in where they come from")
@pytest.mark.parametrize("method", list(VIRTUAL))
def test_virtual_tokens_train_and_generate(method):
    case = CASES["llama"]
    model = VIRTUAL[method](case.model(), 3, key=jax.random.key(2))
    step = jax.jit(ef.train_step)
    state = ef.to_state(model, optax.adam(1e-1))
    assert {path.split(".")[0] for path in ef.params(state.params)} == (
        {"tokens"} if method == "prompt" else {"k", "v"}
    )
    losses = []
    for _ in range(6):
        state, metrics = step(state, {"input_ids": jnp.asarray(IDS)})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.05
    made = ef.generate(state.model, IDS, max_new_tokens=3, do_sample=False, eos_token_id=None).sequences
    run = jax.jit(lambda model, ids: ef.forward(model, ids).logits)
    want = np.asarray(jnp.argmax(run(state.model, made[:, :-1])[:, -3:], -1))
    np.testing.assert_array_equal(made[:, -3:], want)


def test_what_cannot_be_prompted_is_refused():
    with pytest.raises(ef.NotSupported, match="causal model"):
        ef.prompt_tuning(CASES["t5"].model(), 3, key=jax.random.key(0))
    with pytest.raises(ef.NotSupported):
        ef.prompt_tuning(CASES["bert"].model(), 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="attention in every layer"):
        ef.prefix_tuning(CASES["mamba2"].model(), 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match="init is"):
        ef.prefix_tuning(CASES["llama"].model(), 3, key=jax.random.key(0), init="text")
    with pytest.raises(ValueError, match="at least 1"):
        ef.prompt_tuning(CASES["llama"].model(), 0, key=jax.random.key(0))
    tuned = ef.apply_lora(CASES["llama"].model(), "q_proj", key=jax.random.key(0))
    both = ef.prompt_tuning(tuned, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="one kind"):
        ef.save_adapter(both, "nowhere")
    with pytest.raises(ValueError, match=r"ef\.save\(model\.base"):
        ef.save(ef.prompt_tuning(CASES["llama"].model(), 2, key=jax.random.key(0)), "nowhere")
