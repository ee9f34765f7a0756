"""Structured output: the mask is brute force's at every step, what is generated is always valid, and runs in the loop."""

import itertools
import json
import logging
import random
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
import regex  # partial matches: the brute force of this file

import easyfn as ef
from cases import CASES, VOCAB
from easyfn.generation.constraint_numbers import integers, numbers
from easyfn.generation.constraint_regex import bare
from easyfn.generation.constraint_schema import pattern_of
from easyfn.generation.constraint_tables import automaton, token_tables
from easyfn.generation.stop import token_texts

TINY = Path(__file__).parent.parent / "examples" / "tiny"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["é", "b", None]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def model():
    return ef.load(TINY, dtype=jnp.float32, progress=False)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def schema(tokenizer):
    return ef.json_schema(SCHEMA, tokenizer, eos_token_id=1)


def byte_level(letters=None, merges=(), first=("<pad>", "</s>")):
    """Bytes, or some letters, with merges; `first` are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {word: n for n, word in enumerate([*first, *(letters or sorted(pre_tokenizers.ByteLevel.alphabet()))])}
    for a, b in merges:
        vocab[a + b] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in first])
    return tokenizer


def sentencepiece():
    """As Llama 2's: ▁ for spaces, <0x..> for bytes that no token has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab", "▁▁", "é", "<0x"]
    vocab = {word: n for n, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return tokenizer


def texts_of(out, tokenizer):
    """The text of each row; `None` for one that did not come to its end."""
    sequences, lengths = np.asarray(out.sequences), np.asarray(out.lengths)
    found = []
    for row, length in zip(sequences, lengths, strict=True):
        new = row[out.prompt_length : length].tolist()
        found.append(tokenizer.decode(new[:-1]) if new and new[-1] == 1 else None)
    return found


# --- the automaton


def said(tables, tokens):
    """Whether tokens, and then the end of the row, are allowed."""
    state = 1
    for token in tokens:
        state = int(tables.after[state, tables.classes[token]])
        if state < 0:
            return False
    return int(tables.after[state, 1]) == 0


@pytest.mark.thinned("expressions of one compiler")
@pytest.mark.quick("generation", "masks are brute force's")
@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "a|ab|abc",
            "(?:a|ab)+",
            "a{2,3}?b?",
            "a*?",
            "(a|b)*a(a|b){2}",
            "^ab?$",
            r"a\$?",
            "",
            "[^a]*",
            "(?s).b.?",
            ".",
        ),
        *("é+a?", r"\w*", r"[\Wab]+", r"\S\D?", "(?i)AB*", "[]a]b|[^]a]", r"[a\]b]+", "(?P<n>a)b", "a(?#)?"),
    ],
)
def test_an_expression_is_pythons(pattern):
    """All texts of up to four letters, as bytes, and through tokens of several bytes."""
    letters = "abéA$]\n"
    words = ["a", "b", "ab", "ba", "aab", "éa", "$", "A", "]", "\n"]
    if "(?#" in pattern:
        with pytest.raises(ValueError, match="look-around"):
            bare(pattern)
        return
    machine = automaton(bare(pattern))
    tables = token_tables(machine, {b: bytes([b]) for b in range(256)}, (256,), 257)
    merged = {**{b: bytes([b]) for b in range(256)}, **{256 + n: word.encode() for n, word in enumerate(words)}}
    merged = token_tables(machine, merged, (300,), 301)
    for length in range(5 if len(pattern) < 6 else 4):
        for text in map("".join, itertools.product(letters, repeat=length)):
            assert said(tables, text.encode()) == bool(re.fullmatch(pattern, text)), text
    for length in range(4):
        for chosen in itertools.product(range(len(words)), repeat=length):
            text = "".join(words[n] for n in chosen)
            assert said(merged, [256 + n for n in chosen]) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_every_mask_is_brute_force(make):
    """Along random walks; characters are cut between tokens, and special tokens write nothing."""
    from transformers import PreTrainedTokenizerFast

    end = 1 if make is byte_level else 2
    merges = (("a", "b"), ("Ã", "©"), ("Ġ", "a"), ("©", "a"), ("<", "/"))  # the fourth begins within a character
    tokenizer = byte_level(merges=merges) if make is byte_level else make()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    pattern = "(?:é a|ab|日){1,3}(?:</s>)?"
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    bytes_of = {i: text for i, text in token_texts(tokenizer).items() if i not in special}
    assert {b"\xc3", b"\xa9", b" a", b"ab"} <= set(bytes_of.values())
    constraint = ef.regex(pattern, tokenizer, eos_token_id=end)
    same = ef.regex(pattern, wrapped)  # which knows what ends a row
    np.testing.assert_array_equal(constraint.classes, same.classes)
    np.testing.assert_array_equal(constraint.after, same.after)
    brute = regex.compile(pattern.encode())
    random = np.random.RandomState(0)
    for _ in range(12):
        state, written = constraint.start(), b""
        while True:
            allowed = constraint.allowed(state)
            want = [i for i, text in bytes_of.items() if brute.fullmatch(written + text, partial=True)]
            want += [end] * bool(brute.fullmatch(written))
            assert np.flatnonzero(allowed).tolist() == sorted(want), written
            token = int(random.choice(want))
            state = constraint.advance(state, token)
            if token == end:
                assert re.fullmatch(pattern, written.decode()) and constraint.eos == (end,)
                assert np.flatnonzero(constraint.allowed(state)).tolist() == [end]  # a row that ended stays so
                break
            written += bytes_of[token]
    with pytest.raises(ValueError, match="not allowed"):
        constraint.advance(constraint.start(), next(iter(special)))


