"""Damaged files: what a stranger's folder may hold, made from whole ones, and what reading them may end in.

`KINDS` are the kinds of file that easyfn reads: each writes a whole folder, and gives the file that is damaged and a
function that reads it. `test_damaged.py` reads a few of each, `benchmarks/fuzz_files.py` as many as time allows.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 2**31, 2**63, 10**30, 1e308, float("inf"), float("nan"), "", "a", "0", "None",
    "x" * 300, "\ud800", "\0", "../..", "re:(", "(", "(a+)+$", "{{", "{% for", [], [None], [[1]], ["a"], [-1], [2**40, 2**40],
    {}, {"a": 1}, {"0": {}}, {"": None}, [0] * 5, [{}], ["a"] * 200,
]  # fmt: skip


class Kind(NamedTuple):
    """A file to damage, and what reads it. `text` is whole JSON, `template` Jinja, `header` safetensors, `bytes` anything."""

    file: Path
    read: Callable[[], Any]
    form: str = "text"
    inside: str | None = None  # only this key of the JSON is damaged


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """The paths of all values in JSON data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


def at(data: Any, path: Any) -> Any:
    for key in path:
        data = data[key]
    return data


def damaged(data: Any, rng: random.Random) -> str:
    """JSON with a few values changed, exchanged, renamed, left out or doubled; or its text cut or changed."""
    how = rng.choice(["tree", "tree", "tree", "tree", "cut", "character", "deep", "digits", "doubled"])
    text = json.dumps(data)
    if how == "cut":
        return text[: rng.randrange(len(text))]
    if how == "character":
        for _ in range(rng.choice([1, 1, 3])):
            where = rng.randrange(len(text))
            text = text[:where] + rng.choice('{}[],:"0e-\\\x00\ufeff') + text[where + 1 :]
        return text
    if how == "doubled":
        return text[:-1] + ("," if len(text) > 2 else "") + text[1:] if text.startswith("{") else text + text
    data = copy.deepcopy(data)
    if how in ("deep", "digits"):
        *way, last = rng.choice([p for p in places(data) if p] or [()]) or ("",)
        if isinstance(data, dict | list) and data:
            at(data, way)[last] = "HERE"
        return json.dumps(data).replace(
            '"HERE"', "[" * 3000 if how == "deep" else rng.choice(["9" * 5000, "1e999", "-1e5000"])
        )
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        paths = [p for p in places(data) if p]
        if not paths:
            return rng.choice(["[]", "{}", "null", "0", '""'])
        *way, last = rng.choice(paths)
        inner, step = (
            at(data, way),
            rng.choice(["value", "value", "value", "number", "gone", "exchange", "name", "grow"]),
        )
        old = inner[last]
        if step == "gone":
            inner.pop(last)
        elif step == "exchange":
            inner[last] = copy.deepcopy(at(data, rng.choice(paths)))
        elif step == "name" and isinstance(inner, dict):
            inner[
                rng.choice([last + "x", last.upper(), "", "model_type", str(last)[1:]])
                if isinstance(last, str)
                else "x"
            ] = inner.pop(last)
        elif step == "grow" and isinstance(old, list):
            inner[last] = old * rng.choice([0, 2, 50])
        elif step == "number" and isinstance(old, int | float) and not isinstance(old, bool):
            inner[last] = rng.choice(
                [old + 1, old - 1, -old, old * 2, old * 10**6, old / 3, float(old), str(old), [old]]
            )
        else:
            inner[last] = copy.deepcopy(rng.choice(NASTY))
    return json.dumps(data)


