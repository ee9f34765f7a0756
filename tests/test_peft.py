"""Adapters in PEFT's files, checked with PEFT itself, on one model of every family."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import easyfn as ef
from cases import CASES, IMAGES, kinds, positions, tokens

peft = pytest.importorskip("peft")


def theirs(case, module):
    """What transformers answers: logits, or the last hidden state."""
    ids, mask = tokens()
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if case.encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor(tokens(seed=1, pad=False)[0])
    elif not case.recurrent:
        inputs["position_ids"] = torch.tensor(positions(mask))
    with torch.no_grad():
        out = module(**inputs)
    return pick(out).numpy()


def pick(out):
    for field in ("logits", "start_logits", "last_hidden_state"):
        if getattr(out, field, None) is not None:
            return getattr(out, field)
    raise AssertionError(out)


@eqx.filter_jit
def _run(model, inputs):
    return pick(ef.forward(model, **inputs))


def ours(case, model):
    ids, mask = tokens()
    inputs = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
    if case.encoder_decoder:
        inputs["decoder_input_ids"] = jnp.asarray(tokens(seed=1, pad=False)[0])
    return np.asarray(_run(model, inputs))


def agree(case, model, module, atol=3e-5):
    a, b = ours(case, model), theirs(case, module)
    seen = tokens()[1] > 0 if a.ndim == 3 and not case.encoder_decoder else slice(None)
    if a.ndim == 2:  # transformers pools the padding on the left of row 0
        seen = slice(1, None)
    np.testing.assert_allclose(a[seen], b[seen], atol=atol * max(1.0, float(np.abs(b[seen]).max())))


def trained(model, seed=3, size=0.05):
    """The model with adapters that are no longer fresh."""
    base, adapter = ef.split_lora(model)
    leaves, treedef = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return ef.join_lora(base, treedef.unflatten(moved))


def into_peft(case, model, folder, **config):
    ef.save_adapter(model, folder, **config)
    return peft.PeftModel.from_pretrained(case.make(), folder).eval()


def from_peft(case, folder, seed=0, **config):
    """A PEFT model with an adapter that does something, saved."""
    torch.manual_seed(seed)
    config = {
        "target_modules": REACHED.get(case.name, "all-linear"),
        "r": 4,
        "lora_alpha": 6,
        "init_lora_weights": False,
        **config,
    }
    module = peft.get_peft_model(case.make(), peft.LoraConfig(**config)).eval()
    module.save_pretrained(folder)
    return module


# PEFT refuses an adapter on Mamba's out_proj, whose weight a fused kernel reads; its "all-linear" has a bug on Mixtral.
REACHED = {"mamba2": ["in_proj"], "mixtral": ["q_proj", "v_proj"]}
FAMILIES = kinds()


@pytest.mark.thinned("families whose names differ: test_names_are_those_of_modules has each")
@pytest.mark.parametrize("name", FAMILIES)
def test_peft_reads_ours(name, tmp_path, key):
    case = CASES[name]
    pattern = "in_proj" if name == "mamba2" else "all-linear"
    model = trained(ef.apply_lora(case.model(), pattern, rank=3, alpha=5, key=key))
    base = ours(case, case.model())
    module = into_peft(case, model, tmp_path)
    assert np.abs(ours(case, model) - base).max() > 1e-3
    agree(case, model, module)


@pytest.mark.thinned("families whose names differ: test_names_are_those_of_modules has each")
@pytest.mark.parametrize("name", FAMILIES)
def test_we_read_pefts(name, tmp_path):
    case = CASES[name]
    module = from_peft(case, tmp_path)
    model = ef.load_adapter(case.model(), tmp_path)
    agree(case, model, module)
    agree(case, ef.merge_lora(model), module)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # they are used all the same
@pytest.mark.parametrize(
    "targets", [["gate_up_proj", "down_proj"], ["mlp.experts.down_proj"], ["experts.gate_up_proj"]], ids=str
)
def test_we_read_pefts_experts(targets, tmp_path):
    case = CASES["mixtral"]
    module = from_peft(
        case, tmp_path, target_modules=["q_proj"], target_parameters=targets, rank_pattern={".*down_proj": 2}
    )
    agree(case, ef.load_adapter(case.model(), tmp_path), module)


def test_experts_of_old_files(tmp_path, key):
    """Transformers 4 had a module per expert, and PEFT's older files their adapters."""
    case = CASES["mixtral"]
    model = trained(ef.apply_lora(case.model(), "experts", rank=2, alpha=4, key=key))
    _, adapter = ef.split_lora(model)
    half = adapter["model.layers.0.mlp.experts.down_proj"]
    tensors = {}
    for e in range(half.a.shape[0]):
        name = f"base_model.model.model.layers.0.block_sparse_moe.experts.{e}.w2"
        tensors |= {f"{name}.lora_A.weight": np.asarray(half.a[e]), f"{name}.lora_B.weight": np.asarray(half.b[e])}
    write(tmp_path, tensors, r=2, lora_alpha=4, target_modules=["w2"])
    _, read = ef.split_lora(ef.load_adapter(case.model(), tmp_path))
    assert list(read) == ["model.layers.0.mlp.experts.down_proj"]
    np.testing.assert_array_equal(read["model.layers.0.mlp.experts.down_proj"].a, half.a)
    np.testing.assert_array_equal(read["model.layers.0.mlp.experts.down_proj"].b, half.b)


