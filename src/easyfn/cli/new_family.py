"""`easyfn new-family`: a page to start a family from, with the fields and defaults of transformers' config, and its case."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from .beside import OWN, compared, sizes
from .blueprint import Plan, plan_of
from .checked import Wrong, free
from .parts import extra
from .reference import COUNTS, first_line, stored

# Read by nothing that computes, or kept with what `generate` is told.
PASSED = {"use_cache", "initializer_range", "bos_token_id", "eos_token_id", "output_router_logits"}
HOUSE = Path("src/easyfn/models"), Path("tests/families")  # of a checkout of easyfn


def run(args: argparse.Namespace) -> None:
    name = args.name
    if not name.isidentifier() or name != name.lower():
        raise Wrong(f"NAME is a model_type in lower case that Python can import, not {name!r}")
    house = args.into is None and all(folder.is_dir() for folder in HOUSE)
    folder = Path(args.into or ".")
    page = (HOUSE[0] if house else folder) / f"{name}.py"
    case = HOUSE[1] / f"{name}.py" if house else folder / f"test_{name}.py"
    for path in (page, case):
        free(str(path), args.force)
    import easyfn as ef

    if name in ef.families():
        raise Wrong(f"easyfn has {name}: see ef.families()[{name!r}], or choose another name")
    theirs = reference(args.from_transformers)
    plan: Plan | None = None
    none = ""
    try:
        plan = plan_of(theirs, fields(theirs)[0])
    except ValueError as error:
        none = str(error)
    except Exception as error:  # of a reference that is built as none before
        none = f"its modules are not understood: {first_line(error)}"
    text = page_of(name, theirs, plan)
    left = [f"no place for: {what}" for what in plan.unplaced] if plan else [f"no plan: write the model ({none})"]
    left += compared(text, name, _title(name), theirs, plan) if plan else []
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(housed(text) if house else text, "utf-8")
    case.write_text((house_case if house else case_of)(name, theirs), "utf-8")
    print(f"{page}: the config is {theirs.__name__}'s{f', the plan {plan.words}' if plan else ''}")
    print("\n".join(f"- {line}" for line in [*left, *renamed(theirs), *nearest(theirs)]))
    tests = f"pytest tests -k {name}" if house else f"pytest -p easyfn.testing.plugin {case}"
    print(f"then: {tests}")


def renamed(theirs: Any) -> list[str]:
    """What files call otherwise than transformers' modules do."""
    found = [f"{' + '.join(a)} -> {' + '.join(b)}" for a, b, stacks in stored(theirs.model_type) if not stacks]
    words = "files have other names than transformers' modules (`names` for those, `modules` for these)"
    return [f"{words}: {'; '.join(found)}".replace("\\", "")] if found else []


def nearest(theirs: Any) -> list[str]:
    """Which of our families have most of this config's keys, and of whose modules transformers made the reference."""
    import sys

    import easyfn as ef

    own = set(fields(theirs)[0])
    shares = []
    for name, family in ef.families().items():
        keys = {f.name for f in dataclasses.fields(family.config)} - {"num_labels", "extra", "generation"}
        shares.append((len(own & keys) / len(own | keys), name))
    best = [f"{name} ({share:.0%})" for share, name in sorted(shares, reverse=True)[:4]]
    lines = [f"the nearest of easyfn's families by their keys: {', '.join(best)}"]
    file = Path(sys.modules[theirs.__module__].__file__ or "")
    modular = file.with_name(file.name.replace("configuration_", "modular_"))
    if modular.exists():
        of = sorted(set(re.findall(r"from \.\.(\w+)\.", modular.read_text("utf-8"))) - {"auto"})
        marked = [name if name in ef.families() else f"{name} (not in easyfn)" for name in of]
        lines.append(f"{modular.name} builds on: {', '.join(marked)}" if of else f"read {modular.name}")
    return lines


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
    found, inside = {}, []
    try:
        made = theirs()
    except Exception:  # whose own defaults the reference refuses
        made = None
    for field in dataclasses.fields(theirs):
        value = None if field.default is dataclasses.MISSING else field.default
        if field.name in common | PASSED or (field.name, value) == ("pad_token_id", None):
            continue
        if field.name == "rope_parameters":
            value = said(made, field.name) or {}
        if isinstance(said(made, field.name), PreTrainedConfig):
            inside.append(field.name)
        else:
            found[field.name] = _annotation(field.type, value), _code(value)
    return found, inside


def said(config: Any, name: str) -> Any:
    """The value of a key, and `None` where there is none for all layers."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _annotation(hint: Any, value: Any) -> str:
    if isinstance(value, dict):
        return "Frozen"
    plain = (int, float, str, bool, type(None))
    if isinstance(hint, types.UnionType) and type(None) in hint.__args__ and len(hint.__args__) == 2:
        inner = next(part for part in hint.__args__ if part is not type(None))
        if typing.get_origin(inner) is list and typing.get_args(inner)[0] in plain:
            return f"tuple[{typing.get_args(inner)[0].__name__}, ...] | None"
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


def page_of(name: str, theirs: Any, plan: Plan | None) -> str:
    """The family's page, which can be imported as it stands."""
    found, inside = fields(theirs)
    second = dict(theirs.attribute_map)
    title = _title(name)
    if plan is not None:
        llama = "rms_norm_eps" in found and "hidden_act" in found
        groups = "LlamaFields" if llama else "RotaryFields"
        groups, build = groups if "intermediate_size" in found else "CommonFields", _decoder(name, title, plan, theirs)
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