PIECES = [
    "{{", "}}", "{%", "%}", "{% for a in messages %}", "{% endfor %}", "{{ messages[0].x.y }}", "{{ 1/0 }}", "{{ 'a' * 10**9 }}",
    "{{ range(10**9)|list }}", "{{ ''.__class__.__mro__ }}", "{% set x = x ~ x %}", "{{ raise_exception(1) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 9**9**9 }}", "{{ tools|tojson }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ '%1000000000d' % 1 }}", "{{ 'a'.center(10**9) }}", "{% include 'x' %}",
    "{{ strftime_now(1) }}", "{{ strftime_now('%Q' * 99) }}", "{{ messages|map(attribute='x')|join }}", "{% import 'os' as os %}",
    "{{ ('a' * 9999)|replace('a', 'a' * 99999) }}", "{{ 'a'|indent(10**9) }}", "{{ 10**9|string * 10**9 }}", "\ud800", "\0",
    "{{ 'a'.ljust(10**10) }}", "{{ [0] * 10**10 }}", "{{ 'aaa'|wordwrap(1)|batch(10**9)|list }}",
    "{{ '{:>9999999999}'.format(1) }}", "{{ lipsum(10) }}",
]  # fmt: skip


def damaged_template(text: str, rng: random.Random) -> str:
    """A chat template with pieces put in, cut or doubled."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = rng.choice(
            [text[:a] + rng.choice(PIECES) + text[a:], text[:a] + text[b:], text[:b] + text[a:], text[:a]]
        )
    return text


def damaged_bytes(data: bytes, rng: random.Random, reach: int) -> bytes:
    """Bytes near the beginning changed, numbers there made large, or the file cut."""
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 4, 16])):
        where = rng.randrange(min(reach, len(new)))
        if rng.random() < 0.3:
            number = rng.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1, 10**9, 10**6, rng.randrange(2**16)])
            new[where : where + 8] = struct.pack("<Q", number)[: len(new) - where]
        else:
            new[where] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    return bytes(new[: rng.randrange(len(new))] if rng.random() < 0.1 else new)


def damage(kind: Kind, whole: bytes, rng: random.Random) -> bytes:
    """The file's content, damaged."""
    if kind.form == "bytes":
        return damaged_bytes(whole, rng, 2500)
    if kind.form == "template":
        return damaged_template(whole.decode(), rng).encode("utf-8", "surrogatepass")
    if kind.form == "header":
        if rng.random() < 0.1:
            return damaged_bytes(whole, rng, 300)
        (length,) = struct.unpack("<Q", whole[:8])
        header = damaged(json.loads(whole[8 : 8 + length]), rng).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(header)) + header + whole[8 + length :]
    data = json.loads(whole)
    if kind.inside is None:
        return damaged(data, rng).encode("utf-8", "surrogatepass")
    text = json.dumps({**data, kind.inside: "HERE"}).replace('"HERE"', damaged(data[kind.inside], rng))
    return text.encode("utf-8", "surrogatepass")


def clear(error: BaseException) -> bool:
    """Whether an error is one that a reader raises on purpose."""
    depths = (json.JSONDecodeError, UnicodeError, NotImplementedError)
    return isinstance(error, ValueError | FileNotFoundError) and not isinstance(error, depths)


# Whole folders.

