"""The examples in the docstrings run."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "easyfn"
FENCE = re.compile(r"^( *)```python\n(.*?)^ *```", re.S | re.M)
ILLUSTRATIONS = {"testing/laws/__init__.py:0"}  # with `...` in the place of your own model


def examples():
    for path in sorted(SOURCE.rglob("*.py")):
        blocks = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                blocks += [m.group(2) for m in FENCE.finditer(text)]
        name = path.relative_to(SOURCE).as_posix()
        for n, block in enumerate(blocks):
            if f"{name}:{n}" not in ILLUSTRATIONS:
                yield pytest.param(block, id=f"{name}:{n}")


@pytest.mark.parametrize("code", list(examples()))
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<docstring>", "exec"), {"__name__": "docstring"})