def write(folder, tensors, **config):

    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))


# Each is several options of PEFT at once, which meet in no module or may meet there.
OPTIONS = {
    "rslora, patterns": (
        "llama",
        {
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 5},
            "alpha_pattern": {"v_proj": 9},
            "target_modules": ["q_proj", "v_proj", "up_proj"],
        },
    ),
    "regex, dropout, exclude": (
        "llama",
        {
            "target_modules": r".*\.[12]\..*(q|up)_proj",
            "exclude_modules": ["layers.1.mlp.up_proj"],
            "lora_dropout": 0.3,
        },
    ),
    "layers, biases of lora": (
        "llama",
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2], "bias": "lora_only"},
    ),
    "a bias of lora, all biases": (
        "llama",
        {"target_modules": ["k_proj", "down_proj"], "lora_bias": True, "bias": "all"},
    ),
    "norms, a head": (
        "llama",
        {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "layernorm"], "init_lora_weights": "gaussian"},
    ),
    "dora of tables and heads": ("llama", {"target_modules": ["embed_tokens", "lm_head", "o_proj"], "use_dora": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "o_proj"]}),
    "rows": (
        "llama",
        {"target_modules": ["o_proj"], "trainable_token_indices": {"embed_tokens": [90, 5, 17], "lm_head": [4]}},
    ),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "olora": ("llama", {"init_lora_weights": "olora"}),
    "tied rows": ("llama-tied", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 3, 60]}),
    "tied, saved": (
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied": ("llama-tied", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "a classifier": (
        "bert-sequence-classification",
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "lora_only"},
    ),
    "experts and routers": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": ["down_proj", "gate_up_proj", "gate.weight"]},
    ),
    "Conv1D": (
        "gpt2",
        {
            "target_modules": ["attn.c_attn"],
            "modules_to_save": ["mlp.c_proj"],
            "fan_in_fan_out": True,
            "bias": "lora_only",
        },
    ),
    "t5": (
        "t5",
        {
            "target_modules": ["q", "wo"],
            "layers_to_transform": [1],
            "layers_pattern": "block",
            "trainable_token_indices": [7, 8],
            "task_type": "SEQ_2_SEQ_LM",
        },
    ),
    "mamba2": ("mamba2", {"target_modules": ["in_proj"], "modules_to_save": ["conv1d", "norm_f"]}),
}


def content(folder):

    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.thinned("options that change the same file")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:fan_in_fan_out is set")
