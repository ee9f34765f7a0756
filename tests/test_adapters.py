"""Several named adapters in one model: by name, in mixtures, and for each row of a batch, beside PEFT."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import easyfn as ef
from cases import CASES, positions, tokens
from easyfn.nn import Embedding

peft = pytest.importorskip("peft")
ROWS = ["fr", "__base__", "dora", "de", "fr"]
SETTINGS = {
    "fr": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "de": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "embed_tokens", "lm_head"]},
    "dora": {"r": 3, "lora_alpha": 3, "target_modules": ["o_proj", "up_proj"], "use_dora": True, "use_rslora": True},
}


@pytest.fixture(scope="module")
def theirs():
    """A PEFT model with three adapters that do something."""
    torch.manual_seed(0)
    module = None
    for name, setting in SETTINGS.items():
        config = peft.LoraConfig(init_lora_weights=False, **setting)
        if module is None:
            module = peft.get_peft_model(CASES["llama"].make(), config, adapter_name=name)
        else:
            module.add_adapter(name, config)
    with torch.no_grad():
        for n, p in module.named_parameters():
            if "magnitude" in n:
                p.mul_(1.0 + 0.2 * torch.rand_like(p))
    return module.eval()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    where = tmp_path_factory.mktemp("adapters")
    for name in SETTINGS:
        theirs.save_pretrained(where, selected_adapters=[name], save_embedding_layers=False)
    return where


@pytest.fixture(scope="module")
def model(folder):
    return ef.load_adapters(CASES["llama"].model(), folder)


IDS, MASK = tokens(5)


@eqx.filter_jit
def _run(model, ids, mask, rows):
    return ef.forward(model, ids, attention_mask=mask, adapter_ids=rows).logits


def run(model, rows=None):
    if rows is not None:
        rows = jnp.asarray([-1 if r == "__base__" else ef.adapter_names(model).index(r) for r in rows])
    return np.asarray(_run(model, jnp.asarray(IDS), jnp.asarray(MASK), rows))


def reference(module, **more):
    inputs = {"input_ids": IDS, "attention_mask": MASK, "position_ids": positions(MASK)}
    with torch.no_grad():
        return module(**{k: torch.tensor(v) for k, v in inputs.items()}, **more).logits.numpy()


def agree(a, b, atol=1e-5):
    np.testing.assert_allclose(a[MASK > 0], b[MASK > 0], atol=atol * max(1.0, float(np.abs(b).max())))


def test_each_row_its_own_adapter_as_peft(model, folder):
    got = run(model, ROWS)
    module = peft.PeftModel.from_pretrained(CASES["llama"].make(), folder / "fr", adapter_name="fr").eval()
    module.load_adapter(folder / "de", "de")  # PEFT has no rows of their own for DoRA
    plain = [name if name != "dora" else "__base__" for name in ROWS]
    agree(run(model, plain), reference(module, adapter_names=plain))
    for i, name in enumerate(ROWS):
        alone = ef.single_adapter(model, name) if name != "__base__" else CASES["llama"].model()
        np.testing.assert_allclose(got[i], run(alone)[i], atol=1e-5)


def test_one_adapter_is_the_model_of_that_adapter(model, theirs):
    for name in SETTINGS:
        theirs.set_adapter(name)
        agree(run(ef.use_adapter(model, name)), reference(theirs))
    np.testing.assert_array_equal(run(ef.use_adapter(model, None)), run(CASES["llama"].model()))
    np.testing.assert_array_equal(
        run(ef.use_adapter(model, "fr")), run(ef.use_adapter(model, ef.adapter_names(model).index("fr")))
    )


def test_a_mixture_is_the_sum_of_the_changes(model, theirs):
    theirs.base_model.set_adapter(["fr", "de"])  # its sum with a DoRA depends on their order
    agree(run(ef.use_adapter(model, {"fr": 1.0, "de": 1.0})), reference(theirs))
    mixed = ef.use_adapter(model, {"fr": 0.7, "de": -0.3, "dora": 0.5})
    agree(run(ef.merge_lora(mixed)), run(mixed))


def test_other_ids_and_other_adapters_compile_nothing(model, folder):
    run(model, ROWS)
    before = _run._cached._cache_size()
    base, adapters = ef.split_adapters(model)
    swapped = ef.with_adapters(base, {n: jax.tree.map(lambda x: 0.5 * x, a) for n, a in adapters.items()})
    run(swapped, ROWS[::-1])
    assert _run._cached._cache_size() == before
    run(ef.use_adapter(model, "fr"))
    before = _run._cached._cache_size()
    run(ef.use_adapter(swapped, "de"))
    assert _run._cached._cache_size() == before


def test_what_goes_in_comes_out(model, folder, tmp_path):
    base, adapters = ef.split_adapters(model)
    assert jax.tree.structure(base) == jax.tree.structure(CASES["llama"].model())
    for name, adapter in adapters.items():
        _, alone = ef.split_lora(ef.load_adapter(CASES["llama"].model(), folder / name))
        alone = {path: dataclasses.replace(w, start=None) for path, w in alone.items()}
        assert jax.tree.structure(adapter) == jax.tree.structure(alone)  # scales included: they are static
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), adapter, alone)))
    again = ef.with_adapters(base, {"renamed": adapters["de"]})
    assert ef.adapter_names(ef.with_adapters(again, {"fr": adapters["fr"]})) == ("renamed", "fr")
    chosen = ef.use_adapter(model, ROWS)
    held, together = ef.split_lora(chosen)  # several by name are one adapter to take off and put on
    np.testing.assert_array_equal(run(ef.join_lora(held, together)), run(chosen))
    with pytest.raises(ValueError, match="do not fit"):
        ef.join_lora(held, {p: dataclasses.replace(w, a=w.a[..., :5]) for p, w in together.items()})
    with pytest.raises(ValueError, match="holds several by name"):
        ef.save_adapter(model, tmp_path)
    folders = ef.save_adapters(model, tmp_path)
    assert sorted(p.name for p in folders.values()) == sorted(SETTINGS)
    np.testing.assert_array_equal(run(ef.load_adapters(base, tmp_path), ROWS), run(model, ROWS))


def test_generate_takes_an_adapter_for_each_row(model):
    ids, mask = tokens(3, 7)
    rows, options = ["de", None, "fr"], {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    out = ef.generate(model, ids, attention_mask=mask, adapter_ids=rows, **options).new_tokens
    for i, name in enumerate(rows):
        alone = ef.use_adapter(model, [name] * 3)  # the same program
        np.testing.assert_array_equal(out[i], ef.generate(alone, ids, attention_mask=mask, **options).new_tokens[i])
    assert len({tuple(np.asarray(r)) for r in out}) > 1
    streamed = np.stack(list(ef.stream(model, ids, attention_mask=mask, adapter_ids=rows, **options)), 1)
    np.testing.assert_array_equal(streamed, out)
    keys = jax.random.split(jax.random.key(0), 3)
    more = {"do_sample": True, "num_return_sequences": 2, "key": keys, **options}
    several = ef.generate(model, ids, attention_mask=mask, adapter_ids=rows, **more).new_tokens
    for i, name in enumerate(rows):
        alone = ef.generate(ef.use_adapter(model, [name] * 3), ids, attention_mask=mask, **more).new_tokens
        np.testing.assert_array_equal(several[2 * i : 2 * i + 2], alone[2 * i : 2 * i + 2])


def noisy(base, seeds, pattern="all-linear", **options):
    """Named adapters of ranks 2, 3, ... that do something."""
    adapters = {}
    for n, name in enumerate(seeds):
        key = jax.random.key(n + 1)
        model = ef.apply_lora(base, pattern, rank=2 + n, key=key, **options)
        adapters[name] = jax.tree.map(
            lambda x, key=key: x + 0.05 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape, x.dtype),
            ef.split_lora(model)[1],
        )
    return adapters


@pytest.mark.parametrize(
    "how",
    ["8bit", "stacked", "stacked nf4 sharded", "bfloat16"],
)
def test_any_base(how):
    base = CASES["llama"].model()
    adapters = noisy(base, ["a", "b"], dora="stacked" in how)
    if "nf4" in how or "8bit" in how:
        base = ef.quantize(base, "nf4" if "nf4" in how else "8bit")
    base = ef.stack(base) if "stacked" in how else base
    base = ef.cast(base, jnp.bfloat16) if how == "bfloat16" else base
    if "sharded" in how:
        base = ef.shard(
            base,
            dataclasses.replace(ef.default_rules(base), indivisible="replicate"),
            ef.make_mesh(fsdp=2, tp=2, devices=jax.devices()[:4]),
        )
    model = ef.with_adapters(base, adapters)
    got = run(model, ["a", "__base__", "b", "b", "a"])
    tolerance = 0.05 if how == "bfloat16" else 2e-4
    for i, name in enumerate(["a", None, "b"]):
        alone = ef.join_lora(base, adapters[name]) if name else base
        np.testing.assert_allclose(got[i], run(alone)[i], atol=tolerance * np.abs(got).max())
    if how == "stacked":
        listed = ef.unstack(model)
        np.testing.assert_allclose(run(ef.use_adapter(listed, "b")), run(ef.use_adapter(model, "b")), atol=1e-4)
        np.testing.assert_allclose(
            run(ef.unstack(ef.use_adapter(model, {"a": 0.5, "b": 2.0}))),
            run(ef.use_adapter(model, {"a": 0.5, "b": 2.0})),
            atol=1e-4,
        )
    if how == "sharded":
        w = model.model.layers[0].mlp.up_proj.weight
        assert w.a.sharding.mesh == w.base.sharding.mesh and not w.b.sharding.is_fully_replicated


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "mamba2"])
def test_any_family(name):
    case = CASES[name]
    base = case.model()
    embedding = {"gpt2": "|wte", "t5": "|shared", "bert": "|word_embeddings"}.get(name, "")
    adapters = noisy(base, ["a", "b"], r"layer|block|\bh\b" + embedding)
    model = ef.with_adapters(base, adapters)
    ids, mask = tokens(3)
    inputs = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
    if case.encoder_decoder:
        inputs["decoder_input_ids"] = jnp.asarray(tokens(seed=1, pad=False)[0])
    go = eqx.filter_jit(lambda model, inputs, rows: ef.forward(model, adapter_ids=rows, **inputs))
    field = "logits" if case.generates else "last_hidden_state"
    got = getattr(go(model, inputs, jnp.array([1, -1, 0])), field)
    for i, which in enumerate([1, -1, 0]):
        want = getattr(go(model, inputs, jnp.full(3, which)), field)
        np.testing.assert_allclose(got[i], want[i], atol=1e-5 * float(jnp.abs(want).max()))
    want = getattr(ef.forward(ef.join_lora(base, adapters["b"]), **inputs), field)
    np.testing.assert_allclose(got[0], want[0], atol=2e-5 * float(jnp.abs(want).max()))


def test_experts_take_one_adapter_for_all_rows():
    base = CASES["mixtral"].model()
    adapters = noisy(base, ["a", "b"], "experts|q_proj|gate")
    model = ef.with_adapters(base, adapters)
    want = run(ef.join_lora(base, adapters["b"]))
    np.testing.assert_allclose(run(ef.use_adapter(model, "b")), want, atol=1e-5 * np.abs(want).max())
    with pytest.raises(ValueError, match="sorted by expert"):
        run(model, ["a"] * 5)
    np.testing.assert_allclose(run(ef.use_adapter(model, {"b": 1.0})), want, atol=1e-4 * np.abs(want).max())


def test_gradients_reach_the_rows_adapters(model):
    base = CASES["llama"].model()
    rows = ef.use_adapter(ef.with_adapters(base, noisy(base, ["a", "b"], "q_proj")), ["a", "a"])
    train, frozen = eqx.partition(rows, ef.trainable(rows))
    loss = lambda train: ef.compute_loss(eqx.combine(train, frozen), {"input_ids": jnp.asarray(IDS[:2])})[0]
    grads = eqx.filter_grad(loss)(train).model.layers[0].self_attn.q_proj.weight
    assert jnp.any(grads.a[0]) and jnp.any(grads.b[0]) and not jnp.any(grads.a[1]) and grads.base is None


def test_an_embedding_looks_up_and_multiplies(key):
    table = Embedding(11, 6)
    table = ef.init(table, key=key)
    adapters = noisy(table, ["a", "b"], "weight")
    model = ef.use_adapter(ef.with_adapters(table, adapters), ["b", None, "a"])
    ids, x = jnp.array([[1, 10], [3, 3], [0, 7]]), jax.random.normal(key, (3, 2, 6))
    for i, name in enumerate(["b", None, "a"]):
        alone = ef.join_lora(table, adapters[name]) if name else table
        np.testing.assert_allclose(model(ids)[i], alone(ids)[i], atol=1e-6)
        np.testing.assert_allclose(ef.dot(model.weight, x)[i], ef.dot(alone.weight, x)[i], atol=1e-5)
    mixed = ef.use_adapter(model, {"a": 0.5, "b": 0.25})
    np.testing.assert_allclose(mixed(ids), ef.dense(mixed.weight)[ids], atol=1e-6)


def test_abstract_models_hold_adapters():
    base = ef.abstract(CASES["llama"].model().config)
    adapter = ef.split_lora(ef.apply_lora(base, rank=4, key=jax.random.key(0), dora=True))[1]
    model = ef.use_adapter(ef.with_adapters(base, {"a": adapter, "b": adapter}), "a")
    shape = jax.eval_shape(lambda m: ef.forward(m, jnp.asarray(IDS)).logits, model).shape
    assert shape == (*IDS.shape, 97)


def test_wrong_uses_say_what_to_do(model):
    base, adapters = ef.split_adapters(model)
    with pytest.raises(ValueError, match="does not hold several adapters"):
        ef.forward(base, IDS, adapter_ids=[0] * 5)
    with pytest.raises(ValueError, match="5 rows: one id for each"):
        ef.forward(model, IDS, adapter_ids=["fr"])
    with pytest.raises(KeyError, match="Near misses: fr"):
        ef.forward(model, IDS, adapter_ids=["frr"] * 5)
    with pytest.raises(ValueError, match="0 to 2"):
        ef.generate(model, IDS, adapter_ids=np.array([0, 1, 2, 3, -1]))
    with pytest.raises(TypeError, match="use_adapter"):
        ef.forward(model, IDS, adapter_ids="fr")
    with pytest.raises(KeyError, match="no adapter 'it'"):
        ef.use_adapter(model, {"it": 1.0})
    with pytest.raises(ValueError, match="no named adapters"):
        ef.use_adapter(base, "fr")
    with pytest.raises(ValueError, match="without a name"):
        ef.with_adapters(ef.join_lora(base, adapters["fr"]), {"de": adapters["de"]})
    with pytest.raises(ValueError, match="changing the base"):
        began = {p: dataclasses.replace(w, start="pissa") for p, w in adapters["fr"].items()}
        ef.with_adapters(base, {"fr": began})
    with pytest.raises(ValueError, match="DoRA on a table"):
        ef.with_adapters(base, noisy(base, ["a"], "embed_tokens", dora=True))
    with pytest.raises(ValueError, match="has bias at"):
        ef.with_adapters(base, noisy(base, ["a"], "q_proj", lora_bias=True))
    with pytest.raises(TypeError, match="split_lora"):
        ef.with_adapters(base, {"fr": ef.join_lora(base, adapters["fr"])})
    with pytest.raises(ValueError, match="differs by row"):
        ef.merge_lora(ef.use_adapter(model, ROWS))
    base = CASES["t5"].model()  # one table of distances for all rows
    model = ef.with_adapters(base, noisy(base, ["a", "b"], "encoder.relative_attention_bias"))
    with pytest.raises(ValueError, match="leading axis is not those rows"):
        ef.forward(model, IDS[:2], decoder_input_ids=IDS[:2], adapter_ids=["a", "b"])


# --- one adapter of several

PLAIN = {"r": 4, "target_modules": ["q_proj", "down_proj", "embed_tokens"], "init_lora_weights": False}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A PEFT model with three plain adapters, two of one rank, and the same as our pytrees."""
    torch.manual_seed(1)
    where = tmp_path_factory.mktemp("sources")
    module = peft.get_peft_model(CASES["llama"].make(), peft.LoraConfig(**PLAIN, lora_alpha=6), adapter_name="a")
    module.add_adapter("b", peft.LoraConfig(**PLAIN, lora_alpha=3))
    module.add_adapter("c", peft.LoraConfig(**{**PLAIN, "r": 2}, lora_alpha=4))
    module.save_pretrained(where, save_embedding_layers=False)
    loaded = ef.load_adapters(CASES["llama"].model(), where)
    return module.eval(), ef.split_adapters(loaded)[1]