TINY: dict[str, dict[str, Any]] = {
    "config.json": {
        "model_type": "llama", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "head_dim": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, "hidden_act": "silu",
        "id2label": {"0": "a", "1": "b"}, "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "eos_token_id": [1, 2],
    },
    "config.json of gemma3": {
        "model_type": "gemma3_text", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {"sliding_attention": {"rope_type": "default",
        "rope_theta": 1e4}, "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
    },
    "config.json of mixtral": {
        "model_type": "mixtral", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "config.json of mamba2": {
        "model_type": "mamba2", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 8,
        "state_size": 8, "n_groups": 2, "expand": 2, "conv_kernel": 4, "time_step_limit": [0.0, 9.0],
    },
    "config.json of t5": {
        "model_type": "t5", "vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1,
        "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "eos_token_id": 1,
    },
    "config.json of bert": {
        "model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 16, "type_vocab_size": 2, "architectures": ["BertForMaskedLM"],
    },
    "config.json of vit": {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": [16, 16], "patch_size": 8, "num_channels": 3, "id2label": {"0": "a", "1": "b"},
        "architectures": ["ViTForImageClassification"],
    },
    "config.json of llava": {
        "model_type": "llava", "image_token_index": 7, "vision_feature_layer": [-1, 0], "text_config": {"model_type": "llama",
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 16, "patch_size": 8, "projection_dim": 8},
    },
    "config.json of clip": {
        "model_type": "clip", "projection_dim": 8, "text_config": {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16}, "vision_config": {"hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8},
    },
}  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<u>{{ m['content']|trim }}</u>{% else %}<a>{{ m.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}{{ tools|tojson if tools else '' }}"
)
KINDS: dict[str, Callable[[Path], Kind]] = {}


def kind(name: str) -> Callable[[Callable[[Path], Kind]], Callable[[Path], Kind]]:
    def register(make: Callable[[Path], Kind]) -> Callable[[Path], Kind]:
        KINDS[name] = make
        return make

    return register


def _model(name: str = "config.json") -> Any:
    import easyfn as ef

    return ef.init(ef.read_config(TINY[name]), key=_key(0))


def _key(seed: int) -> Any:
    import jax

    return jax.random.key(seed)


def _config(name: str) -> Callable[[Path], Kind]:
    def make(folder: Path) -> Kind:
        import easyfn as ef

        path = ef.save(_model(name), folder)
        saved = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**saved, **TINY[name]}))
        return Kind(path / "config.json", lambda: ef.load(path, progress=False))

    return make


for _name in TINY:
    KINDS[_name] = _config(_name)


@kind("generation_config.json")
def _(folder: Path) -> Kind:
    import easyfn as ef

    path = ef.save(_model(), folder)
    said = {
        "eos_token_id": [1, 2],
        "do_sample": False,
        "top_k": 5,
        "max_new_tokens": 1,
        "temperature": 0.7,
        "num_beams": 1,
    }
    said |= {"suppress_tokens": [3], "bad_words_ids": [[4, 5]], "repetition_penalty": 1.1, "forced_eos_token_id": 2}
    (path / "generation_config.json").write_text(json.dumps(said))
    return Kind(
        path / "generation_config.json", lambda: ef.generate(ef.load(path, progress=False), [[5, 6]], max_new_tokens=1)
    )


@kind("tokenizer.json")
def _(folder: Path) -> Kind:
    import easyfn as ef

    folder.mkdir(parents=True, exist_ok=True)
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")], unk_token="a"))
    made.add_special_tokens(["<s>"])
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "_")])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(), pre_tokenizers.Digits()])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 3)])
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    return Kind(folder / "tokenizer.json", lambda: ef.tokenizer(folder))


def _render(folder: Path) -> None:
    from easyfn.io.template import chat_template

    template = chat_template(folder)
    if template is not None:
        template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tools=[{"type": "function"}]
        )


@kind("tokenizer_config.json")
def _(folder: Path) -> Kind:
    folder.mkdir(parents=True, exist_ok=True)
    templates = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": TEMPLATE}]
    said = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "chat_template": templates}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return Kind(folder / "tokenizer_config.json", lambda: _render(folder))


@kind("chat_template.jinja")
def _(folder: Path) -> Kind:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Kind(folder / "chat_template.jinja", lambda: _render(folder), "template")


@kind("model.safetensors")
def _(folder: Path) -> Kind:
    import easyfn as ef

    path = ef.save(_model(), folder)
    return Kind(path / "model.safetensors", lambda: ef.load(path, progress=False), "header")


@kind("model.safetensors.index.json")
def _(folder: Path) -> Kind:
    import easyfn as ef

    path = ef.save(_model(), folder, max_shard_size=8000)
    return Kind(path / "model.safetensors.index.json", lambda: ef.load(path, progress=False))


