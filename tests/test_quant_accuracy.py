"""What no format may silently lose: accuracy on the trained model, gradients, memory while loading, refusals of bad input.

`benchmarks/accuracy.py` has the whole table; here are bounds, one run each.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES
from easyfn.quant import METHODS

TINY = Path(__file__).parent.parent / "examples" / "tiny"
# How far the predictions of the trained model move, in 1e-3 nat per token (Kullback and Leibler, from float32's): what was
# measured for each method as it comes. A bound is a quarter more.
DIVERGENCE = {
    "int8": 0.0212,
    "a8q": 0.0829,
    "a8bit": 0.265,
    "mxfp8": 0.317,
    "fp8": 0.322,
    "nf4": 3.65,
    "int4": 4.00,
    "a4q": 4.22,
    "nvfp4": 4.30,
    "mxfp4": 6.18,
    "fp4": 6.59,
}
every_method = pytest.mark.parametrize("method", DIVERGENCE)


@pytest.fixture(scope="module")
def trained():
    return ef.stack(ef.load(TINY, dtype=jnp.float32, progress=False))


@pytest.fixture(scope="module")
def text():
    return np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32).reshape(-1, 256)


@pytest.fixture(scope="module")
def judged(trained, text):
    """A function from a model to its divergence from the trained one and its loss, over that of the trained one."""
    held = jnp.asarray(text[:4])

    @jax.jit
    def read(model):
        scores = jax.nn.log_softmax(ef.forward(model, held).logits.astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(scores[:, :-1], held[:, 1:, None], axis=-1)), scores

    loss, exact = read(trained)

    def judge(model):
        new, scores = read(model)
        return float(1e3 * jnp.mean(jnp.sum(jnp.exp(exact) * (exact - scores), axis=-1))), float(new / loss)

    return judge


def plain(model):
    """The model with its weights as they are read, so that all weight-only formats run through one compiled program."""
    slots = [f.weight for f in ef.find_slots(model, ("linear",))]
    return model if getattr(slots[0], "activations", None) else ef.dequantize(model)


@pytest.mark.quick("quant", "bounds for each method")
def test_every_method_has_a_bound():
    ours = {n for n, encode in METHODS.items() if getattr(encode, "func", encode).__module__.startswith("easyfn.")}
    assert ours - {"8bit"} == set(DIVERGENCE)  # 8bit is int8


@every_method
def test_accuracy_on_the_trained_model(trained, judged, method):
    divergence, loss = judged(plain(ef.quantize(trained, method)))
    assert 0.5 * DIVERGENCE[method] < divergence < 1.25 * DIVERGENCE[method]
    if method in ("int8", "a8bit", "a8q"):
        assert abs(loss - 1) < 0.001
    assert loss < 1.01


@pytest.mark.parametrize(
    "more, part",
    [
        ({"refine": "hqq"}, 0.95),
        ({"calibration": "gptq"}, 0.5),
        ({"calibration": "gptq", "act_order": True}, 0.45),
        ({"calibration": "awq"}, 0.95),
    ],
    ids=["hqq", "gptq", "act order", "awq"],
)
def test_refinement_and_calibration_come_nearer_to_float32(trained, text, judged, more, part):
    plainly = ef.QuantConfig("int4", 64, pattern="up_proj|down_proj")
    rounded = judged(ef.dequantize(ef.quantize(trained, plainly)))[0]
    cfg = dataclasses.replace(plainly, **more)
    small = ef.calibrate(trained, [text[32:40]], cfg) if cfg.calibration else ef.quantize(trained, cfg)
    after = judged(ef.dequantize(small))[0]
    assert after < part * rounded, after / rounded


@every_method
def test_gradients_are_those_of_the_dequantized_weight(method):
    """To inputs and adapters, of few rows and of many; to the parts of the format none."""
    q = jax.jit(ef.QuantConfig(method).encode)(jax.random.normal(jax.random.key(0), (32, 128)))
    a, b = jax.random.normal(jax.random.key(1), (2, 128)), jax.random.normal(jax.random.key(2), (32, 2))
    xs = [jax.random.normal(jax.random.key(3), (rows, 128)) for rows in (1, 40)]
    gs = [jax.random.normal(jax.random.key(4), (rows, 32)) for rows in (1, 40)]

    def pull(base, x, a, b, g):
        return jnp.vdot(ef.dot(ef.LoRA(base, a, b, scale=2.0), x), g)

    floats, rest = eqx.partition(q, eqx.is_inexact_array)

    @jax.jit
    def found(floats, xs, a, b):
        given = lambda floats, x, a, b, g: pull(eqx.combine(floats, rest), x, a, b, g)
        return [jax.grad(given, (0, 1, 2, 3), allow_int=True)(floats, x, a, b, g) for x, g in zip(xs, gs, strict=True)]

    for (parts, *ours), x, g in zip(found(floats, xs, a, b), xs, gs, strict=True):
        assert all(not np.asarray(part, np.float32).any() for part in jax.tree.leaves(parts))
        for mine, wanted in zip(ours, jax.grad(pull, (1, 2, 3))(ef.dense(q), x, a, b, g), strict=True):
            assert jnp.abs(mine - wanted).max() < 1e-5 * jnp.abs(wanted).max()


PEAK = """
import ctypes, gc, sys, threading, time
import jax, easyfn as ef

