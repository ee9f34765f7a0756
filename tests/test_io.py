"""Files: what transformers writes we read, what we write transformers reads, and nothing else gets through."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file as safetensors_numpy, save_file as save_numpy

import easyfn as ef
from cases import CASES, COMPOSED, IMAGES, in_test_all, names
from easyfn.io import safetensors
from easyfn.io.checkpoint import inside

TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def tiny(**more):
    return ef.init(ef.models.LlamaConfig(**{**TINY, **more}), key=jax.random.key(1))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder that transformers writes for a case, in a dtype: made once."""
    made = {}

    def folder(name, dtype="float32", shard="50GB"):
        if (name, dtype, shard) not in made:
            import copy

            import torch
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
            path = tmp_path_factory.mktemp(name)
            hf = (CASES | IMAGES)[name].torch()
            hf = hf if dtype == "float32" else copy.deepcopy(hf).to(getattr(torch, dtype))
            hf.save_pretrained(path, max_shard_size=shard)
            made[name, dtype, shard] = path
        return made[name, dtype, shard]

    return folder


def raw(folder):
    """Every tensor of a folder as (dtype, shape, bytes), read by our header and checked by the safetensors package."""
    found = {}
    for file in folder.glob("*.safetensors"):
        header, metadata = safetensors.read_header(file)
        assert metadata["format"] == "pt"
        found |= {n: (i.dtype, i.shape, safetensors.read(i).tobytes()) for n, i in header.items()}
    return found


def assert_same(a, b):
    a, b = ef.params(a), ef.params(b)
    assert list(a) == list(b)
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


# --- parity with transformers, for every case


