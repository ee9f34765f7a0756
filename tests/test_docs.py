"""The pages: their code runs, their commands run, what they name exists, and every public name is on one page."""

import ast
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType

import jax
import pytest

import easyfn as ef
from easyfn.testing import laws

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.S | re.M)


def blocks(page, language):
    return [m.group(3) for m in FENCE.finditer(page.read_text()) if m.group(2) == language]


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [pytest.param(p, id=name(p)) for p in PAGES if blocks(p, "python")])
def test_code_runs(page, tmp_path, monkeypatch):
    """The blocks of a page, in order, in one namespace, in an empty folder beside the examples of the repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = blocks(page, "python")
    if any("examples/tiny" in block for block in code):
        assert (ROOT / "examples/tiny/config.json").exists(), (
            f"{name(page)} uses examples/tiny: make it with `make tiny`"
        )
    space = {"__name__": "page"}
    for block in code:
        exec(compile(block, name(page), "exec"), space)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama with a tokenizer of bytes, and a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("cli")
    config = ef.models.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16
    )
    ef.save(ef.init(config, key=jax.random.key(0)), folder / "llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "llama" / "tokenizer.json"))
    (folder / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    return folder


def test_commands_run(checkpoint, monkeypatch, capsys):
    """Every line of docs/cli.md, in this process."""
    from easyfn.cli import main

    monkeypatch.chdir(checkpoint)
    lines = [
        shlex.split(line, comments=True)
        for block in blocks(ROOT / "docs/cli.md", "bash")
        for line in block.splitlines()
    ]
    for line in lines:
        assert line[0] == "easyfn"
        main(line[1:])
        assert capsys.readouterr().out.strip(), f"{line} printed nothing"
    assert ef.is_quantized(ef.load("llama-nf4"))
    assert ef.dtype_of(ef.load("llama-bf16")) == "bfloat16"
    assert not ef.has_lora(ef.load("llama-tuned")) and Path("llama-tuned/tokenizer.json").exists()


def test_a_wrong_command_says_so(checkpoint, monkeypatch, capsys):
    from easyfn.cli import main

    monkeypatch.chdir(checkpoint)
    with pytest.raises(SystemExit, match="easyfn show"):
        main(["show", "."])
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["quantize", "llama", "out", "--method", "nf5"])
    assert re.search("near|Near|knows|choose from", capsys.readouterr().err)


# What a page may call `ef.something` although it is not there yet: the table of capabilities says so beside it.
PLANNED = {"plan", "init_paged_cache"}


@pytest.mark.parametrize("page", [pytest.param(p, id=name(p)) for p in PAGES])
def test_names_exist(page):
    text = page.read_text()
    for dotted in set(re.findall(r"\bef\.([A-Za-z_][\w.]*)", text)):
        found = ef
        for part in dotted.rstrip(".").split("."):
            if part in PLANNED and found is ef:
                break
            assert hasattr(found, part), f"{name(page)}: there is no ef.{dotted}"
            found = getattr(found, part)
            if not isinstance(found, (ModuleType, type)):
                break
    for target in re.findall(r"\]\(([^)#:]+\.(?:md|py))[)#]", text):
        assert (page.parent / target).exists(), f"{name(page)}: no {target}"
    for picture in re.findall(r'(?:src|srcset)="([^":]+)"|!\[[^\]]*\]\(([^):]+)\)', text):
        assert (page.parent / "".join(picture)).is_file(), f"{name(page)}: no picture {''.join(picture)}"


@pytest.mark.quick("docs", "every public name is on one page")
def test_every_public_name_is_on_one_page():
    text = "\n".join(p.read_text() for p in (ROOT / "docs/api").glob("*.md"))
    listed = re.findall(r"^::: easyfn\.([\w.]+)$", text, re.M)
    twice = sorted({n for n in listed if listed.count(n) > 1})
    assert not twice, f"on more than one page, or twice: {twice}"
    public = {n for n in dir(ef) if not n.startswith("_") and not isinstance(getattr(ef, n), ModuleType)} - {"P"}
    public |= {
        f"nn.{n}"
        for n, v in ((n, getattr(ef.nn, n)) for n in dir(ef.nn))
        if not n.startswith("_") and not isinstance(v, (ModuleType, dict, tuple)) and getattr(ef, n, None) is not v
    }
    assert not public - set(listed), f"on no page of docs/api: {sorted(public - set(listed))}"
    assert "`ef.P`" in text


def test_every_public_name_has_a_docstring():
    public = {n: getattr(ef, n) for n in dir(ef) if not n.startswith("_")}
    objects = {n: v for n, v in public.items() if not isinstance(v, ModuleType)}
    bare = [n for n, v in objects.items() if len(inspect.getdoc(v) or "") < 20]
    assert not bare, f"say what they do: {bare}"


@pytest.mark.quick("docs", "capabilities name tests that exist")
def test_capabilities_name_tests_that_exist():
    text = (ROOT / "docs/capabilities.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| asked", "|--"))]
    assert len(rows) > 80
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    for file, test in named:
        functions = {n.name for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)}
        assert test in functions, f"docs/capabilities.md: {file} has no {test}"
    for law in re.findall(r"law `(\w+)`", text):
        assert law in laws.known(), f"docs/capabilities.md: there is no law {law}"
    for row in rows:
        assert "`tests/" in row or "law `" in row or "not yet" in row or "not needed" in row, f"no proof: {row}"
