"""`easyfn.serve`: OpenAI's own client against a server on loopback, over the trained model of the repository."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import easyfn as ef
from easyfn.serve.around import Ending

TINY = Path(__file__).parent.parent / "examples" / "tiny"
TEMPLATE = """\
{{- bos_token }}
{%- if tools %}tools:{% for tool in tools %} {{ tool.function | tojson }}{% endfor %}
{% endif %}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant", "tool"] %}
        {{- raise_exception("no role " ~ message.role) }}
    {%- endif %}
    {%- if loop.index0 == 9 %}{% break %}{% endif %}
    {{- "<" ~ message.role ~ ">" ~ message.content | trim ~ "\\n" }}
    {%- for call in message.tool_calls or [] %}
        {{- call.function.name ~ call.function.arguments | tojson(indent=1) ~ "\\n" }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}
{% generation %}{{ "<assistant>" ~ (style or "") }}{% endgeneration %}
{%- endif %}"""
LONG, MODEL = 240, "tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def base():
    return ef.load(TINY, dtype=jnp.float32, progress=False)


@pytest.fixture(scope="module")
def adapted(base):
    """The model with an adapter that says other things."""
    tuned = ef.apply_lora(base, "q_proj|v_proj", rank=2, key=jax.random.key(0))
    adapter = ef.split_lora(tuned)[1]
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.5 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return ef.with_adapters(base, {"other": jax.tree.unflatten(tree, noisy)})


@pytest.fixture(scope="module")
def engine(adapted):
    return ef.Engine(adapted, max_batch_size=4, max_model_length=256, num_pages=64, prefill_chunk=16, max_waiting=16)


class Running:
    """A server in a thread."""

    def __init__(self, app):
        config = uvicorn.Config(app, port=0, log_level="error", ws="none")
        self.socket = config.bind_socket()
        self.socket.listen(config.backlog)  # the first client may come before the thread does
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(120)
        assert not self.thread.is_alive()
        self.socket.close()

    def client(self, path="/v1", key="none", **options):
        return openai.OpenAI(base_url=self.url + path, api_key=key, max_retries=0, **options)


@pytest.fixture(scope="module")
def server(engine, tokenizer):
    template = ef.serve.ChatTemplate(TEMPLATE, bos_token="<s>", eos_token="</s>")
    with Running(ef.serve.app(engine, tokenizer, model_name=MODEL, chat_template=template)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client(timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def held_out():
    return np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32)


def greedy(client, prompt, **options):
    options = {"model": MODEL, "max_tokens": 12, "temperature": 0, **options}
    return client.completions.create(prompt=prompt, **options)


def alone(model, ids, tokenizer, new=12, **options):
    out = ef.generate(model, np.asarray([ids]), max_new_tokens=new, **{"do_sample": False, **options})
    return tokenizer.decode(np.asarray(out.new_tokens)[0, : int(out.lengths[0]) - len(ids)].tolist())


def settled(engine):
    """The stats once nothing runs."""
    wait_for(lambda: not (engine.stats().running or engine.stats().waiting), engine)
    return engine.stats()


def wait_for(condition, engine):
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, engine.stats()
        time.sleep(0.005)


def streamed(stream):
    """The texts, reasons and usage of a stream of completions or of a chat, by choice."""
    texts, reasons, usage = {}, {}, None
    for piece in stream:
        usage = piece.usage or usage
        for choice in piece.choices:
            new = choice.text if hasattr(choice, "text") else choice.delta.content
            texts[choice.index] = texts.get(choice.index, "") + (new or "")
            if choice.finish_reason is not None:
                assert choice.index not in reasons
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage


def test_models(client):
    assert [m.id for m in client.models.list()] == [MODEL, "other"]
    assert client.models.retrieve("other").parent == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_prompts_of_every_kind(client, base, tokenizer):
    text = "def forward(self, x):"
    ids = tokenizer.encode(text).ids
    wanted = alone(base, ids, tokenizer)
    said = greedy(client, text)
    assert said.choices[0].text == wanted and said.choices[0].finish_reason == "length"
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (len(ids), 12)
    assert greedy(client, ids).choices[0].text == wanted
    assert [c.text for c in greedy(client, [text, text]).choices] == [wanted] * 2
    assert [c.text for c in greedy(client, [ids, ids]).choices] == [wanted] * 2
    assert greedy(client, text, echo=True).choices[0].text == text + wanted
    assert streamed(greedy(client, text, echo=True, stream=True))[0] == {0: text + wanted}


def test_sixteen_at_once_are_each_alone(client, engine, base, tokenizer, held_out):
    prompts = [held_out[n * 40 : n * 40 + (9 if n % 2 else 14)].tolist() for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda ids: greedy(client, ids).choices[0].text, prompts))
    assert said == [alone(base, ids, tokenizer) for ids in prompts]
    assert settled(engine).free_pages == 64


def test_an_adapter_is_a_model(client, adapted, base, tokenizer, held_out):
    ids = held_out[:9].tolist()
    other = greedy(client, ids, model="other")
    assert other.model == "other"
    assert other.choices[0].text == alone(ef.use_adapter(adapted, "other"), ids, tokenizer)
    assert other.choices[0].text != greedy(client, ids).choices[0].text


def test_samples_are_rows_of_generate(client, base, tokenizer, held_out):
    """Several answers to several prompts, reproducible by seed, streamed or not."""
    prompts = [held_out[:9].tolist(), held_out[40:49].tolist()]
    asked = {"model": MODEL, "prompt": prompts, "n": 2, "seed": 11, "max_tokens": 12, "extra_body": {"top_k": 40}}
    said = client.completions.create(**asked)
    rows = np.repeat(np.asarray(prompts), 2, axis=0)
    out = ef.generate(base, rows, do_sample=True, top_k=40, max_new_tokens=12, key=jax.random.key(11))
    lengths = np.asarray(out.lengths) - 9
    wanted = [tokenizer.decode(r[:n].tolist()) for r, n in zip(np.asarray(out.new_tokens), lengths, strict=True)]
    assert [c.text for c in said.choices] == wanted and len(set(wanted)) == 4
    texts, reasons, usage = streamed(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert [texts[i] for i in range(4)] == wanted
    assert [reasons[i] for i in range(4)] == [c.finish_reason for c in said.choices]
    assert usage == said.usage and usage.prompt_tokens == 18 and usage.completion_tokens == lengths.sum()
    assert [c.text for c in client.completions.create(**{**asked, "seed": 12}).choices] != wanted
    for seed in (-1, -(2**63), 2**63 - 1):
        assert len(client.completions.create(**{**asked, "seed": seed}).choices) == len(wanted)


def test_chat(client, server, base, tokenizer):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "short."}]},
        {"role": "user", "content": "Why?"},
    ]
    text = "<s><system>Be\nshort.\n<user>Why?\n<assistant>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    asked = {"model": MODEL, "messages": messages, "temperature": 0, "max_completion_tokens": 12}
    said = client.chat.completions.create(**asked)
    assert said.choices[0].message.role == "assistant"
    assert said.choices[0].message.content == alone(base, ids, tokenizer)
    assert said.usage.prompt_tokens == len(ids)
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].choices[0].finish_reason == "length"
    assert streamed(pieces)[0] == {0: said.choices[0].message.content}
    more = client.chat.completions.create(**asked, extra_body={"chat_template_kwargs": {"style": "So:"}})
    assert more.usage.prompt_tokens > said.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="no role clown") as refused:
        client.chat.completions.create(**{**asked, "messages": [{"role": "clown", "content": "ha"}]})
    assert refused.value.param == "messages"


def test_templates_are_transformers_own(tmp_path):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(TINY / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    theirs.save_pretrained(tmp_path)
    ours = ef.serve.chat_template(tmp_path)
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": [1, 2], "é": "<&>"}}}
    messages = [
        {"role": "user", "content": "  Zwölf <b>?\n"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    tools = [{"type": "function", "function": {"name": "sum", "description": "'adds'", "parameters": {}}}]
    for given in (None, tools):
        for begin in (False, True):
            wanted = theirs.apply_chat_template(messages, given, add_generation_prompt=begin, tokenize=False)
            assert ours(messages, tools=given, add_generation_prompt=begin) == wanted
    assert ours(messages * 4) == theirs.apply_chat_template(messages * 4, add_generation_prompt=True, tokenize=False)
    with pytest.raises(ValueError, match="unsafe"):
        ef.serve.ChatTemplate("{{ messages.__class__.__mro__ }}")([])
    with pytest.raises(ValueError, match="no Jinja"):
        ef.serve.ChatTemplate("{% if %}")
    assert ef.serve.chat_template(TINY) is None
    (tmp_path / "own.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    own = ef.serve.chat_template(TINY, file=tmp_path / "own.jinja")
    assert own([{"role": "user", "content": "a"}]) == "<s>a"
    named = [{"name": "default", "template": "D{{ eos_token }}"}, {"name": "tool_use", "template": "T"}]
    said = {"chat_template": named, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "chat_template.jinja").unlink()
    assert ef.serve.chat_template(tmp_path)([]) == "D</s>"
    assert ef.serve.chat_template(tmp_path)([], tools=tools) == "T"


def test_tools_and_calls_reach_the_template(client, tokenizer):
    tools = [{"type": "function", "function": {"name": "sum", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = '<s>tools: {"name": "sum", "parameters": {}}<user>1 + 1?\n<assistant>\nsum{\n "a": 1\n}\n<assistant>'
    asked = {"model": MODEL, "messages": messages, "tools": tools, "max_tokens": 1}
    said = client.chat.completions.create(**asked)
    assert said.usage.prompt_tokens == len(tokenizer.encode(text, add_special_tokens=False).ids)
    without = client.chat.completions.create(**asked, tool_choice="none")
    assert without.usage.prompt_tokens < said.usage.prompt_tokens


ADD = {
    "type": "object",
    "properties": {"a": {"enum": [1, 20, 300]}, "why": {"type": "boolean"}},
    "required": ["a", "why"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": ADD}},
    {"type": "function", "function": {"name": "stop"}},
]


@pytest.mark.parametrize(
    "choice, tools, reason",
    [
        ({"type": "function", "function": {"name": "add"}}, TOOLS, "stop"),  # the names of OpenAI's ends
        ("required", TOOLS[:1], "tool_calls"),
        ("required", TOOLS, "tool_calls"),
    ],
)
def test_a_forced_call_is_a_call(client, choice, tools, reason):
    messages = [{"role": "user", "content": "1 + 1?"}]
    asked = {"model": MODEL, "messages": messages, "tools": tools, "tool_choice": choice, "max_tokens": 80, "seed": 3}
    said = client.chat.completions.create(**asked).choices[0]
    assert said.finish_reason == reason and said.message.content is None
    (call,) = said.message.tool_calls
    function, arguments = call.function.name, json.loads(call.function.arguments)
    assert call.type == "function" and call.id and function in [tool["function"]["name"] for tool in tools]
    assert (
        (arguments["a"] in (1, 20, 300) and arguments["why"] in (True, False)) if function == "add" else arguments == {}
    )
    deltas = [piece.choices[0] for piece in client.chat.completions.create(**asked, stream=True)]
    (streamed_call,) = [call for delta in deltas for call in delta.delta.tool_calls or []]
    assert streamed_call.index == 0 and streamed_call.function.model_dump() == call.function.model_dump()
    assert [d.finish_reason for d in deltas if d.finish_reason] == [reason]
    cut = client.chat.completions.create(**{**asked, "max_tokens": 2}).choices[0]
    assert cut.finish_reason == "length"


def test_calls_that_cannot_be_are_refused(client, engine, tokenizer):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "1 + 1?"}], "max_tokens": 2}
    for options, says in (
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, '"required" or'),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "the tools are add, stop"),
        (
            {"tools": TOOLS[:1], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "schema of its own",
        ),
        ({"tools": [{"type": "function", "function": {"name": 3}}], "tool_choice": "required"}, "a string"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            client.chat.completions.create(**asked, **options)
    deaf = ef.serve.app(engine, tokenizer, model_name=MODEL, chat_template="{{ messages[0].content }}")
    headers = {"Content-Type": "application/json"}
    with TestClient(deaf) as there:
        said = there.post("/v1/chat/completions", json={**asked, "tools": TOOLS}, headers=headers)
        assert said.status_code == 400 and "writes nothing of tools" in said.json()["error"]["message"]


def test_scores_of_tokens(client, base, tokenizer, held_out):
    """Of both endpoints, whole and streamed: those of the model, each beside the text of its token."""
    ids = held_out[:9].tolist()
    said = greedy(client, ids, max_tokens=12, logprobs=2).choices[0]
    new = np.asarray(ef.generate(base, held_out[None, :9], max_new_tokens=12, do_sample=False).new_tokens)[0]
    scores = np.asarray(jax.nn.log_softmax(ef.forward(base, np.r_[ids, new][None]).logits[0, len(ids) - 1 : -1]))
    found = said.logprobs
    assert "".join(found.tokens) == said.text and len(found.tokens) == len(new) == 12
    assert all(said.text[at:].startswith(word) for at, word in zip(found.text_offset, found.tokens, strict=True))
    np.testing.assert_allclose(found.token_logprobs, [row[i] for row, i in zip(scores, new, strict=True)], atol=1e-4)
    np.testing.assert_allclose([max(t.values()) for t in found.top_logprobs], scores.max(1), atol=1e-4)
    pieces = [piece.choices[0] for piece in greedy(client, ids, max_tokens=12, logprobs=2, stream=True)]
    told = [piece.logprobs for piece in pieces if piece.logprobs]
    assert [w for one in told for w in one.tokens] == found.tokens
    assert [o for one in told for o in one.text_offset] == found.text_offset
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0}
    said = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    content = said.logprobs.content
    assert "".join(one.token for one in content) == said.message.content and len(content) == 5
    assert all(bytes(one.bytes).decode() == one.token and len(one.top_logprobs) == 3 for one in content)
    assert [one.logprob for one in content] == [one.top_logprobs[0].logprob for one in content]
    assert client.chat.completions.create(**asked, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert client.chat.completions.create(**asked).choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError, match="where logprobs is true"):
        client.chat.completions.create(**asked, top_logprobs=3)


@pytest.mark.parametrize("stream", [True, False])
def test_who_is_given_up_is_told(stream):
    """The server's time to end is over: an error in the place of a broken connection, and no traceback."""
    sent = []

    async def app(scope, receive, send):
        if stream:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def run():
        task = asyncio.ensure_future(Ending(app)({"type": "http"}, None, send))
        await asyncio.sleep(0.05)
        task.cancel("the time is over")
        await task

    asyncio.run(run())
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == (200 if stream else 503)
    assert b"shutting_down" in sent[1]["body"] and sent[1]["body"].startswith(b"data: ") == stream


