"""What a server knows of its model and tokenizer, worked out once."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..generation.model import encodes
from ..generation.options import resolve
from ..io.template import RESERVED, ChatTemplate
from ..lora.named import adapter_names
from .body import Body
from .errors import bad
from .images import Images
from .pages import no_model
from .scores import Words


class Service:
    """A model under its names: texts to ids and back, and the limits of the engine."""

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        model_name: str,
        template: ChatTemplate | None,
        images: Images | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._encoder = _encoder(tokenizer)
        self.model_name = model_name
        self.template = template
        self.images = images
        self.reserved = RESERVED
        self.created = int(time.time())
        self.adapters = adapter_names(engine.model)
        self.encodes = encodes(engine.model)  # a prompt is then read by an encoder, and the answer begins anew
        self.vocab_size = engine.model.config.vocab_size
        self.defaults = resolve(engine.model.config, engine.config, {})
        self.eos = self.defaults.eos
        self.max_length = min(engine.max_model_length, engine.stats().num_pages * engine.page_size)
        self.special = _special(tokenizer)
        self.rejected = 0
        self.words = Words(tokenizer)
        self._constraints = functools.lru_cache(maxsize=32)(self._constraint)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model_name, *self.adapters)

    def chosen(self, body: Body) -> tuple[str, str | None]:
        """The model that a request names, and the adapter that it stands for."""
        name = body.get("model")
        if not isinstance(name, str):
            raise bad("model", f"model must name one of {', '.join(self.models)}", "invalid_type")
        if name not in self.models:
            raise no_model(name, self.models)
        return name, None if name == self.model_name else name

    def encode(self, text: str, special: bool) -> list[int]:
        found = self._encoder.encode(text, add_special_tokens=special)
        return list(getattr(found, "ids", found))

    def decode(self, ids: Sequence[int], *, skip: bool = True) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip)

    def token(self, i: int) -> str:
        """A token as the vocabulary writes it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", self.tokenizer)
        named = getattr(backend, "id_to_token", None) or self.tokenizer.convert_ids_to_tokens
        return str(named(i))

    def room(self, prompt: int) -> int:
        """How many new tokens fit after a prompt; negative if it does not fit itself."""
        return self.max_length - (1 if self.encodes and prompt <= self.max_length else prompt)

    def constraint(self, schema: Any, eos: tuple[int, ...]) -> Any:
        """What holds an answer to a JSON schema, compiled in a process of its own; the last ones asked for are kept."""
        return self._constraints(json.dumps(schema, sort_keys=False), eos)

    def _constraint(self, schema: str, eos: tuple[int, ...]) -> Any:
        from ..generation.constraint_apart import json_schema_apart

        return json_schema_apart(json.loads(schema), self.tokenizer, eos)


def _encoder(tokenizer: Any) -> Any:
    """What encodes whole prompts, from any thread: the tokenizer beneath one of transformers has no state that a call
    changes. What it was told of cutting and filling is left out."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if getattr(backend, "truncation", None) is not None or getattr(backend, "padding", None) is not None:
        backend = type(backend).from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return backend


def _special(tokenizer: Any) -> dict[str, int]:
    """The ids of the tokens that are never text."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    added: Callable[[], dict[int, Any]] | None = getattr(backend, "get_added_tokens_decoder", None)
    if added is not None:
        return {token.content: i for i, token in added().items() if token.special}
    return dict(
        zip(getattr(tokenizer, "all_special_tokens", ()), getattr(tokenizer, "all_special_ids", ()), strict=False)
    )
