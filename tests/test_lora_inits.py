"""How adapters start: LoftQ, EVA, and the learning-rate groups of LoRA+, against PEFT's own code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import easyfn as ef
from cases import CASES, tokens
from easyfn.core.tree import expand
from test_peft import ours

peft = pytest.importorskip("peft")
KEY = jax.random.key(0)
CONFIG = ef.models.LlamaConfig(
    vocab_size=62,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
)
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(1))


# --- LoftQ


def loftq_of_peft(weight, rank, iterations):
    """The loop of `peft.utils.loftq_utils.loftq_init`, which itself wants a GPU, with bitsandbytes and PEFT's SVD."""
    functional = pytest.importorskip("bitsandbytes").functional
    from peft.utils.loftq_utils import _low_rank_decomposition

    weight = torch.tensor(np.asarray(weight))
    rest = weight.clone()
    for n in range(iterations):
        codes, state = functional.quantize_4bit(rest, compress_statistics=False, quant_type="nf4")
        base = functional.dequantize_4bit(codes, state)
        parts = _low_rank_decomposition(weight - base, reduced_rank=rank)
        if n + 1 < iterations:
            rest = weight - parts["L"] @ parts["R"]
    return base.numpy(), parts["R"].numpy(), parts["L"].numpy()


@pytest.mark.parametrize("iterations", [1, 3])
def test_loftq_is_pefts(model, iterations):
    small = ef.quantize(model, "nf4")
    tuned = ef.loftq(small, model, "up_proj", rank=4, alpha=4, key=KEY, iterations=iterations)
    w = tuned.model.layers[1].mlp.up_proj.weight
    base, a, b = loftq_of_peft(model.model.layers[1].mlp.up_proj.weight, 4, iterations)
    np.testing.assert_allclose(ef.dense(w.base), base, atol=1e-6)
    np.testing.assert_allclose(w.b @ w.a, b @ a, atol=1e-5)


def test_loftq_gives_back_what_quantizing_lost(model):
    small = ef.quantize(model, "nf4")
    lost = lambda m: float(jnp.linalg.norm(ef.dense(m.model.layers[1].mlp.up_proj.weight) - ef.params(model)[UP]))
    plain = lost(small)
    errors = [lost(ef.loftq(small, model, "up_proj", rank=8, alpha=3, key=KEY, iterations=n)) for n in (1, 2, 5)]
    assert plain > errors[0] > errors[1] > errors[2]
    one = ef.loftq(small, model, "up_proj", rank=8, key=KEY)
    assert all(a is b for a, b in zip(jax.tree.leaves(ef.remove_lora(one)), jax.tree.leaves(small), strict=True))
    stacked = ef.loftq(ef.stack(small), ef.stack(model), "up_proj", rank=8, alpha=3, key=KEY, iterations=2)
    listed = ef.loftq(small, model, "up_proj", rank=8, alpha=3, key=KEY, iterations=2)
    np.testing.assert_allclose(
        ef.dense(stacked.model.layers[0].blocks[0].mlp.up_proj.weight)[1],
        ef.dense(listed.model.layers[1].mlp.up_proj.weight),
        atol=1e-5,
    )
    eight = ef.quantize(model, "8bit")
    assert lost(ef.loftq(eight, model, "up_proj", rank=8, key=KEY)) < lost(eight)
    with pytest.raises(ValueError, match="moved a part"):
        ef.remove_lora(listed)
    with pytest.raises(ValueError, match="is quantized"):
        ef.loftq(model, model, key=KEY)
    with pytest.raises(ValueError, match="no weight like that"):
        ef.loftq(small, model.model, key=KEY)


# --- EVA


