"""Drawn configs beside transformers: a seeded few for each family; `benchmarks/fuzz_configs.py` draws on for hours."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz_configs.py"
spec = importlib.util.spec_from_file_location("fuzz_configs", SCRIPT)
fuzz_configs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_configs)


@pytest.mark.every_family
@pytest.mark.parametrize("family", sorted(fuzz_configs.bases(None)))
def test_drawn_configs(family):
    found = fuzz_configs.fuzz([family], count=3, minutes=10, seed=5)
    assert not found["wrong"], found["wrong"]
    assert sum(found["cases"][family].values()) == 3


def test_a_wrong_number_is_found_and_shrunk(monkeypatch):
    """The fuzzer sees what it is made to see: with a factor ignored, the case is wrong, and only its key is left."""
    case = fuzz_configs.bases(["llama"])["llama"]
    changes = {"rms_norm_eps": 0.5, "use_cache": True}

    def run(case, base, changes, seed):
        return fuzz_configs.Outcome(("wrong", "off") if "rms_norm_eps" in changes else ("equal", ""))

    monkeypatch.setattr(fuzz_configs, "run", run)
    assert fuzz_configs.shrink(case, None, changes, 0) == {"rms_norm_eps": 0.5}
