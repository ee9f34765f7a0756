"""The loss against transformers, and against itself: chunked, sharded, packed, under jit."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from transformers.loss.loss_utils import ForCausalLMLoss, ForSequenceClassificationLoss
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.trainer_pt_utils import LabelSmoother

import easyfn as ef
from cases import CASES, names
from easyfn.tasks.cross_entropy import cross_entropy, vocabulary_loss
from easyfn.tasks.loss import load_balancing_loss

CONFIG = ef.models.LlamaConfig(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
)
LENGTH = 11
loss_of = jax.jit(ef.compute_loss, static_argnums=2)
run = jax.jit(ef.forward)


@pytest.fixture(scope="module")
def model():
    made = ef.init(CONFIG, key=jax.random.key(1))
    return jax.tree.map(lambda w: w + 0.05 * jax.random.normal(jax.random.key(w.size), w.shape), made)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 99, (3, LENGTH))
    labels = np.where(rng.random((3, LENGTH)) < 0.4, -100, ids)
    mask = np.ones((3, LENGTH), int)
    mask[0, :3] = 0  # left
    mask[1, -4:] = 0  # right
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def reference(logits, labels, mask):
    """Per token, in float64, by hand: the loss, whether it counts."""
    logits = np.asarray(logits, np.float64)[:, :-1]
    target, seen = labels[:, 1:], (mask[:, 1:] * mask[:, :-1]) != 0
    counted = seen & (target != -100)
    p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(p, np.where(counted, target, 0)[..., None], -1)[..., 0]
    return np.where(counted, nll, 0.0), counted


@pytest.mark.quick("tasks", "the loss by hand")
def test_counts_labels_and_mask_together(model, batch):
    loss, metrics = loss_of(model, batch)
    logits = run(model, batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll, counted = reference(logits, batch["labels"], batch["attention_mask"])
    np.testing.assert_allclose(loss, nll.sum() / counted.sum(), rtol=1e-5)
    assert metrics["num_tokens"] == counted.sum()
    right = np.argmax(np.asarray(logits)[:, :-1], -1) == batch["labels"][:, 1:]
    np.testing.assert_allclose(metrics["accuracy"], (right & counted).sum() / counted.sum(), rtol=1e-6)


@pytest.mark.quick("tasks", "and that of transformers")
def test_equals_transformers_for_right_padding(model, batch):
    batch = {k: v[1:] for k, v in batch.items()}
    labels = np.where(batch["attention_mask"] == 0, -100, batch["labels"])
    logits = run(model, batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    theirs = ForCausalLMLoss(torch.tensor(np.asarray(logits)), torch.tensor(labels), 99)
    np.testing.assert_allclose(loss_of(model, {**batch, "labels": labels})[0], theirs.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ef.loss_from_logits(logits, labels)[0], theirs.numpy(), rtol=1e-5)


def test_label_smoothing_is_transformers(model, batch):
    logits = run(model, batch["input_ids"]).logits
    theirs = LabelSmoother(0.1)([torch.tensor(np.asarray(logits))], torch.tensor(batch["labels"]), shift_labels=True)
    ours = ef.loss_from_logits(logits, batch["labels"], ef.LossConfig(label_smoothing=0.1))[0]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_z_loss(batch):
    logits = 3 * jax.random.normal(jax.random.key(2), (3, LENGTH, 99))
    plain, _ = ef.loss_from_logits(logits, batch["labels"])
    loss, metrics = ef.loss_from_logits(logits, batch["labels"], ef.LossConfig(z_loss=0.01))
    counted = batch["labels"][:, 1:] != -100
    z = 0.01 * np.square(jax.nn.logsumexp(logits[:, :-1], -1))[counted].mean()
    np.testing.assert_allclose(loss - plain, z, rtol=1e-4)
    np.testing.assert_allclose(metrics["z_loss"], z, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], plain, rtol=1e-6)


def test_reductions_are_one_another(model, batch):
    cfg = ef.LossConfig(z_loss=1e-3, label_smoothing=0.1)
    mean, metrics = loss_of(model, batch, cfg)
    each, _ = loss_of(model, batch, dataclasses.replace(cfg, reduction="none"))
    total, same = loss_of(model, batch, dataclasses.replace(cfg, reduction="sum"))
    assert each.shape == batch["labels"].shape
    np.testing.assert_allclose(each.sum(), total, rtol=1e-6)
    np.testing.assert_allclose(total / metrics["num_tokens"], mean, rtol=1e-6)
    np.testing.assert_allclose(same["loss"], mean, rtol=1e-6)


def test_nothing_to_learn_is_zero_not_nan(model, batch):
    batch = {**batch, "labels": np.full((3, LENGTH), -100)}
    (loss, metrics), gradients = jax.jit(jax.value_and_grad(lambda m: ef.compute_loss(m, batch), has_aux=True))(model)
    assert loss == 0 and metrics["num_tokens"] == 0
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.quick("tasks", "packed documents")
def test_packed_documents_do_not_predict_each_other(model):
    a, b = np.arange(1, 6)[None], np.arange(20, 27)[None]
    packed = {"input_ids": np.concatenate([a, b, [[0, 0]]], 1), "segment_ids": np.array([[1] * 5 + [2] * 7 + [0] * 2])}
    loss, metrics = loss_of(model, packed)
    apart = [loss_of(model, {"input_ids": x}, ef.LossConfig(reduction="sum"))[0] for x in (a, b)]
    assert metrics["num_tokens"] == 4 + 6
    np.testing.assert_allclose(loss, sum(apart) / 10, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 6, 10, 1000])
def test_chunked_is_exact(model, batch, chunk):
    plain = ef.LossConfig(z_loss=1e-3, label_smoothing=0.1)
    run = jax.jit(jax.value_and_grad(ef.compute_loss, has_aux=True), static_argnums=2)
    (loss, metrics), gradients = run(model, batch, plain)
    (other, also), slopes = run(model, batch, dataclasses.replace(plain, chunk_size=chunk))
    np.testing.assert_allclose(loss, other, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), metrics, also)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-5), gradients, slopes)


def test_chunked_never_makes_all_logits():
    """Of 4 x 128 tokens and 40000 words, 82 MB in float32: less than a quarter of that is ever held."""
    config = dataclasses.replace(CONFIG, vocab_size=40000, num_hidden_layers=1)
    model = jax.eval_shape(lambda: ef.init(config, key=jax.random.key(0)))
    batch = {"input_ids": jax.ShapeDtypeStruct((4, 128), jnp.int32)}

    def temporary(cfg):
        step = jax.jit(jax.value_and_grad(lambda m, b: ef.compute_loss(m, b, cfg), has_aux=True))
        return step.lower(model, batch).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 128 * 40000 * 4
    assert temporary(ef.LossConfig()) > logits
    assert temporary(ef.LossConfig(chunk_size=64)) < logits / 4


def test_logits_in_the_backward_pass_are_made_once():
    hidden, weight = jax.ShapeDtypeStruct((512, 32), jnp.float32), jax.ShapeDtypeStruct((5000, 32), jnp.float32)
    labels = jax.ShapeDtypeStruct((512,), jnp.int32)
    loss = lambda h, w, y: cross_entropy(ef.dot(w, h), y)[0]
    memory = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(hidden, weight, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.2 * 512 * 5000 * 4


def test_divided_vocabulary_is_not_gathered():
    mesh = jax.make_mesh((2, 4), ("dp", "tp"), axis_types=(AxisType.Auto,) * 2)

    def leaf(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    hidden, weight = leaf((64, 16), jnp.float32, "dp"), leaf((512, 16), jnp.float32, "tp")
    loss = lambda h, w, y: cross_entropy(ef.dot(w, h), y)[0]
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(hidden, weight, leaf((64,), jnp.int32, "dp"))
    assert "all-gather" not in lowered.compile().as_text()


def test_gradients_forward_and_backward(batch):
    logits = jax.random.normal(jax.random.key(3), (3, LENGTH, 99))
    loss = lambda x: ef.loss_from_logits(x, batch["labels"], ef.LossConfig(z_loss=0.1, label_smoothing=0.2))[0]
    check_grads(jax.jit(lambda x: loss(jnp.asarray(x))), (logits,), order=1, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2)
    jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2)))(logits)  # and twice


def test_low_precision_models_have_float32_losses(model, batch):
    half = ef.cast(model, jnp.bfloat16)
    loss, _ = loss_of(half, batch)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, loss_of(model, batch)[0], rtol=5e-3)


def test_stacked_model_has_the_same_loss(model, batch):
    np.testing.assert_allclose(loss_of(ef.stack(model), batch)[0], loss_of(model, batch)[0], rtol=1e-6)


def test_without_labels_the_input_is_learned(model, batch):
    same = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    explicit = {**same, "labels": batch["input_ids"]}
    np.testing.assert_array_equal(loss_of(model, same)[0], loss_of(model, explicit)[0])


def test_router_loss_is_transformers():
    rng = np.random.default_rng(4)
    logits = tuple(rng.normal(size=(22, 5)).astype(np.float32) for _ in range(3))
    mask = (rng.random((2, 11)) < 0.7).astype(np.int64)
    for given in (None, mask):
        theirs = load_balancing_loss_func(
            tuple(map(torch.tensor, logits)), 5, 2, None if given is None else torch.tensor(given)
        )
        ours = load_balancing_loss(tuple(map(jnp.asarray, logits)), 2, None if given is None else jnp.asarray(given))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


# Switch Transformers' two losses: test_bart.py.
@pytest.mark.thinned("one sum over routers")
@pytest.mark.parametrize("name", [n for n in names(moe=True, variant=False) if n != "switch_transformers"])
def test_aux_loss_of_a_model_is_transformers(name):
    case, rng = CASES[name], np.random.default_rng(8)
    ids, mask = rng.integers(1, 97, (2, LENGTH)), np.ones((2, LENGTH), int)
    mask[1, 7:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask == 0, -100, ids)}
    theirs = case.torch()(**{k: torch.tensor(v) for k, v in batch.items()}, output_router_logits=True)
    model = case.model()
    if getattr(theirs, "aux_loss", None) is None:  # the class in transformers returns no loss of its routers
        assert not hasattr(model.config, "router_aux_loss_coef"), "a key that its reference does not read"
        return
    config = ef.LossConfig(aux_loss_weight=model.config.router_aux_loss_coef)

    @jax.jit  # one program: the forwards of the three are the same
    def losses(model, batch):
        asked = {**batch, "output_router_logits": True}
        return ef.compute_loss(model, batch, config), ef.compute_loss(model, batch), ef.compute_loss(model, asked)

    (loss, metrics), off, asked = losses(model, batch)
    np.testing.assert_allclose(metrics["aux_loss"], theirs.aux_loss.item(), rtol=1e-4)
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-4)
    assert "aux_loss" not in off[1]  # transformers' default: off
    np.testing.assert_allclose(asked[0], loss, rtol=1e-6)


def test_aux_weight_without_a_router_is_refused(model, batch):
    with pytest.raises(ValueError, match="no router"):
        ef.compute_loss(model, batch, ef.LossConfig(aux_loss_weight=0.1))


@pytest.mark.thinned("heads of one loss")
@pytest.mark.parametrize("problem_type", [None, "regression", "multi_label_classification"])
@pytest.mark.parametrize("num_labels", [1, 4])
def test_classifier(problem_type, num_labels, batch):
    config = dataclasses.replace(CONFIG, num_labels=num_labels, extra=ef.Frozen(problem_type=problem_type))
    model = ef.init(config, key=jax.random.key(5), task="sequence-classification")
    model = jax.tree.map(lambda w: w + 0.1, model)
    rng = np.random.default_rng(6)
    if problem_type is None and num_labels > 1:
        labels = rng.integers(0, 4, 3)
    elif problem_type == "multi_label_classification":
        labels = rng.integers(0, 2, (3, num_labels)).astype(np.float32)
    else:
        labels = rng.normal(size=(3, num_labels)).astype(np.float32)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = run(model, **inputs).logits

    class Config:
        pass

    Config.num_labels, Config.problem_type = num_labels, problem_type
    theirs = ForSequenceClassificationLoss(torch.tensor(labels), torch.tensor(np.asarray(logits)), Config)
    loss, metrics = loss_of(model, {**inputs, "labels": labels})
    np.testing.assert_allclose(loss, theirs.numpy(), rtol=1e-4)
    assert "accuracy" in metrics or problem_type == "regression" or num_labels == 1


def test_lists_are_arrays(model, batch):
    lists = {name: value.tolist() for name, value in batch.items()}
    np.testing.assert_allclose(ef.compute_loss(model, lists)[0], loss_of(model, batch)[0], rtol=1e-5)


def test_every_number_is_a_target_of_a_regression():
    loss, _ = ef.loss_from_logits(jnp.zeros((2, 1)), [-100.0, 2.0], ef.LossConfig(kind="regression"))
    assert loss == (100**2 + 2**2) / 2


@pytest.mark.quick("tasks", "errors teach")
def test_errors_teach(model, batch):
    with pytest.raises(ValueError, match="kind='cross-entropy'"):
        ef.loss_from_logits(jnp.zeros((2, 4)), jnp.zeros(2, int))
    with pytest.raises(TypeError, match="atention_mask"):
        ef.compute_loss(model, {"input_ids": batch["input_ids"], "atention_mask": batch["attention_mask"]})
    with pytest.raises(ValueError, match="labels hold 99"):
        ef.compute_loss(model, {**batch, "labels": np.full((3, LENGTH), 99)})
    with pytest.raises(ValueError, match="labels have shape"):
        ef.compute_loss(model, {"input_ids": batch["input_ids"], "labels": batch["labels"][:, 1:]})
    with pytest.raises(ef.NotSupported, match="compute_loss"):
        ef.compute_loss(model.model, batch)
    for bad in ({"kind": "mlm"}, {"reduction": "avg"}, {"label_smoothing": 1.5}, {"z_loss": -1.0}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ef.LossConfig(**bad)


def test_labels_out_of_range_are_nan_under_jit(model, batch):
    bad = {**batch, "labels": np.full((3, LENGTH), 1234)}
    assert np.isnan(jax.jit(ef.compute_loss)(model, bad)[0])


def test_gradient_reaches_adapters_only_where_asked(model, batch):
    params, frozen = eqx.partition(model, jax.tree.map(lambda x: x.ndim == 1, model))
    gradients = jax.jit(jax.grad(lambda p: ef.compute_loss(eqx.combine(p, frozen), batch)[0]))(params)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)


def test_vocabulary_loss_weighs_tokens(model):
    hidden = jax.random.normal(jax.random.key(7), (2, 4, 32))
    labels, weights = jnp.arange(8).reshape(2, 4), jnp.array([[0.5, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.25]])
    logits = ef.nn.head_logits(model, hidden)
    one, _ = vocabulary_loss(model, hidden, labels, weights)
    two, _ = cross_entropy(logits, labels, weights, ef.LossConfig(chunk_size=2))
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(one, jnp.sum(nll * weights) / jnp.sum(weights), rtol=1e-5)
    np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "bert", "bart", "gpt2", "t5"])
def test_the_row_of_padding_learns_where_it_does_in_transformers(name):
    """Its id in the text, and no mask: torch's `padding_idx` has no gradient from being looked up."""
    import torch

    case = CASES[name]
    module, model = case.make().requires_grad_(True), case.model()
    pad = module.config.pad_token_id
    pad = 3 if pad is None or not 0 <= pad < model.config.vocab_size else pad
    ids = np.array([[5, 6, pad, 8, 9], [7, pad, 11, 12, 4]])
    labels = np.array([[5, 6, 10, 8, 9], [7, 10, 11, 12, 4]])
    more = {"decoder_input_ids": ids} if case.encoder_decoder else {}
    module(torch.tensor(ids), **{k: torch.tensor(v) for k, v in more.items()}).logits.log_softmax(-1).gather(
        -1, torch.tensor(labels)[..., None]
    ).sum().backward()
    want = module.get_input_embeddings().weight.grad.numpy()

    def loss(model):
        logits = ef.forward(model, ids, **more).logits
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))

    got = ef.input_embeddings(jax.grad(loss)(model)).weight
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
