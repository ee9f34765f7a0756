"""Chat templates: the Jinja of a checkpoint, which makes one text of messages, run in a sandbox."""

from __future__ import annotations

import contextvars
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes

from ..core.schema import by_name, either, many, maybe, problems, read_json, record, word
from .checkpoint import LoadError
from .sandbox import Sandbox, bounded, measured, shown

# Around what the assistant says, while a text is read for training.
_MARKED: contextvars.ContextVar[bool] = contextvars.ContextVar("marked", default=False)
_MARK = {"start": "\ue000<generation>\ue000", "end": "\ue000</generation>\ue000"}
RESERVED = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now")


class ChatTemplate:
    """The text that a model reads for a list of messages, as transformers' `apply_chat_template` writes it.

    - `source`: the template, or several by name: `"tool_use"` is taken when there are tools, else `"default"`.
    - `variables`: what the template may name beside the messages: `bos_token`, `eos_token`, ...
    - `reads_tools`: whether it writes anything of tools.

    Templates run in Jinja's immutable sandbox: they read what they are given and reach nothing else. How long they run and
    how large a value or the text may be is bounded, too; filters for HTML and for debugging are not there.

    **Raises** `ValueError` if the template is no Jinja, and, when called, if it refuses the messages.

    ```python
    from easyfn.serve import ChatTemplate
    template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}", eos_token="</s>")
    assert template([{"role": "user", "content": "Hi"}]) == "<user>Hi</s>"
    ```
    """

    def __init__(self, source: str | Mapping[str, str], **variables: Any) -> None:
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self.variables = variables
        self._templates: dict[str, jinja2.Template] = {}
        self.reads_tools = "tool_use" in self.sources
        environment = _environment()
        for name, text in self.sources.items():
            try:
                with bounded():  # it computes what is constant
                    self._templates[name] = environment.from_string(text)
                    self.reads_tools |= "tools" in jinja2.meta.find_undeclared_variables(environment.parse(text))
            except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, OverflowError) as error:
                raise ValueError(f"the chat template {name!r} is no Jinja: {error}") from error

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **more: Any,
    ) -> str:
        """The text; `more` are further variables, such as `enable_thinking`."""
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ValueError(f"the checkpoint's chat templates are {', '.join(self._templates)}, and none is 'default'")
        own = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            with bounded():
                return measured(self._templates[name].generate(**{**self.variables, **more, **own}))
        except Exception as error:  # whatever a template does with messages that it did not expect
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    def spans(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[tuple[int, int]]:
        """Where the text of these messages, without a prompt for an answer, is in `{% generation %}` blocks: pairs of
        places in characters; none where the template has no such blocks."""
        token = _MARKED.set(True)
        try:
            text = self(messages, **{"add_generation_prompt": False, **more})
        finally:
            _MARKED.reset(token)
        found, place = [], 0
        for n, part in enumerate(re.split("|".join(map(re.escape, _MARK.values())), text)):
            if n % 2:
                found.append((place, place + len(part)))
            place += len(part)
        return found


def chat_template(path: Any, *, file: Any = None) -> ChatTemplate | None:
    """The template of a checkpoint, with its special tokens; `None` if it has none.

    - `path`: a folder with `chat_template.jinja` or `tokenizer_config.json`, or a `.gguf` file.
    - `file`: a template in a file of its own, instead of the checkpoint's.
    """
    source, tokens = (_of_gguf if Path(path).suffix == ".gguf" else _of_folder)(Path(path))
    source = source if file is None else _text(Path(file))
    return None if source is None else ChatTemplate(source, **tokens)


def _of_folder(path: Path) -> tuple[Any, dict[str, str]]:
    file = path / "tokenizer_config.json"
    said = read_json(file, LoadError) if file.is_file() else {}
    if wrong := problems(said, _SAID):
        raise LoadError(file, wrong)
    source = said.get("chat_template")
    if isinstance(source, list):
        source = {one["name"]: one["template"] for one in source}
    if (path / "chat_template.jinja").is_file():
        source = _text(path / "chat_template.jinja")
    return source, special_tokens(said)


# What is read of a tokenizer_config.json: one template, or several in either form.
_NAMED = many(record({"name": word, "template": word}, needs=("name", "template")))
_SAID = {"chat_template": maybe(either(word, by_name(word), _NAMED, wanted="a template, or a list of them with names"))}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(file, [f"it is no text in UTF-8 ({error})"]) from None


def special_tokens(said: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a `tokenizer_config.json` names: `bos_token`, `eos_token`, ..."""
    tokens = {name: value for name, value in said.items() if name.endswith("_token")}
    tokens = {name: v.get("content") if isinstance(v, dict) else v for name, v in tokens.items()}
    return {name: v for name, v in tokens.items() if isinstance(v, str)}


def _of_gguf(path: Path) -> tuple[Any, dict[str, str]]:
    from .gguf.tokenizer import tokenizer_keys

    said = tokenizer_keys(path)
    which = {f"{name}_token": said.get(f"{name}_token_id") for name in ("bos", "eos")}
    return said.get("chat_template"), {
        name: said["tokens"][i] for name, i in which.items() if i is not None and "tokens" in said
    }


def _environment() -> jinja2.Environment:
    """The dialect that chat templates are written in."""
    extensions = [_Generation, jinja2.ext.loopcontrols]
    environment = Sandbox(filters={"tojson": _to_json}, trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start, end = (
            jinja2.nodes.Output([self.call_method("mark", [jinja2.nodes.Const(side)])]) for side in ("start", "end")
        )
        return jinja2.nodes.Scope([start, *body, end]).set_lineno(line)

    def mark(self, side: str) -> str:
        return _MARK[side] if _MARKED.get() else ""


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    """Without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(shown(message))