COMBINED = [
    ("cat", "abc", [0.7, -0.3, 1.5], {}),
    ("svd", "abc", [0.7, -0.3, 1.5], {}),
    ("svd", "abc", [0.7, 0.3, 1.0], {"svd_rank": 3}),
    ("linear", "ab", [0.7, 0.3], {}),
    ("linear", "a", [0.5], {}),
    ("ties", "ab", [0.7, 0.4], {"density": 0.6}),
    ("ties", "ab", [0.7, 0.4], {"density": 0.6, "majority_sign_method": "frequency"}),
    ("ties_svd", "abc", [0.7, 0.4, 1.0], {"density": 0.5}),
    ("magnitude_prune", "ab", [0.7, 0.4], {"density": 0.3}),
    ("magnitude_prune_svd", "ac", [0.7, 0.4], {"density": 0.3}),
    ("dare_linear", "ab", [0.7, 0.4], {"density": 0.6}),
    ("dare_ties", "ab", [0.7, 0.4], {"density": 0.6}),
    ("dare_linear_svd", "ac", [0.7, 0.4], {"density": 0.6}),
    ("dare_ties_svd", "ac", [0.7, 0.4], {"density": 0.6, "majority_sign_method": "frequency"}),
]


@pytest.mark.thinned("one method of combining with other weights")
@pytest.mark.parametrize(("method", "which", "weights", "options"), COMBINED, ids=lambda x: str(x))
def test_combined_as_peft(sources, method, which, weights, options, monkeypatch):
    module, adapters = sources
    chosen = [adapters[name] for name in which]
    if method.startswith("dare"):  # the same draws on both sides: everything, as a share that no draw can miss
        import peft.utils.merge_utils as theirs

        every_other = lambda shape: np.arange(np.prod(shape)).reshape(shape) % 2 == 0
        monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.asarray(every_other(shape)))
        monkeypatch.setattr(theirs.torch, "bernoulli", lambda x: torch.tensor(every_other(x.shape)).float())
    module.base_model.add_weighted_adapter(list(which), weights, "new", combination_type=method, **options)
    ours = {"rank" if k == "svd_rank" else k: v for k, v in options.items()}
    made = ef.combine_adapters(chosen, weights, method=method, key=jax.random.key(0), **ours)
    try:
        layers = dict(module.base_model.model.named_modules())
        for path, w in made.items():
            layer = layers[path.removesuffix(".weight")]
            table = "new" in layer.lora_embedding_A
            if table and method.startswith("dare"):
                continue  # PEFT's halves of a table are ours transposed, and so are the entries drawn
            a, b = (layer.lora_embedding_B, layer.lora_embedding_A) if table else (layer.lora_A, layer.lora_B)
            a, b = ((x["new"].data.T if table else x["new"].weight.data).numpy() for x in (a, b))
            got, want = np.asarray(w.b @ w.a * w.scale), b @ a * layer.scaling["new"]
            np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
            if not method.endswith("svd") and not table:
                np.testing.assert_allclose(w.a, a, atol=1e-6)
    finally:
        module.delete_adapter("new")