@pytest.mark.filterwarnings("ignore:.*eight_tying", "ignore:The following rank_pattern keys", "ignore:.*lora_bias=True")
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_peft(option, tmp_path):
    """PEFT's file to ours, and ours back to PEFT: the same names, bytes and settings, and the same logits."""
    name, config = OPTIONS[option]
    case = CASES[name]
    module = from_peft(case, tmp_path / "one", **config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    module.save_pretrained(tmp_path / "one")
    model = ef.load_adapter(case.model(), tmp_path / "one")
    agree(case, model, module)
    assert np.abs(ours(case, model) - ours(case, case.model())).max() > 1e-3
    if not config.get("lora_bias"):
        agree(case, ef.merge_lora(model), module)

    ef.save_adapter(model, tmp_path / "two", config=ef.read_adapter_config(tmp_path / "one"))
    (a, said), (b, written) = content(tmp_path / "one"), content(tmp_path / "two")
    assert set(a) == set(b)
    for key, array in a.items():
        np.testing.assert_array_equal(b[key], array, err_msg=key)
    same = lambda x: sorted(x) if isinstance(x, list) and x and isinstance(x[0], str) else x
    assert {k: same(v) for k, v in written.items()} == {k: same(v) for k, v in said.items()}
    ef.save_adapter(model, tmp_path / "three")  # in our own words
    agree(case, model, peft.PeftModel.from_pretrained(case.make(), tmp_path / "three").eval())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_on_tied_embeddings_acts_on_the_head_too(tmp_path, key):
    case = CASES["llama-tied"]
    module = from_peft(case, tmp_path / "one", target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    agree(case, ef.load_adapter(case.model(), tmp_path / "one"), module)
    model = trained(ef.apply_lora(case.model(), "embed_tokens|k_proj", rank=3, key=key))
    agree(case, model, into_peft(case, model, tmp_path / "two"))
    from_peft(case, tmp_path / "three", target_modules=["embed_tokens"])
    with pytest.raises(ef.LoadError, match="ensure_weight_tying"):
        ef.load_adapter(case.model(), tmp_path / "three")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dora_and_fan_in_fan_out(name, tmp_path, key):
    case = CASES[name]
    model = trained(ef.apply_lora(case.model(), rank=3, dora=True, key=key))
    agree(case, model, into_peft(case, model, tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["fan_in_fan_out"] is (name == "gpt2") and written["use_dora"] is True


def test_a_head_of_its_own_needs_an_untied_model(tmp_path):
    case = CASES["llama-tied"]
    for n, options in enumerate(({"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head", "q_proj"]})):
        from_peft(case, tmp_path / str(n), **{"target_modules": ["q_proj"], **options})
        with pytest.raises(ef.LoadError, match="Untie the two"):
            ef.load_adapter(case.model(), tmp_path / str(n))


OLD = {
    "with the adapter's name": lambda name: name.replace("lora_A.", "lora_A.default.").replace(
        "lora_B.", "lora_B.default."
    ),
    "without the prefix": lambda name: name.removeprefix("base_model.model."),
    "with the prefix twice": lambda name: f"base_model.model.{name}",
    "DoRA before 0.12": lambda name: name + ".weight" * name.endswith("vector"),
}


@pytest.mark.thinned("spellings of one reader")
@pytest.mark.parametrize("how", OLD)
def test_old_spellings_and_settings_without_newer_keys(how, tmp_path, key):
    case = CASES["llama"]
    model = trained(ef.apply_lora(case.model(), "q_proj", rank=3, alpha=6, dora=True, key=key))
    ef.save_adapter(model, tmp_path)
    tensors, config = content(tmp_path)
    old = {k: config[k] for k in ("r", "lora_alpha", "target_modules", "use_dora", "bias", "fan_in_fan_out")}
    write(tmp_path, {OLD[how](k): v for k, v in tensors.items()}, **old, merge_weights=True, enable_lora=None)
    again = ef.load_adapter(case.model(), tmp_path)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stacked_models_write_and_read_single_layers(tmp_path, key):
    case = CASES["llama"]
    more = {"modules_to_save": "norm", "bias": "lora_only", "trainable_token_indices": [4]}
    listed = trained(ef.apply_lora(case.model(), "q_proj|mlp", rank=3, key=key, **more))
    stacked = ef.stack(listed)
    ef.save_adapter(listed, tmp_path / "listed")
    ef.save_adapter(stacked, tmp_path / "stacked")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "listed" / file).read_bytes() == (tmp_path / "stacked" / file).read_bytes()
    again = ef.load_adapter(ef.stack(case.model()), tmp_path / "listed")
    assert jax.tree.structure(again) == jax.tree.structure(stacked)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(stacked), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.quick("io", "PEFT reads ours")
def test_the_file_is_pefts_file(tmp_path, key):
    """The keys and shapes that PEFT writes for the same adapter, the same settings, the shortest list of targets."""
    from safetensors import safe_open

    case = CASES["llama"]
    from_peft(case, tmp_path / "theirs", target_modules=["q_proj", "down_proj"])
    ef.save_adapter(
        ef.apply_lora(case.model(), "q_proj|down_proj", rank=4, alpha=6, key=key),
        tmp_path / "ours",
        config={"base_model_name_or_path": "someone/llama", "r": 99, "a_key_of_tomorrow": [1]},
    )

    def shapes(folder):
        with safe_open(tmp_path / folder / "adapter_model.safetensors", "numpy") as file:
            return {k: file.get_slice(k).get_shape() for k in file.keys()}, file.metadata()  # noqa: SIM118

    assert shapes("ours") == shapes("theirs")
    a, b = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs"))
    same = ("r", "lora_alpha", "peft_type", "fan_in_fan_out", "bias", "use_rslora", "use_dora", "rank_pattern")
    assert {k: a[k] for k in same} == {k: b[k] for k in same}
    assert sorted(a["target_modules"]) == sorted(b["target_modules"]) == ["down_proj", "q_proj"]
    assert a["base_model_name_or_path"] == "someone/llama" and a["a_key_of_tomorrow"] == [1]
    assert not list((tmp_path / "ours").glob(".*"))


def test_targets_are_whole_paths_where_a_name_would_say_too_much(tmp_path, key):
    case = CASES["llama"]
    ef.save_adapter(ef.apply_lora(case.model(), r"layers\.1\..*q_proj|v_proj", key=key), tmp_path)
    written = ef.read_adapter_config(tmp_path)
    assert written["target_modules"] == ["model.layers.1.self_attn.q_proj", "v_proj"]


def test_a_quantized_base_takes_pefts_adapter(tmp_path):
    case = CASES["llama"]
    from_peft(case, tmp_path)
    small = ef.quantize(case.model(), "8bit")
    tuned = ef.load_adapter(small, tmp_path)
    assert ef.is_quantized(tuned)
    want = ours(case, ef.load_adapter(ef.dequantize(small), tmp_path))
    np.testing.assert_allclose(ours(case, tuned), want, atol=1e-3)


def test_bfloat16_adapters_keep_their_dtype(tmp_path, key):
    case = CASES["llama"]
    model = ef.apply_lora(case.model(), "q_proj", key=key, dtype=jnp.bfloat16)
    ef.save_adapter(model, tmp_path)
    _, adapter = ef.split_lora(ef.load_adapter(case.model(), tmp_path))
    assert {w.a.dtype for w in adapter.values()} == {jnp.dtype(jnp.bfloat16)}
    _, adapter = ef.split_lora(ef.load_adapter(case.model(), tmp_path, dtype=jnp.float32))
    assert {w.a.dtype for w in adapter.values()} == {jnp.dtype(jnp.float32)}


# --- bad input


@pytest.mark.parametrize(
    "change,message",
    [
        ({"peft_type": "XLORA"}, "peft_type is 'XLORA'"),
        ({"use_qalora": True}, "use_qalora=True changes the result"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"a_key_of_tomorrow": True}, "a_key_of_tomorrow=True is unknown"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "'loftq' changed the base"),
        ({"use_dora": True}, "use_dora=True, and the file has no magnitude"),
        ({"r": 5}, "rank 4.*says 5"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_settings_that_change_the_result_are_refused_by_name(change, message, tmp_path):
    case = CASES["llama"]
    _saved(tmp_path, case)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ef.LoadError, match=message):
        ef.load_adapter(case.model(), tmp_path)


def test_what_pefts_settings_cannot_say(tmp_path, key):
    case = CASES["llama"]
    for pattern, more, message in (
        ("q_proj", {"modules_to_save": "mlp.up_proj.bias|q_proj.bias"}, "saves whole modules"),
        ("lm_head", {"modules_to_save": "^model.layers.0.self_attn.q_proj.weight", "bias": "all"}, None),
        ("embed_tokens|experts", {}, None),
    ):
        model = ef.apply_lora(case.model(), pattern, key=key, **more)
        if message is None:
            ef.save_adapter(model, tmp_path)
            assert jax.tree.structure(ef.load_adapter(case.model(), tmp_path)) == jax.tree.structure(model)
            continue
        with pytest.raises(ValueError, match=message):
            ef.save_adapter(model, tmp_path)
    base = CASES["llama-base"].model()
    with pytest.raises(ValueError, match="would make PEFT train"):
        ef.save_adapter(ef.apply_lora(base, "q_proj", key=key, modules_to_save="^norm"), tmp_path)
    for name, pattern, init in (("gpt2", "c_attn", "olora"), ("mixtral", "experts.down_proj", "pissa")):
        with pytest.raises(ValueError, match="started by changing the base"):  # PEFT cannot read its own
            ef.save_adapter(ef.apply_lora(CASES[name].model(), pattern, rank=2, init=init, key=key), tmp_path)
    with pytest.raises(ValueError, match="a decoder alone"):
        ef.save_adapter(ef.apply_lora(CASES["t5"].model(), "shared", key=key), tmp_path)
    with pytest.raises(ValueError, match="two weights in PEFT"):
        ef.save_adapter(ef.apply_lora(CASES["llama-tied"].model(), "embed_tokens", dora=True, key=key), tmp_path)


def _saved(folder, case):
    ef.save_adapter(ef.apply_lora(case.model(), "q_proj", rank=4, key=jax.random.key(0)), folder)


def test_all_errors_come_together(tmp_path):
    case = CASES["llama"]
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {
        name.format(0, "A"): np.zeros((8, 5), np.float32),
        name.format(0, "B"): np.zeros((96, 8), np.float32),
        name.format(1, "A"): np.zeros((8, 48), np.float32),
        name.format(7, "A"): np.zeros((8, 48), np.float32),
    }
    write(tmp_path, tensors, r=8, lora_alpha=8, target_modules=["q_proj"])
    with pytest.raises(ef.LoadError) as error:
        ef.load_adapter(case.model(), tmp_path)
    text = str(error.value)
    assert "(8, 5)" in text and "only a of the adapter" in text and "layers.7" in text


@pytest.mark.quick("io", "old PEFT files")
def test_missing_and_foreign_files(tmp_path, key):
    case = CASES["llama"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        ef.load_adapter(case.model(), tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="someone/adapter"):
        ef.load_adapter(case.model(), "someone/adapter", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ef.LoadError, match=r"no adapter_config\.json"):
        ef.load_adapter(case.model(), tmp_path)
    _saved(tmp_path, case)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ef.LoadError, match="pickle"):
        ef.load_adapter(case.model(), tmp_path)
    with pytest.raises(ValueError, match="no adapter"):
        ef.save_adapter(case.model(), tmp_path)
    mixed = ef.apply_lora(ef.apply_lora(case.model(), "q_proj", key=key), "k_proj", dora=True, key=key)
    with pytest.raises(ValueError, match="one use_dora"):
        ef.save_adapter(mixed, tmp_path)
    random = ef.apply_lora(case.model(), "q_proj", init="pissa_niter_2", key=key)
    with pytest.raises(ValueError, match="started by changing the base"):
        ef.save_adapter(random, tmp_path)
    base, adapter = ef.split_lora(random)  # as the message says: with its own base it is a plain one
    plain = {p: dataclasses.replace(w, start=None) for p, w in adapter.items()}
    folder = ef.save_adapter(ef.join_lora(ef.load(ef.save(base, tmp_path / "base")), plain), tmp_path / "plain")
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    agree(case, random, peft.PeftModel.from_pretrained(whole, folder).eval())
    with pytest.raises(ValueError, match="moved a part"):
        ef.remove_lora(random)


def test_an_adapter_of_the_base_model_fits_its_heads(tmp_path, key):
    """`model.layers...` and `layers...` are one weight: an adapter moves between tasks."""
    case = CASES["llama"]
    tuned = trained(ef.apply_lora(case.model(), "q_proj", key=key))
    ef.save_adapter(tuned, tmp_path)
    base = ef.load_adapter(case.model().model, tmp_path)
    np.testing.assert_array_equal(
        base.layers[1].self_attn.q_proj.weight.a, tuned.model.layers[1].self_attn.q_proj.weight.a
    )


@pytest.mark.thinned("names follow from rules that test_io.py holds on each family")
@pytest.mark.parametrize("name", [n for n, c in (CASES | IMAGES).items() if not c.variant])
def test_names_are_those_of_modules(name):
    """Adapters are named after the modules of transformers, also where its files have older names."""
    from easyfn.io.peft.names import tensor_names

    case = (CASES | IMAGES)[name]
    module = case.torch()
    model = ef.abstract(ef.read_config(module.config), task=case.task)
    none = {n for n in tensor_names(model) if n.endswith("e_score_correction_bias")}  # which no adapter is for
    if name in (
        "dbrx",
        "switch_transformers",
    ):  # whose experts' adapters are refused: test_experts_that_peft_does_not_know
        none |= {n for n in tensor_names(model) if ".experts." in n}
    assert {*tensor_names(model)} - none <= {*module.state_dict()}


@pytest.mark.parametrize("name", ["dbrx", "switch_transformers"])
def test_experts_that_peft_does_not_know(tmp_path, key, name):
    """Rows of one matrix, or a module for each expert: no file of PEFT's would be read as ours is."""
    case = CASES[name]
    model = ef.apply_lora(ef.from_torch(case.torch(), task=case.task), "experts", rank=2, key=key)
    with pytest.raises(ValueError, match="transformers has the experts as"):
        ef.save_adapter(model, tmp_path)


def test_an_adapter_on_weights_that_layers_share(tmp_path):
    """PEFT has one for each use: all are written, and read where they are alike."""
    model = CASES["zamba2"].model()
    adapted = ef.apply_lora(model, "shared.*down_proj", rank=2, key=jax.random.key(0))
    ef.save_adapter(adapted, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    uses = sorted({int(name.split("layers.")[1].split(".")[0]) for name in tensors})
    assert uses == [i for i, kind in enumerate(model.config.layers_block_type) if kind == "hybrid"]
    again = ef.load_adapter(model, tmp_path)
    for a, b in zip(jax.tree.leaves(ef.split_lora(adapted)[1]), jax.tree.leaves(ef.split_lora(again)[1]), strict=True):
        assert np.array_equal(a, b)
    name = next(n for n in tensors if f"layers.{uses[-1]}." in n)
    save_file(tensors | {name: tensors[name] + 1}, file)
    with pytest.raises(ef.LoadError, match=r"an adapter for each layer.*exclude_modules=r'\.\*shared_transformer"):
        ef.load_adapter(model, tmp_path)
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    with pytest.raises(ef.LoadError, match="share these weights"):
        ef.load_adapter(model, tmp_path)
