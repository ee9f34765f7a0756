"""What belongs to a checkpoint's words goes with the model that is saved: tokenizer, chat template, preprocessor."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import easyfn as ef

TINY = Path(__file__).parent.parent / "examples/tiny"
CONFIG = ef.models.LlamaConfig(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.fixture
def source(tmp_path):
    """A folder with more than a tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        shutil.copy(TINY / name, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tools.jinja").write_text("tools")
    (folder / "preprocessor_config.json").write_text('{"size": 4}')
    (folder / "model.safetensors").write_bytes(b"no words")
    (folder / "notes.txt").write_text("no words")
    return folder


WORDS = {
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.quick("io", "a saved model has its tokenizer")
def test_of_a_folder(model, source, tmp_path):
    out = ef.save(model, tmp_path / "out", tokenizer=source)
    assert files(out) == WORDS | {"config.json", "model.safetensors"}
    for name in WORDS:
        assert (out / name).read_bytes() == (source / name).read_bytes()
    again = ef.load(out)
    assert again.config == model.config and ef.tokenizer(out).encode("import os").ids
    assert ef.chat_template(out)([{"role": "user", "content": "Hi"}]) == "Hi"
    ef.save(again, out, tokenizer=out)  # in its own place
    assert files(out) == WORDS | {"config.json", "model.safetensors"}
    assert ef.save(model, tmp_path / "step", step=3, tokenizer=str(source / "tokenizer.json")).name == "checkpoint-3"
    assert "tokenizer.json" in files(tmp_path / "step/checkpoint-3")


def test_of_a_tokenizer(model, tmp_path):
    text, ids = "for name in os.listdir(path):", ef.tokenizer(TINY).encode("for name in os.listdir(path):").ids
    out = ef.save(model, tmp_path / "a", tokenizer=ef.tokenizer(TINY))
    assert ef.tokenizer(out).encode(text).ids == ids

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(TINY)
    theirs.chat_template = "{{ messages[0].content }}"
    out = ef.save(model, tmp_path / "b", tokenizer=theirs)
    assert ef.tokenizer(out).encode(text).ids == ids and ef.chat_template(out) is not None
    again = AutoTokenizer.from_pretrained(out)
    assert again(text)["input_ids"] == ids and again.chat_template == theirs.chat_template


def test_of_a_gguf_file(model, tmp_path):
    """Its tokenizer goes there, and comes back."""
    file = ef.save(model, tmp_path / "model.gguf", tokenizer=TINY)
    text = "def f(self):"
    ids = ef.tokenizer(TINY).encode(text).ids
    assert ef.tokenizer(file).encode(text).ids == ids
    gguf = pytest.importorskip("gguf")
    kinds = gguf.GGUFReader(file).fields["tokenizer.ggml.token_type"].types
    assert kinds == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]  # llama.cpp refuses another
    out = ef.save(ef.load(file), tmp_path / "out", tokenizer=file)
    assert ef.tokenizer(out).encode(text).ids == ids
    second = ef.save(ef.load(file), tmp_path / "second.gguf", tokenizer=file)
    assert ef.tokenizer(second).encode(text).ids == ids


def test_of_a_bucket(model, source, tmp_path):
    import fsspec

    url = ef.save(model, "memory://words/model", tokenizer=source)
    store = fsspec.filesystem("memory")
    assert store.cat_file("/words/model/tokenizer.json") == (source / "tokenizer.json").read_bytes()
    again = ef.load(url)
    np.testing.assert_array_equal(again.lm_head.weight, model.lm_head.weight)
    out = ef.save(again, tmp_path / "out", tokenizer=url)
    assert files(out) == WORDS | {"config.json", "model.safetensors"}
    with pytest.raises(FileNotFoundError, match="has no file of a tokenizer"):
        ef.save(again, tmp_path / "none", tokenizer="memory://words/nothing")


def test_what_has_none_is_refused_before_anything_is_written(model, source, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="has no file of a tokenizer"):
        ef.save(model, tmp_path / "out", tokenizer=empty)
    with pytest.raises(TypeError, match=r"a tokenizers\.Tokenizer.*not int"):
        ef.save(model, tmp_path / "out", tokenizer=3)
    with pytest.raises(ValueError, match="no step=, dtype= or tokenizer="):
        ef.save(model, tmp_path / "x.safetensors", tokenizer=source)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"there is no folder '\./nowhere'"):
        ef.chat_template("./nowhere")


def test_the_command_line_carries_them(model, source, tmp_path, capsys):
    from easyfn.cli import main

    (source / "model.safetensors").unlink()
    ef.save(model, source)
    main(["convert", str(source), str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert files(tmp_path / "out") >= WORDS
    file = tmp_path / "model.gguf"
    main(["quantize", str(source), str(file), "--method", "a8q"])
    assert ef.tokenizer(file).encode("import os").ids == ef.tokenizer(TINY).encode("import os").ids
    assert "tokenizer" not in capsys.readouterr().err
    bare = ef.save(model, tmp_path / "bare")
    for name in ("bare2", "bare.gguf"):
        main(["convert", str(bare), str(tmp_path / name)])
        assert "no tokenizer was written" in capsys.readouterr().err
    assert files(tmp_path / "bare2") == {"config.json", "model.safetensors"}
    assert ef.load(tmp_path / "bare.gguf").config.vocab_size == 1024
