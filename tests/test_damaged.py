"""Damaged files: each loads or raises an error of ours that helps; none hangs, none ends in an error of Python's depths."""

import copy
import json
import random
import signal
import struct

import jax
import numpy as np
import pytest

import easyfn as ef

CONFIG = ef.models.LlamaConfig(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
NASTY = [
    None, True, 0, -1, 1, 1.5, -0.0, 2**31, 2**63, 10**30, 1e308, "", "a", "x" * 300, "\ud800", "../..", "re:(", "(",
    [], [None], [[1]], ["a"], {}, {"a": 1}, {"0": {}}, [0] * 5,
]  # fmt: skip
CASES = 24  # of each kind


@pytest.fixture(scope="module")
def base():
    return ef.init(CONFIG, key=jax.random.key(0))


def places(value, path=()):
    """The paths of all values in JSON data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


def damaged(data, rng):
    """JSON with one value changed, left out or doubled; or its text cut, or one character of it changed."""
    text = json.dumps(data)
    how = rng.choice(["value", "value", "value", "gone", "cut", "character", "deep"])
    if how == "cut":
        return text[: rng.randrange(len(text))]
    if how == "character":
        at = rng.randrange(len(text))
        return text[:at] + rng.choice('{}[],:"0e-\x00') + text[at + 1 :]
    data = copy.deepcopy(data)
    *way, last = rng.choice([p for p in places(data) if p])
    inner = data
    for key in way:
        inner = inner[key]
    if how == "gone":
        inner.pop(last)
    elif how == "deep":
        inner[last] = "DEEP"
        return json.dumps(data).replace('"DEEP"', "[" * 3000)
    else:
        inner[last] = rng.choice(NASTY)
    return json.dumps(data)


def clear(error):
    """Whether an error is one that a reader raises on purpose."""
    depths = (json.JSONDecodeError, UnicodeError, NotImplementedError)
    return isinstance(error, ValueError | FileNotFoundError) and not isinstance(error, depths)


def survives(read, what):
    """Runs a reader, for ten seconds at most; what it raises must be clear."""

    def late(*_):
        raise TimeoutError(f"it hangs: {what}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        read()
    except BaseException as error:
        if not clear(error):
            raise AssertionError(f"{type(error).__name__}: {error}\n{what}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write(path, text):
    path.write_text(text, "utf-8", errors="surrogatepass")


def folders(base, tmp_path):
    """Each kind of file: a folder that holds one, its name, and its reader."""
    lora = ef.apply_lora(base, "all-linear", rank=2, key=jax.random.key(1))
    plain = ef.save(base, tmp_path / "plain")
    (plain / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "do_sample": False, "top_k": 5}))
    sharded = ef.save(base, tmp_path / "sharded", max_shard_size=8000)
    adapter = ef.save_adapter(lora, tmp_path / "adapter")
    int4, nf4, fp8 = (
        ef.save(ef.quantize(base, ef.QuantConfig(name, pattern="mlp")), tmp_path / name)
        for name in ("int4", "nf4", "fp8")
    )
    run = lambda folder: lambda: ef.generate(ef.load(folder), [[5, 6]], max_new_tokens=1)
    return {
        "generation_config": (plain, "generation_config.json", run(plain)),
        "index": (sharded, "model.safetensors.index.json", lambda: ef.load(sharded)),
        "adapter_config": (adapter, "adapter_config.json", lambda: ef.load_adapter(base, adapter)),
        "compressed-tensors": (int4, "config.json", lambda: ef.load(int4)),
        "bitsandbytes": (nf4, "config.json", lambda: ef.load(nf4)),
        "fp8": (fp8, "config.json", lambda: ef.load(fp8)),
    }


KINDS = ["generation_config", "index", "adapter_config", "compressed-tensors", "bitsandbytes", "fp8"]


@pytest.mark.parametrize("kind", KINDS)
def test_json(base, tmp_path, kind):
    folder, name, read = folders(base, tmp_path)[kind]
    read()
    whole = json.loads((folder / name).read_text())
    rng = random.Random(kind)
    for _ in range(CASES):
        if "quantization_config" in whole:  # the rest of config.json has a test of its own
            inner = damaged(whole["quantization_config"], rng)
            text = json.dumps({**whole, "quantization_config": "HERE"}).replace('"HERE"', inner)
        else:
            text = damaged(whole, rng)
        write(folder / name, text)
        survives(read, text[:3000])


def test_headers_of_safetensors(base, tmp_path):
    folder = ef.save(base, tmp_path / "m")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, rest, rng = json.loads(data[8 : 8 + length]), data[8 + length :], random.Random(1)
    for _ in range(CASES):
        text = damaged(header, rng)
        raw = text.encode("utf-8", "surrogatepass")
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + rest)
        survives(lambda: ef.load(folder), text[:3000])


def test_bytes_of_a_gguf(base, tmp_path):
    file = ef.save(base, tmp_path / "m.gguf")
    data, rng = file.read_bytes(), random.Random(2)
    end = data.index(b"token_embd")  # keys, and the first of the tensors' entries
    for _ in range(2 * CASES):
        new = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            new[rng.randrange(end + 60)] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
        if rng.random() < 0.1:
            new = new[: rng.randrange(len(new))]
        file.write_bytes(new)
        survives(lambda: ef.load(file), bytes(new[: end + 60]))


def test_bytes_of_an_adapter(base, tmp_path):
    lora = ef.apply_lora(base, "q_proj", rank=2, key=jax.random.key(1))
    folder = ef.save_adapter(lora, tmp_path / "a")
    file, rng = folder / "adapter_model.safetensors", random.Random(3)
    data = file.read_bytes()
    for _ in range(CASES):
        new = bytearray(data)
        new[rng.randrange(400)] = rng.randrange(256)
        file.write_bytes(new[: rng.choice([len(new), len(new), rng.randrange(len(new))])])
        survives(lambda: ef.load_adapter(base, folder), bytes(new[:400]))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"version": 5}', '{"model": {"type": "BPE", "vocab": [], "merges": 1}}', ""]
)
def test_a_tokenizer(tmp_path, text):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ef.LoadError, match=r"tokenizer\.json"):
        ef.tokenizer(tmp_path)


ADAPTERS = [
    {"r": {"0": {}}}, {"r": -0.0}, {"r": 0}, {"r": "4"}, {"lora_alpha": [None]}, {"lora_alpha": None}, {"alpha_pattern": 1.0},
    {"rank_pattern": [[1]]}, {"target_parameters": 3}, {"peft_type": ["a"]}, {"modules_to_save": 5}, {"target_modules": 5},
    {"layers_to_transform": "x"}, {"use_dora": "x"}, {"rank_pattern": {"(": 2}}, {"lora_dropout": 2},
]  # fmt: skip


def test_values_of_an_adapter_config(base, tmp_path):
    """The error names the file and the key, and what it must be."""
    lora = ef.apply_lora(base, "all-linear", rank=2, key=jax.random.key(1))
    folder = ef.save_adapter(lora, tmp_path)
    whole = json.loads((folder / "adapter_config.json").read_text())
    for change in ADAPTERS:
        (folder / "adapter_config.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ef.LoadError, match="must be") as error:
            ef.load_adapter(base, folder)
        assert "adapter_config.json" in str(error.value) and next(iter(change)) in str(error.value)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ef.LoadError, match="it is no JSON"):
        ef.load_adapter(base, folder)


def test_files_that_are_none(base, tmp_path):
    """A link to itself, a name that no file can have, endless nesting."""
    for n, name in enumerate(["\ud800", "x" * 300, "a\0b"]):
        folder = ef.save(base, tmp_path / str(n), max_shard_size=8000)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"][next(iter(index["weight_map"]))] = name
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ef.LoadError, match="it names"):
            ef.load(folder)
    folder = ef.save(base, tmp_path / "link", max_shard_size=8000)
    file = min(folder.glob("*.safetensors"))
    file.unlink(), file.symlink_to(file)
    with pytest.raises(ef.LoadError, match="it names"):
        ef.load(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ef.LoadError, match="it is no JSON"):
        ef.load(folder)
    assert np.isfinite(np.asarray(ef.load(ef.save(base, folder)).model.norm.weight)).all()