def test_masks_are_those_of_outlines_core(tokenizer):
    """Its own index of the whole vocabulary, which is of tokens where ours is of bytes."""
    from outlines_core import Index, Vocabulary

    pattern = r'\{"a": ?[0-9]{1,3}, "b": "[a-z]*"\}'
    words: dict[bytes, list[int]] = {}
    for i, text in token_texts(tokenizer).items():
        if i > 1:
            words.setdefault(text, []).append(i)
    index = Index(pattern, Vocabulary(1, words))
    constraint = ef.regex(pattern, tokenizer, eos_token_id=1)
    theirs, ours = index.get_initial_state(), constraint.start()
    random = np.random.RandomState(0)
    for _ in range(40):
        allowed = sorted(index.get_allowed_tokens(theirs))
        assert np.flatnonzero(constraint.allowed(ours)).tolist() == allowed
        token = int(random.choice(allowed))
        if token == 1:
            break
        theirs, ours = index.get_next_state(theirs, token), constraint.advance(ours, token)


def test_a_vocabulary_that_writes_only_half_leads_nowhere():
    """What tokens cannot complete is not begun."""
    tokenizer = byte_level(list("abc"))
    constraint = ef.regex("ad|b|ca|cad", tokenizer, eos_token_id=1)
    names = {tokenizer.id_to_token(int(i)) for i in np.flatnonzero(constraint.allowed(constraint.start()))}
    assert names == {"b", "c"}
    with pytest.raises(ValueError, match="no tokens of the vocabulary"):
        ef.regex("ad|d", tokenizer, eos_token_id=1)


def test_a_large_vocabulary_stays_small():
    """128 000 byte-level tokens, a schema of about 500 states: a few megabytes."""
    draw = random.Random(0)
    words = {bytes([b]) for b in range(256)}
    while len(words) < 128_000:
        kind = draw.random()
        if kind < 0.8:
            word = draw.choice(["", " "]) + "".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 10)))
        elif kind < 0.9:
            word = "".join(draw.choices('{}[]",:;()=.<>/\\ -_\n\t01234567', k=draw.randint(2, 6)))
        else:
            word = "".join(
                chr(draw.choice([draw.randint(0xA0, 0x5FF), draw.randint(0x4E00, 0x9FFF)])) for _ in range(3)
            )
        words.add(word.encode()[: draw.choice([None, None, -1]) if len(word) > 1 else None])
    properties = {f"p_{k}": {"type": "string"} if k % 3 else {"type": "integer"} for k in range(20)}
    bounded = {f"p_{k}": {"type": "string", "maxLength": 12} for k in range(4)}
    for named in (properties, bounded):
        machine = automaton(pattern_of({"type": "object", "properties": named, "required": list(named)}))
        assert 300 < len(machine.final) < 1000
        tables = token_tables(machine, dict(enumerate(sorted(words))), (128_000,), 128_256)
        assert tables is not None and tables.after.nbytes + tables.classes.nbytes < 3e6


