"""Batches: masks of what is learned, packing, buckets, an order that resumes at the exact example."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import easyfn as ef
from cases import CASES
from easyfn.io.template import ChatTemplate

TINY = Path(__file__).parent.parent / "examples" / "tiny"
MARKED = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CHAT = [
    {"role": "user", "content": "What is x?"},
    {"role": "assistant", "content": "It is 1."},
    {"role": "user", "content": "And ü?"},
    {"role": "assistant", "content": "Äh, return 2"},
]
words = ef.tokenizer(TINY)


def said(found):
    return words.decode([i for i in found["labels"].tolist() if i >= 0], skip_special_tokens=False)


@pytest.mark.quick("data", "packing")
def test_best_fit():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 500)
    rows = ef.best_fit(lengths, 64)
    assert sorted(n for row in rows for n in row) == list(range(500))
    assert all(lengths[row].sum() <= 64 for row in rows)
    least = max(lengths.sum() / 64, (lengths > 32).sum())  # two of more than half do not fit in one
    assert len(rows) <= 1.02 * least + 1
    assert ef.best_fit([], 8) == []
    with pytest.raises(ValueError, match="longer than a row"):
        ef.best_fit([9], 8)


def test_packed_documents_are_as_if_alone():
    """The loss of a packed batch is that of its documents, each in a row of its own."""
    model = CASES["llama"].model()
    rng = np.random.default_rng(1)
    documents = [{"input_ids": rng.integers(3, 97, n)} for n in (3, 4, 5, 2, 9, 4)]
    rows = [ef.packed_row([documents[n] for n in row], 9) for row in ef.best_fit([3, 4, 5, 2, 9, 4], 9)]
    packed = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    apart = ef.padded([{**d, "labels": d["input_ids"]} for d in documents], 9)
    (one, a), (two, b) = (jax.jit(ef.compute_loss)(model, batch) for batch in (packed, apart))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert a["num_tokens"] == b["num_tokens"] == 27 - 6


@pytest.mark.parametrize("source", [MARKED, PLAIN])
def test_what_the_assistant_says_is_learned(source):
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    found = ef.tokenize({"messages": CHAT}, words, template=template)
    assert said(found) == "It is 1.</s>Äh, return 2</s>"
    assert words.decode(found["input_ids"].tolist(), skip_special_tokens=False) == template(
        CHAT, add_generation_prompt=False
    )
    pair = ef.tokenize({"prompt": CHAT[:3], "chosen": CHAT[3:], "rejected": "No."}, words, template=template)
    assert said({"labels": pair["chosen_labels"]}) == "Äh, return 2</s>"  # the first answer belongs to the prompt
    assert said({"labels": pair["rejected_labels"]}) == "No.</s>"


def test_the_mask_is_transformers(tmp_path):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(TINY / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=MARKED
    )
    wanted = theirs.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    theirs.save_pretrained(tmp_path)
    found = ef.tokenize({"messages": CHAT}, words, template=ef.chat_template(tmp_path))
    assert found["input_ids"].tolist() == wanted["input_ids"]
    assert (found["labels"] >= 0).astype(int).tolist() == wanted["assistant_masks"]


@pytest.mark.quick("data", "wrong forms")
def test_forms_and_wrong_ones():
    whole = ef.tokenize("def f():", words, eos=1)
    assert said(whole) == "def f():</s>"
    found = ef.tokenize({"prompt": "def ", "completion": "f():"}, words, eos=1)
    assert said(found) == "f():</s>" and (found["labels"][:1] == -100).all()
    with pytest.raises(ValueError, match="'question'"):
        ef.tokenize({"question": "?"}, words)
    with pytest.raises(ValueError, match="chat_template"):
        ef.tokenize({"messages": CHAT}, words)
    forgets = ChatTemplate("{% for m in messages %}{{ m.content if loop.last else '..' }}{% endfor %}")
    with pytest.raises(ValueError, match="generation"):
        ef.tokenize({"messages": CHAT}, words, template=forgets)
    with pytest.raises(ValueError, match="nothing would be learned"):
        ef.tokenize({"messages": CHAT[:1]}, words, template=ChatTemplate(PLAIN, bos_token="", eos_token=""))


def documents(count=40):
    rng = np.random.default_rng(2)
    return [{"input_ids": np.full(rng.integers(2, 33), n)} for n in range(count)]


SHAPES = {"rows": {}, "packed": {"pack": True}, "buckets": {"buckets": (8, 16, 32)}}


@pytest.mark.quick("data", "the order resumes")
@pytest.mark.parametrize("kind", SHAPES)
def test_resumes_at_the_exact_example(kind):
    make = lambda **more: iter(ef.batches(documents(), batch_size=4, length=32, **SHAPES[kind], **more))
    stream, states, seen = make(), [], []
    for _ in range(25):  # over the end of an epoch or two
        states.append(json.dumps(stream.get_state()))
        seen.append(next(stream))
    for at in (0, 1, 7, 24):
        again = make()
        again.set_state(json.loads(states[at]))
        for batch in seen[at : at + 2]:
            jax.tree.map(np.testing.assert_array_equal, next(again), batch)
    first = [b["input_ids"] for b in make(epochs=1)]
    second = [b["input_ids"] for b in list(make(epochs=2))[len(first) :]]
    assert len(second) == len(first)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, second, strict=True))
    lost = 40 - len({int(i) for batch in first for i in np.unique(batch[batch > 0])})
    assert lost <= {"rows": 1, "packed": 4 * 6, "buckets": 10}[kind]
    if kind == "buckets":
        assert {b.shape[1] for b in first} == {8, 16, 32}


def test_processes_share_a_batch():
    parts = [list(ef.batches(documents(), batch_size=4, length=32, epochs=1, process=n, processes=2)) for n in (0, 1)]
    whole = list(ef.batches(documents(), batch_size=4, length=32, epochs=1))
    for a, b, both in zip(*parts, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([a["input_ids"], b["input_ids"]]), both["input_ids"])


def test_a_file_of_tokens_and_wrong_sizes():
    ids = np.fromfile(TINY / "held_out.u16", np.uint16)
    batch = next(iter(ef.batches(ids, batch_size=2, length=64, seed=None)))
    np.testing.assert_array_equal(batch["input_ids"].reshape(-1), ids[:128])
    with pytest.raises(ValueError, match="fewer than one batch"):
        ef.batches(ids[:100], batch_size=2, length=64)
    with pytest.raises(ValueError, match="widest bucket 16"):
        ef.batches(documents(), batch_size=2, length=64, buckets=(8, 16))
    pairs = [{"chosen_input_ids": np.ones(3), "rejected_input_ids": np.ones(2)}]
    with pytest.raises(ValueError, match="not packed"):
        ef.batches(pairs, batch_size=1, length=8, pack=True)