def _decoder(name: str, title: str, plan: Plan, theirs: Any) -> str:
    """The plan as code: imports, and behind two empty lines the builder and its registration."""
    rooms = {"fields": "config.fields"}
    imports = [f"from easyfn.{rooms.get(m, f'models.{m}')} import {', '.join(n)}" for m, n in plan.imports.items()]
    missing = "".join(f"    # no place for: {what}\n" for what in plan.unplaced)
    body = "\n".join(f"    {line}" for line in plan.lines)
    family, registered = dict(plan.family), ""
    if plan.renames:
        held = lambda name: f"{{rest}}{name}{{tail}}"
        rules = "".join(f'    rename("{held(ours)}", "{held(theirs_)}"),\n' for ours, theirs_ in plan.renames)
        imports.append("from easyfn.names.rules import rename")
        registered = f"_MODULES = (\n{rules})\n"
        files = f"(*{family['names']}, *_MODULES)" if "names" in family else "_MODULES"
        family |= {"names": files, "modules": "_MODULES"}
    arguments = "".join(f", {key}={value}" for key, value in family.items())
    classes = (theirs.model_type == name and plan.called) or title
    return f'''import easyfn as ef
{chr(10).join(imports)}


def {name}(c: {title}Config) -> ef.nn.Decoder:
    """The plan that the reference's modules show: read its `forward` beside it."""
{missing}{body}


{registered}decoder_family("{classes}", {title}Config, {name}{arguments})
'''


def housed(text: str) -> str:
    """The page as easyfn's own are written: relative imports, and layers by their names."""
    layers = sorted(set(re.findall(r"\bef\.nn\.(\w+)", text)))
    text = re.sub(r"\bef\.nn\.(\w+)", r"\1", text)
    text = text.replace("import easyfn as ef\n", f"from ..nn import {', '.join(layers)}\n" if layers else "")
    text = text.replace("from easyfn import Frozen\n", "from ..core.frozen import Frozen\n")
    return re.sub(r"from easyfn\.(?:models(\.\w+)|(\w))", lambda m: f"from {m[1] or '..' + m[2]}", text)


def _unwritten(name: str, title: str) -> str:
    return f'''import easyfn as ef


def {name}(c: {title}Config):
    """The layers, without numbers, under the names of the file."""
    raise NotImplementedError("write the layers of {name}: https://github.com/huggingface/transformers has them")


ef.family("{name}", config={title}Config, tasks={{"base": {name}}})
'''


def case_of(name: str, theirs: Any) -> str:
    """The test of the page: the laws, on a small random model of the reference."""
    model = plan_class(theirs)
    called = {"AutoModel": "AutoModel.from_config"}.get(model, model)
    config = theirs.__name__
    known = fields(theirs)[0]
    small = ", ".join(f"{key}={value!r}" for key, value in sizes(theirs).items() if key in known)
    title = _title(name)
    return f'''"""{title} beside transformers, and the laws."""

import easyfn as ef
from easyfn.testing import Case, laws
from {name} import {title}Config

SIZES = dict({small})


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
    sizes = {{key: tuple(value) if isinstance(value, list) else value for key, value in SIZES.items()}}
    return ef.from_state_dict({title}Config(**sizes), {{k: v.numpy() for k, v in module().state_dict().items()}})


@laws.parametrize(Case(name="{name}", make=make, torch=module))
def test_{name}(law):
    law()
'''


def plan_class(theirs: Any) -> str:
    """The name of the reference's language model, or else of its bare model."""
    from transformers.models.auto import modeling_auto

    kinds = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_MAPPING_NAMES
    model = next((kind[theirs.model_type] for kind in kinds if theirs.model_type in kind), "AutoModel")
    return model if isinstance(model, str) else model[0]


def house_case(name: str, theirs: Any) -> str:
    """The cases as the repository's own are written."""
    model = plan_class(theirs)
    own = {key: value for key, value in sizes(theirs).items() if key in OWN}
    lines = "".join(f"    {json.dumps(key)}: {_python(value)},\n" for key, value in own.items())
    mixed = any(key in own for key in COUNTS)
    facts = ", moe=True" if mixed else ""
    return f'''"""{_title(name)}: say here what the cases show."""

from cases import SMALL, case, reference

OWN = {{
{lines}}}


@case("{name}"{facts})
def _():
    from transformers import {theirs.__name__}, {model}

    return reference({model}, {theirs.__name__}(**SMALL, **OWN))


@case("{name}-tied"{facts}, variant=True)
def _():
    from transformers import {theirs.__name__}, {model}

    return reference({model}, {theirs.__name__}(**SMALL, **OWN, tie_word_embeddings=True))
'''


def _python(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (str, list)) else repr(value)


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def add(commands: Any) -> None:
    """The parser of the command."""
    p = commands.add_parser("new-family", help="a page to start a family from, with its config read from transformers")
    p.add_argument("name", metavar="NAME", help="the model_type of config.json")
    p.add_argument("--from-transformers", required=True, metavar="TYPE", help="the model_type of the reference")
    p.add_argument(
        "--into",
        help="the folder of NAME.py and test_NAME.py; in a checkout of easyfn they go where its families are, without it",
    )
    p.add_argument("--force", action="store_true", help="put them in the place of what is there")
    p.set_defaults(run=run)
