"""Who may import whom, how long a file may be, what `import easyfn` does not do."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "easyfn"
FILES = sorted(p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py"))
LIMIT = 400

# Room -> the rooms that its files may import, at any level, besides their own.
GROUND = {"core"}
LAYERS = GROUND | {"nn"}
MAY = {
    "core": set(),
    "nn": GROUND,
    "inputs": LAYERS,
    "names": GROUND,
    "config": GROUND,
    "registry": GROUND | {"config", "names"},
    "forward": LAYERS | {"inputs", "registry"},
    "tasks": LAYERS | {"inputs", "forward", "registry"},
    "models": LAYERS | {"inputs", "names", "config", "registry", "forward", "tasks"},
    "quant": LAYERS | {"names"},  # weights as files hold them
    "lora": LAYERS,
    "sharding": LAYERS,
}
NEVER = {  # room -> what its files never import
    "io": {"models", "testing", "cli"},
    "generation": {"models", "io", "testing", "cli"},
    "train": {"models", "io", "testing", "cli"},
    "inspect": {"models", "io", "testing", "cli"},
    "planning": {"models", "testing", "cli"},  # it puts the verbs of all other rooms together
    "engine": {"models", "testing", "cli"},
    "serve": {"models", "testing", "cli"},
}
# Being moved: each line is a debt, and a line that is no longer true fails.
DEBTS: set[tuple[str, str]] = {
    ("lora/eva.py", "inspect"),
    ("lora/prompt.py", "forward"),
    ("lora/prompt.py", "inputs"),
    ("lora/prompt.py", "tasks"),
    ("quant/awq.py", "io"),
    ("quant/bitsandbytes.py", "io"),
    ("quant/calibrate.py", "inspect"),
    ("quant/calibrate.py", "tasks"),
    ("quant/compressed_tensors.py", "io"),
    ("quant/fp8_files.py", "io"),
    ("quant/ggml.py", "io"),
    ("quant/auto_round.py", "io"),
    ("quant/gptq.py", "io"),
    ("quant/mxfp4_files.py", "io"),
}


def imports(path: str, top: bool = False) -> set[str]:
    """The modules of easyfn that a file imports, as `nn.cache`; others under their own names."""
    package = ["easyfn", *path.split("/")[:-1]]
    body = ast.parse((SOURCE / path).read_text())
    found = set()
    for node in ast.iter_child_nodes(body) if top else ast.walk(body):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} if node.module else {f"{module}.{name.name}" for name in node.names}
    return {name.removeprefix("easyfn.") for name in found}


def room(module: str) -> str:
    return module.split(".")[0]


ROOMS = {path.split("/")[0] for path in FILES if "/" in path}


@pytest.mark.quick("rooms", "imports point one way")
def test_imports_point_one_way():
    """Lazy imports inside functions count too."""
    found = set()
    for path in FILES:
        own = path.split("/")[0]
        if own not in ROOMS:
            continue
        others = {room(module) for module in targets(path)} & ROOMS - {own}
        wrong = others - MAY[own] if own in MAY else others & NEVER.get(own, set())
        found |= {(path, other) for other in wrong}
        if own in ("testing", "cli"):
            private = {m for m in targets(path) if room(m) in ROOMS - {own}}
            found |= {(path, m) for m in private}
    assert found == DEBTS, f"new: {sorted(found - DEBTS)}; no longer true: {sorted(DEBTS - found)}"


@pytest.mark.quick("rooms", "no circles")
def test_no_circles_between_files():
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    graph = {
        name: {full for module in targets(path) for full in (module,) if full in names and full != name}
        for name, path in names.items()
    }
    circles = [sorted(group) for group in components(graph) if len(group) > 1]
    assert circles == CIRCLES, circles


CIRCLES: list[list[str]] = [
    ["nn.cache.cache", "nn.cache.int8"],
]


def targets(path: str) -> set[str]:
    """The files that a file imports, also where it imports a module by name from its package."""
    package = ["easyfn", *path.split("/")[:-1]]
    found = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])]).removeprefix("easyfn.")
        for name in node.names:
            inner = SOURCE / f"{module}.{name.name}".replace(".", "/")
            found.add(f"{module}.{name.name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else module)
    return found


def components(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            found.append(group)

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


@pytest.mark.quick("rooms", "the root is readable")
def test_the_root_is_readable():
    files = sorted(p.name for p in SOURCE.iterdir() if p.is_file())
    assert files == ["__init__.py", "__main__.py", "py.typed"]


@pytest.mark.parametrize("path", FILES)
def test_nothing_heavy_at_module_level(path):
    heavy = {room(m) for m in imports(path, top=True)} & {
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "pytest",
        "rich",
    }
    assert not heavy, f"{path} imports {heavy} when it is imported"


@pytest.mark.quick("rooms", "files are one idea")
def test_files_are_one_idea():
    lengths = {path: len((SOURCE / path).read_text().splitlines()) for path in FILES}
    long = {path for path, count in lengths.items() if count > LIMIT}
    assert not long, f"longer than {LIMIT} lines: {sorted(long)}"


def test_import_has_no_side_effects():
    code = """
