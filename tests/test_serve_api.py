"""What clients of OpenAI's API, of vLLM and lm_eval expect beside chats and completions; and what strangers may not do."""

import argparse
import importlib.util
import json
import time
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

import easyfn as ef
from test_serve import TINY, Running

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
    "{% endfor %}\n{% endfor %}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}<assistant>"
)
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def model():
    return ef.load(TINY, dtype=jnp.float32, progress=False)


@pytest.fixture(scope="module")
def engine(model):
    return ef.Engine(model, max_batch_size=4, max_model_length=128, num_pages=32, prefill_chunk=32, max_waiting=32)


@pytest.fixture(scope="module")
def url(engine, tokenizer):
    app = ef.serve.app(
        engine,
        tokenizer,
        model_name="tiny",
        chat_template=ef.serve.ChatTemplate(TEMPLATE, bos_token="<s>", eos_token="</s>"),
        api_key=["first", "second"],
        origins=[ORIGIN],
        max_seconds=120,
    )
    with Running(app) as running:
        yield running.url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url + "/v1", api_key="second", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def held_out():
    return np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32)


def ask(url, path, body=None, **headers):
    """`(status, JSON, headers)`."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer first", **headers}
    request = urllib.request.Request(url + path, data, {name.replace("_", "-"): v for name, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read() or b"null"), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


def log_softmax(model, ids):
    return np.asarray(jax.nn.log_softmax(ef.forward(model, np.asarray([ids])).logits[0].astype(jnp.float32)))


# --- echo: the scores of prompts, as evaluation tools ask for them


def test_echo_with_scores_of_the_prompt(client, model, tokenizer, held_out):
    """lm_eval's request, of rows of several lengths, one longer than a piece; whole and streamed."""
    rows = [held_out[:9].tolist(), held_out[40:80].tolist(), [7]]
    asked = {
        "model": "tiny",
        "prompt": rows,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    said = client.completions.create(**asked).choices
    for row, choice in zip(rows, said, strict=True):
        scores, found = log_softmax(model, row), choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(row) + 1
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        after = [*row[1:], int(scores[-1].argmax())]
        np.testing.assert_allclose(found.token_logprobs[1:], scores[range(len(row)), after], atol=1e-4)
        greedy = [
            p == max(best.values()) for p, best in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
        ]
        assert greedy == (scores.argmax(1) == after).tolist()
        whole = [*row, after[-1]]
        assert "".join(found.tokens) == tokenizer.decode(whole, skip_special_tokens=False)
        shown = ["" if i == 0 else word for i, word in zip(whole, found.tokens, strict=True)]  # `<s>` is no text
        assert "".join(shown) == choice.text == tokenizer.decode(whole)
        assert all(choice.text[at:].startswith(w) for at, w in zip(found.text_offset, shown, strict=True))
    pieces = list(client.completions.create(**{**asked, "prompt": rows[1]}, stream=True))
    told = [piece.choices[0].logprobs for piece in pieces if piece.choices[0].logprobs]
    assert [t for one in told for t in one.tokens] == said[1].logprobs.tokens
    assert [p for one in told for p in one.token_logprobs] == pytest.approx(said[1].logprobs.token_logprobs, abs=1e-4)
    assert "".join(piece.choices[0].text for piece in pieces) == said[1].text


def test_echo_alone(client, engine, held_out):
    """`max_tokens=0`: as long as the whole room is, with scores and without."""
    row = held_out[:128].tolist()
    asked = {"model": "tiny", "prompt": row, "max_tokens": 0, "echo": True}
    said = client.completions.create(**asked, logprobs=0)
    one = said.choices[0]
    assert said.usage.completion_tokens == 0 and one.finish_reason == "length"
    assert len(one.logprobs.tokens) == 128 and set(map(len, one.logprobs.top_logprobs[1:])) == {1}
    assert client.completions.create(**asked).choices[0].model_dump() == {**one.model_dump(), "logprobs": None}
    with pytest.raises(openai.BadRequestError, match="0 is for echo") as refused:
        client.completions.create(model="tiny", prompt=row, max_tokens=0)
    assert refused.value.param == "max_tokens"
    assert engine.stats().free_pages == 32


def test_characters_of_several_tokens(client, tokenizer):
    """A token that is a part of a character is named by its bytes, and where it begins is where its character does."""
    text = "é日 x"
    said = client.completions.create(model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert said.text == text
    parts = [w for w in said.logprobs.tokens if w.startswith("bytes:")]
    assert parts and all(text[at:] for at in said.logprobs.text_offset)
    assert said.logprobs.text_offset[-1] == text.index("x") - said.logprobs.tokens[-1].startswith(" ")


def test_the_token_that_ends_an_answer_has_its_score(client, held_out):
    """lm_eval leaves the last token out, whatever it is."""
    bias = {"1": 100}
    asked = {"model": "tiny", "prompt": held_out[:9].tolist(), "max_tokens": 1, "temperature": 0, "logit_bias": bias}
    said = client.completions.create(**asked, echo=True, logprobs=1).choices[0]
    assert said.finish_reason == "stop" and len(said.logprobs.tokens) == 10 and said.logprobs.tokens[-1] == "</s>"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval")
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_over_http(url, tmp_path, monkeypatch):
    """`local-completions` against the server beside lm_eval's own backend of transformers: the same of every answer."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": "import", "choices": [" os", " banana"], "answer": 0, "text": "def f(x):\n    return x\n" * 9},
        {"question": "def forward(self,", "choices": [" x):", " 7"], "answer": 0, "text": "class A:\n    pass\n" * 20},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    shared = {**files, "test_split": "test", "metric_list": [{"metric": "acc"}]}
    choose = {"task": "choose", "output_type": "multiple_choice", "doc_to_text": "{{question}}", **shared}
    choose |= {"doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    read = {
        **shared,
        "task": "read",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    }
    read |= {"metric_list": [{"metric": "word_perplexity"}]}
    go_on = {**shared, "task": "go_on", "output_type": "generate_until", "doc_to_text": "{{question}}"}
    go_on |= {"doc_to_target": "{{choices[0]}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}}
    go_on |= {"metric_list": [{"metric": "exact_match"}]}
    monkeypatch.setenv("OPENAI_API_KEY", "first")
    # Windows of texts are two tokens shorter than its max_length: one for what is generated, one for the token before them.
    over = {
        "base_url": url + "/v1/completions",
        "tokenizer": str(TINY),
        "tokenizer_backend": "huggingface",
        "max_length": 66,
    }
    ours = LocalCompletionsAPI(model="tiny", batch_size=3, **over)
    theirs = HFLM(pretrained=str(TINY), dtype="float32", device="cpu", batch_size=2, max_length=64)
    found = [
        lm_eval.simple_evaluate(
            model=each, tasks=[choose, read, go_on], task_manager=TaskManager(), bootstrap_iters=0, log_samples=True
        )["samples"]
        for each in (ours, theirs)
    ]
    for task in ("choose", "read"):
        scores = [np.asarray([np.ravel(row["filtered_resps"]).astype(float) for row in each[task]]) for each in found]
        np.testing.assert_allclose(*scores, rtol=1e-4)
    assert [row["resps"] for row in found[0]["go_on"]] == [row["resps"] for row in found[1]["go_on"]]


def test_the_best_of_several(client, model, tokenizer, held_out):
    row = held_out[:9].tolist()
    asked = {"model": "tiny", "prompt": row, "max_tokens": 6, "seed": 5, "extra_body": {"ignore_eos": True}}
    all_ = client.completions.create(**asked, n=5, logprobs=0)
    means = {c.text: np.mean(c.logprobs.token_logprobs) for c in all_.choices}
    best = client.completions.create(**asked, n=2, best_of=5)
    assert [c.text for c in best.choices] == sorted(means, key=means.get, reverse=True)[:2]
    assert [c.index for c in best.choices] == [0, 1] and best.choices[0].logprobs is None
    assert best.usage == all_.usage and best.usage.completion_tokens == 30
    two = client.completions.create(**{**asked, "prompt": [row, row]}, best_of=2, logprobs=0)
    assert len(two.choices) == 2 and len(two.choices[0].logprobs.tokens) == 6
    for options, says in (({"n": 3, "best_of": 2}, "less than n=3"), ({"best_of": 2, "stream": True}, "at its end")):
        with pytest.raises(openai.BadRequestError, match=says) as refused:
            client.completions.create(**asked, **options)
        assert refused.value.param == "best_of"


# --- /v1/responses


def test_a_response_is_a_chat(client):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
    asked = {"model": "tiny", "input": items, "instructions": "Be short.", "max_output_tokens": 8, "temperature": 0}
    said = client.responses.create(**asked)
    assert (
        said.output_text == chat.choices[0].message.content
        and said.model == "tiny"
        and said.instructions == "Be short."
    )
    assert (said.usage.input_tokens, said.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert said.status == "incomplete" and said.incomplete_details.reason == "max_output_tokens"
    scored = client.responses.create(**asked, include=["message.output_text.logprobs"], top_logprobs=2)
    words = scored.output[0].content[0].logprobs
    assert "".join(word.token for word in words) == said.output_text and len(words[0].top_logprobs) == 2


def test_a_response_in_pieces(client):
    asked = {"model": "tiny", "input": "Why?", "max_output_tokens": 12, "extra_body": {"seed": 3}}
    whole = client.responses.create(**asked)
    raw = list(client.responses.create(**asked, stream=True))
    assert [e.sequence_number for e in raw] == list(range(len(raw))) and raw[-1].type == "response.incomplete"
    assert raw[-1].response.output_text == whole.output_text and raw[-1].response.usage == whole.usage
    # The client's own accumulator, which knows the order of events.
    stopped = {**asked, "extra_body": {"seed": 3, "stop": whole.output_text[-4:]}}
    with client.responses.stream(**stopped) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert final.output_text == "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert whole.output_text.startswith(final.output_text) and final.output_text and final.status == "completed"
    ended = list(client.responses.create(**{**asked, "extra_body": {"logit_bias": {"1": 100}}}, stream=True))
    assert ended[-1].type == "response.completed" and ended[-1].response.output_text == ""


def test_a_response_that_is_a_call(client):
    pytest.importorskip("outlines_core")
    parameters = {
        "type": "object",
        "properties": {"a": {"enum": [1, 20]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "name": "add", "parameters": parameters, "strict": True}
    asked = {"model": "tiny", "input": "1 + 1?", "tools": [tool], "tool_choice": "required", "max_output_tokens": 40}
    (call,) = client.responses.create(**asked).output
    assert call.type == "function_call" and call.name == "add" and json.loads(call.arguments)["a"] in (1, 20)
    events = list(client.responses.create(**asked, stream=True))
    (arguments,) = [e.arguments for e in events if e.type == "response.function_call_arguments.done"]
    assert events[-1].response.output[0].arguments == arguments and events[-1].type == "response.completed"
    named = {**asked, "tool_choice": {"type": "function", "name": "add"}}
    assert client.responses.create(**named).output[0].name == "add"
    form = {"format": {"type": "json_schema", "name": "answer", "schema": parameters}}
    said = client.responses.create(model="tiny", input="1 + 1?", text=form, max_output_tokens=40)
    assert json.loads(said.output_text)["a"] in (1, 20)


@pytest.mark.parametrize(
    "param, options",
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("background", {"background": True}),
        ("truncation", {"truncation": "auto"}),
        ("input", {"input": []}),
        ("input", {"input": [{"type": "item_reference", "id": "1"}]}),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_file"}]}]}),
        ("max_output_tokens", {"max_output_tokens": 500}),
        ("include", {"include": ["reasoning.encrypted_content"]}),
        ("text", {"text": {"format": {"type": "xml"}}}),
        ("tools", {"tools": [{"type": "web_search"}]}),
        ("temperature", {"temperature": 3}),
        ("inptu", {"extra_body": {"inptu": "a"}}),
    ],
)
def test_responses_that_cannot_be_are_refused(client, param, options):
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{"model": "tiny", "input": "a", **options})
    assert refused.value.param == param


# --- tokens


def test_tokens_there_and_back(url, tokenizer):
    text = "def forward(self, x): # é"
    status, said, _ = ask(url, "/tokenize", {"prompt": text, "return_token_strs": True})
    wanted = tokenizer.encode(text)
    assert status == 200 and said == {
        "count": len(wanted.ids),
        "max_model_len": 128,
        "tokens": wanted.ids,
        "token_strs": wanted.tokens,
    }
    assert ask(url, "/detokenize", {"model": "tiny", "tokens": wanted.ids})[1] == {"prompt": text}
    messages = [{"role": "user", "content": "Hi"}]
    said = ask(url, "/tokenize", {"model": "tiny", "messages": messages})[1]
    assert tokenizer.decode(said["tokens"], skip_special_tokens=False) == "<user>Hi<assistant>"
    info = ask(url, "/tokenizer_info")[1]
    assert info["eos_token"] == "</s>" and info["chat_template"] == TEMPLATE
    for path, body, param in (
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": messages}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "gpt"}, "model"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ):
        status, said, _ = ask(url, path, body)
        assert status in (400, 404) and said["error"]["param"] == param, (path, body)


# --- around every request


def test_every_answer_has_an_id(url, client):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    assert ask(url, "/v1/completions", body, X_Request_Id="mine-1")[2]["X-Request-Id"] == "mine-1"
    assert ask(url, "/v1/completions", body, X_Request_Id="no\tid" * 40)[2]["X-Request-Id"].startswith("req_")
    for path, status in (("/v1/nothing", 404), ("/v1/models", 200), ("/health", 200)):
        code, _, headers = ask(url, path)
        assert code == status and headers["X-Request-Id"].startswith("req_")
    assert client.completions.create(**body)._request_id.startswith("req_")


def test_a_failure_is_told_and_named(engine, tokenizer, monkeypatch):
    app = ef.serve.app(engine, tokenizer, model_name="tiny", origins=["*"])
    monkeypatch.setattr(engine, "submit", lambda *_, **__: 1 / 0)
    there = TestClient(app, raise_server_exceptions=False)  # without its lifespan
    said = there.post("/v1/completions", json={"model": "tiny", "prompt": "a"}, headers={"Origin": "http://a"})
    assert said.status_code == 500 and said.json()["error"]["code"] == "internal"
    assert said.headers["X-Request-Id"] and said.headers["Access-Control-Allow-Origin"] == "*"
    with pytest.raises(ZeroDivisionError) as failed:
        TestClient(app).post("/v1/completions", json={"model": "tiny", "prompt": "a"}, headers={"X-Request-Id": "here"})
    assert "while it answered request here" in failed.value.__notes__


def test_pages_of_named_origins_may_ask(url, engine, tokenizer):
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    request = urllib.request.Request(url + "/v1/completions", None, preflight, method="OPTIONS")
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert ask(url, "/v1/models", Origin=ORIGIN)[2]["Access-Control-Allow-Origin"] == ORIGIN
    assert ask(url, "/v1/models", Origin=ORIGIN, Authorization="no")[2]["Access-Control-Allow-Origin"] == ORIGIN
    assert "Access-Control-Allow-Origin" not in ask(url, "/v1/models", Origin="https://other.example")[2]
    closed = TestClient(ef.serve.app(engine, tokenizer, model_name="tiny"))
    assert "access-control-allow-origin" not in closed.get("/v1/models", headers={"Origin": ORIGIN}).headers


def test_several_keys(url, tmp_path):
    for key, status in (("first", 200), ("second", 200), ("third", 401), ("", 401)):
        assert ask(url, "/v1/models", Authorization=f"Bearer {key}")[0] == status
        assert ask(url, "/tokenize", {"prompt": "a"}, Authorization=f"Bearer {key}")[0] == status
    from easyfn.cli.serve import _keys

    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst\n\n  second  \n")
    assert _keys(argparse.Namespace(api_key="own", api_key_file=file)) == ["own", "first", "second"]
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match="holds no key"):
        _keys(argparse.Namespace(api_key="own", api_key_file=file))


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline(client, engine, stream):
    long = {"model": "tiny", "prompt": "a", "max_tokens": 120, "n": 8, "stream": stream}
    more = {"max_seconds": 0.05, "ignore_eos": True}
    with pytest.raises(openai.APIError, match=r"not done within 0\.05 s") as late:
        list(client.completions.create(**long, extra_body=more))
    assert late.value.code == "deadline_exceeded"
    if not stream:
        assert late.value.status_code == 504 and late.value.response.headers["x-should-retry"] == "false"
    until = time.monotonic() + 60
    while engine.stats().free_pages < 32:  # it holds nothing any more
        assert time.monotonic() < until
        time.sleep(0.01)
    assert client.completions.create(**{**long, "stream": False, "max_tokens": 1, "n": 1}).usage.completion_tokens == 1


def test_how_long_requests_take(url, client):
    client.completions.create(model="tiny", prompt="a", max_tokens=3, extra_body={"ignore_eos": True})
    with urllib.request.urlopen(url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    for name in ("queue", "time_to_first_token", "time_per_output_token", "request"):
        full = f"easyfn_{name}_seconds"
        assert f"# TYPE {full} histogram" in lines
        assert found[f"{full}_count"] == found[f'{full}_bucket{{le="+Inf"}}'] >= 1 and found[f"{full}_sum"] > 0
    families = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families("\n".join(lines) + "\n")
    assert {"easyfn_running", "easyfn_request_seconds"} <= {family.name for family in families}


def test_health_looks_at_the_engine(url, engine, monkeypatch):
    assert ask(url, "/health")[:2] == (200, {"status": "ok"})
    monkeypatch.setattr(engine, "_failures", 3)
    assert ask(url, "/health")[:2] == (503, {"status": "failing", "why": "the last 3 steps failed"})


# --- limits


def test_a_schema_has_its_bounds(tokenizer, monkeypatch):
    """Of time, of memory and of size; what is within them is the same as elsewhere."""
    pytest.importorskip("outlines_core")
    from easyfn.generation import constraint_apart

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    apart = constraint_apart.json_schema_apart(schema, tokenizer, 1)
    here = ef.json_schema(schema, tokenizer, eos_token_id=1)
    assert (apart.after == here.after).all() and (apart.classes == here.classes).all()
    long = {"type": "string", "maxLength": 3000}
    began = time.monotonic()
    with pytest.raises(ValueError, match="more than 1 s to compile"):
        constraint_apart.json_schema_apart(long, tokenizer, 1, seconds=1)
    assert time.monotonic() - began < 5
    with pytest.raises(ValueError, match="MiB"):
        constraint_apart.json_schema_apart(long, tokenizer, 1, memory=2**28)
    with pytest.raises(ValueError, match="more than 0; bound less"):
        constraint_apart.json_schema_apart(schema, tokenizer, 1, largest=1000)
    with pytest.raises(ValueError, match="'x', which is none of"):
        constraint_apart.json_schema_apart({"type": "x"}, tokenizer, 1)
    for _ in range(2):
        constraint_apart._AT_ONCE.acquire()
    try:
        with pytest.raises(constraint_apart.CompilerBusy, match="ask again"):
            constraint_apart.json_schema_apart(schema, tokenizer, 1, seconds=0.1)
    finally:
        constraint_apart._AT_ONCE.release(2)


def test_large_values_are_refused_at_once(url):
    """Names, numbers and tables of any size: 400, a short message, and the server goes on."""
    base, began = {"model": "tiny", "prompt": "a", "max_tokens": 1}, time.monotonic()
    for more, param in (
        ({"x" * 2**20: 1}, None),
        ({"temperature": "x" * 2**20}, "temperature"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 2000}, "stop"),
        ({"n": 10**300}, "n"),
        ({"n": 200, "prompt": ["a", "b"]}, "prompt"),
        ({"best_of": 200, "prompt": ["a", "b"]}, "best_of"),
        ({"max_seconds": 0}, "max_seconds"),
    ):
        status, said, _ = ask(url, "/v1/completions", {**base, **more})
        assert status == 400 and len(said["error"]["message"]) < 2100, param
        assert param is None or said["error"]["param"] == param
    assert time.monotonic() - began < 20
