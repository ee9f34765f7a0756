"""Damaged files: each loads or raises an error of ours that helps; none hangs, none ends in an error of Python's depths."""

import gc
import importlib
import json
import random
import signal

import jax
import numpy as np
import pytest

import easyfn as ef
from damage import KINDS, TINY, clear, damage

CASES = 18  # of each kind; benchmarks/fuzz_files.py reads as many as there is time for


@pytest.fixture(scope="module")
def base():
    return ef.init(ef.read_config({**TINY["config.json"], "rope_scaling": None}), key=jax.random.key(0))


def survives(read, what):
    """Runs a reader, for ten seconds at most; what it raises must be clear."""

    def late(*_):
        raise TimeoutError(f"it hangs: {what}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        read()
    except BaseException as error:
        if not clear(error):
            raise AssertionError(f"{type(error).__name__}: {error}\n{what}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what Orbax leaves where it stops
@pytest.mark.parametrize("name", KINDS)
def test_damaged(name, tmp_path):
    if name.startswith("token"):
        pytest.importorskip("tokenizers")
    kind = KINDS[name](tmp_path / "whole")
    kind.read()
    whole, rng = kind.file.read_bytes(), random.Random(name)
    for _ in range(CASES):
        content = damage(kind, whole, rng)
        kind.file.write_bytes(content)
        survives(kind.read, content[:3000])
    if name.startswith("state"):
        gc.collect()  # here, and not in the midst of another test


PANICS = {
    "type": "BPE",
    "continuing_subword_prefix": "long",
    "vocab": {"a": 0, "b": 1, "ab": 2},
    "merges": [["a", "b"]],
}


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", '{"version": 5}', '{"model": {"type": "BPE", "vocab": [], "merges": 1}}', ""),
        json.dumps({"version": "1.0", "model": PANICS}),  # inside the library, which is no `Exception` of Python
    ],
)
def test_a_tokenizer(tmp_path, text):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ef.LoadError, match=r"tokenizer\.json"):
        ef.tokenizer(tmp_path)


def test_a_name_too_long_for_a_file_system(tmp_path):
    kind = KINDS["modules.json"](tmp_path)
    whole = json.loads(kind.file.read_text())
    kind.file.write_text(json.dumps([whole[0], {**whole[1], "path": "x" * 300}]))
    with pytest.raises(ef.LoadError, match=r"a module's path is 'xxx.*must be that of a folder"):
        kind.read()


ADAPTERS = [
    {"r": {"0": {}}}, {"r": -0.0}, {"r": 0}, {"r": "4"}, {"lora_alpha": [None]}, {"lora_alpha": None}, {"alpha_pattern": 1.0},
    {"rank_pattern": [[1]]}, {"target_parameters": 3}, {"peft_type": ["a"]}, {"modules_to_save": 5}, {"target_modules": 5},
    {"layers_to_transform": "x"}, {"use_dora": "x"}, {"rank_pattern": {"(": 2}}, {"lora_dropout": 2},
]  # fmt: skip


def test_values_of_an_adapter_config(base, tmp_path):
    """The error names the file and the key, and what it must be."""
    lora = ef.apply_lora(base, "all-linear", rank=2, key=jax.random.key(1))
    folder = ef.save_adapter(lora, tmp_path)
    whole = json.loads((folder / "adapter_config.json").read_text())
    for change in ADAPTERS:
        (folder / "adapter_config.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ef.LoadError, match="must be") as error:
            ef.load_adapter(base, folder)
        assert "adapter_config.json" in str(error.value) and next(iter(change)) in str(error.value)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ef.LoadError, match="it is no JSON"):
        ef.load_adapter(base, folder)


def test_files_that_are_none(base, tmp_path):
    """A link to itself, a name that no file can have, endless nesting."""
    for n, name in enumerate(["\ud800", "x" * 300, "a\0b"]):
        folder = ef.save(base, tmp_path / str(n), max_shard_size=8000)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"][next(iter(index["weight_map"]))] = name
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ef.LoadError, match="it names"):
            ef.load(folder)
    folder = ef.save(base, tmp_path / "link", max_shard_size=8000)
    file = min(folder.glob("*.safetensors"))
    file.unlink(), file.symlink_to(file)
    with pytest.raises(ef.LoadError, match="it names"):
        ef.load(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ef.LoadError, match="it is no JSON"):
        ef.load(folder)
    assert np.isfinite(np.asarray(ef.load(ef.save(base, folder)).model.norm.weight)).all()


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(999) %}{{ range(9999)|list|length }}{% endfor %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    *(
        "{{ 9**(9**9) }}",
        "{{ ('f' * 9999)|int(base=16) > 0 }}",
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 10**10 }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'|indent(10**9) }}",
    ),
    *("{{ '%1000000000d' % 1 }}", "{{ '%1000000000d'|format(1) }}", "{{ '{:>9999999999}'.format(1) }}"),
    "{{ ('a' * 99999)|replace('a', 'a' * 99999) }}",
]