@pytest.mark.quick("lora", "sums of adapters")
def test_the_exact_sum(sources):
    _, adapters = sources
    base = CASES["llama"].model()
    summed = ef.join_lora(base, ef.combine_adapters(list(adapters.values()), [0.5, -1.0, 2.0]))
    mixed = ef.use_adapter(ef.with_adapters(base, adapters), dict(zip("abc", [0.5, -1.0, 2.0], strict=True)))
    np.testing.assert_allclose(run(summed), run(mixed), atol=1e-4)


def test_stacked_and_listed_adapters_combine_alike(key):
    base = CASES["llama"].model()
    adapters = noisy(base, ["a", "b"], "o_proj")
    stacked = [ef.split_lora(ef.stack(ef.join_lora(base, a)))[1] for a in adapters.values()]
    for method in ("svd", "ties_svd", "dare_linear_svd"):
        options = {"method": method, "rank": 3, "density": 0.5, "key": key}
        one = ef.combine_adapters(list(adapters.values()), **options)
        (together,) = ef.combine_adapters(stacked, **options).values()
        for i, w in enumerate(one.values()):
            np.testing.assert_allclose(together.b[i] @ together.a[i], w.b @ w.a, atol=1e-5)
    half = ef.combine_adapters([adapters["a"], stacked[1]])
    assert [w.rank for w in half.values()] == [5, 5, 5]


