"""Checkpoints behind URLs: read by ranges of bytes, written so that a crash leaves the old model or the new one."""

import json
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import easyfn as ef
from easyfn.io import remote

CONFIG = ef.models.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
)
URL = "memory://bucket/models/llama"


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.fixture
def store():
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pseudo_dirs[:] = [""]
    return found


def names(store):
    return sorted(path.rpartition("/")[2] for path in store.ls("/bucket/models/llama", detail=False))


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.quick("io", "behind a URL")
def test_there_and_back(model, store):
    assert ef.save(model, URL) == URL
    assert names(store) == ["config.json", "model.safetensors"]
    assert_same(ef.load(URL), model)
    assert_same(ef.load(URL + "/", stack=True), ef.stack(model))
    assert ef.read_config(URL) == ef.load(URL).config
    assert ef.num_params(ef.abstract(URL)) == ef.num_params(model)
    ef.save(model, "memory://bucket/models", step=7, max_shard_size="20KB")
    assert_same(ef.load("memory://bucket/models/checkpoint-7"), model)


def test_the_same_bytes_as_on_disk(model, store, tmp_path):
    ef.save(model, URL, max_shard_size="20KB")
    ef.save(model, tmp_path, max_shard_size="20KB")
    for path in tmp_path.iterdir():
        assert store.cat_file(f"/bucket/models/llama/{path.name}") == path.read_bytes()
    assert_same(ef.load(f"file://{tmp_path}"), model)
    ef.save(model, f"file://{tmp_path}/again")
    assert_same(ef.load(tmp_path / "again"), model)


def test_a_new_model_in_the_place_of_an_old_one(model, store, monkeypatch):
    other = jax.tree.map(lambda x: x + 1, model)
    ef.save(model, URL)
    pipe = MemoryFileSystem.pipe_file

    def crash(self, path, value, **more):
        if path.endswith("index.json"):
            raise OSError("the connection is lost")
        pipe(self, path, value, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", crash)
    with pytest.raises(OSError, match="lost"):
        ef.save(other, URL)
    assert_same(ef.load(URL), model)  # the old one
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe)
    ef.save(other, URL)
    assert_same(ef.load(URL), other)
    left = names(store)
    assert len(left) == 3 and "model.safetensors" not in left  # nothing of the old one, nor of the crash
    ef.save(model, URL, max_shard_size="20KB")
    index = json.loads(store.cat_file(f"/bucket/models/llama/{remote.INDEX}"))
    assert {n for n in names(store) if n.endswith(".safetensors")} == set(index["weight_map"].values())
    assert_same(ef.load(URL), model)


def test_another_checkpoint_there_is_told_of_refused_or_gone(model, store):
    ef.save(model, URL)
    store.pipe_file("/bucket/models/llama/tokenizer.json", b"{}")
    other = ef.testing.tiny(hidden_size=64)
    with pytest.raises(FileExistsError, match=rf"{URL} holds another llama model .*overwrite=True"):
        ef.save(other, URL, overwrite=False)
    ef.save(other, URL)
    assert "tokenizer.json" in names(store)
    ef.save(model, URL)
    ef.save(other, URL, overwrite=True)
    assert_same(ef.load(URL), other)
    assert "tokenizer.json" not in names(store)


def test_transformers_reads_what_was_replaced(model, store, tmp_path):
    from transformers import LlamaForCausalLM

    for _ in range(2):
        ef.save(model, URL, max_shard_size="20KB")
    store.get("/bucket/models/llama/", str(tmp_path), recursive=True)
    back, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    np.testing.assert_array_equal(back.lm_head.weight.detach().numpy(), model.lm_head.weight)


@pytest.mark.parametrize("gap", [0, remote.GAP])
def test_only_the_bytes_of_the_shards(model, store, monkeypatch, gap):
    """Of a mesh that holds half of the columns: half of the bytes, or one request for each tensor."""
    ef.save(model, URL)
    asked = []
    cat = MemoryFileSystem.cat_file

    def count(self, path, start=None, end=None, **more):
        content = cat(self, path, start, end, **more)
        asked.append((path, len(content)))
        return content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", count)
    monkeypatch.setattr(remote, "GAP", gap)
    source = remote.opened(URL)
    with source as place:
        tensors, _ = place.files.header(place.folder / "model.safetensors")
        asked.clear()
        info = tensors["model.layers.0.self_attn.o_proj.weight"]
        out = np.empty((info.shape[0], info.shape[1] // 2), info.dtype)
        place.files.read_part(info, out, (slice(0, info.shape[0]), slice(0, info.shape[1] // 2)))
    np.testing.assert_array_equal(out, model.model.layers[0].self_attn.o_proj.weight[:, : info.shape[1] // 2])
    assert sum(size for _, size in asked) == info.nbytes // 2 if gap == 0 else len(asked) == 1
    mesh = ef.make_mesh(fsdp=4, tp=2)
    assert_same(ef.load(URL, mesh=mesh), model)


def test_what_is_wrong_is_said(model, store):
    with pytest.raises(ef.LoadError, match=r"memory://bucket/nowhere.*\n.*there is no config\.json"):
        ef.load("memory://bucket/nowhere")
    ef.save(model, URL)
    with pytest.raises(ef.LoadError, match="memory://bucket/models/llama: 1 problem"):
        content = store.cat_file("/bucket/models/llama/model.safetensors")
        store.pipe_file("/bucket/models/llama/model.safetensors", content[:-100])
        ef.load(URL)
    store.rm_file("/bucket/models/llama/model.safetensors")
    with pytest.raises(ef.LoadError, match=r"no model\.safetensors"):
        ef.load(URL)
    with pytest.raises(ValueError, match="Protocol not known: nonsense"):
        ef.load("nonsense://x/y")
    with pytest.raises(ValueError, match="gguf"):
        ef.load("memory://x/model.gguf")


def test_the_extra_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    for call in (lambda: ef.load("s3://x/y"), lambda: ef.read_config("s3://x/y")):
        with pytest.raises(ImportError, match=r"easyfn\[remote\]"):
            call()


@pytest.mark.parametrize("stack", [False, True])
def test_mapped_files_are_not_copied(model, tmp_path, stack):
    """Our own files are aligned as XLA needs them: an array on CPU is the memory of the file."""
    ef.save(model, tmp_path)
    mapped = ef.load(tmp_path, mmap=True, stack=stack)
    assert_same(mapped, ef.stack(model) if stack else model)
    if not stack:
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in maps]
        for leaf in jax.tree.leaves(mapped):
            assert any(low <= leaf.unsafe_buffer_pointer() < high for low, high in spans)
    double = jax.jit(lambda m: jax.tree.map(lambda x: x * 2, m), donate_argnums=0)  # may not write into the file
    assert_same(double(mapped), jax.tree.map(lambda x: x * 2, ef.stack(model) if stack else model))
    assert_same(ef.load(tmp_path), model)
