"""A module of torch that easyfn has never seen, as a pytree: `ef.from_torch(module, example_inputs)`."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import easyfn as ef


class Reader(nn.Module):
    """A bit of everything: a convolution, a table, a tied head, buffers of both kinds, a detached branch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.table = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.full((10,), 1.5))
        self.register_buffer("shift", torch.arange(10.0), persistent=False)
        for p in self.parameters():
            nn.init.normal_(p, std=0.4)

    def forward(self, x, ids, mask=None):
        h = self.norm(self.conv(x).transpose(1, 2)) + self.table(ids)
        if mask is not None:
            h = h * mask[..., None]
        with torch.no_grad():
            level = h.mean()
        h = nn.functional.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0]
        return {"y": self.head(h) * self.scale + self.shift + level + h.detach().sum(), "parts": [h, ids + 1]}


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    module = Reader()
    example = {"x": torch.ones(2, 4, 5), "ids": torch.ones(2, 5, dtype=torch.long)}
    return module, ef.from_torch(module, example)


def batch(rows=3, length=7):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(rows, 4, length)).astype(np.float32),
        "ids": rng.integers(0, 10, (rows, length)),
    }


def as_torch(inputs):
    return {name: torch.tensor(value) for name, value in inputs.items()}


@pytest.mark.parametrize("rows,length", [(3, 7), (1, 4)])
def test_equals_the_module_at_other_sizes(reader, rows, length):
    module, model = reader
    inputs = batch(rows, length)
    out = ef.forward(model, **inputs)
    compiled = jax.jit(lambda m, i: ef.forward(m, **i))(model, inputs)
    with torch.no_grad():
        wanted = module.eval()(**as_torch(inputs))
    for got in (out, compiled):
        np.testing.assert_allclose(got["y"], wanted["y"], atol=1e-5, rtol=1e-6)
        np.testing.assert_allclose(got["parts"][0], wanted["parts"][0], atol=1e-5)
        assert (np.asarray(got["parts"][1]) == wanted["parts"][1].numpy()).all()


@pytest.mark.quick("io", "a module of torch as a pytree")
def test_leaves_have_the_modules_names_tied_once_and_buffers_do_not_train(reader):
    module, model = reader
    assert set(ef.params(model)) == set(module.state_dict()) - {"head.weight"}
    trains = dict(zip(ef.params(model), jax.tree.leaves(ef.trainable(model)), strict=True))
    assert not trains["scale"] and trains["conv.weight"]
    assert {f.path: f.slot.role for f in ef.find_slots(model)}["table.weight"] == "embedding"


def test_gradients_stop_where_the_module_stops_them(reader):
    module, model = reader
    inputs = batch()
    grads = jax.grad(lambda m: jnp.sum(jnp.sin(ef.forward(m, **inputs)["y"])))(model)
    module.zero_grad()
    torch.sin(module(**as_torch(inputs))["y"]).sum().backward()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(ef.params(grads)[name], parameter.grad, rtol=1e-4, atol=2e-4)


def test_transforms(reader):
    _, model = reader
    inputs = batch()
    y = lambda m: np.asarray(ef.forward(m, **inputs)["y"])
    assert np.abs(y(ef.quantize(model, ef.QuantConfig("8bit", pattern="table"))) - y(model)).max() < 0.2
    assert ef.forward(ef.cast(model, "bfloat16"), **inputs)["parts"][0].dtype in (jnp.bfloat16, jnp.float32)
    many = jax.vmap(lambda x, ids: ef.forward(model, x=x[None], ids=ids[None])["parts"][0][0])(
        inputs["x"], inputs["ids"]
    )
    np.testing.assert_allclose(many, ef.forward(model, **inputs)["parts"][0], atol=1e-5)