def test_dare_keeps_a_share_and_the_mean(key):
    linear = ef.nn.Linear(100, 100)
    adapter = ef.split_lora(ef.apply_lora(ef.init(linear, key=key), "weight", rank=100, key=key, init="orthogonal"))[1]
    made = ef.combine_adapters([adapter, adapter], [1.0, 1.0], method="dare_linear", density=0.3, key=key)
    share = float(jnp.mean(made["weight"].a != 0))
    assert abs(share - (1 - 0.7**2)) < 0.02  # two draws of their own
    scale = adapter["weight"].scale ** 0.5  # the halves of two ones, each on the average of what it was
    along = jnp.vdot(made["weight"].a, adapter["weight"].a) / jnp.vdot(adapter["weight"].a, adapter["weight"].a)
    assert float(along) == pytest.approx(2 * scale, rel=0.05)


def test_combining_differentiates_and_compiles(sources):
    _, adapters = sources
    two = [adapters["a"], adapters["b"]]

    @jax.jit
    def size(weights):
        return sum(jnp.sum(w.a**2) for w in ef.combine_adapters(two, weights, method="linear").values())

    assert jnp.all(jnp.isfinite(jax.grad(size)(jnp.array([0.5, 0.5]))))


def test_combining_says_what_fits(sources, key):
    _, adapters = sources
    a, c = adapters["a"], adapters["c"]
    with pytest.raises(ValueError, match="'cat' or one that ends in 'svd'"):
        ef.combine_adapters([a, c], method="linear")
    with pytest.raises(ValueError, match="Near misses: ties"):
        ef.combine_adapters([a, c], method="tie")
    with pytest.raises(ValueError, match="needs density="):
        ef.combine_adapters([a, a], method="ties")
    with pytest.raises(ValueError, match=r"key=jax.random.key\(seed\)"):
        ef.combine_adapters([a, a], method="dare_ties", density=0.5)
    with pytest.raises(ValueError, match="one weight for each"):
        ef.combine_adapters([a, c], [1.0])
    with pytest.raises(ValueError, match="'total' or 'frequency'"):
        ef.combine_adapters([a, a], method="ties", density=0.5, majority_sign_method="most")
    with pytest.raises(ValueError, match="has magnitude"):
        ef.combine_adapters([noisy(CASES["llama"].model(), ["d"], "q_proj", dora=True)["d"]])


