"""Quantization on data: the statistics leave padding out everywhere, GPTQ rounds as published, every family takes part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, VOCAB, tokens
from easyfn import quant
from easyfn.quant.calibrate import calibrate, largest

CONFIG = ef.models.LlamaConfig(
    vocab_size=48,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def batch_of(case, seed=0):
    ids, mask = tokens(seed=seed)
    batch = {"input_ids": ids, "attention_mask": mask}
    if case.encoder_decoder:
        batch |= {"decoder_input_ids": ids[:, :7], "decoder_attention_mask": mask[:, :7]}
    return batch


@pytest.mark.parametrize("name", ["mixtral", "t5"])
def test_padding_counts_nowhere(name):
    """Not among the rows of experts either, which know of no mask, nor in decoders."""
    case = CASES[name]
    batch = batch_of(case)
    other = np.random.RandomState(1).randint(3, VOCAB, batch["input_ids"].shape)
    changed = dict(batch, input_ids=np.where(batch["attention_mask"] > 0, batch["input_ids"], other))
    if case.encoder_decoder:
        changed["decoder_input_ids"] = np.where(batch["decoder_attention_mask"] > 0, batch["decoder_input_ids"], 9)
    seen, again = (ef.observe(case.model(), [b], reached=True) for b in (batch, changed))
    for path, sums in seen.items():
        scale = np.abs(sums["square"]).max()
        np.testing.assert_allclose(again[path]["square"], sums["square"], atol=1e-5 * scale)
        np.testing.assert_array_equal(again[path]["count"], sums["count"])
    real = batch["attention_mask"].sum()
    if name == "mixtral":
        experts = [s["count"] for p, s in seen.items() if "experts" in p]
        assert experts and all(e.ndim == 1 and e.sum() == 2 * real for e in experts)
    else:
        told = batch["decoder_attention_mask"].sum()
        for path, sums in seen.items():
            source = "encoder" in path or "EncDecAttention.k" in path or "EncDecAttention.v" in path
            if ".q." not in path:  # the query of a first token has a single key: nothing depends on it
                assert sums["count"] == (real if source else told), path


def test_statistics_of_experts_are_those_of_their_rows():
    """Sums and maxima, over several blocks of rows."""
    w, x = jax.random.normal(jax.random.key(0), (3, 8, 16)), jax.random.normal(jax.random.key(1), (600, 16))
    sizes = jnp.array([250, 0, 350])

    from easyfn.inspect.observe import Observed, second_moment

    for statistic, combine in ((second_moment, jnp.add), (largest, jnp.maximum)):
        one = jax.eval_shape(statistic, x[:1], jnp.ones(1))
        zeros = jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), one)
        watched = functools.partial(Observed, w, mask=None, statistic=statistic, combine=combine, reached=True)
        found = jax.grad(lambda zeros, watched=watched: jnp.sum(ef.ragged_dot(watched(zeros), x, sizes) ** 2))(zeros)
        for e, rows in ((0, x[:250]), (1, x[:0]), (2, x[250:])):
            wanted = statistic(jnp.concatenate([rows, jnp.zeros((1, 16))]), jnp.r_[jnp.ones(len(rows)), 0.0])
            for name in wanted:
                np.testing.assert_allclose(found[name][e], wanted[name], rtol=1e-4, atol=1e-4)


def published_gptq(w, gram, find, group, act_order, damping=0.01):
    """`fasterquant` of the authors' gptq.py in NumPy, blocks of one group; `find(columns) -> (scale, zero, low, high)`."""
    w, hessian = w.astype(np.float64).copy(), 2 * gram.astype(np.float64)
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(w.shape[1])
    w, hessian = w[:, order], hessian[order][:, order]
    hessian[np.diag_indices_from(hessian)] += damping * np.mean(np.diag(hessian))
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes = np.zeros(w.shape, int)
    for start in range(0, w.shape[1], group):
        end = start + group
        block, errors, inner = w[:, start:end].copy(), np.zeros((len(w), group)), inverse[start:end, start:end]
        scale, zero, low, high = find(w[:, start:end])
        for i in range(group):
            column = block[:, i]
            codes[:, start + i] = np.clip(np.round(column / scale) + zero, low, high)
            errors[:, i] = (column - scale * (codes[:, start + i] - zero)) / inner[i, i]
            block[:, i:] -= errors[:, i][:, None] * inner[i, i:][None]
        w[:, end:] -= errors @ inverse[start:end, end:]
    return codes, order