# --- schemas

NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"],
}
TAGGED = [
    {"type": "object", "properties": {"kind": {"const": k}, "v": {"type": t}}, "required": ["kind", "v"]}
    for k, t in (("a", "integer"), ("b", "boolean"))
]
SCHEMAS = [
    SCHEMA,
    {},
    {"type": "object"},
    {"properties": {"a": {"type": "string"}, "b": {"type": "boolean"}, "c": {"type": "null"}}},
    {"properties": {"a": {"type": "null"}, "b": False}, "required": ["z"], "additionalProperties": {"type": "null"}},
    {"type": "object", "properties": {'q"\\é/ \n': {"const": {"x": [1, 2.5, "a\nb", {}], "y": None}}}},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object", "additionalProperties": False},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "null"}, False, {"type": "null"}]},
    {"type": "array", "prefixItems": [{"type": "null"}], "minItems": 3, "maxItems": 5, "items": {"type": "boolean"}},
    {"type": "array", "items": {"enum": ["a", 1, None, {"k": 2.5}]}, "minItems": 2, "maxItems": 3},
    {"type": "array", "maxItems": 0},
    {"type": ["string", "null", "integer"], "minLength": 2, "maximum": 5},
    {"type": "number"},
    {"type": "string", "pattern": "a.b|^x\\\\y"},
    {"type": "string", "pattern": r'^"?[^x]\n+(?:\u0041|\/)$'},
    {"type": "string", "pattern": r"^(ab|c(?:d|e)){2,3}[\w-]\W\S[&~\]]$"},
    {"oneOf": TAGGED},
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {
        "allOf": [{"$ref": "#/definitions/a~1b"}],
        "default": 3,
        "definitions": {"a/b": {"type": "integer", "multipleOf": 1}},
    },
    {"anyOf": [{"type": "number", "minimum": 3}, {"const": True}], "type": ["number", "boolean"]},
    *({"type": "string", "format": name} for name in ("date", "date-time", "uuid", "ipv4", "email", "uri", "duration")),
]


def walk(machine, draw):
    """A text of an automaton, random at first, then as short as it can be."""
    dead = len(machine.final)
    far = np.where(machine.final, 0, 10**6)
    while (
        near := np.minimum(far, np.append(far, 10**6)[machine.after[:dead]].min(axis=1) + 1)
    ).tolist() != far.tolist():
        far = near
    found = []
    for budget in (0, 0, 10, 30, 30, 60, 100):
        state, text = machine.start, bytearray()
        while not (machine.final[state] and (len(text) >= budget or draw.random() < 0.2)):
            kinds = [k for k, after in enumerate(machine.after[state]) if after != dead]
            if len(text) >= budget:
                kinds = [k for k in kinds if far[machine.after[state, k]] < far[state]] or kinds
            if not kinds:
                break
            kind = draw.choice(kinds)
            text.append(draw.choice(np.flatnonzero(machine.kinds == kind).tolist()))
            state = machine.after[state, kind]
        assert machine.final[state]
        found.append(text.decode())
    return found


@pytest.mark.thinned("schemas of one compiler")
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:50])
def test_what_is_written_is_valid(schema):
    machine = automaton(pattern_of(schema, max_depth=2))
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    draw = random.Random(0)
    for text in (text for _ in range(6) for text in walk(machine, draw)):
        checker.validate(json.loads(text))


