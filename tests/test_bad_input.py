"""Bad input, all of it in one place: what a user gets for it. Each kind is tested in depth in the file of its subject.

A row of `BAD` is a call that must fail, and what its message must say: what was asked, what there is, what to do.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = np.array([[5, 6, 7]])
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model():
    return ef.init(ef.read_config(CONFIG), key=jax.random.key(0))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return ef.save(model, tmp_path_factory.mktemp("bad") / "model", max_shard_size="10KB")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edited(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return file.parent


def tensors(model, **changed):
    """The state dict of a model, some tensors changed (dots are written `__`), `None` for one that is lost."""
    found = {**ef.to_state_dict(model), **{k.replace("__", "."): v for k, v in changed.items()}}
    return {k: v for k, v in found.items() if v is not None}


# --- files


@pytest.mark.quick("io", "wrong files end in our errors")
def test_missing_shard(folder):
    next(folder.glob("model-*")).unlink()
    with pytest.raises(ef.LoadError, match=r"names model-0.*there is no such file"):
        ef.load(folder)


@pytest.mark.quick("io", "what is missing, torn or false")
def test_truncated_shard(folder):
    shard = sorted(folder.glob("model-*"))[-1]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ef.LoadError, match=f"{shard.name}.*truncated"):
        ef.load(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_index_that_names_a_file_outside_the_folder(folder, name):
    edited(folder / INDEX, lambda d: d["weight_map"].update({UP: name}))
    with pytest.raises(ef.LoadError, match="outside its folder"):
        ef.load(folder)


def test_index_that_is_none(folder):
    (folder / INDEX).write_text("{}")
    with pytest.raises(ef.LoadError, match="no index"):
        ef.load(folder)


def test_tensors_wrong_missing_and_unexpected_are_told_together(model):
    wrong = tensors(
        model, model__layers__1__mlp__up_proj__weight=None, model__norm__weight=jnp.ones(31), model__extra=jnp.ones(3)
    )
    with pytest.raises(ef.LoadError) as error:
        ef.from_state_dict(model.config, wrong)
    assert len(error.value.problems) == 3
    for words in (
        f"missing tensor {UP!r}",
        "(32,), tensor 'model.norm.weight' (31,)",
        "unexpected tensor 'model.extra'",
    ):
        assert words in str(error.value)


def test_nan_weights_asked_to_quantize(model, tmp_path):
    broken = ef.with_params(model, {UP: jnp.full((48, 32), jnp.nan)})
    ef.save(broken, tmp_path)
    for cfg in (ef.QuantConfig("8bit"), ef.QuantConfig("nf4")):
        for call in (lambda c=cfg: ef.quantize(broken, c), lambda c=cfg: ef.load(tmp_path, quantize=c)):
            with pytest.raises(ValueError, match=f"NaN or infinite values in {UP}"):
                call()


# --- calls

key = jax.random.key(0)
gpt2 = lambda: CASES["gpt2"].model()  # 64 learned positions
BAD = {
    "unknown architecture": (
        lambda m: ef.read_config({**CONFIG, "model_type": "lama"}),
        "'lama'.*llama.*via='torch'",
    ),
    "unknown config key": (lambda m: ef.read_config({**CONFIG, "qk_clip": 1}), "qk_clip=1.*config_overrides"),
    "unknown task": (lambda m: ef.abstract(m.config, task="poetry"), "no task 'poetry'; it has causal-lm"),
    "unknown dtype": (lambda m: ef.abstract(m.config, dtype="int8"), "int8.*no floating point dtype"),
    "heads that do not divide": (
        lambda m: ef.abstract({**CONFIG, "num_key_value_heads": 3}),
        "4 is no multiple of num_key_value_heads=3",
    ),
    "pattern: quantize": (
        lambda m: ef.quantize(m, ef.QuantConfig("8bit", pattern="q_porj")),
        "q_porj.*matches nothing",
    ),
    "pattern: apply_lora": (lambda m: ef.apply_lora(m, "q_porj", key=key), "'q_porj' matches nothing.*q_proj"),
    "pattern: cast": (lambda m: ef.cast(m, "bfloat16", "q_porj"), "'q_porj' matches nothing.*q_proj"),
    "pattern: no regular expression": (lambda m: ef.cast(m, "bfloat16", "("), "'q_proj|v_proj', a list of such"),
    "mesh that the devices do not fill": (lambda m: ef.make_mesh(tp=3), "8 devices cannot be split by 3"),
    "shape that a mesh does not divide": (
        lambda m: ef.shard(ef.abstract({**CONFIG, "vocab_size": 61}), mesh=ef.make_mesh(tp=4)),
        "size 61 does not divide by tp=4",
    ),
    "ids out of range: forward": (lambda m: ef.forward(m, [[64]]), "64, outside the vocabulary of 64"),
    "ids out of range: below": (lambda m: ef.forward(m, [[-1]]), "-1, outside the vocabulary of 64"),
    "ids out of range: generate": (lambda m: ef.generate(m, [[64]]), "64, outside the vocabulary of 64"),
    "ids out of range: labels": (
        lambda m: ef.compute_loss(m, {"input_ids": IDS, "labels": IDS + 60}),
        "neither one of 64 classes nor ignore_index",
    ),
    "rows of different lengths": (lambda m: ef.forward(m, [[1, 2], [3]]), "differ in length: pad them"),
    "one row without a batch": (lambda m: ef.forward(m, IDS[0]), r"ids\[None\]"),
    "embeddings without ids": (
        lambda m: jax.eval_shape(
            lambda m: ef.forward(m, inputs_embeds=jnp.ones((1, 2, 32))),
            ef.abstract({**CONFIG, "model_type": "gemma4_text", "hidden_size_per_layer_input": 8, "head_dim": 8}),
        ),
        "by the id of a token: give input_ids.*bit for bit",
    ),
    "embeddings of a wrong width": (lambda m: ef.forward(m, inputs_embeds=jnp.ones((1, 2, 31))), "31 wide.*32"),
    "empty prompt: forward": (lambda m: ef.forward(m, np.zeros((1, 0), int)), "empty prompt.*bos_token_id"),
    "empty prompt: generate": (lambda m: ef.generate(m, np.zeros((1, 0), int)), "empty.*bos_token_id"),
    "all-padding row: generate": (
        lambda m: ef.generate(m, np.ones((2, 2), int), attention_mask=[[1, 1], [0, 0]]),
        "row 1 holds an attention_mask of zeros only",
    ),
    "beyond the positions: forward": (lambda m: ef.forward(gpt2(), np.ones((1, 65), int)), "64 learned positions"),
    "beyond the positions: generate": (
        lambda m: ef.generate(gpt2(), np.ones((1, 60), int), max_length=70),
        "70 long.*64 positions",
    ),
    "no room to generate": (lambda m: ef.generate(m, IDS, max_length=3), "max_length=3 leaves no room"),
    "cache too short": (lambda m: ef.forward(m, IDS, cache=ef.init_cache(m, 1, 2)), "2 slots.*make it longer"),
    "negative step": (lambda m: ef.save(m, "nowhere", step=-1), "step=-1 is negative"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_clear_error(model, name):
    call, words = BAD[name]
    with pytest.raises(ValueError, match=f"(?s){words}"):
        call(model)


@pytest.mark.quick("forward", "a row of padding disturbs nobody", rows=["llama"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2", "bert", "t5"])
def test_an_all_padding_row_disturbs_nobody(name):
    """As in transformers, such a row is computed like any other: its numbers mean nothing, and no other row sees them."""
    model = CASES[name].model()
    ids, mask = np.array([[3, 4, 5], [6, 7, 8]]), np.array([[0, 0, 0], [1, 1, 1]])
    more = {"decoder_input_ids": ids[:, :2]} if CASES[name].encoder_decoder else {}
    both = ef.forward(model, ids, attention_mask=mask, **more).logits
    alone = ef.forward(model, ids[1:], **{k: v[1:] for k, v in more.items()}).logits
    assert bool(jnp.isfinite(both).all())
    np.testing.assert_allclose(np.asarray(both[1:]), np.asarray(alone), atol=1e-4)


@pytest.mark.quick("nn", "an id outside the vocabulary is never another token")
@pytest.mark.parametrize("how", ["dense", "quantized", "on a mesh"])
def test_ids_outside_the_vocabulary_are_nan_in_a_compiled_function(model, how):
    """Nobody can raise there, and the nearest row of the table would be a silent wrong answer."""
    if how == "quantized":
        model = ef.quantize(model, ef.QuantConfig("8bit", pattern="embed_tokens"))
    if how == "on a mesh":
        model = ef.shard(model, "tp", ef.make_mesh(tp=2))
    loss = jax.jit(lambda m, ids: ef.loss_from_logits(ef.forward(m, ids).logits, ids * 0 + 5))
    outcome = [np.isfinite(loss(model, jnp.array([[3, 4, 5, last]]))[0]) for last in (63, 64, -1)]
    assert outcome == [True, False, False]


def test_rotary_positions_have_no_end(model):
    """As in transformers: what lies beyond `max_position_embeddings` is computed, and may be nonsense."""
    short = ef.init(ef.read_config({**CONFIG, "max_position_embeddings": 4}), key=key)
    assert ef.generate(short, IDS, max_new_tokens=4, eos_token_id=-1).sequences.shape == (1, 7)
