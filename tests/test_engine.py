"""The engine: every request as `ef.generate` makes it alone, whatever else runs, waits, joins and leaves."""

import threading

import jax
import numpy as np
import pytest
from cases import CASES, VOCAB

import easyfn as ef

LENGTH = 40
RANDOM = np.random.RandomState(0)
PROMPTS = [RANDOM.randint(3, VOCAB, n) for n in (3, 17, 9, 22, 1, 8)]
NEW = [12, 9, 17, 11, 20, 5]
EOS = [5, 6]
DRAWN = {"do_sample": True, "temperature": 0.8, "top_k": 30}


def small(model, **options):
    """Three rows, pieces of 8 tokens, and pages for about half of what three long rows come to."""
    sizes = {"max_batch_size": 3, "max_model_length": LENGTH, "page_size": 4, "num_pages": 15, "prefill_chunk": 8}
    return ef.Engine(model, **{**sizes, **options})


def by_generate(model, prompts=PROMPTS, **options):
    """The new tokens of each prompt: one batch, for a row gives the same tokens alone and in any batch."""
    longest = max(len(p) for p in prompts)
    ids = np.stack([np.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = np.stack([np.arange(longest) >= longest - len(p) for p in prompts]).astype(int)
    out = ef.generate(model, ids, attention_mask=mask, eos_token_id=EOS, max_new_tokens=max(NEW), **options)
    return [row[:end].tolist() for row, end in zip(out.new_tokens, out.lengths - out.prompt_length, strict=True)]


def finish(engine, requests):
    for _ in range(1000):
        if all(request.done for request in requests):
            return
        engine.step()
    raise AssertionError(f"no end: {engine.stats()}")


@pytest.fixture(scope="module")
def llama():
    return CASES["llama"].model()


@pytest.fixture(scope="module")
def greedy(llama):
    return by_generate(llama)


@pytest.mark.parametrize("name", ["llama", "llama stacked", "gemma3", "mixtral", "gpt2", "mamba2", "t5"])
def test_every_request_is_as_if_alone(name):
    """Mixed lengths, few pages, tiny pieces; greedy and sampled rows side by side."""
    model = CASES[name.split()[0]].model()
    keys = jax.random.split(jax.random.key(0), len(PROMPTS))
    expected = [by_generate(model), by_generate(model, key=keys, **DRAWN)]
    engine = small(ef.stack(model) if "stacked" in name else model)
    requests = [
        engine.submit(prompt, max_new_tokens=new, eos_token_id=EOS, key=keys[i : i + 1], **(DRAWN if i % 2 else {}))
        for i, (prompt, new) in enumerate(zip(PROMPTS, NEW, strict=True))
    ]
    finish(engine, requests)
    for i, (request, new) in enumerate(zip(requests, NEW, strict=True)):
        assert request.tokens == expected[i % 2][i][:new], i
        assert request.finish_reason == ("stop" if request.tokens[-1] in EOS else "length")
    stats = engine.stats()
    assert stats.running == stats.waiting == 0 and stats.free_pages == stats.num_pages
    if name in ("llama", "llama stacked", "gemma3", "gpt2"):
        assert stats.preemptions > 0