def test_numbers_within_bounds_are_all_of_them():
    draw = random.Random(0)
    names = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    holds = {
        "minimum": lambda v, b: v >= b,
        "exclusiveMinimum": lambda v, b: v > b,
        "maximum": lambda v, b: v <= b,
        "exclusiveMaximum": lambda v, b: v < b,
    }
    for _ in range(600):
        low, high = sorted((draw.randint(-120, 1200), draw.randint(-120, 1200)))
        bounds = {
            draw.choice(pair): bound for pair, bound in zip(names, (low, high), strict=True) if draw.random() < 0.8
        }
        whole, decimal = integers(**bounds), numbers(**bounds)
        around = [bound + step for bound in (low, high) for step in (-1, 0, 1)]
        for value in [*around, draw.randint(-200, 1300), *(v + d for v in around for d in (0.5, 0.05, -0.25))]:
            want = all(holds[name](value, bound) for name, bound in bounds.items())
            text = str(value)
            assert bool(decimal and re.fullmatch(decimal, text)) == want, (bounds, value)
            if isinstance(value, int):
                assert bool(whole and re.fullmatch(whole, text)) == want, (bounds, value)
    assert integers(minimum=0.5, maximum=0.9) is None and re.fullmatch(integers(minimum=-0.5, maximum=0.5), "0")


@pytest.mark.quick("generation", "what a schema cannot say")
@pytest.mark.parametrize(
    "schema, says",
    [
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems is not supported"),
        ({"properties": {"a": {"type": "integer", "multipleOf": 3}}}, "#/properties/a/multipleOf"),
        ({"not": {}}, "#/not"),
        ({"if": {}, "then": {}}, "#/if"),
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"type": "string", "pattern": "^a$", "maxLength": 3}, "pattern and maxLength"),
        ({"type": "string", "pattern": "(?=a)"}, "#/pattern"),
        ({"type": "string", "format": "ipv6"}, "'ipv6'"),
        ({"type": "number", "minimum": 0.5}, "whole"),
        ({"type": "text"}, "'text'"),
        ({"anyOf": [{"type": "string"}], "minLength": 3}, "minLength beside anyOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "anyOf says"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"$ref": "#/$defs/none"}, "#/\\$defs/none"),
        ({"$ref": "other.json"}, "other.json"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "nothing at all is valid"),
        ({"$ref": "#"}, "nothing at all is valid"),
        ("{", "no JSON"),
    ],
)
def test_what_a_schema_cannot_say_is_refused_by_name(schema, says):
    with pytest.raises(ValueError, match=says):
        pattern_of(schema)


def test_a_pydantic_model_is_a_schema(tokenizer):
    import pydantic

    class Pet(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=5)
        age: int | None = pydantic.Field(default=None, ge=0)
        friends: list["Pet"] = []

    machine = automaton(pattern_of(Pet, max_depth=1))
    draw = random.Random(0)
    for text in walk(machine, draw):
        Pet.model_validate_json(text)
    same = ef.json_schema(json.dumps(Pet.model_json_schema()), tokenizer, eos_token_id=1, max_depth=1)
    np.testing.assert_array_equal(same.after, ef.json_schema(Pet, tokenizer, eos_token_id=1, max_depth=1).after)


# --- generation