def test_stop_strings(client, engine, base, tokenizer, held_out):
    ids = held_out[:9].tolist()
    whole = greedy(client, ids, max_tokens=40).choices[0].text
    inside = [whole[10:13], whole[20:26]]  # across tokens
    wanted = whole[: min(whole.index(s) for s in inside)]
    said = greedy(client, ids, max_tokens=40, stop=inside)
    assert (said.choices[0].text, said.choices[0].finish_reason) == (wanted, "stop")
    assert said.usage.completion_tokens < 40
    texts, reasons, _ = streamed(greedy(client, ids, max_tokens=40, stop=inside, stream=True))
    assert (texts, reasons) == ({0: wanted}, {0: "stop"})
    # A stop string that begins and does not end: nothing is lost.
    assert greedy(client, ids, max_tokens=40, stop=whole[-3:] + "\x00").choices[0].text == whole
    out = np.asarray(ef.generate(base, held_out[None, :9], max_new_tokens=12, do_sample=False).new_tokens)[0]
    end = int(out[5])
    first = out.tolist().index(end)
    said = greedy(client, ids, extra_body={"stop_token_ids": [end]})
    assert said.choices[0].text == tokenizer.decode(out[:first].tolist())
    assert (said.choices[0].finish_reason, said.usage.completion_tokens) == ("stop", first + 1)
    assert settled(engine).free_pages == 64