@pytest.mark.quick(
    "io",
    "files come back byte for byte: plain, renamed, experts, recurrence, an encoder-decoder",
    rows=["llama", "gpt2", "mixtral", "mamba2", "t5"],
)
@pytest.mark.parametrize("name", names(files=True))
def test_load_save_is_byte_for_byte(name, folders, tmp_path):
    theirs = folders(name)
    model = ef.load(theirs)
    assert ef.task(model) == CASES[name].task
    assert_same(model, CASES[name].model())
    ef.save(model, tmp_path)
    assert raw(tmp_path) == raw(theirs)
    hf = CASES[name].torch()
    back, report = type(hf).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for (key, a), b in zip(hf.state_dict().items(), back.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and a.equal(b), key
    private = lambda config: {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    assert private(back.config) == private(type(hf).from_pretrained(theirs).config)
    if hf.can_generate():
        assert back.generation_config.to_dict() == hf.generation_config.to_dict()


@pytest.mark.quick("io", "torch and back", rows=["llama"])
@pytest.mark.thinned("a module takes the tensors of a file, and every family's file is compared byte for byte above")
@pytest.mark.parametrize("name", in_test_all(names(variant=False), CASES))
def test_to_torch_and_back(name):
    hf, model = CASES[name].torch(), CASES[name].model()
    assert_same(ef.from_torch(hf, task=CASES[name].task), model)
    module = ef.to_torch(model)
    assert type(module) is type(hf) is ef.torch_class(model) and not module.training
    for (key, a), b in zip(hf.state_dict().items(), module.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and a.equal(b), key


@pytest.mark.parametrize("name", in_test_all(COMPOSED, names(variant=False, files=True)))
def test_stacked_is_loaded_and_saved_alike(name, folders, tmp_path):
    theirs = folders(name)
    stacked = ef.load(theirs, stack=True)
    assert_same(stacked, ef.stack(ef.load(theirs)))
    ef.save(stacked, tmp_path)
    assert raw(tmp_path) == raw(theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_sharded_in_16_bits(name, dtype, folders, tmp_path):
    theirs = folders(name, dtype, "40KB")
    assert len(list(theirs.glob("*.safetensors"))) > 1
    model = ef.load(theirs)
    assert ef.dtype_of(model) == dtype
    ef.save(model, tmp_path, max_shard_size="30KB")
    assert raw(tmp_path) == raw(theirs)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in raw(theirs).values())
    hf = CASES[name].torch()
    back = type(hf).from_pretrained(tmp_path)
    assert str(back.dtype) == f"torch.{dtype}"
    assert all(
        a.to(b.dtype).equal(b) for a, b in zip(hf.state_dict().values(), back.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_transformers_computes_the_same_logits_from_our_folder(name, tmp_path):
    import torch

    hf = CASES[name].torch()
    ef.save(CASES[name].model(), tmp_path)
    ids = torch.arange(3, 20)[None]
    back = type(hf).from_pretrained(tmp_path, attn_implementation="eager").eval()
    module = ef.to_torch(CASES[name].model()).eval()
    module.set_attn_implementation("eager")
    with torch.no_grad():
        want = hf(ids).logits
        assert back(ids).logits.equal(want)
        assert module(ids).logits.equal(want)
    ours = ef.forward(ef.load(tmp_path), ids.numpy()).logits
    np.testing.assert_allclose(np.asarray(ours), want.numpy(), atol=1e-4)


def test_dtype_on_load_and_save_rounds_as_torch_does(folders, tmp_path):
    hf = CASES["gpt2"].torch()
    for dtype in ("bfloat16", "float16"):
        model = ef.load(folders("gpt2"), dtype=dtype)
        assert ef.dtype_of(model) == dtype
        ef.save(ef.load(folders("gpt2")), tmp_path, dtype=dtype)
        assert_same(ef.load(tmp_path), model)
        want = hf.transformer.h[1].mlp.c_fc.weight.to(getattr(__import__("torch"), dtype))
        assert ef.to_torch(model).transformer.h[1].mlp.c_fc.weight.equal(want)


def test_mixed_dtypes_survive(tmp_path):
    model = ef.cast(tiny(), jnp.bfloat16, "proj")
    ef.save(model, tmp_path)
    assert_same(ef.load(tmp_path), model)
    module = ef.to_torch(model)
    assert str(module.model.norm.weight.dtype) == "torch.float32"
    assert str(module.model.layers[0].mlp.up_proj.weight.dtype) == "torch.bfloat16"


# --- tasks and heads


def test_heads_come_and_go(folders):
    lm = ef.load(folders("llama"))
    base = ef.load(folders("llama"), task="base")
    assert_same(base, lm.model)
    with pytest.raises(ef.LoadError, match=r"nothing for score.weight.*pass key=jax.random.key"):
        ef.load(folders("llama"), task="sequence-classification")
    classifier = ef.load(folders("llama"), task="sequence-classification", key=jax.random.key(0))
    assert_same(classifier.model, lm.model)
    assert classifier.score.weight.shape == (2, 48) and float(jnp.std(classifier.score.weight)) > 0.01
    again = ef.load(folders("llama-base"), task="causal-lm", key=jax.random.key(0))
    assert again.lm_head.weight.shape == (97, 48)


@pytest.mark.thinned("names of a model with its head, and without it")
@pytest.mark.parametrize(
    "name", ["exaone", "nemotron_h", "deepseek_v4", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3_5"]
)
def test_a_base_model_from_a_file_whose_head_has_other_names(folders, name):
    assert_same(ef.load(folders(name), task="base"), ef.load(folders(name), task="causal-lm").model)


def test_gpt2_without_its_prefix(folders, tmp_path):
    """The hub's GPT-2 has no `transformer.` in its names, and holds buffers that are no weights."""
    tensors = safetensors_numpy(folders("gpt2") / "model.safetensors")
    bare = {k.removeprefix("transformer."): v for k, v in tensors.items()}
    bare |= {f"h.{i}.attn.bias": np.ones((1, 1, 64, 64), np.float32) for i in range(3)}
    _write(tmp_path, bare, folders("gpt2"))
    assert_same(ef.load(tmp_path), ef.load(folders("gpt2")))
    assert_same(ef.load(tmp_path, task="base"), ef.load(folders("gpt2")).model)


def test_tensors_of_nothing_are_left(folders, tmp_path):
    """Transformers writes the matrices of no shared experts (`n_shared_experts=0`)."""
    tensors = safetensors_numpy(folders("llama") / "model.safetensors")
    nothing = {"model.layers.1.mlp.shared_experts.up_proj.weight": np.zeros((0, 48), np.float32)}
    _write(tmp_path, {**tensors, **nothing}, folders("llama"))
    assert_same(ef.load(tmp_path), ef.load(folders("llama")))


def test_experts_in_one_tensor(folders):
    """A bare `state_dict()` of transformers holds the experts joined; its files hold them one by one."""
    state = {k: v.numpy() for k, v in CASES["mixtral"].torch().state_dict().items()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in state
    model = ef.load(folders("mixtral"))
    assert_same(ef.from_state_dict(model.config, state), model)


def test_a_tied_twin_in_the_file_must_be_equal(folders, tmp_path):
    tensors = safetensors_numpy(folders("llama-tied") / "model.safetensors")
    _write(tmp_path, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, folders("llama-tied"))
    assert_same(ef.load(tmp_path), ef.load(folders("llama-tied")))
    _write(tmp_path, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, folders("llama-tied"))
    with pytest.raises(ef.LoadError, match=r"unexpected tensor 'lm_head.weight'.*tie_word_embeddings"):
        ef.load(tmp_path)
    untied = ef.load(tmp_path, config_overrides={"tie_word_embeddings": False})
    assert untied.lm_head is not None


# --- meshes, quantization, memory


@pytest.mark.quick("io", "onto a mesh")
def test_load_onto_a_mesh(folders, tmp_path):
    mesh = ef.make_mesh(fsdp=8)
    for name in ("llama", "gpt2", "mixtral"):
        if name not in CASES:
            continue
        for stack in (False, True):
            plain = ef.load(folders(name), stack=stack)
            placed = ef.load(folders(name), mesh=mesh, stack=stack)
            want = ef.shard(plain, mesh=mesh)
            assert_same(placed, want)
            for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(want), strict=True):
                assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
            assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
            ef.save(placed, tmp_path)
            assert raw(tmp_path) == raw(folders(name))


@pytest.mark.quick("io", "quantized on the way", rows=["False"])
@pytest.mark.parametrize("stack", [False, True])
def test_quantize_while_loading(folders, tmp_path, stack):
    cfg = ef.QuantConfig("8bit")
    whole = ef.quantize(ef.load(folders("llama"), stack=stack), cfg)
    streamed = ef.load(folders("llama"), quantize=cfg, stack=stack)
    assert_same(streamed, whole)
    ef.save(streamed, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"]
    again = ef.load(tmp_path, stack=stack)
    assert_same(again, whole)
    assert jax.tree.structure(again) == jax.tree.structure(whole)
    mesh = ef.make_mesh(fsdp=2, tp=1, dp=4)
    assert_same(ef.load(tmp_path, stack=stack, mesh=mesh), whole)
    assert_same(ef.load(folders("llama"), quantize=cfg, stack=stack, mesh=mesh), whole)


@pytest.mark.parametrize(
    "name, methods",
    [  # rows of one matrix; `(experts, out, in)`; `(experts, in, out)`
        ("dbrx", ["8bit", "nf4", "fp8"]),
        ("granitemoe", ["8bit", "int4"]),
        ("gpt_oss", ["nf4"]),
    ],
)
def test_quantized_experts_that_a_file_has_in_one_tensor(name, methods, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": 3, "num_hidden_layers": 2}
    sizes |= {"num_experts_per_tok": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    if name == "dbrx":
        experts = ef.models.dbrx.DbrxFFNConfig(ffn_hidden_size=64, moe_num_experts=3)
        sizes = {"d_model": 64, "n_heads": 2, "n_layers": 2, "ffn_config": experts}
    known = ef.families()[name]
    model = ef.init(known.config(vocab_size=40, **sizes), key=jax.random.key(0))
    for method in methods:
        quantized = ef.quantize(model, method)
        ef.save(ef.stack(quantized), tmp_path / method)
        assert_same(ef.load(tmp_path / method), quantized)


@pytest.mark.parametrize(
    ("name", "today", "older"),
    [
        ("t5", "shared.weight", "decoder.embed_tokens.weight"),
        ("mamba2", "backbone.embeddings.weight", "backbone.embedding.weight"),
    ],
)
def test_older_names_of_a_tensor(folders, tmp_path, name, today, older):
    shutil.copy(folders(name) / "config.json", tmp_path)
    held = safetensors_numpy(folders(name) / "model.safetensors")
    save_numpy({older if n == today else n: v for n, v in held.items()}, tmp_path / "model.safetensors")
    assert_same(ef.load(tmp_path), ef.load(folders(name)))


def test_an_unknown_quantization_is_refused(folders, tmp_path):
    shutil.copytree(folders("llama"), tmp_path, dirs_exist_ok=True)
    _edit(tmp_path, quantization_config={"quant_method": "mystery"})
    with pytest.raises(ValueError, match="quantized with 'mystery'"):
        ef.load(tmp_path)


def test_loaded_arrays_may_be_donated(folders):
    """Loaded arrays are the memory that was read into, not copies: XLA must not write into it, nor free it."""
    model = ef.load(folders("llama"))
    want = np.asarray(model.lm_head.weight).copy()
    double = jax.jit(lambda m: jax.tree.map(lambda x: x * 2, m), donate_argnums=0)
    once = double(model)
    twice = double(once)
    np.testing.assert_array_equal(np.asarray(twice.lm_head.weight), want * 4)


def test_every_array_is_aligned_and_read_in_place(folders):
    model = ef.load(folders("llama"))
    assert all(leaf.unsafe_buffer_pointer() % 64 == 0 for leaf in jax.tree.leaves(model))


def test_tensors_of_a_saved_file_start_at_multiples_of_64(tmp_path):
    ef.save(tiny(vocab_size=63, hidden_size=36, num_attention_heads=6), tmp_path)
    header, _ = safetensors.read_header(tmp_path / "model.safetensors")
    assert any(i.nbytes % 64 for i in header.values())
    assert all(i.offset % 64 == 0 for i in header.values() if i.nbytes % 64 == 0)
    assert set(safetensors_numpy(tmp_path / "model.safetensors")) == set(header)


# --- state dicts


def test_state_dicts_of_three_libraries():
    import torch

    model = tiny()
    tensors = ef.to_state_dict(model)
    config = model.config
    assert_same(ef.from_state_dict(config, tensors), model)
    assert_same(ef.from_state_dict(config, {k: np.asarray(v) for k, v in tensors.items()}), model)
    half = {k: torch.from_numpy(np.array(v)).bfloat16() for k, v in tensors.items()}
    assert_same(ef.from_state_dict(config, half), ef.cast(model, "bfloat16"))
    assert_same(
        ef.from_state_dict(config, half, dtype="float32", stack=True),
        ef.stack(ef.cast(ef.cast(model, "bfloat16"), "float32")),
    )
    with pytest.raises(ef.LoadError, match="missing tensor"):
        ef.from_state_dict(config, {k: v for k, v in tensors.items() if "layers.1" not in k})


def test_to_state_dict_under_jit_and_abstract():
    model = ef.init(CASES["gpt2"].model().config, key=jax.random.key(0))
    want = ef.to_state_dict(model)
    traced = jax.jit(ef.to_state_dict)(ef.stack(model))
    shapes = ef.to_state_dict(jax.eval_shape(lambda: model))
    assert set(want) == set(traced) == set(shapes) and "transformer.h.2.attn.c_attn.weight" in want
    for name in want:
        np.testing.assert_array_equal(np.asarray(want[name]), np.asarray(traced[name]))
        assert shapes[name].shape == want[name].shape


def test_torch_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"easyfn\[torch\]"):
        ef.to_torch(tiny())


def test_from_torch_wants_a_transformers_model():
    with pytest.raises(TypeError, match="from_state_dict"):
        ef.from_torch(np.ones(3))


# --- bad input: one message tells everything


def _write(folder, tensors, like):
    shutil.copy(like / "config.json", folder)
    if (like / "generation_config.json").exists():
        shutil.copy(like / "generation_config.json", folder)
    shapes = {k: (v.shape, v.dtype) for k, v in tensors.items()}
    safetensors.write(folder / "model.safetensors", shapes, tensors.values(), {"format": "pt"})


def _edit(folder, **changes):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))


@pytest.mark.quick("io", "all problems are told at once")
def test_all_problems_of_a_load_are_told_together(folders, tmp_path):
    tensors = safetensors_numpy(folders("llama") / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T.copy()
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    tensors["model.layers.0.mlp.extra.weight"] = np.ones((2, 3), np.float32)
    tensors["model.layers.7.mlp.up_proj.weight"] = np.ones((2, 3), np.float32)
    _write(tmp_path, tensors, folders("llama"))
    for key in (None, jax.random.key(0)):  # a key draws new heads, never lost layers
        with pytest.raises(ef.LoadError) as error:
            ef.load(tmp_path, key=key)
        text = str(error.value)
        assert str(tmp_path) in text and len(error.value.problems) == 5
        assert "missing tensor 'model.layers.1.mlp.up_proj.weight'" in text
        assert "model.layers.0.mlp.up_proj.weight: the model has (80, 48), tensor" in text and "(48, 80)" in text
        assert "'model.norm.weight' holds int32" in text
        assert "unexpected tensor 'model.layers.0.mlp.extra.weight' of shape (2, 3)" in text
        assert "'model.layers.7.mlp.up_proj.weight'" in text


def test_wrong_vocabulary(folders):
    with pytest.raises(ef.LoadError, match=r"embed_tokens.weight: the model has \(98, 48\).*vocab_size=98"):
        ef.load(folders("llama"), config_overrides={"vocab_size": 98})


def test_unreadable_shards(folders, tmp_path):
    shutil.copytree(folders("llama", "bfloat16", "40KB"), tmp_path, dirs_exist_ok=True)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    files[0].unlink()
    with open(files[1], "r+b") as f:
        f.truncate(files[1].stat().st_size - 5)
    with pytest.raises(ef.LoadError) as error:
        ef.load(tmp_path)
    assert f"names {files[0].name}" in str(error.value) and f"{files[1].name}: tensor" in str(error.value)
    assert "truncated" in str(error.value)


@pytest.mark.quick("io", "an index stays inside its folder")
@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../x.safetensors", "C:\\x", "..\\x", ""])
def test_an_index_stays_inside_its_folder(name, folders, tmp_path):
    shutil.copy(folders("llama") / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ef.LoadError, match="outside its folder"):
        ef.load(tmp_path)


def test_links_out_of_the_folder(folders, tmp_path):
    """The hub's own cache links snapshots/<commit>/file to blobs/; other links that leave the folder are refused."""
    cache = tmp_path / "models--user--name"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True), (cache / "blobs").mkdir()
    (cache / "blobs" / "1").write_bytes(b"x"), (tmp_path / "secret").write_bytes(b"x")
    (snapshot / "good.safetensors").symlink_to("../../blobs/1")
    (snapshot / "bad.safetensors").symlink_to("../../../secret")
    assert inside(snapshot, "good.safetensors").exists()
    with pytest.raises(ef.LoadError, match="outside its folder"):
        inside(snapshot, "bad.safetensors")


def test_folders_without_safetensors(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ef.load("./nowhere")
    with pytest.raises(ef.LoadError, match=r"no config\.json"):
        ef.load(tmp_path)
    shutil.copy(folders("llama") / "config.json", tmp_path)
    with pytest.raises(ef.LoadError, match=r"no model\.safetensors"):
        ef.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ef.LoadError, match=r"pytorch_model\.bin.*unpickling.*save_pretrained"):
        ef.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ef.LoadError, match="load_adapter"):
        ef.load(tmp_path)
    with pytest.raises(ef.LoadError, match="give the folder"):
        ef.load(tmp_path / "config.json")


def _file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _f32(*shape, at=(0, 8)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(at)}


LIES = {
    "empty": (b"", "too few"),
    "huge header": (_file({}, length=1 << 60), "more than"),
    "header past the end": (_file({}, length=1000), "truncated"),
    "no JSON": (_file(b"{nonsense"), "no JSON"),
    "not text": (_file(b"\xff\xfe\xfd"), "no JSON"),
    "deep JSON": (_file(b"[" * 100_000), "no JSON"),
    "a list": (_file([]), "no JSON object"),
    "twice": (_file(b'{"a":1,"a":2}'), "twice"),
    "no offsets": (_file({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "no dtype, shape and data_offsets"),
    "negative shape": (_file({"a": _f32(-1, -2)}, bytes(8)), "natural"),
    "boolean shape": (_file({"a": _f32(True, 2)}, bytes(8)), "natural"),
    "negative offset": (_file({"a": _f32(2, at=(-8, 0))}, bytes(8)), "natural"),
    "dtype": (_file({"a": {**_f32(2), "dtype": "F31"}}, bytes(8)), "dtype 'F31'"),
    "half a byte": (_file({"a": {**_f32(2), "dtype": "F4"}}, bytes(1)), "dtype 'F4'"),
    "size": (_file({"a": _f32(3)}, bytes(8)), "needs 12 bytes"),
    "overflow": (_file({"a": _f32(1 << 40, 1 << 40)}, bytes(8)), "needs"),
    "past the end": (_file({"a": _f32(2)}, bytes(7)), "truncated"),
    "overlap": (_file({"a": _f32(2), "b": _f32(2, at=(4, 12))}, bytes(12)), "overlaps"),
    "hole": (_file({"a": _f32(2), "b": _f32(2, at=(12, 20))}, bytes(20)), "hole"),
    "trailing bytes": (_file({"a": _f32(2)}, bytes(9)), "tensors end at"),
}


@pytest.mark.quick("io", "headers lie")
@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie, tmp_path):
    content, message = LIES[lie]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(safetensors.BadFile, match=message):
        safetensors.read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", list(safetensors.DTYPES))
def test_every_dtype(kind, tmp_path):
    dtype = safetensors.DTYPES[kind]
    bits = np.random.RandomState(0).randint(0, 2 if kind == "BOOL" else 255, (3, 5 * dtype.itemsize), np.uint8)
    array = bits.view(dtype)
    shapes = {"a": (array.shape, dtype), "scalar": ((), dtype), "none": ((0, 4), dtype)}
    safetensors.write(tmp_path / "x", shapes, [array, np.asarray(array[0, 0]), np.zeros((0, 4), dtype)])
    found, _ = safetensors.read_header(tmp_path / "x")
    assert safetensors.read(found["a"]).tobytes() == array.tobytes()
    assert safetensors.read(found["scalar"]).tobytes() == array[0, 0].tobytes()
    assert safetensors.read(found["none"]).shape == (0, 4)
    from safetensors import safe_open

    with safe_open(tmp_path / "x", "pt") as file:
        assert set(file.keys()) == set(shapes)


# --- save


def test_views_are_saved_by_their_values(tmp_path):
    """A transposed or strided view is no run of bytes: safetensors' own writer takes the memory behind it."""
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"turned": whole.T, "every second": whole[:, ::2], "backwards": whole[::-1]}
    ef.save(views, tmp_path / "x.safetensors")
    for name, found in ef.load_params(views, tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(found, views[name])


def test_save_refuses(tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match="abstract"):
        ef.save(ef.abstract(model.config), tmp_path)
    with pytest.raises(ValueError, match=r"merge_lora.*save_adapter"):
        ef.save(ef.apply_lora(model, "q_proj", rank=2, key=jax.random.key(0)), tmp_path)
    for size in ("5 parsecs", 0, "-1GB", "0GB"):
        with pytest.raises(ValueError, match="max_shard_size"):
            ef.save(model, tmp_path, max_shard_size=size)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        ef.save(model, tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_merged_lora_is_saved(tmp_path):
    model = ef.apply_lora(tiny(), "q_proj", rank=2, key=jax.random.key(0))
    ef.save(ef.merge_lora(model), tmp_path)
    assert_same(ef.load(tmp_path), ef.merge_lora(model))


@pytest.mark.parametrize("exchange", [True, False])
def test_save_keeps_other_files_and_drops_stale_shards(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr("easyfn.core.atomic.exchange", lambda a, b: False)
    folder = tmp_path / "model"
    ef.save(tiny(), folder, max_shard_size="10KB")
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir(), (folder / "sub" / "notes.txt").write_text("hello")
    model = tiny(num_hidden_layers=1)
    ef.save(model, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "sub", "tokenizer.json"]
    assert (folder / "sub" / "notes.txt").read_text() == "hello"
    assert_same(ef.load(folder), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_save_into_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ef.save(tiny(), ".")
    ef.save(tiny(num_hidden_layers=1), ".")
    assert os.listdir(".") and len(ef.load(".").model.layers) == 1


@pytest.mark.quick("io", "a failed save leaves the old model")
def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    old = tiny()
    ef.save(old, folder)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("easyfn.io.save.write_document", full)
    with pytest.raises(OSError, match="No space"):
        ef.save(tiny(num_hidden_layers=1), folder)
    monkeypatch.undo()
    assert_same(ef.load(folder), old)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_killed_save_leaves_the_old_or_the_new(tmp_path):
    program = """
import sys, jax, easyfn as ef
models = [ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=n,
          num_attention_heads=4), key=jax.random.key(0)) for n in (1, 4)]
for turn in range(10**9):
    ef.save(models[turn % 2], sys.argv[1], max_shard_size="20KB" if turn % 2 else "1GB")
    print(turn, flush=True)
"""
    folder = tmp_path / "model"
    random = np.random.RandomState(0)
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as process:
        try:
            for _ in range(3):
                process.stdout.readline()
            for _ in range(20):  # stop it anywhere, look, let it go on
                time.sleep(random.uniform(0.001, 0.01))
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
                model = ef.load(folder)
                assert len(model.model.layers) == model.config.num_hidden_layers
                process.send_signal(signal.SIGCONT)
        finally:
            process.kill()
    ef.load(folder)


def test_steps(tmp_path):
    model = tiny()
    assert ef.save(model, tmp_path, step=20) == tmp_path / "checkpoint-20"
    from transformers.trainer_utils import get_last_checkpoint

    assert_same(ef.load(get_last_checkpoint(str(tmp_path))), model)


def test_config_json_of_a_model_made_here(tmp_path):
    ef.save(ef.cast(tiny(), "bfloat16"), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert (
        data["architectures"] == ["LlamaForCausalLM"] and data["model_type"] == "llama" and data["dtype"] == "bfloat16"
    )
    base = ef.load(tmp_path, task="base")
    ef.save(base, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaModel"]
    assert_same(ef.load(tmp_path), base)


def test_generation_config_travels(folders, tmp_path):
    shutil.copytree(folders("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "eos_token_id": [2, 3]}))
    model = ef.load(tmp_path)
    assert model.config.generation["eos_token_id"] == (2, 3)
    ef.save(model, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"temperature": 0.7, "eos_token_id": [2, 3]}


def test_a_saved_model_loads_as_the_same_tree(tmp_path):
    """Structure included: a jitted function does not compile anew for it, and `jax.tree.map` runs over both."""
    config = ef.models.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = ef.init(config, key=jax.random.key(0))
    ef.save(model, tmp_path / "model")
    assert jax.tree.structure(ef.load(tmp_path / "model", progress=False)) == jax.tree.structure(model)
