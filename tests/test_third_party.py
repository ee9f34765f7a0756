"""A model, a layer and a weight format outside easyfn keep every law."""

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest

from easyfn.testing import Case, laws
from thirdparty import ThirdConfig, ThirdLM

CASE = Case(
    name="third",
    make=lambda key: ThirdLM(ThirdConfig(), key=key),
    quantization=("sixteenths", "8bit"),
)


@laws.parametrize(CASE)
def test_third_party(law):
    law()


@pytest.mark.quick("testing", "the third party uses public names")
def test_the_third_party_uses_public_names_only():
    tree = ast.parse((Path(__file__).parent / "thirdparty.py").read_text())
    imported = [
        n
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for n in ast.unparse(node).split()
    ]
    assert [n for n in imported if n.startswith("easyfn")] == ["easyfn"]
    private = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("_")]
    assert not private
