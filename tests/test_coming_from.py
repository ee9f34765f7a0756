"""docs/coming-from.md: what its tables say to write is run, cell by cell."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import easyfn as ef
from test_first_hour import CONFIG

PAGE = Path(__file__).parent.parent / "docs/coming-from.md"
ROWS = [
    (there, here)
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| there")
    for there, here in [re.split(r"(?<!\\) \| ", line.strip("| "), maxsplit=1)]
]
OUTSIDE = ("push_to_hub", "easyfn finetune")  # the hub, and the shell


def calls(cell):
    """The code of a cell that can be run by itself."""
    code = [c.replace("\\|", "|") for c in re.findall(r"`([^`]+)`", cell)]
    return [c for c in code if "ef." in c and "(" in c and not any(word in c for word in OUTSIDE)]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the names in the page stand for."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    key = jax.random.key(0)
    model = ef.init(CONFIG, key=key)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(CONFIG.vocab_size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("there")
    ids = jnp.ones((4, 4), int)
    tuned = ef.apply_lora(model, rank=2, key=key)
    ef.save(model, folder / "model", tokenizer=tokenizer)
    ef.save_adapter(tuned, folder / "adapter")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ef.models.BertConfig(vocab_size=CONFIG.vocab_size, **sizes)
    ef.save(ef.init(config, task="sentence-embedding", key=key), folder / "sentences", tokenizer=tokenizer)
    elsewhere = {  # a name that means something of its own beside a call
        "ef.embed": {"path": folder / "sentences"},
        "ef.load_adapter": {"path": folder / "adapter"},
        "ef.save_adapter": {"model": tuned},
        "ef.merge_lora": {"model": tuned},
        "ef.use_adapter": {"model": ef.with_adapters(model, {"fr": ef.split_lora(tuned)[1]})},
        "ef.with_params": {"path": "model.norm.weight"},
        "config=config": {"config": ef.GenerationConfig(max_new_tokens=2)},
    }
    return elsewhere, {
        **{"ef": ef, "jax": jax, "jnp": jnp, "eqx": eqx, "optimizer": optax.sgd(0.1), "tx": optax.sgd(0.1), "key": key},
        **{
            "model": model,
            "config": CONFIG,
            "path": folder / "model",
            "folder": folder / "out",
            "ids": ids,
            "input_ids": ids,
            "x": ids,
        },
        **{"mask": jnp.ones_like(ids), "labels": ids, "batch": {"input_ids": ids}, "tokenizer": tokenizer},
        **{"batch_size": 1, "max_length": 8, "dtype": "bfloat16", "rank": 2, "pattern": "all-linear", "keep": [0]},
        **{"mesh": ef.make_mesh(), "rules": "replicated", "method": "int4", "group_size": 16, "texts": ["w1 w2"]},
        **{"new": jnp.ones(32)},
        **{"state": ef.to_state(model, optax.sgd(0.1)), "module": eqx.nn.MLP(4, 4, 4, 1, key=key)},
    }


@pytest.mark.parametrize("row", [r for r in ROWS if calls(r[1])], ids=lambda row: calls(row[1])[0][:40])
def test_the_call(row, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere, names = names[0], {**names[1], "folder": tmp_path / "out"}
    for code in calls(row[1]):
        for word, own in elsewhere.items():
            names = {**names, **own} if word in code else names
        exec(code, names)


def test_rows_were_found():
    assert len(ROWS) > 45 and sum(bool(calls(here)) for _, here in ROWS) > 40