def test_linear_layers_take_adapters_and_quantization():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    model = ef.from_torch(module, (torch.ones(3, 16),))
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    y = lambda m: np.asarray(ef.forward(m, x))
    adapted = ef.apply_lora(model, "all-linear", rank=2, key=jax.random.key(0))
    assert list(ef.params(adapted))[:2] != list(ef.params(model))[:2] and (y(adapted) == y(model)).all()
    moved = jax.tree.map(lambda a: a + 0.1 if a.ndim == 2 else a, adapted)
    np.testing.assert_allclose(y(ef.merge_lora(moved)), y(moved), atol=1e-4)
    assert 0 < np.abs(y(ef.quantize(model, "8bit")) - y(model)).max() < 0.1
    grads = jax.grad(lambda m: ef.forward(m, x).sum())(model)
    assert grads["0"].weight.shape == (32, 16)


def test_saved_and_loaded_without_torch(reader, tmp_path):
    from safetensors.numpy import load_file

    module, model = reader
    ef.save(model, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(module.state_dict()) - {"head.weight"}
    again = ef.load(tmp_path)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    inputs = batch()
    assert (ef.forward(again, **inputs)["y"] == ef.forward(model, **inputs)["y"]).all()
    half = ef.load(tmp_path, dtype="bfloat16", quantize=ef.QuantConfig("8bit", pattern="table"))
    assert ef.is_quantized(half)


def test_the_same_program_is_the_same_compiled_function(reader):
    module, model = reader
    again = ef.from_torch(module, {"x": torch.ones(2, 4, 5), "ids": torch.ones(2, 5, dtype=torch.long)})
    assert again.config == model.config and hash(again.config) == hash(model.config)


def test_calls_that_do_not_fit_are_told_what_would(reader):
    _, model = reader
    inputs = batch()
    with pytest.raises(TypeError, match="takes no wrong; it was converted with x, ids"):
        ef.forward(model, **inputs, wrong=1)
    with pytest.raises(TypeError, match=r"ids .* is missing"):
        ef.forward(model, x=inputs["x"])
    with pytest.raises(ValueError, match="axis 1 of x is 3, and the program was made for 4 only"):
        ef.forward(model, x=inputs["x"][:, :3], ids=inputs["ids"])
    with pytest.raises(ValueError, match="they must agree"):
        ef.forward(model, x=inputs["x"], ids=inputs["ids"][:2])
    with pytest.raises(TypeError, match="ids holds float32"):
        ef.forward(model, x=inputs["x"], ids=inputs["x"][:, 0])
    with pytest.raises(TypeError, match="give example_inputs"):
        ef.from_torch(nn.Linear(2, 2))


def test_training_mode_is_put_back():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    model = ef.from_torch(module, (torch.ones(2, 4),))
    assert module.training and module[1].training
    x = jnp.ones((2, 4))
    with torch.no_grad():
        np.testing.assert_allclose(ef.forward(model, x), module.eval()(torch.ones(2, 4)), atol=1e-6)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x) + 1


def test_an_unknown_operator_is_named_and_can_be_taught():
    with pytest.raises(
        NotImplementedError, match=r"aten.special_bessel_j0.default: 1 times, first in .*test_torch_program"
    ):
        ef.from_torch(Unknown(), (torch.ones(2),))
    with pytest.raises(NotImplementedError, match=r'@ef.torch_op.register\("aten.special_bessel_j0.default"\)'):
        ef.from_torch(Unknown(), (torch.ones(2),))
    with pytest.raises(ValueError, match="registered already"):
        ef.torch_op.register("aten.add.Tensor")


def test_what_cannot_be_followed_is_told(capsys):
    class Outside(nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.tanh(x.numpy())) + (1 if x.sum() > 0 else 0)

    with pytest.raises(ValueError, match=r"torch.export .* could not follow the module"):
        ef.from_torch(Outside(), (torch.ones(2),))
    assert not "".join(capsys.readouterr())  # torch prints the graph that it has by then