def test_a_step_holds_optimizer_and_gradients_of_the_adapter_only(key):
    """By what the compiler says of the whole step, donated as a user would: exact where times are noisy."""
    base = ef.abstract(
        ef.models.LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    optimizer = optax.adamw(1e-4)

    def step(train, state, frozen, ids):
        loss = lambda train: ef.compute_loss(eqx.combine(train, frozen), {"input_ids": ids})[0]
        updates, state = optimizer.update(jax.grad(loss)(train), state, train)
        return optax.apply_updates(train, updates), state

    def memory(model):
        train, frozen = eqx.partition(model, ef.trainable(model))
        state = jax.eval_shape(optimizer.init, train)
        ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        used = jax.jit(step, donate_argnums=(0, 1)).lower(train, state, frozen, ids).compile().memory_analysis()
        return used, 4 * sum(x.size for x in jax.tree.leaves(train)), 4 * sum(x.size for x in jax.tree.leaves(frozen))

    full, all_bytes, _ = memory(base)
    lora, adapter, rest = memory(ef.apply_lora(base, rank=4, key=key))
    small = 4096  # counters, alignment
    assert adapter * 15 < all_bytes == rest
    assert 3 * adapter <= lora.output_size_in_bytes <= 3 * adapter + small  # the adapter and Adam's two moments
    assert lora.alias_size_in_bytes >= 3 * adapter  # which are written over the old ones
    assert lora.argument_size_in_bytes <= rest + 3 * adapter + small
    assert lora.temp_size_in_bytes < min(full.temp_size_in_bytes, all_bytes / 2)  # no gradient of the base


# --- the loss


@pytest.mark.parametrize(("name", "chunk_size"), [("llama-tied", 6), ("bert", None), ("t5", None)])
def test_a_batch_with_adapter_ids_reaches_the_head(name, chunk_size):
    """The head runs apart from the rest of the model in a loss: it takes each row's adapter all the same."""
    base = CASES[name].model()
    model = ef.with_adapters(base, noisy(base, ["a", "b"], "embed_tokens|word_embeddings|shared|lm_head"))
    cfg = ef.LossConfig(chunk_size=chunk_size)
    batch = {"input_ids": jnp.asarray(IDS[:2]), "labels": jnp.asarray(IDS[:2])}
    told = ef.compute_loss(model, {**batch, "adapter_ids": jnp.asarray([1, -1])}, cfg)[0]
    one = lambda i, m: ef.compute_loss(m, {k: v[i : i + 1] for k, v in batch.items()}, cfg)[0]
    np.testing.assert_allclose(told, np.mean([one(0, ef.use_adapter(model, "b")), one(1, base)]), rtol=1e-5)


def test_virtual_tokens_take_each_rows_adapter():
    base = CASES["llama"].model()
    model = ef.prompt_tuning(ef.with_adapters(base, noisy(base, ["a", "b"], "q_proj|v_proj")), 3, key=jax.random.key(0))
    rows = jax.jit(lambda m, **more: ef.forward(m, jnp.asarray(IDS[:2]), **more).logits)
    told = rows(model, adapter_ids=jnp.asarray([1, -1]))
    np.testing.assert_array_equal(told, rows(ef.use_adapter(model, [1, -1])))


def test_models_of_dora_adapters_can_be_shown():
    base = CASES["llama"].model()
    model = ef.with_adapters(base, noisy(base, ["a"], "q_proj", dora=True))
    assert "Adapters on float32" in str(ef.show(model)) and ef.num_params(model, trainable_only=True) == 0