def inputs_of(case, batch, name):
    """What enters a module of the reference, where the mask is 1."""
    caught = []
    module = case.torch()
    handle = module.get_submodule(name).register_forward_hook(lambda m, x, y: caught.append(x[0]))
    ids, mask = (torch.tensor(x) for x in batch)
    with torch.no_grad():
        module(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    handle.remove()
    return caught[0][mask > 0]


def cosines(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(np.sum(a * b, -1)) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("whiten", [False, True])
def test_components_are_those_of_pefts_pca(whiten):
    from peft.utils.incremental_pca import IncrementalPCA

    case = CASES["llama"]
    batches = [tokens(seed=n) for n in range(4)]
    given = [{"input_ids": ids, "attention_mask": mask} for ids, mask in batches]
    tuned = ef.apply_eva(case.model(), given, "o_proj|down_proj", rank=4, rho=1.0, whiten=whiten, key=KEY)
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.2.mlp.down_proj"):
        rows = torch.cat([inputs_of(case, batch, name) for batch in batches])
        pca = IncrementalPCA(n_components=4).partial_fit(rows)
        want = pca.components_ / (pca.singular_values_.sqrt()[:, None] if whiten else 1.0)
        w = ef.split_lora(tuned)[1][f"{name}.weight"]
        assert cosines(w.a, want).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(w.a, axis=1), np.linalg.norm(want, axis=1), rtol=1e-3)
    np.testing.assert_array_equal(ours(case, tuned), ours(case, case.model()))


@pytest.mark.filterwarnings("ignore")
def test_ranks_are_redistributed_as_in_peft():
    case = CASES["llama"]
    ids = np.random.RandomState(0).randint(3, 97, (24, 20))
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        init_lora_weights="eva",
        eva_config=peft.EvaConfig(rho=2.0, tau=0.999),
    )
    module = peft.get_peft_model(case.make(), config, low_cpu_mem_usage=True)
    data = [{"input_ids": torch.tensor(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}]
    peft.initialize_lora_eva_weights(module, dataloader=data, show_progress_bar=False)
    theirs = {
        name.removeprefix("base_model.model."): layer.lora_A["default"].weight.detach().numpy()
        for name, layer in module.named_modules()
        if hasattr(layer, "lora_A")
    }
    _, adapter = ef.split_lora(ef.apply_eva(case.model(), [ids], rank=4, alpha=6, key=KEY))
    mine = {path.removesuffix(".weight"): w for path, w in adapter.items()}
    assert sum(w.rank for w in mine.values()) == sum(len(a) for a in theirs.values()) == 4 * 21
    assert {w.scale for w in mine.values()} == {1.5} and len({w.rank for w in mine.values()}) > 2
    for name, a in theirs.items():  # PEFT's is an approximation, and layers with the same input tie
        assert abs(mine[name].rank - len(a)) <= 1
        assert cosines(mine[name].a[:2], a[:2]).min() > 0.98


def test_eva_on_stacked_and_quantized_models():
    case = CASES["llama"]
    ids = tokens(pad=False)[0]
    small = ef.quantize(case.model(), "8bit")
    listed = ef.apply_eva(small, [ids], "down_proj", rank=2, rho=1.0, key=KEY)
    stacked = ef.apply_eva(ef.stack(small), [ids], "down_proj", rank=2, rho=1.0, key=KEY)
    assert jax.tree.structure(stacked) == jax.tree.structure(ef.stack(listed))
    mine = lambda m: np.asarray(ef.unstack(m).model.layers[2].mlp.down_proj.weight.a)
    assert cosines(mine(listed), mine(stacked)).min() > 0.999
    with pytest.raises(ValueError, match="unstack"):
        ef.apply_eva(ef.stack(small), [ids], rank=2, key=KEY)
    with pytest.raises(ValueError, match="no batches"):
        ef.apply_eva(small, [], rank=2, key=KEY)
    with pytest.raises(ValueError, match="experts"):
        ef.apply_eva(CASES["mixtral"].model(), [ids], "experts", key=KEY)


# --- observe


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_observe_counts_what_comes_in(name):
    """Once per token, in a scan as in a list; padding and labels of -100 do not count; experts share the tokens."""
    case = CASES[name]
    ids, mask = tokens()
    batch = {"input_ids": ids, "attention_mask": mask}
    model = case.model()
    seen, run = ef.observe(model, [batch, batch]), ef.observe(ef.stack(model), [batch, batch])
    for path, found in run.items():
        for i, single in enumerate(expand(path)):
            np.testing.assert_allclose(found["square"][i], seen[single]["square"], rtol=1e-3, atol=1e-3)
    counts = {float(v["count"].sum()) for v in seen.values()}
    assert 2.0 * mask.sum() in counts
    if name == "llama":
        assert counts == {2.0 * mask.sum()}
        (part,) = ef.observe(
            model, [{**batch, "labels": np.where(ids % 2, ids, -100)}], pattern=r"layers\.0.*q_proj"
        ).values()
        assert part["count"] == (mask * (ids % 2)).sum()
        rows = inputs_of(case, (ids, mask), "model.layers.2.mlp.down_proj").numpy()
        found = seen["model.layers.2.mlp.down_proj.weight"]
        np.testing.assert_allclose(found["square"], 2 * rows.T @ rows, rtol=1e-3, atol=1e-3)
    if name == "mixtral":
        experts = seen["model.layers.0.mlp.experts.down_proj"]["count"]
        assert experts.shape == (model.config.num_local_experts,) and experts.sum() == 2 * 2 * mask.size


# --- LoRA+


@pytest.mark.parametrize("dora", [False, True])
def test_groups_are_pefts(dora):
    from peft.optimizers import create_loraplus_optimizer

    case = CASES["llama"]
    targets = ["q_proj", "down_proj"] + ([] if dora else ["embed_tokens"])
    config = peft.LoraConfig(r=3, target_modules=targets, use_dora=dora)
    module = peft.get_peft_model(case.make(), config)
    groups = create_loraplus_optimizer(module, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8.0).param_groups
    want = {round(g["lr"], 9): sum(p.numel() for p in g["params"]) for g in groups if g["params"] and g["lr"] != 8e-3}
    want[8e-3] = sum(p.numel() for g in groups if g["lr"] == 8e-3 for p in g["params"])
    model = ef.apply_lora(case.model(), "|".join(targets), rank=3, dora=dora, key=KEY)
    optimizer = ef.lora_plus(model, optax.sgd, 1e-3, ratio=8.0)
    state = ef.to_state(model, optimizer)
    for params in (state.params, ef.split_lora(model)[1]):
        ones = jax.tree.map(jnp.ones_like, params)
        steps, _ = optimizer.update(ones, optimizer.init(params), params)
        got = {}
        for leaf in jax.tree.leaves(steps):
            rate = round(float(-leaf.reshape(-1)[0]), 9)
            got[rate] = got.get(rate, 0) + leaf.size
        assert got == want or (params is not state.params and not dora)  # an adapter alone does not know its tables


def test_a_step_with_a_schedule():
    case = CASES["llama"]
    model = ef.apply_lora(case.model(), "q_proj", rank=2, key=KEY)
    state = ef.to_state(model, ef.lora_plus(model, optax.adam, optax.linear_schedule(1e-3, 0.0, 10), ratio=4.0))
    new, _ = jax.jit(ef.train_step)(state, {"input_ids": jnp.asarray(tokens(pad=False)[0])})
    before, after = (ef.split_lora(m)[1]["model.layers.0.self_attn.q_proj.weight"] for m in (model, new.model))
    np.testing.assert_allclose(jnp.abs(after.b - before.b).max(), 4e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="no adapter"):
        ef.lora_plus(case.model(), optax.adam, 1e-3)