class Decides(nn.Module):
    """A branch, a size and picks by values; a number that is a value of an array; a view by steps through memory."""

    def forward(self, x, n, mask):
        y = x + 1 if x.sum() > 0 else x
        size = n.item()
        y = y.reshape(size, -1) * x.max().item()
        rows = torch.repeat_interleave(x, n + mask.long(), dim=0)
        steps = x.t().reshape(-1, 2).t().as_strided((2, 3), (2, 1))
        pairs = torch.tensor([n, n + mask.sum()]) + torch.repeat_interleave(mask.long() + 1).sum()
        picked = x[:, torch.where(mask)[0]] + x.masked_select(mask[:, None])[: size + 1, None]
        runs = nn.functional.pad(torch.unique_consecutive(mask.long()[:3] * 0 + size), (0, n))
        return y, x[mask] * 2, mask.nonzero(), rows, torch.arange(size), steps, pairs, picked, runs


def test_decisions_by_values_are_the_examples_and_checked_in_each_call(tmp_path):
    module, ones = Decides(), torch.ones(4, 6)
    mask = torch.tensor([True, False, True, True])
    model = ef.from_torch(module, (ones, torch.tensor(3), mask))
    assert len(model.config.graph.info["decided"]) >= 4
    ef.save(model, tmp_path)
    model, run = ef.load(tmp_path), jax.jit(ef.forward)
    x = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    other = np.array([True, True, True, False])
    for a, b in zip(run(model, x, n=3, mask=other), module(*map(torch.tensor, (x, 3, other))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for wrong in ({"x": -x}, {"n": 2}, {"mask": other[:1].repeat(4)}):
        with pytest.raises(Exception, match=r"here the module would do something else: .*test_torch_program\.py:\d+"):
            run(model, **{"x": x, "n": 3, "mask": other, **wrong})[0].block_until_ready()
    slope = jax.jit(jax.grad(lambda x: ef.forward(model, x, n=3, mask=other)[0].sum()))(x)
    np.testing.assert_allclose(slope, np.full((4, 6), x.max()), atol=1e-6)  # `.item()` has no gradient


class Hears(nn.Module):
    """A recurrent layer; a table whose row of padding does not learn by being looked up, and does as the head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4, padding_idx=0)
        self.layer = nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True)
        self.back = nn.GRU(6, 4)
        nn.init.normal_(self.table.weight)

    def forward(self, ids):
        y, (_, cell) = self.layer(self.table(ids))
        return self.back(y)[0] @ self.table.weight.T, cell


def test_a_recurrent_layer_runs_at_any_length():
    torch.manual_seed(0)
    module, ids = Hears().eval(), torch.tensor([[3, 0, 5, 1, 9], [0, 0, 2, 7, 1], [4, 4, 0, 0, 2]])
    model = ef.from_torch(module, (torch.ones(2, 7, dtype=torch.long),))
    assert {"easyfn.lstm.default", "easyfn.gru.default"} <= set(model.config.graph.operators())
    loss = lambda m: (jnp.sin((out := ef.forward(m, ids.numpy()))[0]).sum() + jnp.sin(out[1]).sum(), out)
    (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
    wanted = module(ids)
    sum(torch.sin(w).sum() for w in wanted).backward()
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b.detach(), atol=1e-5)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(ef.params(grads)[name], parameter.grad, atol=1e-4, err_msg=name)
    assert "lstm" not in vars(torch._VF)  # put back


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def test_random_numbers_are_refused_in_words():
    with pytest.raises(NotImplementedError, match="draws no random numbers: let the module take its noise"):
        ef.from_torch(Noisy(), (torch.ones(2),))


def test_powers_of_integers_beyond_32_bits_are_refused():
    class Hash(nn.Module):
        def forward(self, ids):
            return (ids * torch.tensor(1000003) ** torch.arange(ids.shape[-1])).sum(-1)

    model = ef.from_torch(Hash(), (torch.ones(2, 3, dtype=torch.long),), dynamic={"ids": (1,)})
    assert ef.forward(model, np.ones((2, 2), np.int32)).tolist() == [1000004] * 2
    with pytest.raises(Exception, match=r"test_torch_program\.py:\d+ .* computes with integers of 64 bits"):
        ef.forward(model, np.ones((2, 3), np.int32))


DAMAGE = {
    "version": (lambda d: d.update(version=9), "version is 9"),
    "format": (lambda d: d.update(format="x"), "format is 'x'"),
    "operator": (lambda d: d["nodes"][0].__setitem__(0, "os.system"), "os.system: 1 times"),
    "later value": (lambda d: d["nodes"][0].__setitem__(1, [{"value": 999}]), "refers to value 999"),
    "negative value": (lambda d: d["nodes"][0].__setitem__(1, [{"value": -1}]), "should be a number"),
    "depth": (lambda d: d["nodes"][0].__setitem__(1, [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]), "nested more than"),
    "role": (lambda d: d["weights"][0].update(role="x"), "role is 'x'"),
    "shape": (lambda d: d["weights"][0].update(shape=[-1]), "should be a list of sizes"),
    "constant": (lambda d: d["constants"][0].update(shape=[1 << 40]), "more than"),
    "constant bytes": (lambda d: d["constants"][0].update(shape=[3]), "its shape and dtype say"),
    "result": (lambda d: d.update(result={"kind": "code"}), "kind is 'code'"),
    "nodes": (lambda d: d.update(nodes=3), "nodes is 3; it should be a list"),
    "dtype": (lambda d: d["inputs"][0].update(dtype="object"), "dtype is 'object'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_program_is_refused_by_place(reader, tmp_path, damage):
    change, words = DAMAGE[damage]
    ef.save(reader[1], tmp_path)
    file = tmp_path / "easyfn_program.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ef.BadProgram, match=r"easyfn_program\.json: ") as caught:
        ef.load(tmp_path)
    assert words in str(caught.value)


class Writes(nn.Module):
    """Writes into arrays: into new ones, in front of and behind views of them, and through a view."""

    def __init__(self, view):
        super().__init__()
        self.view = view
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        y = self.fc(x)
        y += 1.5
        z = y.relu()
        y *= 2
        n = torch.arange(x.shape[0])
        n.mul_(3).add_(n)
        w = torch.where(x > 0, n[:, None], 7)
        w.clamp_(max=5)
        part = y[:, 1:]
        if self.view:
            y[:, 0] = 9.0
            part.add_(1)
        dropped = nn.functional.dropout(z, 0.5, self.training)  # in eval mode the array itself
        z.add_(w)
        return y, z, part, n, dropped


@pytest.mark.parametrize("view", [False, True])
def test_what_writes_into_arrays_is_the_same_without_writing(view):
    module = Writes(view).eval()
    model = ef.from_torch(module, (torch.ones(3, 4),))
    assert not any(node.op.split(".")[1].endswith("_") for node in model.config.graph.nodes)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.tensor(x))
    for a, b in zip(ef.forward(model, x), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Simple(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        y = x @ self.weight
        y += 1
        return y.softmax(-1)


def test_a_graph_of_known_operators_is_not_taken_apart(monkeypatch):
    """Taking it apart traces the module again. A matrix that a product reaches from the right is a linear weight."""
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda *_: pytest.fail("taken apart"))
    module = Simple()
    model = ef.from_torch(module, (torch.ones(3, 4),))
    assert ef.params(model)["weight"].shape == (6, 4)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    np.testing.assert_allclose(ef.forward(model, x), module(torch.tensor(x)).detach(), atol=1e-6)
    assert ef.has_lora(ef.apply_lora(model, "all-linear", rank=2, key=jax.random.key(0)))


def test_a_program_is_copied_and_pickled():
    model = ef.from_torch(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh()), (torch.ones(3, 4),))
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert jax.tree.structure(same) == jax.tree.structure(model) and hash(same.config) == hash(model.config)
        assert np.array_equal(ef.forward(same, jnp.ones((2, 4))), ef.forward(model, jnp.ones((2, 4))))
