"""Stages of a pipeline: the numbers of one device, the weights where they are, and as many idle steps as the formula says."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef
from easyfn.nn import schedule
from easyfn.nn.context import Context
from easyfn.nn.parallel.pipeline import _cut, _part, _row_axes

VOCAB, EMBED, MLP, ROWS, TOKENS = 122, 48, 80, 8, 6
SMALL = dict(
    vocab_size=VOCAB, hidden_size=EMBED, intermediate_size=MLP, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
LLAMA = ef.models.LlamaConfig(**SMALL, head_dim=20)
GEMMA = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
T5 = ef.models.T5Config(vocab_size=VOCAB, d_model=EMBED, d_kv=10, d_ff=MLP, num_layers=2, num_heads=4)
# family: the config, the mesh, microbatches, rounds
CASES = {
    "llama": (LLAMA, dict(pp=2, fsdp=2, tp=2), 4, 2),
    "gemma3": (
        ef.models.Gemma3TextConfig(
            **{**SMALL, "num_hidden_layers": 5}, head_dim=16, sliding_window=4, layer_types=tuple(GEMMA)
        ),
        dict(pp=2, fsdp=2, tp=2),
        2,
        1,
    ),
    "mixtral": (
        ef.models.MixtralConfig(**SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
        dict(pp=2, fsdp=2, ep=2),
        2,
        1,
    ),
    "mamba2": (
        ef.models.Mamba2Config(
            vocab_size=VOCAB, hidden_size=EMBED, num_hidden_layers=4, num_heads=12, head_dim=8, state_size=10, n_groups=4,
            conv_kernel=3, chunk_size=4,
        ),
        dict(pp=4, fsdp=2),
        4,
        1,
    ),
    "gpt2": (
        ef.models.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=EMBED, n_layer=4, n_head=4),
        dict(pp=2, dp=2, fsdp=1, tp=2),
        4,
        1,
    ),
    "t5": (T5, dict(pp=2, fsdp=2, tp=2), 2, 1),
    "bert": (
        ef.models.BertConfig(
            vocab_size=VOCAB, hidden_size=EMBED, intermediate_size=MLP, num_hidden_layers=4, num_attention_heads=4
        ),
        dict(pp=2, tp=2, sp=2, fsdp=1),
        8,
        2,
    ),
}  # fmt: skip


def inputs(family):
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, VOCAB, (ROWS, TOKENS)), np.ones((ROWS, TOKENS), np.int32)
    mask[0, :2] = mask[5, -2:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if family == "t5":
        given["decoder_input_ids"] = rng.integers(3, VOCAB, (ROWS, TOKENS))
    return {name: jnp.asarray(value) for name, value in given.items()}


def objective(model, given):
    wanted = {"output_router_logits": True} if type(model).__name__ == "CausalLM" else {}
    out = ef.forward(model, **given, output_hidden_states=True, **wanted)
    answers = {n: v for n in ("logits", "hidden_states", "router_logits") if (v := getattr(out, n)) is not None}
    if "logits" not in answers:
        answers["logits"] = out.last_hidden_state
    seen = given["attention_mask"][:, :, None].astype(jnp.float32)
    return jnp.mean(jnp.square(answers["logits"]) * seen), answers


def same(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), got, want)


@pytest.mark.thinned("cuts of one model")
@pytest.mark.parametrize("family", CASES)
def test_stages_give_the_numbers_of_one_device(family, key):
    """Logits, loss, gradients, hidden states and router logits, in their order, on meshes of three axes."""
    config, sizes, parts, rounds = CASES[family]
    model = ef.stack(ef.init(config, key=key))
    given = inputs(family)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, answers), gradients = step(model, given)
    mesh = ef.make_mesh(**sizes)
    piped = ef.shard(ef.pipeline(model, mesh.shape["pp"], microbatches=parts, rounds=rounds), None, mesh)
    (same_loss, same_answers), same_gradients = step(piped, ef.shard_batch(given, mesh))
    same((same_loss, same_answers), (loss, answers))
    same(ef.unpipeline(ef.fully_gather(same_gradients)), gradients)


def piped(model, stages=2, parts=4, rounds=1, **sizes):
    return ef.shard(
        ef.pipeline(model, stages, microbatches=parts, rounds=rounds), None, ef.make_mesh(pp=stages, **sizes)
    )


def test_rows_are_known_by_name():
    """Not by sizes, which may be as many by chance: tables of relative positions, shared weights, axes of positions."""
    rows = jnp.zeros((ROWS, TOKENS), jnp.int32)
    context = Context(
        jnp.zeros((3, ROWS, TOKENS), jnp.int32), rows, slots=rows[0], order=rows,
        bias=jnp.zeros((1, 2, TOKENS, TOKENS)), relative=jnp.zeros((ROWS, EMBED)), shared={"w": jnp.zeros((ROWS, EMBED))},
    )  # fmt: skip
    assert _row_axes(context, ROWS) == [1, 0, None, 0, None, None, None]
    positions = jnp.arange(3 * ROWS).reshape(3, ROWS, 1)
    assert _part(_cut(positions, 4, 1), jnp.asarray(1), 1)[0, :, 0].tolist() == [1, 5]


@pytest.fixture(scope="module")
def model():
    return ef.stack(ef.init(LLAMA, key=jax.random.key(0)))


def test_a_training_step_of_adapters_on_quantized_weights(model, key):
    """QLoRA in a circular pipeline: every verb maps over the stages as over any stacked run, in whatever order."""
    small = ef.QuantConfig("nf4", pattern="q_proj")
    adapted = ef.apply_lora(ef.quantize(model, small), "q_proj|down_proj", rank=4, key=key)
    batch = {"input_ids": inputs("llama")["input_ids"]}
    step = functools.partial(ef.train_step, runtime=ef.Runtime(remat="full"))
    state, metrics = jax.jit(step)(ef.to_state(adapted, optax.adamw(1e-2)), batch)

    later = ef.pipeline(model, 2, microbatches=4, rounds=2)
    later = ef.apply_lora(ef.quantize(later, small), "q_proj|down_proj", rank=4, key=key)
    assert jax.tree.structure(later) == jax.tree.structure(ef.pipeline(adapted, 2, microbatches=4, rounds=2))
    mesh = ef.make_mesh(pp=2, fsdp=4)
    on_mesh = ef.to_state(ef.shard(ef.pipeline(adapted, 2, microbatches=4, rounds=2), None, mesh), optax.adamw(1e-2))
    moments = [x for path, x in ef.params(on_mesh.opt_state).items() if "mu" in path and "q_proj" in path]
    assert moments and all(x.sharding.spec[0] == "pp" for x in moments)
    on_mesh, same_metrics = jax.jit(step)(on_mesh, ef.shard_batch(batch, mesh))
    same(same_metrics, metrics)
    same(ef.params(ef.unpipeline(ef.fully_gather(on_mesh.params))), ef.params(state.params), atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 2])
def test_generation_goes_through_the_stages(model, rounds):
    """Each stage keeps the keys of its own layers; the rows go in as many parts as divide them."""
    ids = np.asarray(inputs("llama")["input_ids"])[:6]
    expected = ef.generate(model, ids, max_new_tokens=5).sequences
    stages = piped(model, rounds=rounds, fsdp=2, tp=2)
    kept = jax.tree.leaves(ef.init_cache(stages, 6, 12).layers)
    assert len(kept) == 2 * rounds and all(x.sharding.spec[0] == "pp" for x in kept)
    np.testing.assert_array_equal(ef.generate(stages, ids, max_new_tokens=5).sequences, expected)
    if rounds == 1:
        whole = ef.fully_gather(stages)  # without a mesh it is a stacked run
        np.testing.assert_array_equal(ef.generate(whole, ids, max_new_tokens=5).sequences, expected)
        with pytest.raises(TypeError, match=r"Paged.*ef\.unpipeline"):
            ef.forward(stages, ids[:, :1], cache=ef.init_paged_cache(stages, page_size=4, batch_size=6))


def test_dropout_of_one_microbatch_is_that_of_one_device(key):
    gpt2 = dataclasses.replace(CASES["gpt2"][0], attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.1)
    model = ef.stack(ef.init(gpt2, key=key))
    run = jax.jit(lambda model, ids: ef.forward(model, ids, key=jax.random.key(7)).logits)
    ids = inputs("gpt2")["input_ids"]
    same(run(piped(model, parts=1, fsdp=4), ids), run(model, ids))


def test_pipelines_have_inverses(model):
    for rounds in (1, 2):
        stages = ef.pipeline(model, 2, microbatches=4, rounds=rounds)
        jax.tree.map(np.testing.assert_array_equal, ef.unpipeline(stages), model)
        jax.tree.map(np.testing.assert_array_equal, ef.unstack(stages), ef.unstack(model))
        assert jax.tree.structure(ef.pipeline(stages, 2, microbatches=4)) == jax.tree.structure(
            ef.pipeline(ef.unstack(model), 2, microbatches=4)
        )
        assert ef.stack(stages).model.layers[0].microbatches == 4
        assert ef.num_params(stages) == ef.num_params(model)
        abstract = jax.eval_shape(functools.partial(ef.pipeline, stages=2, microbatches=4, rounds=rounds), model)
        assert ef.shapes(abstract) == ef.shapes(stages)
        assert jax.tree.structure(ef.unpipeline(abstract)) == jax.tree.structure(model)


def test_files_of_a_pipeline_are_hugging_faces(model, tmp_path):
    stages = piped(model, rounds=2, fsdp=4)
    path = "model.layers.2:4:1.self_attn.q_proj.weight"
    assert ef.shapes(stages)[path] == (2, 80, EMBED) and ef.params(stages)[path].sharding.spec == ef.P(
        "pp", None, "fsdp"
    )
    ef.save(stages, tmp_path)
    back = ef.load(tmp_path, stack=True, progress=False)
    jax.tree.map(np.testing.assert_array_equal, ef.params(back), ef.params(model))
    assert "layers.2:4:1" in str(ef.show(stages))


def test_steps_are_as_many_as_the_formula_says(model):
    """GPipe idles (p - 1) / (m + p - 1), a circular pipeline (p - 1) / (m v + p - 1): counted in the compiled loop."""
    for stages, parts, rounds in ((2, 8, 1), (4, 8, 1), (2, 4, 2), (4, 8, 3)):
        steps = schedule(stages, parts, rounds)
        assert sorted(steps.ravel()) == list(range(parts * rounds))  # the first stage never waits
        assert (np.diff(steps, axis=0) >= stages).all()  # the last one is done before the first goes on
    for rounds in (1, 2):
        jaxpr = str(
            jax.make_jaxpr(lambda m, x: ef.forward(m, x).logits)(
                piped(model, rounds=rounds, fsdp=4), jnp.ones((8, 3), int)
            )
        )
        lengths = [int(n) for n in re.findall(r" length=(\d+)", jaxpr)]
        assert max(lengths) == 4 * rounds + 2 - 1 and min(lengths) == 4 // (2 * rounds)
        idle = 1 - 4 * rounds / max(lengths)
        np.testing.assert_allclose(idle, (2 - 1) / (4 * rounds + 2 - 1))


KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def sent(text):
    """Every collective of a program: its kind, and the shape of each array that it makes."""
    lines = (re.search(rf"= (.*?) ({KINDS})(-start)?\(", line) for line in text.splitlines())
    shapes = [(m[2], re.findall(r"\w+\[([\d,]*)\]", m[1])) for m in lines if m]
    return [(kind, tuple(int(n) for n in shape.split(",") if n)) for kind, found in shapes for shape in found]


def test_activations_go_round_and_weights_stay():
    """Forward and backward: one permutation per step; no weight of a stage is sent, or kept once per step."""
    mesh = ef.make_mesh(pp=4, fsdp=1, devices=jax.devices()[:4])
    model = ef.shard(ef.pipeline(ef.abstract(LLAMA, dtype="float32"), 4, microbatches=8), None, mesh)
    ids = jax.ShapeDtypeStruct((16, 10), jnp.int32, sharding=ef.data_sharding(mesh))

    @jax.jit
    def slope(model, ids):
        return jax.grad(lambda m: ef.compute_loss(m, {"input_ids": ids})[0])(model)

    compiled = slope.lower(model, ids).compile()
    moved = sent(compiled.as_text())
    assert [shape for kind, shape in moved if kind == "collective-permute" and len(shape) == 3] == [(2, 10, EMBED)] * 2
    layers = ef.shapes(model.model.layers).values()
    weights = {tuple(sorted(shape[1:])) for shape in layers if len(shape) == 3}
    assert not [s for _, s in moved if tuple(sorted(s[-2:])) in weights], moved
    kept = jax.tree.leaves(
        jax.jit(lambda m, x: jax.vjp(lambda m: ef.forward(m, x).logits, m)[1]).eval_shape(model, ids)
    )
    assert not [x.shape for x in kept if len(x.shape) > 3 and tuple(sorted(x.shape[-2:])) in weights]


@pytest.mark.parametrize(
    "stages, more, message",
    [
        (3, {}, "layers 0 to 3 are 4 repeats of 1: stages x rounds may be 2, 4"),
        (2, {"rounds": 4}, "2 stages x 4 rounds"),
        (2, {"microbatches": 0}, "microbatches is a positive number, not 0"),
    ],
)
def test_runs_that_do_not_divide_are_refused(model, stages, more, message):
    with pytest.raises(ValueError, match=message):
        ef.pipeline(model, stages, **{"microbatches": 4, **more})


def test_meshes_and_batches_that_do_not_fit_are_told(model):
    with pytest.raises(ef.ShardingError, match=r"2 stages and the mesh has pp=4.*ef\.pipeline\(model, 4"):
        ef.shard(ef.pipeline(model, 2, microbatches=4), None, ef.make_mesh(pp=4))
    stages = piped(model, fsdp=4)
    with pytest.raises(ValueError, match=r"6 rows does not divide into 4 microbatches.*microbatches=2"):
        ef.forward(stages, jnp.ones((6, 4), int))
    old = jax.make_mesh((2, 2, 1, 2, 1), ("dp", "fsdp", "ep", "tp", "sp"), axis_types=(jax.sharding.AxisType.Auto,) * 5)
    five = ef.shard(ef.pipeline(model, 2, microbatches=4), None, old)  # a mesh without stages: a stacked run
    ids = inputs("llama")["input_ids"]
    same(jax.jit(lambda m, x: ef.forward(m, x).logits)(five, ids), ef.forward(model, ids).logits)
