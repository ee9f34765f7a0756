"""Every family keeps every law."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases

from easyfn.testing import Case, laws

EXPECTED: dict[str, dict[str, str]] = {}
INPUTS: dict[str, dict] = {}


def case(name: str) -> Case:
    """The case of `tests/cases.py` of that name."""
    known = cases.CASES[name]
    return Case(
        name=name,
        torch=known.torch,
        make=lambda key: known.model(),
        causal=known.causal and known.generates,
        tokens="decoder_input_ids" if known.encoder_decoder else "input_ids",
        inputs=INPUTS.get(name, {}),
        expected_failures=EXPECTED.get(name, {}),
    )


FAMILIES = [n for n in cases.names(variant=False)]


@laws.parametrize(*(case(name) for name in FAMILIES))
def test_family(law):
    law()
