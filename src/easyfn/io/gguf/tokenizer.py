"""The tokenizer that a `.gguf` file describes, as one of the `tokenizers` library, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...core.schema import flag, many, problems, real, whole, word
from ..checkpoint import LoadError
from .read import read_gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # llama.cpp's types of tokens
_KEY = "tokenizer.ggml."

# How text is cut before its merges, by `tokenizer.ggml.pre` (llama.cpp's unicode rules; the models' own tokenizer.json).
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    "default": None,  # GPT-2's own
    "gpt-2": None,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
    "deepseek-r1-qwen": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}


def refused(error: BaseException) -> bool:
    """Whether the tokenizers library says so that it does not take a file: it has no class of its own for that, and a panic of
    its Rust code is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def gguf_tokenizer(path: Any) -> Any:
    """The tokenizer of a `.gguf` file, a `tokenizers.Tokenizer` (extra `cli`); `.save("tokenizer.json")` keeps it.

    Byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`) are built; the beginning of a sequence is added where the file
    says so. Raises `ValueError` for other kinds, and for rules of cutting text that are not known, by name: the raw
    vocabulary is in `ef.read_gguf(path).metadata["tokenizer.ggml.tokens"]`.
    """
    said = tokenizer_keys(path)
    kind, pre = said.get("model"), said.get("pre", "default")
    if kind not in ("gpt2", "llama") or "tokens" not in said or (kind == "gpt2" and pre not in _SPLITS):
        named = f"{kind!r} with the rules {pre!r}" if kind == "gpt2" else repr(kind)
        raise ValueError(
            f"{path}: easyfn builds no tokenizer of the kind {named}; it builds 'llama', and 'gpt2' with the rules "
            f"{', '.join(_SPLITS)}. The vocabulary is in ef.read_gguf(path).metadata, and the model's tokenizer.json on the hub"
        )
    if kind == "llama" and "merges" not in said and len(said.get("scores", ())) != len(said["tokens"]):
        raise LoadError(path, [f"{_KEY}scores are not one for each of the {len(said['tokens'])} tokens"])
    try:
        tokenizer = _byte_level(said, _SPLITS[pre]) if kind == "gpt2" else _sentencepiece(said)
        _special(tokenizer, said, add_start=said.get("add_bos_token", kind == "llama"))
    except BaseException as error:
        if not refused(error):
            raise
        raise LoadError(
            path, [f"the tokenizers library takes no tokenizer of these tokens and merges ({error})"]
        ) from None
    return tokenizer


_LONGEST = 4096  # characters of a token; real ones have a hundred


def _token(path: str, value: Any) -> Iterator[str]:
    yield from word(path, value)
    if isinstance(value, str) and len(value) > _LONGEST:
        yield f"{path} has {len(value)} characters, more than {_LONGEST}"


def _merge(path: str, value: Any) -> Iterator[str]:
    yield from _token(path, value)
    if isinstance(value, str) and " " not in value[1:]:
        yield f"{path} is {value!r:.80}, and must be two tokens with a space between them"


def tokenizer_keys(path: Any) -> dict[str, Any]:
    """What a `.gguf` file says of a tokenizer, by the keys behind `tokenizer.`'s names, and its `chat_template`; checked.

    Raises [`easyfn.LoadError`][] for values of other types, and ids of tokens that there are not.
    """
    metadata = read_gguf(path).metadata
    said = {k.removeprefix(_KEY): v for k, v in metadata.items() if k.startswith(_KEY)}
    if "tokenizer.chat_template" in metadata:
        said["chat_template"] = metadata["tokenizer.chat_template"]
    tokens = said.get("tokens")
    last = len(tokens) - 1 if isinstance(tokens, list | tuple) else 2**31 - 1
    ids = {name: whole(0, last) for name in said if name.endswith("_token_id")}
    if wrong := problems(said, _TABLE | ids):
        raise LoadError(path, [f"{_KEY}{one}" for one in wrong[:20]])
    return said


_TABLE = {
    **dict.fromkeys(("model", "pre", "chat_template"), word),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), flag),
    "tokens": many(_token),
    "merges": many(_merge),
    "scores": many(real()),
    "token_type": many(whole()),
}


def _byte_level(said: Mapping[str, Any], split: str | None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: number for number, token in enumerate(said["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in said.get("merges", [])]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=split is not None))
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), cut])
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(said: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = said["tokens"]
    vocab = {token: number for number, token in enumerate(tokens)}
    unknown = tokens[said["unknown_token_id"]] if "unknown_token_id" in said else None
    merges = said.get("merges")
    pairs = [tuple(m.split(" ", 1)) for m in merges] if merges else _merges(tokens, said["scores"], vocab)
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = said.get("add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("\u2581")] if prefix else []), normalizers.Replace(" ", "\u2581")]
    )
    first = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    return tokenizer


def _merges(tokens: list[str], scores: list[float], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece vocabulary implies: a token of any two tokens, the best score first."""
    found = []
    for token, score in zip(tokens, scores, strict=True):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = sorted((vocab[a], vocab[b], a, b) for a, b in halves if a in vocab and b in vocab)
        found += [(score, a, b) for _, _, a, b in known]
    found.sort(key=lambda entry: (entry[0], len(entry[1]), len(entry[2])), reverse=True)
    return [(a, b) for _, a, b in found]


def _special(tokenizer: Any, said: Mapping[str, Any], add_start: bool) -> None:
    from tokenizers import AddedToken, processors

    for token, kind in zip(said["tokens"], said.get("token_type", ()), strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if add_start and "bos_token_id" in said:
        start = said["tokens"][said["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, said["bos_token_id"])]
        )


def tokenizer_metadata(text: str, *, vocab_size: int | None = None) -> dict[str, Any]:
    """What a `.gguf` file says of a tokenizer, from the content of its `tokenizer.json`: for `save_gguf(metadata=)`.

    Of byte-level BPE. `vocab_size` is the model's, which may have rows without a token. Raises `ValueError` for another
    kind of tokenizer, and for rules of cutting text that llama.cpp would not follow.
    """
    data = json.loads(text)
    model, split = data["model"], _split_of(data.get("pre_tokenizer") or {})
    names = [name for name, known in _SPLITS.items() if known == split]
    if model.get("type") != "BPE" or model.get("byte_fallback") or not names or "ByteLevel" not in text:
        raise ValueError(
            "easyfn writes byte-level BPE tokenizers that cut text as GPT-2, Llama 3 or Qwen2 do into .gguf files, not "
            "this one: give its metadata yourself (tokenizer.ggml.*)"
        )
    tokens = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, _NORMAL)
    for added in data.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER
    count = max(vocab_size or 0, max(tokens) + 1)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        f"{_KEY}model": "gpt2",
        f"{_KEY}pre": names[0],
        f"{_KEY}tokens": [tokens.get(i, f"[PAD{i}]") for i in range(count)],
        f"{_KEY}token_type": [kinds.get(i, _USER + 1) for i in range(count)],  # 5: unused
        f"{_KEY}merges": merges,
    }


def _split_of(cut: Mapping[str, Any]) -> Any:
    """The pattern that text is cut by; `None` is GPT-2's own, and `""` none that is known."""
    if cut.get("type") == "ByteLevel":
        return None if cut.get("use_regex", True) and not cut.get("add_prefix_space") else ""
    parts = cut.get("pretokenizers", [])
    if [p.get("type") for p in parts] == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        return parts[0]["pattern"].get("Regex", "")
    return ""