def correlated(rows, width, rank=12, seed=1):
    """Inputs that go together, of very different sizes."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (rows, rank)) @ jax.random.normal(keys[1], (rank, width))
    return (x + jax.random.normal(keys[2], (rows, width))) * jnp.exp(jax.random.normal(keys[3], (1, width)))


@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act order"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
def test_gptq_codes_are_the_published_ones(symmetric, act_order):
    w, x, group = jax.random.normal(jax.random.key(0), (24, 64)), correlated(400, 64), 16
    codes, scales, zeros = quant.round_groups(w, 4, group, symmetric=symmetric)
    like = quant.grouped(codes, scales, zeros, bits=4)
    gram = x.T @ x

    def find(columns):
        _, scale, zero = quant.round_groups(jnp.asarray(columns, jnp.float32), 4, group, symmetric=symmetric)
        zero = 0 if zero is None else np.asarray(zero[:, 0], int)
        return np.asarray(scale[:, 0], np.float64), zero, *((-8, 7) if symmetric else (0, 15))

    theirs, order = published_gptq(np.asarray(w), np.asarray(gram), find, group, act_order)
    ours = jax.jit(functools.partial(quant.gptq_codes, act_order=act_order))(w, gram, like)
    np.testing.assert_array_equal(quant.integer_codes(ours), theirs)
    assert (ours.order is not None) == act_order
    if act_order:
        np.testing.assert_array_equal(ours.order[0], order)


def test_gptq_of_inputs_never_seen_rounds_to_nearest():
    w = jax.random.normal(jax.random.key(0), (8, 32))
    like = ef.QuantConfig("int4", 16).encode(w)
    blind = quant.gptq_codes(w, jnp.zeros((32, 32)), like)
    np.testing.assert_array_equal(quant.integer_codes(blind), quant.integer_codes(like))
    x = correlated(100, 32).at[:, 5].set(0.0)
    half = quant.gptq_codes(w, x.T @ x, like)
    assert np.isfinite(ef.dense(half)).all() and jnp.abs(ef.dense(half) - w)[:, 5].max() < 0.3


def error_of(q, w, x):
    return float(jnp.linalg.norm(ef.dot(q, x) - x @ w.T) / jnp.linalg.norm(x @ w.T))


def test_the_output_of_a_layer_is_nearer_by_gptq_than_by_awq_than_by_rounding():
    w, x = jax.random.normal(jax.random.key(0), (48, 128)), correlated(2000, 128)
    gram = x[500:].T @ x[500:]
    plain = ef.QuantConfig("int4", 32).encode(w)
    awq, gptq = quant.awq_scales(w, gram, plain), quant.gptq_codes(w, gram, plain)
    errors = [error_of(q, w, x[:500]) for q in (gptq, awq, plain)]
    assert errors[0] < 0.75 * errors[1] and errors[1] < 0.9 * errors[2], errors


def test_smoothing_spares_the_loud_inputs():
    w, x = jax.random.normal(jax.random.key(0), (48, 64)), jax.random.normal(jax.random.key(1), (300, 64))
    x = x * jnp.where(jnp.arange(64) == 3, 60.0, 1.0)[None]
    plain = ef.QuantConfig("a8bit").encode(w)
    better = quant.smooth_scales(w, jnp.abs(x).max(0), plain)
    # Equation 4: the largest magnitude of an input over that of its column, each to the power of a half.
    np.testing.assert_allclose(better.smooth[0], jnp.sqrt(jnp.abs(x).max(0) / jnp.abs(w).max(0)), rtol=1e-5)
    assert error_of(better, w, x) < 0.5 * error_of(plain, w, x)
    assert error_of(quant.awq_scales(w, x.T @ x, plain), w, x) < 0.6 * error_of(plain, w, x)


def test_hqq_finds_better_zeros():
    w = jax.random.t(jax.random.key(0), 4.0, (3, 64, 128))
    error = lambda q: float(jnp.mean(jnp.abs(ef.dense(q) - w) ** 0.7))
    codes, scales, zeros = quant.round_groups(w, 4, 64, symmetric=False)
    start = error(quant.grouped(codes, scales, zeros, bits=4))
    q = ef.QuantConfig("int4", 64, refine="hqq").encode(w)
    assert error(q) < 0.98 * start and q.zeros.dtype == jnp.float32
    x = jax.random.normal(jax.random.key(1), (5, 128))
    one = jax.tree.map(lambda part: part[1], q)
    np.testing.assert_allclose(ef.dot(one, x), x @ ef.dense(one).T, atol=1e-4)


def final(model, batch):
    out = ef.forward(model, **batch)
    hidden = out.last_hidden_state.astype(jnp.float32)
    mask = batch.get("decoder_attention_mask", batch["attention_mask"])
    return hidden * jnp.asarray(mask, jnp.float32)[..., None]


@pytest.mark.thinned("statistics are taken at slots, which no family knows")
@pytest.mark.parametrize("name", ["mixtral", "llama", "t5", "mamba2", "gpt2", "bert"])
def test_every_family_is_calibrated_through_its_slots(name):
    case = CASES[name]
    model, batch = case.model(), batch_of(case)
    if name == "mixtral":
        model = ef.stack(model)
    cfg = ef.QuantConfig("int4", 8, pattern="experts|o_proj" if name == "mixtral" else "all-linear")
    run = jax.jit(lambda model: final(model, batch))
    exact, plain = run(model), run(ef.quantize(model, cfg))
    better = run(calibrate(model, [batch], cfg))
    assert jnp.linalg.norm(better - exact) < 0.75 * jnp.linalg.norm(plain - exact)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.fixture(scope="module")
def ids():
    return jax.random.randint(jax.random.key(1), (2, 24), 0, 48)


def test_passes_over_the_data(model, ids):
    """One for all weights, or as many as the memory needs: the same codes. Sequential, or a list: each has its own."""
    cfg = ef.QuantConfig("int4", 16, calibration="gptq", pattern="o_proj")
    once = calibrate(model, [ids], cfg)
    several = calibrate(model, iter([ids]), cfg, memory=1)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(several), strict=True):
        np.testing.assert_array_equal(a, b)
    after = calibrate(model, [{"input_ids": ids}], cfg, sequential=True)
    first, last = ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj")
    same = lambda path: np.array_equal(
        ef.params(after)[f"{path}.weight.codes"], ef.params(once)[f"{path}.weight.codes"]
    )
    assert same(first) and not same(last)


def test_a_list_of_configs_on_data(model, ids):
    many = [
        ef.QuantConfig("8bit", pattern="q_proj"),
        ef.QuantConfig("a8bit", pattern="k_proj"),
        ef.QuantConfig("int4", pattern="up_proj"),
    ]
    small = calibrate(model, [ids], many)
    layer = small.model.layers[1]
    assert ef.format_of(layer.self_attn.q_proj.weight) == "int8" and layer.self_attn.k_proj.weight.smooth is not None
    assert ef.format_of(layer.mlp.up_proj.weight).startswith("int4/")


def test_refusals(model, ids):
    small = ef.quantize(model, ef.QuantConfig("8bit", pattern="q_proj"))
    broken = ef.with_params(model, {"model.embed_tokens.weight": jnp.full((48, 32), jnp.inf)})
    before = jax.tree.leaves(model)
    q = lambda method, how, **more: ef.QuantConfig(method, calibration=how, pattern="o_proj", **more)
    for which, batches, cfg, words in [
        (model, [], "int4", "there are no batches"),
        (ef.abstract(CONFIG), [ids], "int4", "abstract"),
        (model, [ids], "nf4", "nf4 cannot be chosen on data"),
        (model, [ids], q("nf4", "gptq"), r"layers\.0\.self_attn\.o_proj.*gptq chooses integer codes.*nf4 stores"),
        (model, [ids], q("nf4", "awq"), "awq needs a format that keeps a scale for each input"),
        (model, [ids], q("int4", "smooth"), "smooth helps methods that round activations.*int4 does not"),
        (model, [ids], q("int4", "gptq", group_size=24), "group_size 24 does not divide rows of 32"),
        (model, [ids], ef.QuantConfig("int4", 24), r"q_proj\.weight: group_size 24 does not divide rows of 32"),
        (small, [ids], "int4", "quantized already"),
        (ef.fake_quantize(model, "int4"), [ids], "int4", "calibrate: .* quantized already .fake int4"),
        (ef.stack(model), [ids], ef.QuantConfig("int4", pattern="o_proj"), None),
        (broken, [ids], ef.QuantConfig("int4", 16, pattern="q_proj"), "NaN or infinite numbers enter .*q_proj"),
    ]:
        with pytest.raises(ValueError, match=words or "sees no single layer: ef.unstack"):
            calibrate(which, batches, cfg, sequential=words is None)
    with pytest.raises(ValueError, match=r"o_proj\.weight: calibration='gptq' needs data: ef.calibrate"):
        ef.quantize(model, q("int4", "gptq"))
    for words, options in [
        ("calibration is one of gptq, awq, smooth or None, not 'gtpq'", {"calibration": "gtpq"}),
        ("refine is one of hqq or None", {"refine": "qqh"}),
        ("act_order .* needs calibration='gptq'", {"act_order": True, "calibration": "awq"}),
        ("works without data", {"refine": "hqq", "calibration": "awq"}),
    ]:
        with pytest.raises(ValueError, match=words):
            ef.QuantConfig("int4", **options)
    with pytest.raises(ValueError, match=r"hqq moves the zeros of integer codes.*nf4/64 has none"):
        ef.QuantConfig("nf4", refine="hqq").encode(jnp.ones((2, 64)))
    assert all(a is b for a, b in zip(jax.tree.leaves(model), before, strict=True))


@pytest.mark.quick("quant", "data sees no padding")
def test_labels_are_what_a_decoder_reads():
    case = CASES["t5"]
    labels = np.array([[5, 6, 7, -100], [8, 9, -100, -100], [4, 4, 4, 4]])
    batch = {"input_ids": tokens()[0], "attention_mask": tokens()[1], "labels": labels}
    from easyfn.quant.calibrate import _inputs

    given = _inputs(case.model(), batch)
    assert given["decoder_input_ids"].shape == (3, 4) and given["decoder_attention_mask"].tolist()[1] == [1, 1, 0, 0]