def test_sampling_is_the_models_own_restricted_and_renormalised(model, tokenizer):
    """Probabilities at every step, against a mask made on the host from the texts."""
    pattern = r"(?:[a-z]{2,6} ){1,3}(?:é)?[0-9]{1,3}"  # the brute force is about bytes
    constraint = ef.regex(pattern, tokenizer, eos_token_id=1)
    ids = np.asarray([tokenizer.encode("def f(x): ").ids] * 6)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 24, "output_scores": True, "output_logits": True}
    out = ef.generate(model, ids, key=jax.random.key(0), processors=(constraint,), **options)
    texts = {i: text for i, text in token_texts(tokenizer).items() if i > 1}
    brute = regex.compile(pattern.encode())
    ends = 0
    for row in range(6):
        written = b""
        for step in range(int(out.lengths[row]) - out.prompt_length):
            allowed = np.zeros(out.logits.shape[-1], bool)
            allowed[[i for i, text in texts.items() if brute.fullmatch(written + text, partial=True)]] = True
            allowed[1] = bool(brute.fullmatch(written))
            whole = np.exp(np.asarray(out.logits[step, row], np.float64))
            want = np.where(allowed, whole, 0) / whole[allowed].sum()
            scores = np.asarray(out.scores[step, row], np.float64)
            np.testing.assert_allclose(np.exp(scores) / np.exp(scores).sum(), want, atol=1e-6)
            token = int(out.new_tokens[row, step])
            assert allowed[token]
            if token == 1:
                ends += 1
                assert re.fullmatch(pattern, written.decode())
                assert (np.asarray(out.new_tokens[row, step:]) == 1).all()  # padding (here the same id) stays
                break
            written += texts[token]
    assert ends >= 4


def test_sampled_rows_are_valid_json_each_its_own(model, tokenizer, schema):
    """Many rows, of several constraints and none, padded on the left: each as alone."""
    pattern = "[0-9]{4}-[0-9]{2}(?: or (?:é|日本))?"
    date, word = (
        ef.regex(pattern, tokenizer, eos_token_id=1),
        ef.choice(["yes", "yesterday", "no"], tokenizer, eos_token_id=1),
    )
    kinds = [schema, date, word, None, schema, schema, date, word] * 2
    prompt = tokenizer.encode("class Pet:\n    name = ").ids
    ids = np.stack([np.pad(prompt[n % 3 :], (n % 3, 0)) for n in range(len(kinds))])
    mask = np.stack([np.arange(len(prompt)) >= n % 3 for n in range(len(kinds))]).astype(int)
    keys = jax.random.split(jax.random.key(1), len(kinds))
    options = {"do_sample": True, "temperature": 1.3, "top_k": 100, "max_new_tokens": 60}
    out = ef.generate(model, ids, attention_mask=mask, key=keys, processors=(kinds,), **options)
    texts = texts_of(out, tokenizer)
    found = {id(kind): {t for t, k in zip(texts, kinds, strict=True) if k is kind and t} for kind in kinds}
    assert len(found[id(schema)]) > 2 and len(found[id(word)]) > 1 and len(found[id(date)]) > 1
    for text in found[id(schema)]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert all(re.fullmatch(pattern, text) for text in found[id(date)])
    assert found[id(word)] <= {"yes", "yesterday", "no"}
    free = ef.generate(model, ids[3:4], attention_mask=mask[3:4], key=keys[3:4], **options)
    np.testing.assert_array_equal(out.sequences[3, : int(out.lengths[3])], free.sequences[0, : int(out.lengths[3])])
    with pytest.raises(ValueError, match="each of the 16 rows"):
        ef.generate(model, ids, processors=([schema, None],), **options)


def test_another_schema_compiles_nothing(model, tokenizer, schema, caplog):
    """Tables are data, in generate and in stream; and an argument of the caller's own jit."""
    ids = np.asarray([tokenizer.encode("x = ").ids])
    other = {
        "type": "object",
        "properties": {"title": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "maximum": 9}},
    }
    other = ef.json_schema({**other, "required": ["title", "n"]}, tokenizer, eos_token_id=1)
    assert other.after.shape == schema.after.shape == (1, 256, 128)

    def call(constraint):
        out = ef.generate(model, ids, max_new_tokens=60, processors=(constraint,))
        rows = [int(token[0]) for token in ef.stream(model, ids, max_new_tokens=60, processors=(constraint,))]
        assert rows == np.asarray(out.sequences)[0, out.prompt_length :].tolist()
        return texts_of(out, tokenizer)[0]

    def programs(constraint):
        """The text, and the programs that were compiled for it (not the copies of results of other widths)."""
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            text = call(constraint)
        return text, {
            n for r in caplog.records for n in re.findall(r"^Compiling jit\((run|start|_step)\)", r.getMessage())
        }

    text, compiled = programs(schema)
    assert json.loads(text).keys() >= {"name", "age"} and compiled == {"run", "start", "_step"}
    text, compiled = programs(other)
    assert not compiled
    assert json.loads(text).keys() == {"title", "n"}
    small = [ef.choice(["a", "b"], tokenizer, eos_token_id=1), ef.regex("[0-9]{1,20}é", tokenizer, eos_token_id=1)]
    assert len({constraint.after.shape for constraint in small}) == 1


