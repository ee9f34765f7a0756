"""`easyfn new-family`: a page to start a family from, with the fields and defaults of transformers' config, and its case."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any

from .checked import Wrong, free
from .parts import extra

# Read by nothing that computes, or kept with what `generate` is told.
PASSED = {"use_cache", "initializer_range", "bos_token_id", "eos_token_id"}
DECODER = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Sizes of a model that a test can hold, where the config has a field of that name and of no other.
SMALL = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def run(args: argparse.Namespace) -> None:
    name = args.name
    if not name.isidentifier() or name != name.lower():
        raise Wrong(f"NAME is a model_type in lower case that Python can import, not {name!r}")
    page, case = (Path(args.into) / file for file in (f"{name}.py", f"test_{name}.py"))
    for path in (page, case):
        free(str(path), args.force)
    import easyfn as ef

    if name in ef.families():
        raise Wrong(f"easyfn has {name}: see ef.families()[{name!r}], or choose another name")
    theirs = reference(args.from_transformers)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_of(name, theirs), "utf-8")
    case.write_text(case_of(name, theirs), "utf-8")
    print(f"{page}: the config is {theirs.__name__}'s; write the model, then: pytest -p easyfn.testing.plugin {case}")


def reference(model_type: str) -> Any:
    """transformers' config class of a model type."""
    known = extra("transformers", "torch").CONFIG_MAPPING
    if model_type not in known:
        near = difflib.get_close_matches(model_type, list(known), n=3)
        raise Wrong(f"transformers has no model_type {model_type!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    return known[model_type]


def fields(theirs: Any) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """`{name: (annotation, default)}` of a config's own fields, as code, and the configs that are inside it."""
    from transformers import PreTrainedConfig

    common = {f.name for f in dataclasses.fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    made, found, inside = theirs(), {}, []
    for field in dataclasses.fields(theirs):
        if field.name in common | PASSED:
            continue
        value = None if field.default is dataclasses.MISSING else field.default
        if field.name == "rope_parameters":
            value = getattr(made, field.name, None) or {}
        if isinstance(getattr(made, field.name, None), PreTrainedConfig):
            inside.append(field.name)
        else:
            found[field.name] = _annotation(field.type, value), _code(value)
    return found, inside


def _annotation(hint: Any, value: Any) -> str:
    if isinstance(value, dict):
        return "Frozen"
    plain = (int, float, str, bool, type(None))
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    if not all(part in plain for part in parts):
        return "Any"
    return " | ".join("None" if part is type(None) else part.__name__ for part in parts)


def _code(value: Any) -> str:
    if isinstance(value, dict):
        return f"Frozen({', '.join(f'{key}={_code(each)}' for key, each in value.items())})"
    if isinstance(value, (list, tuple)):
        return repr(tuple(value))
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value) if isinstance(value, (int, float)) else "None"


def page_of(name: str, theirs: Any) -> str:
    """The family's page, which can be imported as it stands."""
    found, inside = fields(theirs)
    second = dict(theirs.attribute_map)
    decodes = all(key in found or second.get(key) in found for key in (*DECODER, "hidden_act"))
    rotary = decodes and "rope_parameters" in found
    title = _title(name)
    if rotary:
        groups, build = "RotaryFields", _decoder(name, title, found)
    else:
        groups, build = "CommonFields", _unwritten(name, title)
    lines = [f"    {key}: {hint} = {default}" for key, (hint, default) in found.items()]
    lines += [f'    {new} = alias("{old}")' for new, old in second.items() if old in found and new not in found]
    lines += [f"    # {key}: a config inside; a field annotated with its dataclass" for key in inside]
    body = "\n".join(lines)
    imports = ["from dataclasses import dataclass", f"from typing import {'Any, ' if ': Any' in body else ''}ClassVar"]
    names = [groups, *(["alias"] if "alias(" in body else [])]
    kinds = build.partition("\n\n\n")[0].splitlines()
    ours = sorted([f"from easyfn.config.fields import {', '.join(names)}", *kinds[1:]])
    frozen = ["from easyfn import Frozen"] if "Frozen" in body else []
    head = "\n".join([*imports, "", kinds[0], *frozen, *ours])
    return f'''"""{title}: say here what it is, and the paper.

The config is that of `{theirs.__module__}`, and the model is in the file beside it.
Of every field find out what the reference does with it: use it, register it as `ignore=`, or refuse what you do not implement.
"""

from __future__ import annotations

{head}


@dataclass(frozen=True, kw_only=True)
class {title}Config({groups}):
    """The keys of its `config.json`, with the values that the reference takes where the file leaves them out."""

    model_type: ClassVar[str] = "{name}"
{body}


{build.partition(chr(10) * 3)[2]}'''


def _decoder(name: str, title: str, found: Any) -> str:
    """A decoder of Llama's plan to change: imports, and behind two empty lines the code."""
    eps = "rms_norm_eps" if "rms_norm_eps" in found else "layer_norm_eps" if "layer_norm_eps" in found else ""
    kind, given = ("LayerNorm", f", c.{eps}") if eps == "layer_norm_eps" else ("RMSNorm", f", c.{eps}" if eps else "")
    return f'''import easyfn as ef
from easyfn.models.decoders import attention, decoder, decoder_family


def {name}(c: {title}Config) -> ef.nn.Decoder:
    """Llama's plan: change what differs."""
    norm = lambda: ef.nn.{kind}(c.hidden_size{given})
    mlp = lambda: ef.nn.GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)
    return decoder(c, lambda i: ef.nn.Block(attention(c), mlp(), norm(), norm()), norm())


decoder_family("{title}", {title}Config, {name})
'''


def _unwritten(name: str, title: str) -> str:
    return f'''import easyfn as ef


def {name}(c: {title}Config):
    """The layers, without numbers, under the names of the file."""
    raise NotImplementedError("write the layers of {name}: https://github.com/huggingface/transformers has them")


ef.family("{name}", config={title}Config, tasks={{"base": {name}}})
'''


def case_of(name: str, theirs: Any) -> str:
    """The test of the page: the laws, on a small random model of the reference."""
    from transformers.models.auto import modeling_auto

    kinds = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES
    model = next((kind[theirs.model_type] for kind in kinds if theirs.model_type in kind), "AutoModel")
    model = model if isinstance(model, str) else model[0]
    called = {"AutoModel": "AutoModel.from_config"}.get(model, model)
    config, second = theirs.__name__, theirs.attribute_map
    own = {f.name for f in dataclasses.fields(theirs)}
    small = {second.get(key, key): value for key, value in SMALL.items() if second.get(key, key) in own}
    sizes = ", ".join(f"{key}={value}" for key, value in small.items())
    title = _title(name)
    return f'''"""{title} beside transformers, and the laws."""

import easyfn as ef
from easyfn.testing import Case, laws
from {name} import {title}Config

SIZES = dict({sizes})


def module():
    """The reference, random, with no norm or bias that stays neutral. Settings that are awkward belong here."""
    import torch
    from transformers import {config}, {model}

    torch.manual_seed(0)
    model = {called}({config}(**SIZES, attn_implementation="eager")).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def make(key):
    return ef.from_state_dict({title}Config(**SIZES), {{k: v.numpy() for k, v in module().state_dict().items()}})


@laws.parametrize(Case(name="{name}", make=make, torch=module))
def test_{name}(law):
    law()
'''


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def add(commands: Any) -> None:
    """The parser of the command."""
    p = commands.add_parser("new-family", help="a page to start a family from, with its config read from transformers")
    p.add_argument("name", metavar="NAME", help="the model_type of config.json")
    p.add_argument("--from-transformers", required=True, metavar="TYPE", help="the model_type of the reference")
    p.add_argument("--into", default=".", help="the folder of NAME.py and test_NAME.py")
    p.add_argument("--force", action="store_true", help="put them in the place of what is there")
    p.set_defaults(run=run)
