"""The engine: every request as `ef.generate` makes it alone, whatever else runs, waits, joins and leaves."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, IMAGES, VOCAB, in_test_all
from image_prompts import BREAK, IMAGE, VIDEO
from test_vision import model_of

LENGTH = 40
RANDOM = np.random.RandomState(0)
PROMPTS = [RANDOM.randint(3, VOCAB, n) for n in (3, 17, 9, 22, 1, 8)]
NEW = [12, 9, 17, 11, 20, 5]
EOS = [91, 57]
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


# Indexers, which keep keys of their own; settings of layers that no family in front of them has.
MORE = ["qwen4_exp_text", "deepseek_v32", "glm_moe_dsa", "jais2", "cwm", "hyperclovax", "solar_open", "internlm3"]
MORE += ["exaone", "iquestcoder", "mellum", "diffllama"]


@pytest.mark.thinned("caches that test_paged.py holds to be caches")
@pytest.mark.parametrize(
    "name", in_test_all(["llama", "llama stacked", "gemma3", "mixtral", "gpt2", "mamba2", "t5"], MORE)
)
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


def one_row(name, row):
    """A row of a prompt with images, without its padding, as keyword arguments."""
    made = IMAGES[name].inputs("left")
    keep, shape = made["attention_mask"][row] > 0, made["attention_mask"].shape
    by_token = {k: v[row : row + 1][:, keep] for k, v in made.items() if v.shape[:2] == shape}
    by_row = "pixel_attention_mask" in made  # else one after the other, of all rows
    ids = made["input_ids"]
    within = np.isin(ids, [IMAGE, BREAK] if "image_sizes" in made else IMAGE)
    begins = within & ~np.roll(within, 1, axis=1)
    ends = np.cumsum([0, *begins.sum(axis=1)])
    images = slice(row, row + 1) if by_row else slice(ends[row], ends[row + 1])
    beside = {k: v for k, v in made.items() if v.shape[:2] != shape}
    found = {k: v[images] for k, v in beside.items() if "video" not in k and v[images].size}
    if "batch_num_images" in beside:
        found["batch_num_images"] = beside["batch_num_images"][row : row + 1]
    if "image_grid_thw" in made:
        patches = np.cumsum([0, *made["image_grid_thw"].prod(axis=1)])
        found["pixel_values"] = made["pixel_values"][patches[images.start] : patches[images.stop]]
    if (ids[row] == VIDEO).any():
        found |= {k: v for k, v in beside.items() if "video" in k}
    by_token.pop("attention_mask")
    return {**by_token, **found}


SHOWN = ["qwen2.5-vl", "qwen3-vl", "qwen3_5", "gemma3-images", "gemma4-images", "llava", "llava-next", "paligemma"]
SHOWN += ["idefics3", "smolvlm", "internvl", "mistral3", "llama4"]


@pytest.mark.parametrize("name", in_test_all(["qwen2-vl"], SHOWN))
def test_images_enter_once_and_other_rows_do_not_notice(name):
    """Two prompts with images, of which one gives way for lack of pages, beside a text; as `generate` makes each alone."""
    model, options = model_of(name), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": EOS}
    rows = [one_row(name, 0), one_row(name, 1), {"input_ids": PROMPTS[2][None]}]
    expected = []
    for row in rows:
        given = dict(row)
        out = ef.generate(model, given.pop("input_ids"), **given, **options)
        expected.append(out.new_tokens[0, : int(out.lengths[0]) - out.prompt_length].tolist())
    longest = max(row["input_ids"].shape[1] for row in rows) + 6
    engine = small(model, max_model_length=longest, num_pages=-(-longest // 4) + 5)
    requests = [engine.submit(row["input_ids"][0], **options, **_beside(row)) for row in rows]
    finish(engine, requests)
    assert [request.tokens for request in requests] == expected
    assert engine.stats().free_pages == engine.stats().num_pages
    hits = engine.stats().prefix_hits  # a text that gave way finds its own pages; a prompt with images shares none
    again = engine.submit(rows[0]["input_ids"][0], **options, **_beside(rows[0]))
    finish(engine, [again])
    assert again.tokens == expected[0] and engine.stats().prefix_hits == hits
    ids = rows[0]["input_ids"][0]
    with pytest.raises(ValueError, match="places for them"):
        engine.submit(np.where(np.cumsum(ids == IMAGE) == 1, 20, ids), **options, **_beside(rows[0]))


@pytest.mark.every_family
def test_images_that_layers_read_apart_are_refused_and_text_is_not():
    model, options = model_of("mllama"), {"max_new_tokens": 6, "eos_token_id": EOS}
    engine, ids, images = small(model), PROMPTS[2], IMAGES["mllama"].inputs("left")
    want = ef.generate(model, ids[None], **options)
    request = engine.submit(ids, **options)
    finish(engine, [request])
    assert request.tokens == want.new_tokens[0, : int(want.lengths[0]) - len(ids)].tolist()
    with pytest.raises(ValueError, match=r"read pixel_values apart.*no room for their keys; use ef\.generate"):
        engine.submit(ids, pixel_values=images["pixel_values"][:1], **options)


def _beside(row):
    return {name: value for name, value in row.items() if name != "input_ids"}


def test_scores_of_the_likeliest_tokens(llama):
    """Those of the model itself, of greedy and of drawn rows beside one that asks for none, through a second turn."""
    keys = jax.random.split(jax.random.key(3), 3)
    said = [{"logprobs": 3}, {"logprobs": 0, "key": keys[1:2], **DRAWN}, {"key": keys[2:], **DRAWN}]
    engine = small(llama)
    prompts = [PROMPTS[1], PROMPTS[3], PROMPTS[2]]
    requests = [engine.submit(p, max_new_tokens=16, **options) for p, options in zip(prompts, said, strict=True)]
    finish(engine, requests)
    assert engine.stats().preemptions > 0 and requests[2].logprobs == []
    for request, count in zip(requests[:2], (3, 0), strict=True):
        ids = np.asarray([[*request.prompt, *request.tokens]])
        scores = jax.nn.log_softmax(ef.forward(llama, ids).logits[0, len(request.prompt) - 1 : -1])
        assert len(request.logprobs) == len(request.tokens) == 16
        for row, token, (own, best) in zip(np.asarray(scores), request.tokens, request.logprobs, strict=True):
            np.testing.assert_allclose(own, row[token], atol=1e-4)
            assert list(best) == np.argsort(-row)[:count].tolist()
            np.testing.assert_allclose(list(best.values()), np.sort(row)[::-1][:count], atol=1e-4)
    with pytest.raises(ValueError, match="between 0 and 20"):
        engine.submit(PROMPTS[0], max_new_tokens=2, logprobs=21)


def test_times_and_trouble(llama, monkeypatch):
    engine = small(llama)
    assert engine.trouble(0.0) is None  # nothing to do
    requests = [engine.submit(p, max_new_tokens=n) for p, n in zip(PROMPTS, NEW, strict=True)]
    assert "no step has ended" in engine.trouble(0.0)
    finish(engine, requests)
    assert engine.trouble(0.0) is None
    times = engine.times
    assert sum(times.queue.counts) == sum(times.time_to_first_token.counts) == sum(times.request.counts) == len(PROMPTS)
    assert sum(times.time_per_output_token.counts) == sum(NEW) - len(NEW)
    named = times.request.cumulative()
    assert named[-1] == ("+Inf", len(PROMPTS)) and [n for _, n in named] == sorted(n for _, n in named)
    assert 0 < times.time_to_first_token.sum < times.request.sum
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_step", lambda: 1 / 0)
        for _ in range(3):
            assert engine.trouble() is None
            with pytest.raises(ZeroDivisionError):
                engine.step()
        assert engine.trouble() == "the last 3 steps failed"
    engine.run([PROMPTS[0]], max_new_tokens=1)
    assert engine.trouble() is None


def test_scores_of_the_prompt(llama):
    """Through pieces, a second turn, beside rows that ask for none, with pages that know the beginning already, and alone."""
    engine = small(llama)
    prompts = [PROMPTS[3], PROMPTS[1], PROMPTS[2]]
    for _ in range(2):  # the second time the first pages are known
        first, second, third = (
            engine.submit(p, max_new_tokens=n, prompt_logprobs=k)
            for p, n, k in zip(prompts, (16, 16, 9), (2, 0, None), strict=True)
        )
        finish(engine, [first, second, third])
    only = engine.submit(PROMPTS[3], max_new_tokens=0, prompt_logprobs=2)
    finish(engine, [only])
    assert engine.stats().preemptions > 0 and third.prompt_logprobs == []
    assert (only.tokens, only.finish_reason) == ([], "length") and engine.stats().free_pages == 15
    for request, count in ((first, 2), (second, 0), (only, 2)):
        scores = np.asarray(jax.nn.log_softmax(ef.forward(llama, np.asarray([request.prompt])).logits[0, :-1]))
        assert request.prompt_logprobs[0] is None and len(request.prompt_logprobs) == len(request.prompt)
        for row, token, (own, best) in zip(scores, request.prompt[1:], request.prompt_logprobs[1:], strict=True):
            np.testing.assert_allclose(own, row[token], atol=1e-4)
            assert list(best) == np.argsort(-row)[:count].tolist()
    for prompt in (
        RANDOM.randint(3, VOCAB, LENGTH),
        [5],
    ):  # as long as there is room for, and one of which nothing is said
        request = engine.submit(prompt, max_new_tokens=0, prompt_logprobs=0)
        finish(engine, [request])
        assert len(request.prompt_logprobs) == len(prompt)
    with pytest.raises(ValueError, match="an encoder reads"):
        small(CASES["t5"].model()).submit(PROMPTS[0], max_new_tokens=2, prompt_logprobs=0)


def test_few_programs_and_none_after_the_warm_up(llama, greedy):
    engine = small(llama)
    engine.warm_up()
    compiled = engine.stats().compiles
    names = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: names.append(name))
    options = [
        {},
        {"do_sample": True, "key": jax.random.key(1), "top_k": 0, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"sequence_bias": {(7,): 3.0, (8, 9): -5.0}, "bad_words_ids": [[11], [12, 13]], "suppress_tokens": [14, 15]},
    ]
    requests = [engine.submit(p, max_new_tokens=5, **options[i % 4]) for i, p in enumerate(PROMPTS)]
    finish(engine, requests)
    assert requests[4].tokens == greedy[4][:5]
    assert not [name for name in names if "backend_compile" in name]
    assert engine.stats().compiles == compiled == 3  # a step; a piece of 8 with a past, and without


def test_options_are_those_of_generate(llama):
    """A request of its own options in a mixed batch: what `generate` says of them alone."""
    prompt = PROMPTS[2]
    asked = [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
        {"frequency_penalty": 0.7, "presence_penalty": 0.4, "suppress_tokens": [3, 9], "begin_suppress_tokens": [5]},
        {"bad_words_ids": [[5], [57, 5]], "sequence_bias": {(7,): 3.0, (57, 7): -9.0}, "forced_eos_token_id": 6},
        {"exponential_decay_length_penalty": (2, 1.4), "encoder_repetition_penalty": 1.2, "eos_token_id": [5, 6]},
        {"do_sample": True, "top_k": 200, "top_p": 0.8, "temperature": 1.3, "renormalize_logits": True},
        {"do_sample": True, "top_k": 7, "min_p": 0.05, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01},
        {"do_sample": True, "top_h": 0.6, "encoder_no_repeat_ngram_size": 2, "remove_invalid_values": True},
    ]
    common = {"max_new_tokens": 8, "eos_token_id": EOS, "key": jax.random.key(3)}
    engine = small(llama, num_pages=40)
    requests = [engine.submit(prompt, **{**common, **options}) for options in asked]
    for request, options in zip(requests, asked, strict=True):
        out = ef.generate(llama, prompt[None], **{**common, **options})
        np.testing.assert_array_equal(request.result().sequences, out.sequences, err_msg=str(options))
        np.testing.assert_array_equal(request.result().lengths, out.lengths)


@pytest.mark.quick("engine", "requests are alone")
def test_a_shared_beginning_is_run_once(llama):
    engine = small(llama, num_pages=30)
    prompts = [np.concatenate([PROMPTS[1][:13], tail]) for tail in ([7], [8, 9], [10, 11, 12])]
    expected = by_generate(llama, prompts)
    first = engine.submit(prompts[0], max_new_tokens=6, eos_token_id=EOS)
    finish(engine, [first])
    assert engine.stats().free_pages == 30  # what is known is not in use
    rest = [engine.submit(p, max_new_tokens=6, eos_token_id=EOS) for p in prompts[1:]]
    finish(engine, rest)
    assert engine.stats().prefix_hits == 2 * 3  # three full pages of 4 tokens each
    assert [r.tokens for r in (first, *rest)] == [tokens[:6] for tokens in expected]
    assert not small(CASES["gemma3"].model())._scheduler.prefix_cache  # rings are no pages


def test_cancel_and_room(llama, greedy):
    engine = small(llama, max_waiting=2)
    requests = [engine.submit(p, max_new_tokens=n, eos_token_id=EOS) for p, n in zip(PROMPTS[:2], NEW, strict=False)]
    with pytest.raises(ef.EngineFull, match="max_waiting"):
        engine.submit(PROMPTS[2], max_new_tokens=3)
    for _ in range(6):
        engine.step()
    told = []
    requests[1].subscribe(told.append)
    requests[1].cancel()
    assert requests[1] in engine.step()
    assert requests[1].finish_reason == "cancelled" and told[-1] is None
    finish(engine, requests)
    assert requests[0].tokens == greedy[0][: NEW[0]] and requests[1].tokens == greedy[1][: len(requests[1].tokens)]
    assert engine.stats().free_pages == 15
    with pytest.raises(ValueError, match="max_model_length=40"):
        engine.submit(PROMPTS[0], max_new_tokens=38)
    with pytest.raises(ValueError, match="num_beams=2"):
        engine.submit(PROMPTS[0], num_beams=2)
    with pytest.raises(ValueError, match="attention_mask"):
        engine.submit(PROMPTS[0], attention_mask=np.ones(3))
    with pytest.raises(ValueError, match="one prompt"):
        engine.submit(np.ones((2, 3), int))


def test_a_thread_steps_for_everyone(llama, greedy):
    engine = small(llama)
    found: dict[int, list[int]] = {}

    def ask(i):
        found[i] = list(engine.submit(PROMPTS[i], max_new_tokens=NEW[i], eos_token_id=EOS))

    with engine:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        left = engine.submit(PROMPTS[0], max_new_tokens=30, eos_token_id=-1)
    assert found == {i: greedy[i][:new] for i, new in enumerate(NEW)}
    assert left.done  # closing cancels
    assert engine.run(PROMPTS[:1], max_new_tokens=3, eos_token_id=EOS)[0].new_tokens[0].tolist() == greedy[0][:3]


def test_a_failing_step_hangs_nobody(llama, greedy, monkeypatch):
    engine = small(llama)
    requests = [engine.submit(p, max_new_tokens=5) for p in PROMPTS]
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._device, "prefill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert all(r.finish_reason == "error" for r in requests)
    with pytest.raises(RuntimeError, match="division by zero"):
        requests[0].result()
    assert engine.run(PROMPTS[:1], max_new_tokens=4, eos_token_id=EOS)[0].new_tokens[0].tolist() == greedy[0][:4]


def test_a_model_on_a_mesh(llama, greedy):
    mesh = ef.make_mesh(fsdp=1, tp=2, devices=jax.devices()[:2])
    rules = dataclasses.replace(ef.default_rules(llama), indivisible="replicate")
    engine = small(ef.shard(llama, rules, mesh))
    assert engine._device.board.layers[0].k.sharding.spec[1] == "tp"
    requests = [engine.submit(p, max_new_tokens=n, eos_token_id=EOS) for p, n in zip(PROMPTS[:3], NEW, strict=False)]
    finish(engine, requests)
    assert [r.tokens for r in requests] == [tokens[:n] for tokens, n in zip(greedy[:3], NEW, strict=False)]


class Failing:
    """A constraint that breaks after some tokens."""

    def start(self):
        return 0

    def allowed(self, state):
        return np.arange(VOCAB) < (50 if state < 3 else 1 // 0)

    def advance(self, state, token):
        assert token < 50
        return state + 1


def test_a_failing_constraint_ends_its_own_request(llama, greedy):
    engine = small(llama)
    broken = engine.submit(PROMPTS[0], max_new_tokens=9, eos_token_id=EOS, constraint=Failing())
    whole = engine.submit(PROMPTS[1], max_new_tokens=9, eos_token_id=EOS)
    finish(engine, [broken, whole])
    assert broken.finish_reason == "error" and len(broken.tokens) == 3 and max(broken.tokens) < 50
    assert whole.tokens == greedy[1][:9]


class Often:
    """A processor that remembers: what was best before is less so now."""

    def init(self, ids, vocab_size):
        return jax.numpy.zeros((ids.shape[0], vocab_size))

    def __call__(self, state, ids, logits):
        logits = logits - state.memory
        return logits, state._replace(memory=state.memory + 2.0 * jax.nn.softmax(logits))


def test_processors_remember_across_turns(llama):
    often = Often()
    expected = by_generate(llama, PROMPTS[1:5], processors=[often])
    engine = small(llama, processors=[often])
    asked = list(zip(PROMPTS[1:5], NEW[1:5], strict=True))
    requests = [engine.submit(p, max_new_tokens=n, eos_token_id=EOS) for p, n in asked]
    finish(engine, requests)
    assert [r.tokens for r in requests] == [tokens[:n] for tokens, (_, n) in zip(expected, asked, strict=True)]
    assert engine.stats().preemptions > 0


def test_adapters_and_stop_strings_are_the_requests_own(llama):
    """Rows of several adapters and of none, one of them the same beginning as another: no page is shared between them."""
    from tokenizers import Tokenizer, models

    base, adapter = ef.split_lora(ef.apply_lora(llama, "q_proj|v_proj|up_proj", rank=2, key=jax.random.key(4)))
    loud = lambda factor: jax.tree.map(lambda x: x + factor * jax.random.normal(jax.random.key(5), x.shape), adapter)
    model = ef.with_adapters(base, {"en": loud(0.2), "fr": loud(-0.3)})
    words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(VOCAB)}, unk_token="<0>"))
    names = ["en", None, "fr", "en"]
    prompt, common = PROMPTS[1], {"max_new_tokens": 9, "eos_token_id": EOS}
    alone = [ef.generate(model, prompt[None], adapter_ids=[name], **common).sequences[0].tolist() for name in names]
    assert alone[0] != alone[1] != alone[2] != alone[0]

    engine = small(model, num_pages=40, tokenizer=words)
    requests = [engine.submit(prompt, adapter=name, **common) for name in names]
    said = alone[1][len(prompt) :]
    stopped = engine.submit(prompt, stop_strings=[f"{said[2]}>", "never"], **common)
    finish(engine, [*requests, stopped])
    assert [[*prompt, *request.tokens] for request in requests] == alone
    whole = ef.generate(
        model, prompt[None], adapter_ids=[None], tokenizer=words, stop_strings=[f"{said[2]}>"], **common
    )
    assert [*prompt, *stopped.tokens] == whole.sequences[0].tolist() and stopped.finish_reason == "stop"
    assert len(stopped.tokens) < len(said)
    assert engine.stats().prefix_hits > 0
    with pytest.raises(KeyError, match="no adapter 'de'"):
        engine.submit(prompt, adapter="de", **common)
