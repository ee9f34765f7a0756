"""Stop strings end rows where transformers ends them; text streams never cut a character."""

import jax
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB
from easyfn.generation.stop import stop_table, token_texts, walk

PIECES = ["a", "b", "ab", "ba", "abc", "c", " a", "\n", "\n\n", "é", "stop", "st", "op", "to", "opa", "xsto", " ", "日"]


def byte_level():
    """A byte-level BPE with merges, in both of its wrappings."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shown = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: n for n, letter in enumerate(shown)}
    merges = []
    for a, b in (("s", "t"), ("o", "p"), ("st", "op"), ("t", "o"), ("a", "b"), ("Ċ", "Ċ"), ("Ġ", "a"), ("x", "st")):
        merges.append((a, b))
        vocab[a + b] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_piece():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "abcdef", *PIECES, *(f"##{p}" for p in PIECES if p.strip() == p)]
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer, PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("make", [byte_level, word_piece])
def test_every_token_at_every_moment_is_transformers(make):
    import torch
    from transformers.generation.stopping_criteria import StopStringCriteria

    bare, wrapped = make()
    assert token_texts(bare) == token_texts(wrapped)
    strings = ["stop", "aba", "\n\nb", "ab", "é"] if make is byte_level else ["stop", "aba", "ab a"]
    known = [
        i for i, text in token_texts(bare).items() if 0 < len(text) < 5 and set(text) <= set(b"abstopx \n\xc3\xa9")
    ]
    random = np.random.RandomState(0)
    ids = random.choice(known, (400, 12))
    for chosen in (strings, strings[:1]):
        theirs = StopStringCriteria(wrapped, chosen)
        table = np.asarray(stop_table(bare, chosen))
        hits = 0
        for length in range(1, 13):
            want = theirs(torch.tensor(ids[:, :length]), None).numpy()
            state = np.asarray(walk(jax.numpy.asarray(table), jax.numpy.asarray(ids[:, : length - 1])))
            np.testing.assert_array_equal(table[state, ids[:, length - 1]] < 0, want)
            hits += want.sum()
        assert hits > 20
    np.testing.assert_array_equal(stop_table(bare, strings), stop_table(wrapped, strings))


def test_generation_stops_where_transformers_stops():
    """Greedy, sampled rows at once, beams and drafts."""
    import torch

    bare, wrapped = byte_level()
    case = CASES["llama-tied"]
    model, hf = case.model(), case.torch()
    ids = np.random.RandomState(1).randint(3, VOCAB, (3, 6))
    free = ef.generate(model, ids, max_new_tokens=10, eos_token_id=-1)
    texts = token_texts(bare)
    strings = [  # of two tokens that follow each other, and within one
        (texts[int(free.new_tokens[0, 2])] + texts[int(free.new_tokens[0, 3])]).decode(errors="ignore") or "!",
        texts[int(free.new_tokens[1, 5])].decode(errors="ignore") or "!",
    ]
    options = {"max_new_tokens": 10, "eos_token_id": 2, "pad_token_id": 0, "stop_strings": strings}
    for beams in (1, 3):
        with torch.no_grad():
            theirs = hf.generate(torch.tensor(ids), tokenizer=wrapped, num_beams=beams, do_sample=False, **options)
        ours = ef.generate(model, ids, tokenizer=bare, num_beams=beams, **options)
        for row, length in zip(range(3), np.asarray(ours.lengths), strict=True):
            np.testing.assert_array_equal(np.asarray(ours.sequences)[row, :length], theirs[row, :length].numpy())
        assert ours.sequences.shape == theirs.shape and (beams > 1 or np.asarray(ours.lengths).min() < 16)
    once = ef.generate(model, ids, tokenizer=wrapped, **options)
    drafted = ef.generate(model, ids, tokenizer=bare, assistant_model=model, num_assistant_tokens=4, **options)
    np.testing.assert_array_equal(once.sequences, drafted.sequences)
    streamed = np.stack(list(ef.stream(model, ids, tokenizer=bare, **options)), axis=1)
    np.testing.assert_array_equal(once.new_tokens, streamed)
    with pytest.raises(ValueError, match="tokenizer="):
        ef.generate(model, ids, stop_strings="a")
    with pytest.raises(ValueError, match="can end any"):
        stop_table(word_piece()[0], ["☃"])


class Script:
    """Processors that make a model say given tokens."""

    def __init__(self, tokens, start):
        self.tokens, self.start = jax.numpy.asarray(tokens), start

    def __call__(self, state, ids, logits):
        say = jax.numpy.take(self.tokens, state.length - self.start, axis=1)
        return jax.numpy.where(jax.numpy.arange(logits.shape[1])[None] == say[:, None], 1e3, logits), state


@pytest.mark.quick("generation", "streams cut no character")
def test_text_streams_cut_no_character():
    bare, wrapped = byte_level()
    texts = ["stop 日本é\n\nab", "é😀 x a", "日"]
    rows = [bare.encode(t).ids for t in texts]
    width = max(map(len, rows))
    config = ef.models.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    model = ef.init(config, key=jax.random.key(0))
    end = 299
    script = Script([row + [end] * (width + 1 - len(row)) for row in rows], 2)
    options = {"max_new_tokens": width + 1, "eos_token_id": end, "processors": [script]}
    for tokenizer in (bare, wrapped):
        parts = list(ef.stream_text(model, np.full((3, 2), 7), tokenizer, **options))
        assert ["".join(part[i] for part in parts) for i in range(3)] == texts
        assert not any("\ufffd" in text for part in parts for text in part)
        assert len(parts) >= width
    cut = rows[2][:-1]  # a character that never comes to its end is told at the end
    options["processors"] = [Script([[*cut, end]], 2)]
    parts = list(ef.stream_text(model, np.full((1, 2), 7), bare, **options))
    assert "".join(part[0] for part in parts) == bare.decode(cut)
