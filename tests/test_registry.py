"""Families are found by the name of their file, and nobody takes one over by accident."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import easyfn as ef
from easyfn.registry.family import family_of, files


@pytest.mark.quick("registry", "a file is named as its type")
def test_a_file_is_named_as_its_model_type():
    """Every file of a model type holds that one; the others (shared by families) register nothing."""
    for family in ef.families().values():
        room, _, stem = family.config.__module__.rpartition(".")
        if room == "easyfn.models":
            assert stem == re.sub("[-.]", "_", family.model_type) and family.config.model_type == family.model_type


@pytest.mark.quick("registry", "every family has reference cases")
def test_every_family_has_its_reference_cases():
    """In a file of its name; the towers of a model with two are tested beside it."""
    cases = {path.stem for path in (Path(__file__).parent / "families").glob("*.py")}
    built_in = {re.sub("[-.]", "_", n) for n, f in ef.families().items() if f.config.__module__.startswith("easyfn.")}
    assert cases <= built_in
    assert {n for n in built_in - cases if not n.endswith(("_text_model", "_vision_model"))} == set()


@pytest.mark.quick("registry", "nothing is imported before it is asked for")
def test_classes_are_found_without_importing_all():
    code = """
import sys, easyfn as ef
assert not [m for m in sys.modules if m.startswith("easyfn.models.")], sorted(sys.modules)
assert ef.models.MistralConfig.__name__ == "MistralConfig" and "easyfn.models.bert" not in sys.modules
assert "LlamaConfig" in dir(ef.models) and "llama" in dir(ef.models)
assert not hasattr(ef.models, "NoSuchConfig")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("used", [False, True])
def test_a_built_in_family_is_not_taken_over(used):
    """Neither before its first use nor after; with override=True, for good."""
    code = f"""
import dataclasses, easyfn as ef
{"ef.families()" if used else ""}
@dataclasses.dataclass(frozen=True)
class C:
    vocab_size: int = 8
    extra: ef.Frozen = ef.Frozen()
    generation: ef.Frozen = ef.Frozen()
try:
    ef.family("llama", config=C, tasks={{}})
except ValueError as error:
    assert "easyfn.models.llama.LlamaConfig" in str(error)
else:
    raise SystemExit("taken over")
assert ef.families()["llama"].config is ef.models.LlamaConfig
ef.family("llama", config=C, tasks={{}}, override=True)
assert ef.families()["llama"].config is C and ef.models.LlamaConfig is not C
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shared_file_is_no_family():
    assert "decoders" in files()
    with pytest.raises(ValueError, match="unknown architecture 'decoders'"):
        family_of("decoders")
    with pytest.raises(ValueError, match=r"unknown architecture '\.\./llama'"):
        family_of("../llama")