def small(name=""):
    """A model of 97 tokens, and a tokenizer of some of them."""
    tokenizer = byte_level(list("abcdefghijklmnopqrstuvwxyz0123456789{}[]:,."), [("a", "b"), ("n", "o")])
    config = ef.models.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return CASES[name].model() if name else ef.init(config, key=jax.random.key(0)), tokenizer


@pytest.mark.parametrize("name", ["", "mamba2", "t5"])
def test_beams_find_the_best_of_all_texts(name):
    """More beams than texts: the best of all of them by brute force, and no more of them than there are."""
    model, tokenizer = small(name)
    constraint = ef.choice(["cat", "cab", "no", "d"], tokenizer, eos_token_id=1)
    ways = [["c", "a", "t"], ["c", "a", "b"], ["c", "ab"], ["n", "o"], ["no"], ["d"]]
    ways = [[*(tokenizer.token_to_id(part) for part in way), 1] for way in ways]
    ids = np.random.RandomState(0).randint(3, 60, (2, 5))
    options = {"eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 6, "length_penalty": 0.0}
    out = ef.generate(model, ids, num_beams=8, num_return_sequences=8, processors=([constraint] * 2,), **options)
    start = out.prompt_length
    continued = np.zeros((2, len(ways), start + 4), np.int32)
    for way, row in itertools.product(range(len(ways)), range(2)):
        continued[row, way, : start + len(ways[way])] = [*np.asarray(out.sequences[row * 8, :start]), *ways[way]]
    continued = continued.reshape(-1, start + 4)
    given = {"input_ids": np.repeat(ids, len(ways), axis=0), "decoder_input_ids": continued}
    given = given if name == "t5" else {"input_ids": continued}
    log_p = jax.jit(lambda model, given: jax.nn.log_softmax(ef.forward(model, **given).logits, axis=-1))(model, given)
    log_p = np.asarray(log_p).reshape(2, len(ways), start + 4, -1)
    for row in range(2):
        found = np.asarray(out.sequences_scores[row * 8 : row * 8 + 8])
        want = [sum(log_p[row, w, start - 1 + i, token] for i, token in enumerate(way)) for w, way in enumerate(ways)]
        np.testing.assert_allclose(found[: len(ways)], sorted(want, reverse=True), atol=1e-3)
        assert (found[len(ways) :] < -1e8).all()
        np.testing.assert_array_equal(out.lengths[row * 8 + len(ways) : row * 8 + 8], start)


def test_drafts_are_exact():
    """Greedy, with another model and from the prompt: rows that advance at their own speeds, one of them free."""
    model, tokenizer = small()
    ids = np.random.RandomState(1).randint(3, 60, (3, 6))
    options = {"eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 14}
    rows = [ef.regex(pattern, tokenizer, eos_token_id=1) for pattern in ("(?:ab|no|[0-9]{2}){3,8}", "(?:[a-d]+:)*")]
    rows.insert(1, None)
    draft = jax.tree.map(lambda x: x * 0.9 if jnp.issubdtype(x.dtype, jnp.floating) else x, model)
    plain = ef.generate(model, ids, processors=(rows,), **options)
    for how in ({"assistant_model": draft, "num_assistant_tokens": 3}, {"prompt_lookup_num_tokens": 3}):
        drafted = ef.generate(model, ids, processors=(rows,), **options, **how)
        np.testing.assert_array_equal(plain.sequences, drafted.sequences)
    text = tokenizer.decode([int(t) for t in plain.new_tokens[0] if int(t) > 1])
    assert regex.fullmatch("(?:ab|no|[0-9]{2}){3,8}", text, partial=True) and text


def test_an_engine_under_constraints_is_generate_under_them():
    """Greedy and sampled requests side by side, one of them free; the engine keeps the states on the host."""
    model, tokenizer = small()
    patterns = ["(?:ab|no|[0-9]{2}){3,8}", None, "(?:[a-d]+:){2}", r"\{[a-z]{1,9}\}"]
    rows = [p and ef.regex(p, tokenizer, eos_token_id=1) for p in patterns]
    ids = np.random.RandomState(2).randint(3, 60, (4, 6))
    keys = jax.random.split(jax.random.key(0), 4)
    options = {"eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 12, "do_sample": True, "top_k": 40}
    together = ef.generate(model, ids, key=keys, processors=(rows,), **options)
    engine = ef.Engine(model, max_batch_size=2, max_model_length=24, page_size=4, num_pages=16, prefill_chunk=8)
    asked = [engine.submit(row, key=keys[n : n + 1], constraint=rows[n], **options) for n, row in enumerate(ids)]
    for n, request in enumerate(asked):
        assert request.result().new_tokens[0].tolist() == together.new_tokens[n, : len(request.tokens)].tolist()
        assert int(together.lengths[n]) - together.prompt_length == len(request.tokens)
    with pytest.raises(ValueError, match=r"eos_token_id=\[1\].*\[2\]"):
        engine.submit(ids[0], constraint=rows[0], eos_token_id=2)


def test_the_constraint_wins_over_what_forbids_all_it_allows():
    model, tokenizer = small()
    constraint = ef.choice(["no"], tokenizer, eos_token_id=1)
    ids = np.full((1, 3), 7)
    bad = [[tokenizer.token_to_id("n")], [tokenizer.token_to_id("no")]]
    out = ef.generate(
        model,
        ids,
        processors=(constraint,),
        eos_token_id=1,
        pad_token_id=0,
        max_new_tokens=9,
        min_new_tokens=6,
        bad_words_ids=bad,
    )
    assert tokenizer.decode([t for t in out.new_tokens[0].tolist() if t > 1]) == "no"
    assert int(out.lengths[0]) == out.sequences.shape[1] <= 3 + 3  # the end is forced, too


def test_errors(monkeypatch):
    model, tokenizer = small()
    with pytest.raises(ValueError, match="give eos_token_id="):
        ef.regex("a", tokenizer)
    with pytest.raises(ValueError, match="not closed"):
        ef.regex("(a", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match="was not opened"):
        ef.regex("a)(b", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match="back references"):
        ef.regex(r"(a)\1", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match="look-around"):
        ef.regex("(?!a)b", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match="contradicts itself"):
        ef.regex("[a&&b]", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match="no tokens of the vocabulary"):
        ef.regex("☃", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match="at least one text"):
        ef.choice([], tokenizer)
    with pytest.raises(TypeError, match="pydantic"):
        ef.json_schema(3, tokenizer)
    constraint = ef.regex("a", tokenizer, eos_token_id=1)
    with pytest.raises(ValueError, match=r"eos_token_id=\[1\].*\[2\]"):
        ef.generate(model, np.full((1, 3), 7), processors=(constraint,), eos_token_id=2)
    wide = ef.regex("a", byte_level(), eos_token_id=1)
    with pytest.raises(ValueError, match="97 logits"):
        ef.generate(model, np.full((1, 3), 7), processors=(wide,), eos_token_id=1)
    assert VOCAB == 97
    monkeypatch.setitem(__import__("sys").modules, "outlines_core", None)
    automaton.cache_clear()
    with pytest.raises(ImportError, match=r"easyfn\[structured\]"):
        ef.regex("a", tokenizer, eos_token_id=1)