@pytest.mark.parametrize("text", ENDLESS)
def test_templates_are_bounded(text):
    template = pytest.importorskip("easyfn.serve").ChatTemplate(text)
    survives(lambda: template([]), text)
    with pytest.raises(ValueError, match="the chat template refuses"):
        template([])


# What passes a bound of 1000, with s of 900 characters and l of three of them.
LARGE = r"""''.join(l) ; l|join ; l|string ; '' ~ l ; l|upper ; l|map('upper')|join
'{0}{0}'.format(s) ; '{a[b]}{a[b]}'.format_map({'a': {'b': s}})
'{:{w}}'.format(1, w=1001) ; '%s' % l ; '%s%s' % (s, s) ; '%(a)s%(a)s' % {'a': s} ; '%*d' % (1001, 1) ; '%s%s'|format(s, s)
('a\t' * 200).expandtabs() ; [1]|tojson(indent=1001) ; [1, 2]|tojson(separators=(s, s)) ; s.center(1001) ; s|center(1001)
s.ljust(1001) ; s.rjust(1001) ; s.zfill(1001) ; s.replace('a', 'bb') ; s|replace('a', 'bb') ; s * 2 ; s ~ s ; s + s ; l * 400
s.translate({97: s}) ; 'abc'|join(s) ; s.join('abc')
(1).to_bytes(1001) ; 1|round(1001) ; [1]|batch(linecount=1001, fill_with=0)|list
{}[l].a ; raise_exception(l) ; f() ; ('a\n' * 300)|indent(4)"""
GIVEN = "{% set s = 'a' * 900 %}{% set l = [s, s, s] %}{% macro f() %}{{ s }}{{ s }}{% endmacro %}"


@pytest.mark.parametrize("text", LARGE.replace("\n", " ; ").split(" ; "))
def test_what_would_be_large_is_refused_before_it_is_made(text, monkeypatch):
    sandbox = pytest.importorskip("easyfn.io.sandbox")
    monkeypatch.setattr(sandbox, "SIZE", 1000)
    monkeypatch.setattr(sandbox, "_made", lambda value: value)
    template = importlib.import_module("easyfn.io.template").ChatTemplate(GIVEN + "{{ (" + text + ")|length }}")
    with pytest.raises(ValueError, match="a value of more than 1000"):
        template([])


SLOW = [
    "s[1:]",
    "s == s",
    "'b' in s",
    "s is eq s",
    "s.rfind('b' * 99)",
    "s|trim('b' * 99)",
    "[s] == l",
    "s.upper()",
    "s|upper",
    "s + 'b'",
    "s ~ 'b'",
    "l * 9",
    "l|map('first')|list",
]


@pytest.mark.parametrize(
    "text", [*(f"{{% set x = {one} %}}" for one in SLOW), "{% for x in l * 9 if false %}{% endfor %}"]
)
def test_what_is_long_takes_steps(text, monkeypatch):
    sandbox = pytest.importorskip("easyfn.io.sandbox")
    template = importlib.import_module("easyfn.io.template").ChatTemplate(
        GIVEN + "{% for i in range(500) %}" + text + "{{ 'b' * -64000 }}{% endfor %}"
    )
    monkeypatch.setattr(
        sandbox, "STEPS", 2500
    )  # 500 of the range, of the blocks, of the product; the rest is the text's
    with pytest.raises(ValueError, match="more than 2500 steps"):
        template([])


def test_what_a_template_may_do():
    source = "{% for i in range(3) %}{{ i + 1 }}{{ 'x' ~ i }}"
    source += "{{ 'ab' * 2 }}{{ '%03d' % (2 ** 3) }}{{ 'a'|center(3) }}|{% endfor %}"
    template = pytest.importorskip("easyfn.serve").ChatTemplate(source)
    assert template([]) == "".join(f"{i + 1}x{i}abab008 a |" for i in range(3))