def _adapter(folder: Path, file: str, form: str) -> Kind:
    import easyfn as ef

    base = _model()
    path = ef.save_adapter(ef.apply_lora(base, "all-linear", rank=2, key=_key(1)), folder)
    if form == "text":
        said = json.loads((path / file).read_text())
        more = {
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"q_proj": 4},
            "layers_to_transform": [0],
            "use_rslora": False,
        }
        (path / file).write_text(json.dumps({**more, **said}))
    return Kind(path / file, lambda: ef.load_adapter(base, path), form)


KINDS["adapter_config.json"] = lambda folder: _adapter(folder, "adapter_config.json", "text")
KINDS["adapter_model.safetensors"] = lambda folder: _adapter(folder, "adapter_model.safetensors", "header")


def _quantized(method: str) -> Callable[[Path], Kind]:
    def make(folder: Path) -> Kind:
        import easyfn as ef

        path = ef.save(ef.quantize(_model(), ef.QuantConfig(method, pattern="mlp")), folder)
        return Kind(path / "config.json", lambda: ef.load(path, progress=False), inside="quantization_config")

    return make


for _method in ("int4", "nf4", "fp8", "int8"):
    KINDS[f"quantization_config of {_method}"] = _quantized(_method)


def _sentence(file: str) -> Callable[[Path], Kind]:
    def make(folder: Path) -> Kind:
        import easyfn as ef

        config = ef.read_config({**TINY["config.json of bert"], "architectures": ["BertModel"]})
        model = ef.init(config, task="sentence-embedding", key=_key(0))
        path = ef.save(ef.nn.SentenceEmbedding(model.model, length=8), folder)
        return Kind(path / file, lambda: ef.load(path, progress=False))

    return make


KINDS["modules.json"] = _sentence("modules.json")
KINDS["1_Pooling/config.json"] = _sentence("1_Pooling/config.json")
KINDS["sentence_bert_config.json"] = _sentence("sentence_bert_config.json")


@kind("model.gguf")
def _(folder: Path) -> Kind:
    import easyfn as ef

    folder.mkdir(parents=True, exist_ok=True)
    path = ef.save(
        ef.init(ef.read_config({**TINY["config.json"], "head_dim": 16, "rope_scaling": None}), key=_key(0)),
        folder / "m.gguf",
    )
    return Kind(path, lambda: ef.load(path, progress=False), "bytes")


@kind("tokenizer of a gguf")
def _(folder: Path) -> Kind:
    import easyfn as ef
    from easyfn.io.template import chat_template

    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<s>", "</s>", "a", "b", "ab", " "]
    said = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0, 0.0, -1.0, -2.0, -3.0, -4.0],
        "token_type": [3, 3, 1, 1, 1, 1],
    }
    said |= {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in said.items()} | {
        "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}"
    }
    path = folder / "m.gguf"
    config = ef.read_config({**TINY["config.json"], "head_dim": 16, "rope_scaling": None})
    ef.save_gguf(ef.init(config, key=_key(0)), path, metadata=metadata)

    def read() -> None:
        ef.tokenizer(path).encode("ab")
        chat_template(path)

    return Kind(path, read, "bytes")


def _state(pattern: str) -> Callable[[Path], Kind]:
    def make(folder: Path) -> Kind:
        import jax.numpy as jnp

        import easyfn as ef

        like = {"x": jnp.arange(6.0).reshape(2, 3), "y": {"z": jnp.ones(4, int)}}
        path = ef.save_state(like, folder, step=1, data_state={"row": 3})

        def read() -> None:
            ef.load_state(like, folder)
            ef.load_data_state(folder)

        found = sorted(p for p in path.rglob(pattern) if p.is_file())
        return Kind(found[0], read, "text" if _json(found[0]) else "bytes")

    return make


def _json(path: Path) -> bool:
    try:
        json.loads(path.read_text("utf-8"))
    except ValueError:
        return False
    return True


KINDS["state: _METADATA"] = _state("_METADATA")
KINDS["state: data"] = _state("metadata")
