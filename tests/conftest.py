"""A harsh session: warnings are errors, rank promotion raises, eight fake devices, beartype on the public signatures."""

import gc
import importlib.metadata
import os
import re
import threading
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The programs of the tests run once: LLVM's optimizer would cost more than it saves, and fusions made through MLIR twice
# the time to compile that XLA's older ones take, which are gone by JAX 0.12: there the flag ends the process. Kernels
# compiled one by one, for many threads, take a quarter longer than together.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("EASYFN_WIDEN", "0")  # not measured: the same programs on every machine

import jaxtyping

# The files of the public names, and those whose signatures say shapes: on all it was a seventh of the suite's time.
SOURCE = Path(__file__).parent.parent / "src"
PUBLIC = [
    f"easyfn{room and '.' + room}.{name}"
    for room in ("", "lora", "quant", "sharding")
    for name in re.findall(
        r"^ *from \.([a-z0-9_]+%s) import" % ("" if room else r"\.[a-z0-9_.]+"),
        (SOURCE / "easyfn" / room / "__init__.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
]
SHAPED = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted((SOURCE / "easyfn").rglob("*.py"))
    if re.search(r"^ *from (jaxtyping|[.\w]*arrays) import", path.read_text(encoding="utf-8"), re.MULTILINE)
]
# Every step over a tree and every verb goes through these three: checking their inner calls was 6 % of the suite's time.
INNER = {"easyfn.core.later", "easyfn.core.tree", "easyfn.core.verb"}
CHECKED = sorted({*SHAPED, *PUBLIC} - INNER)
jaxtyping.install_import_hook(CHECKED, "beartype.beartype").__enter__()

import jax
import pytest
from jax._src.interpreters import mlir

jax.config.update("jax_numpy_rank_promotion", "raise")


# JAX builds a context with every dialect of MLIR for each program that it lowers, two milliseconds and as long to take
# down: of a suite of thousands of small programs a sixth. Here a thread uses one 200 times; it grows with what it has seen.
_used = threading.local()


def _context(make=mlir.make_ir_context):
    count, context = getattr(_used, "context", (0, None))
    context = make() if count % 200 == 0 else context
    _used.context = count + 1, context
    return context


mlir.make_ir_context = _context


# What holds for a kind of layer is tested on one model of each kind. Of these three `make test` leaves out what goes over kinds:
ALIKE = {
    "gpt2": "Llama's blocks with learned positions, which have tests of their own",
    "mistral": "one window for all layers: gemma3 has layers with a window beside layers without",
    "mixtral": "Mistral with experts: test_moe.py and test_router.py hold those",
}
EVERY = ("families", "io", "models", "config", "config_types", "laws")  # files where each model is the point


def _rows_of_quick(items, everything: bool) -> None:
    """`@pytest.mark.quick(room, why, rows=[...])`: only those rows of a table keep the mark."""
    wanted, there = {}, set()
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark is None or not (rows := mark.kwargs.get("rows")):
            continue
        test, row = item.nodeid.partition("[")[0], item.callspec.id
        wanted[test] = rows
        there.add((test, row))
        if row not in rows:
            item.own_markers = [m for m in item.own_markers if m.name != "quick"]
    if lost := [(t, r) for t, rows in wanted.items() for r in rows if everything and (t, r) not in there]:
        raise pytest.UsageError(f"marked quick, and no row of its table: {lost}")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by what is said here
def pytest_collection_modifyitems(config, items):
    _rows_of_quick(items, config.args_source is pytest.Config.ArgsSource.TESTPATHS)
    model = {item: item.callspec.params.get("name") for item in items if hasattr(item, "callspec")}
    over_kinds = {item.originalname for item in model if model[item] == "llama"}
    tables: dict[str, list] = {}
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name not in EVERY and item.originalname in over_kinds and model.get(item) in ALIKE:
            item.add_marker(pytest.mark.every_family)
        elif item.get_closest_marker("thinned"):
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    # `@pytest.mark.thinned(why)`: of this table `make test` runs the first row, the last, and every third between.
    for rows in tables.values():
        for n, item in enumerate(rows[1:-1] if len(rows) > 4 else (), 1):
            if n % 3:
                item.add_marker(pytest.mark.every_family)


@pytest.fixture
def key():
    return jax.random.key(0)


def _mappings() -> int:
    path = Path("/proc/self/maps")
    return path.read_bytes().count(b"\n") if path.exists() else 0


_tests_run = [0]


@pytest.fixture(autouse=True)
def _bounded_programs():
    """Compiled programs pile up over thousands of tests. Linux gives a process 65,530 mappings of memory, a program takes
    two to twenty, and the compiler that is refused one takes the process down: so they are dropped long before."""
    yield
    _tests_run[0] += 1
    if _tests_run[0] % 10 == 0 and _mappings() > 20_000:
        jax.clear_caches()
        gc.collect()


def pytest_collection_finish():
    """What is imported by now stays: the collector need not look at it again. Tracing makes objects by the hundred thousand
    and few cycles: looked for as often as Python does by default, they cost 6 % of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 10)