def test_options_reach_the_engine(client, base, tokenizer, held_out):
    ids = held_out[:9].tolist()
    first = int(np.asarray(ef.generate(base, held_out[None, :9], max_new_tokens=1, do_sample=False).new_tokens)[0, 0])
    assert not greedy(client, ids, logit_bias={str(first): -100}).choices[0].text.startswith(tokenizer.decode([first]))
    one = greedy(client, ids, logit_bias={"70": 100}, max_tokens=3)
    assert one.choices[0].text == tokenizer.decode([70]) * 3
    wanted = alone(base, ids, tokenizer, repetition_penalty=1.7, frequency_penalty=0.5, presence_penalty=0.25)
    said = greedy(client, ids, frequency_penalty=0.5, presence_penalty=0.25, extra_body={"repetition_penalty": 1.7})
    assert said.choices[0].text == wanted


def test_json(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "JSON?"}], "max_tokens": 40, "seed": 1}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    said = client.chat.completions.create(**asked, response_format=form).choices[0]
    assert said.finish_reason == "stop" and isinstance(json.loads(said.message.content)["ok"], bool)
    form["json_schema"]["schema"] = {"type": "object", "properties": {"a": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked, response_format=form)
    assert refused.value.param == "response_format"


@pytest.mark.quick("serve", "parameters are named")
@pytest.mark.parametrize(
    "param, options",
    [
        ("temperature", {"temperature": 2.5}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.5}),
        ("n", {"n": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 512}),
        ("prompt", {"prompt": [5] * 600}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": [5, 5000]}),
        ("prompt", {"prompt": [["a"]]}),
        ("logprobs", {"logprobs": 21}),
        ("suffix", {"suffix": "end"}),
        ("best_of", {"best_of": 0}),
        ("stop", {"stop": ["a", ""]}),
        ("seed", {"seed": 0.5}),
        ("logit_bias", {"logit_bias": {"5000": 1}}),
        ("logit_bias", {"logit_bias": {"a": 1}}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("response_format", {"extra_body": {"response_format": {"type": "xml"}}}),
        ("top_kk", {"extra_body": {"top_kk": 5}}),
        ("model", {"extra_body": {"model": 3}}),
    ],
)
def test_bad_parameters_are_named(client, param, options):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**{"model": MODEL, "prompt": "a", "max_tokens": 2, **options})
    assert refused.value.param == param and param in refused.value.body["message"]


def test_harmless_parameters_are_taken(client):
    said = greedy(client, "a", max_tokens=1, user="me", best_of=1, extra_body={"store": False, "metadata": {"a": "b"}})
    assert said.usage.completion_tokens == 1


def test_no_such_model(client):
    with pytest.raises(openai.NotFoundError) as missing:
        greedy(client, "a", model="gpt")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"


def test_no_such_page(server, client):
    with pytest.raises(openai.NotFoundError, match=r"POST /v1/embeddings: Not Found\. There are POST /v1/completions"):
        client.embeddings.create(model=MODEL, input="a")


def post(url, data, headers):
    try:
        urllib.request.urlopen(urllib.request.Request(url, data, headers))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]["message"]


