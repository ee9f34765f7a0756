"""A harsh session: warnings are errors, rank promotion raises, eight fake devices, beartype on the public signatures."""

import gc
import importlib.metadata
import os
import re
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The programs of the tests run once: LLVM's optimizer would cost more than it saves, and fusions made through MLIR twice
# the time to compile that XLA's older ones take, which are gone by JAX 0.12: there the flag ends the process.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping

jaxtyping.install_import_hook("easyfn", "beartype.beartype").__enter__()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Files whose tests are dear together: the quick suite takes every twelfth of them, so that no room goes without.
DEAR = re.compile(
    "adapters|assisted|beams|bert|calibrate|compressed_tensors|docs|docstrings|generate"
    "|generation_options|gguf|gptq_awq|laws|laws_can_fail|lora|lora_inits|lora_saved|loss|mamba2|models"
    "|moe|peft|peft_methods|quant|quant_accuracy|quant_float|quant_integer|sharding|stop|structured|t5|third_party"
    "|tiny|train|engine|serve|paged|pipeline|plan|context_parallel|expert_parallel|cache_int8|latent|checkpoints|remote"
)


# A test that goes over kinds of layers does so on these in `make test`; the others are near enough to one of them (learned
# positions and one window for all layers to Llama and Gemma, experts to what `test_moe.py` holds), and `make test-all` runs them.
ALIKE = ("gpt2", "mistral", "mixtral")
EVERY = ("families", "io", "models", "config", "config_types", "laws")  # files where each model is the point


# Whose rows are each a claim of its own, and not more of the same.
EVERY_ROW = ("laws", "docs", "docstrings", "models")


def pytest_collection_modifyitems(items):
    seen: dict[str, int] = {}
    tables: dict[str, list] = {}
    model = {item: item.callspec.params.get("name") for item in items if hasattr(item, "callspec")}
    over_kinds = {item.originalname for item in model if model[item] == "llama"}
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name not in EVERY and item.originalname in over_kinds and model.get(item) in ALIKE:
            item.add_marker(pytest.mark.every_family)
        elif DEAR.fullmatch(name) and name not in EVERY_ROW and item in model:
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
        if DEAR.fullmatch(name) and item.get_closest_marker("slow") is None:
            seen[name] = seen.get(name, 0) + 1
            if seen[name] % 12 != 1:
                item.add_marker(pytest.mark.slow)
    # Of the long tables of these files `make test` runs the first row, the last, and every third between.
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
    """What is imported by now stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
