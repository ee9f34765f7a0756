"""`show` and its kin: on every form of a model."""

import copy
import dataclasses
import re
from html.parser import HTMLParser

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, COMPOSED, in_test_all, names
from easyfn.inspect.card import _rows

CONFIG = ef.models.LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


def row(model, word):
    (found,) = [r for r in ef.show(model).rows if word in r.path]
    return found


@pytest.mark.quick("inspect", "equal layers are one line")
def test_equal_layers_are_one_line(model):
    q = row(model, "q_proj")
    assert q.path == "model.layers.0-2.self_attn.q_proj.weight" and len(q.paths) == 3
    assert q.shape == (64, 64) and q.format == "float32" and q.axes == ("heads", "embed")
    assert q.params == q.trainable == 3 * 64 * 64 and q.bytes == 4 * q.params
    text = str(ef.show(model))
    assert len(text.splitlines()) < 20 and "64 x 64" in text and "heads, embed" in text
    odd = ef.cast(model, jnp.bfloat16, r"layers\.1\..*q_proj")
    assert {r.path for r in ef.show(odd).rows if "q_proj" in r.path} == {
        "model.layers.0,2.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    }


@pytest.mark.quick("inspect", "every array is counted once")
def test_every_array_is_counted_once(model):
    for made in (model, ef.stack(model), jax.eval_shape(lambda: model)):
        rows = ef.show(made).rows
        assert sum(r.bytes for r in rows) == ef.num_bytes(made) == sum(x.size * 4 for x in jax.tree.leaves(made))
        assert sum(r.params for r in rows) == ef.num_params(made) == ef.num_params(model)
    assert row(jax.eval_shape(lambda: model), "q_proj").placement == "abstract"
    assert row(ef.stack(model), "q_proj").shape == (3, 64, 64)


def test_quantized_and_adapted(model):
    quantized = ef.quantize(model, ef.QuantConfig("nf4"))
    assert ef.num_params(quantized) == ef.num_params(model)
    assert ef.num_bytes(quantized) < 0.4 * ef.num_bytes(model)
    assert row(quantized, "q_proj").format == "nf4/64" and row(quantized, "q_proj").trainable == 0
    adapted = ef.apply_lora(quantized, "q_proj", rank=2, key=jax.random.key(0))
    assert row(adapted, "q_proj").format == "LoRA on nf4/64"
    assert row(adapted, "q_proj").trainable == ef.num_params(adapted, trainable_only=True) == 3 * 2 * (64 + 64)
    assert ef.num_params(adapted) == ef.num_params(model)
    assert set(ef.show(adapted).totals()) == {"float32", "nf4/64", "LoRA on nf4/64"}


def test_placement_and_mesh(model):
    assert ef.mesh_of(model) is None
    mesh = ef.make_mesh(fsdp=4, tp=2)
    placed = ef.shard(model, mesh=mesh)
    assert ef.mesh_of(placed) == mesh
    assert "fsdp" in row(placed, "q_proj").placement and "tp" in row(placed, "q_proj").placement
    both = eqx.tree_at(lambda m: m.lm_head, placed, ef.shard(model, mesh=ef.make_mesh(fsdp=8)).lm_head)
    with pytest.raises(ValueError, match="2 meshes"):
        ef.mesh_of(both)


class Page(HTMLParser):
    """What a browser makes of a page: texts, lines, how deep they fold; every tag is closed in its turn."""

    def __init__(self, page):
        super().__init__()
        self.open, self.lines, self.deepest, self.texts, self.tags = [], 0, 0, [], set()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.open.append(tag)
        self.lines += "easyfn-line" in dict(attributes).get("class", "").split()
        self.deepest = max(self.deepest, self.open.count("details"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


TAGS = {"style", "div", "span", "i", "b", "details", "summary", "pre"}


def test_a_notebook_draws_a_table(model):
    table = ef.show(model)
    page = Page(table._repr_html_())
    assert page.tags <= TAGS and page.deepest == 3  # model > layers > attention
    assert page.lines == 1 + len(table.rows) + 4  # the head, and what folds: model, layers, self_attn, mlp
    assert {"q_proj.weight", "layers.0-2", "lm_head.weight", table.title} <= set(page.texts)
    many = {f"block{n}": {"a": jnp.ones(n), "b": jnp.ones(n)} for n in range(1, 60)}
    assert "<details><summary>" in ef.show({"model": many})._repr_html_()  # a long one begins folded, but for its roots
    assert Page(ef.show({})._repr_html_()).lines == 1


def test_a_terminal_has_colours(model):
    import io

    from rich.console import Console

    def drawn(what, width):
        file = io.StringIO()
        Console(file=file, force_terminal=True, color_system="standard", width=width).print(what)
        return file.getvalue()

    table = ef.show(model)
    text = drawn(table, 200)
    assert "\x1b[" in text and "lm_head.weight" in text
    words = lambda text: re.sub(r"\x1b\[[\d;]*m", "", text).split()
    assert words(text) == str(table).split()
    narrow = re.sub(r"\x1b\[[\d;]*m", "", drawn(table, 60))
    assert max(map(len, narrow.splitlines())) <= 60
    assert "[/red]" in drawn(ef.show({"[red]a[/red]": jnp.ones(2)}), 200)  # a path is no markup


@dataclasses.dataclass(frozen=True)
class Settings:
    """A config that says what it likes."""

    name: str


class Own(eqx.Module):
    weight: jax.Array
    config: Settings = eqx.field(static=True)


def test_html_is_escaped(model):
    evil = "<script>alert(1)</script>\"'"
    page = Page(ef.show({evil: jnp.ones(2), "x": {evil: jnp.ones(2), "y": jnp.ones(2)}})._repr_html_())
    assert page.tags <= TAGS and evil in page.texts
    card = ef.model_card(Own(jnp.ones(2), Settings(evil)), name=evil)
    page = Page(card._repr_html_())
    assert page.tags <= TAGS and {evil, repr(evil)} <= set(page.texts)
    assert isinstance(card, str) and card.startswith("---") and copy.copy(card) == card


def test_a_card_keeps_its_table():
    """A `|` in a setting ends no cell."""
    (row,) = [line for line in _rows(("key", "value"), [("act", "a|b")]).splitlines() if "act" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


@pytest.mark.quick("inspect", "each kind of family is shown")
def test_any_pytree():
    table = ef.show({"a": jnp.ones((2, 3), jnp.int8), "b": [np.ones(4)]})
    assert [r.path for r in table.rows] == ["a", "b.0"] and table.totals()["int8"] == (6, 6)
    assert ef.num_bytes({"k": jnp.ones(3, jnp.int4)}) == 2
    assert str(ef.show({}))


# Sinusoids that transformers keeps as parameters; and the gates of experts that compute nothing, of two layers (findings/).
FIXED = {
    **dict.fromkeys(("marian", "pegasus", "roformer"), ("embed_positions.weight",)),
    "whisper": ("encoder.embed_positions.weight",),
}
IDLE = {"longcat_flash": 2 * 3 * 48 * 48}


@pytest.mark.parametrize("name", in_test_all(COMPOSED, names(variant=False)))
def test_every_family(name):
    case = CASES[name]
    model = case.model()
    weights = {n: p.numel() for n, p in case.torch().named_parameters()}  # some hold the router's buffer as a parameter
    buffers = ("correction_bias", "mlp.expert_bias", *FIXED.get(name, ()))
    counted = sum(size for n, size in weights.items() if not n.endswith(buffers))
    assert ef.num_params(model) == counted - IDLE.get(name, 0)
    assert ef.task(model) == case.task
    assert ef.model_type(model) == case.torch().config.model_type
    assert ef.supports(model, "generate") == case.generates
    card = ef.model_card(model, name="tiny")
    assert card.startswith("---\nlibrary_name: easyfn") and f"| task | {case.task} |" in card
    assert str(ef.num_params(model))[0] in str(ef.show(model))


def test_supports(model):
    assert ef.supports(model, ef.forward) and ef.supports(model, "quantize") and ef.supports(model, "compute_loss")
    assert not ef.supports(model.model, "generate") and not ef.supports({"a": jnp.ones(2)}, "quantize")
    with pytest.raises(ValueError, match=r"no verb 'generat'.*generate"):
        ef.supports(model, "generat")


def test_classifier_says_its_task():
    config = dataclasses.replace(CONFIG, num_labels=3)
    made = ef.init(config, key=jax.random.key(0), task="sequence-classification")
    assert ef.task(made) == "sequence-classification" and not ef.supports(made, "generate")
    assert "pipeline_tag: text-classification" in ef.model_card(made)