@pytest.mark.quick("serve", "bodies that are none")
def test_bodies_that_are_none(server):
    url, kind = server.url + "/v1/completions", {"Content-Type": "application/json"}
    assert post(url, b"{", kind)[0] == 400
    assert post(url, b"[]", kind)[0] == 400
    assert post(url, b'{"temperature": NaN}', kind)[0] == 400
    assert post(url, b'{"prompt": "\\ud800"}', kind)[0] == 400
    assert post(url, b"[" * 100_000, kind)[0] == 400
    assert post(url, b" " * (9 * 2**20), kind)[0] == 413
    assert post(url, b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert post(server.url + "/v1/nothing", b"{}", kind)[0] == 404
    assert post(server.url + "/health", b"{}", kind)[0] == 405


def metrics(server):
    text = urllib.request.urlopen(server.url + "/metrics").read().decode()
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}


def test_overload_is_429_and_loses_nothing(client, server, engine, base, tokenizer, held_out):
    before = metrics(server)
    prompts = [held_out[n * 40 : n * 40 + 9].tolist() for n in range(14)]
    asked = {"model": MODEL, "prompt": prompts, "temperature": 0, "max_tokens": 12}
    slow = client.completions.create(**{**asked, "prompt": prompts[:4], "max_tokens": LONG}, stream=True)
    next(slow)
    wait_for(lambda: engine.stats().waiting == 0, engine)  # all rows are taken
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(client.completions.create, **asked)
        wait_for(lambda: engine.stats().waiting >= 14, engine)
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(**asked)
        assert int(full.value.response.headers["retry-after"]) > 0 and full.value.code == "overloaded"
        wait_for(lambda: engine.stats().waiting <= 14, engine)  # of those that were refused, none stays
        slow.close()
        said = accepted.result()
    assert [c.text for c in said.choices] == [alone(base, ids, tokenizer) for ids in prompts]
    assert settled(engine).free_pages == 64
    after = metrics(server)
    assert after["easyfn_rejected_total"] == before["easyfn_rejected_total"] + 1
    assert after["easyfn_running"] == after["easyfn_waiting"] == 0 and after["easyfn_free_pages"] == 64
    assert after["easyfn_tokens_total"] >= before["easyfn_tokens_total"] + 14 * 12
    assert json.load(urllib.request.urlopen(server.url + "/health")) == {"status": "ok"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_pages(server, client, engine, stream):
    before = settled(engine)
    asked = {"model": MODEL, "prompt": "def", "n": 3, "max_tokens": LONG, "extra_body": {"ignore_eos": True}}
    if stream:
        pieces = client.completions.create(**asked, stream=True)
        next(pieces)
        assert engine.stats().free_pages < 64
        pieces.close()
    else:
        with server.client(timeout=0.2) as impatient, pytest.raises(openai.APITimeoutError):
            impatient.completions.create(**asked)
    stats = settled(engine)
    assert stats.free_pages == 64
    assert stats.tokens - before.tokens < 3 * LONG  # it did not run to its end
    assert greedy(client, "def", max_tokens=2).usage.completion_tokens == 2


def test_mounted_behind_a_key(engine, tokenizer):
    inner = ef.serve.app(engine, tokenizer, model_name=MODEL, api_key="sësame")
    with Running(Starlette(routes=[Mount("/mine", inner)])) as running:
        with running.client("/mine/v1", key="wrong") as client, pytest.raises(openai.AuthenticationError):
            greedy(client, "a")
        url, headers = running.url + "/mine/v1/completions", {"Content-Type": "application/json"}
        assert post(url, b"{}", headers)[0] == 401
        assert urllib.request.urlopen(running.url + "/mine/health").status == 200
        headers["Authorization"] = "Bearer sësame".encode().decode("latin-1")
        assert post(url, b"{}", headers)[0] == 400  # let in; the body has no model
        # Without a template there is no chat.
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
        status, message = post(url.replace("completions", "chat/completions"), json.dumps(chat).encode(), headers)
        assert status == 400 and "chat template" in message


def test_a_failing_engine_is_told(client, engine, monkeypatch):
    """Whoever waits is told; who comes next is served."""
    monkeypatch.setattr(engine, "_step", lambda: 1 / 0)
    with pytest.raises(openai.InternalServerError, match="division by zero"):
        greedy(client, "a")
    with pytest.raises(openai.APIError, match="division by zero"):
        list(greedy(client, "a", stream=True))
    monkeypatch.undo()
    assert greedy(client, "a", max_tokens=2).usage.completion_tokens == 2


class Spoken:
    """A request whose tokens are known."""

    finish_reason, logprobs = "length", ()


def said(tokenizer, ids, stop=(), before=()):
    from easyfn.serve.text import Answer

    answer = Answer(Spoken(), tokenizer, stop, frozenset(), before)
    pieces = []
    for token in [*ids, None]:
        if answer.reason is None:
            pieces.append(answer.take(token))
    return pieces, answer.reason


@pytest.mark.quick("serve", "characters are whole")
def test_characters_are_whole_and_stops_are_not_sent(tokenizer):
    text = "naïve 日本語 🙂!"
    ids = tokenizer.encode(text).ids
    pieces, reason = said(tokenizer, ids)
    assert "".join(pieces) == text and not any("\ufffd" in p for p in pieces) and reason == "length"
    for stop in ("本", "語 ", "🙂!", "ve "):
        pieces, reason = said(tokenizer, ids, [stop, "本語🙂"])
        assert "".join(pieces) == text[: text.index(stop)] and reason == "stop"
    half = tokenizer.encode("é").ids[:-1]
    assert len(half) >= 1 and "".join(said(tokenizer, half)[0]) == tokenizer.decode(half)


def test_a_first_word_keeps_its_space():
    """Sentencepiece's decoders take the first space away: a completion goes on within a text."""
    tokenizer = Tokenizer(models.WordLevel({"▁so": 0, "▁on": 1, "it": 2}))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert tokenizer.decode([0, 1]) == "so on"
    assert said(tokenizer, [0, 1], before=(2,))[0] == [" so", " on", ""]
    assert said(tokenizer, [0, 1], ["so o"], before=(2, 2))[0] == [" ", ""]


def test_a_tokenizer_that_cuts_cuts_no_prompt(engine, tokenizer):
    from starlette.testclient import TestClient

    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(2)
    cutting.enable_padding(length=64)
    client = TestClient(ef.serve.app(engine, cutting, model_name=MODEL))  # without its lifespan
    body = {"model": MODEL, "prompt": "def forward(self, x):", "max_tokens": 1}
    used = client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"]
    assert used == len(tokenizer.encode("def forward(self, x):").ids) > 2
    assert cutting.truncation is not None  # the caller's own is as it was


def test_the_command(tmp_path):
    """`python -m easyfn serve`, which finishes what runs when it is told to end."""
    command = [sys.executable, "-m", "easyfn", "serve", str(TINY), "--port", "0", "--dtype", "float32"]
    command += ["--max-batch-size", "2", "--max-model-length", "128", "--model-name", "served", "--no-warm-up"]
    env = {**os.environ, "EASYFN_API_KEY": "key"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    try:
        line = process.stdout.readline()
        assert line.startswith("loading "), (tmp_path / "log").read_text()
        health = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with pytest.raises(urllib.error.HTTPError) as found:  # it answers from the start
            urllib.request.urlopen(health, timeout=60)
        assert found.value.code == 503 and json.load(found.value) == {"status": "loading"}
        line = next(line for line in process.stdout if not line.startswith("INFO"))
        assert line.startswith("served is served at http://127.0.0.1:"), (tmp_path / "log").read_text()
        assert json.load(urllib.request.urlopen(health)) == {"status": "ok"}
        with openai.OpenAI(base_url=line.split()[-1], api_key="key", max_retries=0) as client:
            pieces = client.completions.create(
                model="served", prompt="def", max_tokens=100, stream=True, extra_body={"ignore_eos": True}
            )
            next(pieces)
            process.send_signal(signal.SIGTERM)
            _, reasons, _ = streamed(pieces)
        assert reasons == {0: "length"}
        assert process.wait(120) == 0
        port = int(line.split(":")[-1].split("/")[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
