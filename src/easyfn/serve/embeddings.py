"""`embeddings`: an encoder behind OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import base64
import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..evaluation.embed import Reader, check_embeds, vectors
from . import body as bodies
from .body import Body, parse, read
from .errors import bad, full, key_of
from .pages import application, no_model

MOST_TEXTS = 2048  # of one request, as OpenAI has it
KNOWN = {"dimensions", "encoding_format", "input", "model", "truncate"}


@dataclasses.dataclass
class Counts:
    """What `/metrics` tells."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    running: int = 0
    rejected: int = 0


def embeddings(
    model: Any,
    tokenizer: Any,
    *,
    model_name: str,
    api_key: str | Sequence[str] | None = None,
    origins: Sequence[str] = (),
    batch_size: int = 32,
    length: int | None = None,
    max_waiting: int = 256,
    max_body_bytes: int = 8 * 2**20,
) -> Starlette:
    """An ASGI application with `POST /v1/embeddings` for a model of sentence embeddings: the numbers of [`easyfn.embed`][].

    `GET /v1/models`, `GET /health` and `GET /metrics` are there too. `api_key`, `origins`: as in [`easyfn.serve.app`][].

    - `model`: of the task `"sentence-embedding"`; `tokenizer`: of [`easyfn.tokenizer`][], or of transformers.
    - `length`: the most tokens of a text (default: the tokenizer's limit, else the model's). A longer one is refused, unless
      the request says `"truncate": true`.
    - `max_waiting`: requests that may wait while one is computed; more are answered 429.

    ```python
    import jax, easyfn as ef
    from starlette.testclient import TestClient
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = ef.models.BertConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    model = ef.init(config, task="sentence-embedding", key=jax.random.key(0))
    with TestClient(ef.serve.embeddings(model, tokenizer, model_name="mine")) as client:
        said = client.post("/v1/embeddings", json={"model": "mine", "input": ["a b", "b"]}).json()
    assert [len(each["embedding"]) for each in said["data"]] == [32, 32]
    ```
    """
    check_embeds(model, "ef.serve.embeddings")
    reader, created, counts, one = Reader(tokenizer, model, length), int(time.time()), Counts(), threading.Lock()
    width = vectors(model, [[0]], 1).shape[1]
    allowed = key_of(api_key)

    def answer(data: bytes) -> dict[str, Any]:
        asked = parse(data)
        bodies.check_names(asked, KNOWN)
        if asked.get("model") != model_name:
            raise no_model(str(asked.get("model")), [model_name])
        coded = asked.get("encoding_format", "float")
        if coded not in ("float", "base64"):
            raise bad("encoding_format", f"encoding_format is float or base64, not {coded!r}")
        if bodies.count(asked, "dimensions", 1, default=width) != width:
            raise bad("dimensions", f"the vectors of {model_name} have {width} dimensions, and are not cut")
        rows = _rows(asked, reader, model.config.vocab_size)
        tokens = sum(map(len, rows))
        with one:
            found = vectors(model, rows, batch_size)
            counts.requests += 1
            counts.texts += len(rows)
            counts.tokens += tokens
        said = [
            {"object": "embedding", "index": n, "embedding": row.tolist() if coded == "float" else _base64(row)}
            for n, row in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": said, "model": model_name, "usage": usage}

    async def embed(request: Request) -> Response:
        allowed(request)
        data = await read(request, max_body_bytes)
        if counts.running > max_waiting:  # one is computed, the others wait
            counts.rejected += 1
            raise full("ask again")
        counts.running += 1
        try:
            return JSONResponse(await run_in_threadpool(answer, data))
        finally:
            counts.running -= 1

    return application(
        [Route("/v1/embeddings", embed, methods=["POST"])],
        allowed=allowed,
        models={model_name: {"created": created, "max_model_len": reader.limit, "parent": None}},
        counts=lambda: dataclasses.asdict(counts),
        origins=origins,
        counters={field.name for field in dataclasses.fields(Counts)} - {"running"},
    )


def _rows(asked: Body, reader: Reader, vocab_size: int) -> list[list[int]]:
    """The token ids of each text. Ids that a client gives are taken as they are, special tokens and all."""
    given = asked.get("input")
    if isinstance(given, str) or (bodies.is_ids(given) and given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise bad("input", "input must be a string, a list of strings, token ids, or a list of lists of token ids")
    if len(given) > MOST_TEXTS:
        raise bad("input", f"input holds {len(given)} texts, more than the {MOST_TEXTS} of one request")
    cut, rows = bodies.flag(asked, "truncate", False), []
    for n, each in enumerate(given):
        if isinstance(each, str):
            try:
                ids = reader.ids(each, cut=cut)
            except ValueError as error:  # the tokenizer makes nothing of it
                raise bad("input", f"input {n}: {error}") from error
        elif bodies.is_ids(each):
            for i in each:
                bodies.token("input", i, vocab_size)
            ids = each[: reader.limit] if cut else each
        else:
            raise bad("input", f"input holds {each!r:.80}, which is neither a string nor token ids", "invalid_type")
        if not ids:
            raise bad("input", f"input {n} holds no token")
        if reader.limit is not None and len(ids) > reader.limit:
            raise bad(
                "input",
                f"input {n} has {len(ids)} tokens, more than the {reader.limit} that the model reads: cut it, or say "
                '"truncate": true',
                "context_length_exceeded",
            )
        rows.append(ids)
    return rows


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