import os, sys
before = dict(os.environ)
import easyfn, easyfn.cli
heavy = {"jax", "torch", "transformers", "pytest", "peft", "orbax", "tokenizers", "rich", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
easyfn.P, easyfn.load
from jax._src import xla_bridge
assert dict(os.environ) == before, "the environment changed"
assert not xla_bridge.backends_are_initialized(), "a backend was started"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_reads_little():
    """A class of Equinox costs a millisecond to define, so that nothing is read before it is asked for."""
    code = """
import sys
def read():
    return sum(name.startswith("easyfn") for name in sys.modules)
import easyfn as ef
assert read() <= 10, f"{read()} files for import easyfn"
config = ef.models.LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)
import jax
model = ef.abstract(config)
jax.eval_shape(ef.forward, model, jax.ShapeDtypeStruct((1, 2), "int32"))
assert read() <= 100, f"{read()} files for a forward pass of Llama"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_teaches_is_found():
    """Rules in a file that is neither the verb's nor the type's are imported when the type is met, by a table."""
    import importlib
    import pkgutil

    import easyfn as ef
    from easyfn.core.verb import Verb
    from easyfn.registry.teachers import TEACHERS

    ef.families()
    for each in pkgutil.walk_packages(ef.__path__, "easyfn."):
        if room(each.name.removeprefix("easyfn.")) not in ("models", "testing", "cli", "serve", "__main__"):
            importlib.import_module(each.name)
    found: dict[str, set[str]] = {}
    files = [module for name, module in sys.modules.items() if name.startswith("easyfn.")]
    for verb in {id(x): x for file in files for x in vars(file).values() if isinstance(x, Verb)}.values():
        for cls, rule in verb.implementations().items():
            file = rule.__module__
            # The last three register for whoever calls them from the file of a type.
            direct = {
                verb.__module__,
                cls.__module__,
                "easyfn.lora.adapter",
                "easyfn.quant.product",
                "easyfn.core.weight",
            }
            if file.startswith("easyfn.") and file not in direct:
                found.setdefault(f"{cls.__module__}.{cls.__qualname__}", set()).add(file)
    table = {name: set(taught) for name, taught in TEACHERS.items() if name != "easyfn.io.formats"}
    assert found == table, "src/easyfn/registry/teachers.py: " + repr(
        {n: f for n, f in found.items() if table.get(n) != f}
    )


def test_every_public_name_is_documented():
    import easyfn as ef

    text = "\n".join(p.read_text() for p in (SOURCE.parent.parent / "docs").rglob("*.md"))
    names = [n for n in dir(ef) if not n.startswith("_") and not isinstance(getattr(ef, n), ModuleType)]
    missing = [n for n in names if n not in text]
    if missing and len(missing) > len(names) // 2:
        pytest.skip(f"the reference is being written: {len(missing)} of {len(names)} names are in no page yet")
    assert not missing, f"in no page of docs/: {missing}"


@pytest.mark.quick("rooms", "this test reads files alone")
def test_quick_tests_touch_every_room_and_say_why():
    """`@pytest.mark.quick(room, why)`: what `make test-quick` runs is chosen by hand, and no room goes without."""
    touched = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.quick":
                room, why = (ast.literal_eval(argument) for argument in node.args)
                assert len(why) > 5, f"{path.name}:{node.lineno} says no reason"
                touched.add(room)
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert not rooms - touched, "no test of these rooms is quick"
    assert not touched - rooms - {"docs", "rooms"}, "quick tests name rooms that there are not"