def held():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def load():
    return jax.block_until_ready(ef.load(sys.argv[1], quantize="int4", progress=False, stack=sys.argv[2] == "stacked"))

load()  # programs are compiled
gc.collect(), ctypes.CDLL("libc.so.6").malloc_trim(0)
start = top = held()
done = threading.Event()

def watch():
    global top
    while not done.wait(0.0005):
        top = max(top, held())

watcher = threading.Thread(target=watch)
watcher.start()
model = load()
done.set(), watcher.join()
dense = sum(int(jax.numpy.prod(jax.numpy.array(ef.shape_of(f.weight)))) for f in ef.find_slots(model, ("linear",)))
print(ef.num_bytes(model), top - start, 4 * dense)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("arrangement", ["listed", "stacked"])
def test_loading_holds_no_more_than_the_quantized_model(checkpoint, arrangement):
    """Peak of the process's own memory over what it was before, in a process that has compiled what it needs."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}  # what is freed goes back at once
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(checkpoint), arrangement],
        capture_output=True,
        text=True,
        env={**os.environ, **settings, "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    small, peak, dense = map(int, done.stdout.split())
    assert peak < 1.2 * small < 0.5 * dense, peak / small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = ef.models.LlamaConfig(
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    path = tmp_path_factory.mktemp("memory") / "model"
    fill = functools.cache(lambda shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32))
    ef.save(jax.tree.map(lambda leaf: fill(leaf.shape), ef.abstract(config)), path)
    return path


@every_method
def test_bad_numbers_and_rows_are_refused(method):
    linear = ef.init(ef.nn.Linear(64, 8), key=jax.random.key(0))
    for value in (jnp.nan, jnp.inf):
        broken = eqx.tree_at(lambda layer: layer.weight, linear, linear.weight.at[3, 5].set(value))
        with pytest.raises(ValueError, match=r"NaN or infinite values in weight"):
            ef.quantize(broken, method)
    with pytest.raises(ValueError, match="weight is quantized already"):
        ef.quantize(ef.quantize(linear, method), method)
    odd = ef.init(ef.nn.Linear(67, 8), key=jax.random.key(0))
    if method in ("int8", "a8bit", "fp8"):  # whole rows share a scale
        assert ef.is_quantized(ef.quantize(odd, method))
    else:
        with pytest.raises(ValueError, match=r"weight: .*(67|odd row)"):
            ef.quantize(odd, method)
    assert not ef.is_quantized(odd)


def test_what_was_refused_while_loading_names_the_tensor(tmp_path):
    model = CASES["llama"].model()
    path = "model.layers.1.mlp.up_proj.weight"
    broken = ef.with_params(model, {path: ef.params(model)[path].at[0, 0].set(jnp.nan)})
    ef.save(broken, tmp_path / "broken")
    for cfg, words in [
        ("int8", rf"NaN or infinite values in {path}"),
        (ef.QuantConfig("int4", 32), r"q_proj\.weight: group_size 32 does not divide rows of 48"),
        (ef.QuantConfig("int4", calibration="awq"), "needs data: ef.calibrate"),
        (["int8", ef.QuantConfig("nf4", pattern="q_proj")], "is unused: all 3 weights"),
    ]:
        with pytest.raises(ValueError, match=words):
            ef.load(tmp_path / "broken", quantize=cfg, progress=False)


def test_norms_and_routers_are_reached_by_their_names_only():
    model = jax.eval_shape(lambda: CASES["mixtral"].model())
    everything = {f.path: f for f in ef.find_slots(ef.quantize(model, ef.QuantConfig("int8", pattern=".*")))}
    kept = {f.slot.role for f in everything.values() if not ef.is_quantized(f.weight)}
    assert kept == {"router", "norm", "head", "embedding"}
    insisted = ef.quantize(model, ef.QuantConfig("int8", pattern=r"gate$|gate\.weight"))
    assert {f.slot.role for f in ef.find_slots(insisted) if ef.is_quantized(f.weight)} == {"router"}
    with pytest.raises(ValueError, match="matches nothing"):
        ef.quantize(model, ef.QuantConfig("int8", pattern="input_layernorm"))


def test_a_layout_that_cannot_hold_a_format_is_refused(tmp_path):
    linear = ef.init(
        ef.models.LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        ),
        key=jax.random.key(0),
    )
    mixed = ef.quantize(linear, [ef.QuantConfig("nf4", pattern="q_proj"), ef.QuantConfig("mxfp4")])
    for model, words in [
        (mixed, r"no disk format holds all of .*nf4/64"),
        (ef.quantize(linear, ef.QuantConfig("int4", refine="hqq")), r"has integer zeros only.*ef\.dequantize"),
    ]:
        with pytest.raises(ValueError, match=words):
            ef.save(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
