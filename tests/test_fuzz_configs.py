"""Drawn configs beside transformers: a seeded one of each family; `benchmarks/fuzz_configs.py` draws on for hours."""

import importlib.util
import random
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz_configs.py"
spec = importlib.util.spec_from_file_location("fuzz_configs", SCRIPT)
fuzz_configs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_configs)


@pytest.mark.every_family
@pytest.mark.filterwarnings("ignore")  # transformers warns of configs that nobody sets
@pytest.mark.parametrize("family", sorted(fuzz_configs.bases(None)))
def test_drawn_configs(family):
    lines = fuzz_configs.fuzz([family], count=1, minutes=10, seed=104)
    assert len(lines) == 1
    assert not (wrong := [line for line in lines if line["kind"] == "wrong"]), wrong


def test_a_wrong_number_is_found_and_shrunk(monkeypatch):
    """The fuzzer sees what it is made to see: with a factor ignored, the case is wrong, and only its key is left."""
    (case, *_) = fuzz_configs.bases(["llama"])["llama"]
    changes = {"rms_norm_eps": 0.5, "use_cache": True}

    def run(case, base, changes, seed):
        return fuzz_configs.Outcome("wrong" if "rms_norm_eps" in changes else "equal", "")

    monkeypatch.setattr(fuzz_configs, "run", run)
    assert fuzz_configs.shrink(case, None, changes, "0") == {"rms_norm_eps": 0.5}


def test_what_is_drawn(monkeypatch):
    """The kinds of draws that found faults are drawn, and the same seed draws the same."""
    (case, *_) = fuzz_configs.bases(["gemma3_text"])["gemma3_text"]
    drawn = [fuzz_configs.changes_of(case.torch().config, random.Random(n)) for n in range(300)]
    assert drawn[7] == fuzz_configs.changes_of(case.torch().config, random.Random(7))
    keys = {key for changes in drawn for key in changes}
    assert {
        "head_dim",
        "sliding_window",
        "layer_types",
        "rope_parameters",
        "tie_word_embeddings",
        "rms_norm_eps",
    } <= keys
    assert any(c.get("num_attention_heads") == 3 and c.get("num_key_value_heads") == 1 for c in drawn)
    assert any(c.get("sliding_window") == 1 for c in drawn)
