"""Plans: against what a real run allocates, against the compiled program, and by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import optax
import pytest

import easyfn as ef
from cases import CASES, kinds
from easyfn.cli import main
from easyfn.planning import HARDWARE, Collective, hardware_of, read_collectives
from easyfn.planning.compile import facts_on, mesh_of
from easyfn.planning.estimate import temporaries, total
from easyfn.planning.plan import job_of
from easyfn.planning.roofline import roofline, seconds
from easyfn.planning.search import candidates, shapes
from easyfn.planning.sketch import sketch, trace

CONFIG = ef.models.LlamaConfig(
    vocab_size=1536, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4,
)  # fmt: skip
ROWS, TOKENS = 8, 256
SMALL = dict(batch=ROWS, sequence_length=TOKENS, dtype="float32")
DEFAULTS = dict(
    rules=None, task=None, optimizer="adamw", remat="full", lora=None, quantize=None, accumulate=1, compute_dtype=None,
    loss=ef.LossConfig(), generate=None,
)  # fmt: skip


def job(config=CONFIG, **settings):
    return job_of(config, **{**DEFAULTS, **SMALL, **settings})


def on_first_device(tree):
    """The bytes that a tree of arrays really has on one device."""
    first = jax.devices()[0]
    return sum(s.data.nbytes for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards if s.device == first)


@pytest.mark.parametrize(
    "mesh, settings",
    [
        ({"fsdp": 8}, {}),
        ({"fsdp": 4, "tp": 2}, {"optimizer": "sgd", "remat": None}),
        ({"dp": 2, "tp": 4}, {"lora": 8, "remat": "dots"}),
        ({"dp": 2, "fsdp": 4}, {"lora": 8, "quantize": "nf4"}),
    ],
)
def test_agrees_with_a_real_run(mesh, settings):
    """Weights and optimizer to the byte, all together within 10 % of what the program of a real step takes."""
    plan = ef.plan(CONFIG, mesh=mesh, **SMALL, **settings)

    model = ef.stack(ef.init(CONFIG, key=jax.random.key(0)))
    if "quantize" in settings:
        model = ef.quantize(model, settings["quantize"])
    if "lora" in settings:
        model = ef.apply_lora(model, rank=8, key=jax.random.key(1))
    placed = mesh_of(mesh, jax.devices())
    state = ef.to_state(
        ef.shard(model, None, placed), {"adamw": optax.adamw, "sgd": optax.sgd}[plan.settings["optimizer"]](1e-4)
    )
    batch = ef.shard_batch({"input_ids": jax.numpy.ones((ROWS, TOKENS), "int32")}, placed)
    batch["labels"] = batch["input_ids"]
    runtime = ef.Runtime(remat=settings.get("remat", "full"))
    step = jax.jit(lambda s, b: ef.train_step(s, b, runtime=runtime), donate_argnums=0).lower(state, batch).compile()

    assert plan.weights == on_first_device((state.params, state.frozen))
    assert plan.optimizer == on_first_device((state.opt_state, state.step))
    assert plan.gradients == plan.trainable == on_first_device(state.params)
    assert plan.inputs == on_first_device(batch)
    memory = step.memory_analysis()
    real = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    real += memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert abs(plan.total / real - 1) < 0.1, (plan.total, real)
    assert plan.activations > 0.2 * plan.total  # so that they are no mere rounding of the weights


@pytest.mark.parametrize("mesh, settings", [({"fsdp": 2, "tp": 4}, {}), ({"fsdp": 4, "tp": 2}, {"lora": 8})])
def test_a_sketch_is_like_the_compiled_program(mesh, settings):
    """What moves and what is computed nearly to the byte, the memory within a factor of two: enough to choose by."""
    some, placed = job(**settings), mesh_of(mesh, jax.devices())
    compiled, drawn = facts_on(some, placed), sketch(some, placed, trace(some))
    for name in ("weights", "gradients", "optimizer", "batch"):
        assert drawn[name] == compiled[name], name
    assert abs(drawn["flops"] / compiled["flops"] - 1) < 0.05
    assert 0.5 < total(drawn) / total(compiled) < 2, (temporaries(drawn), temporaries(compiled))

    def moved(facts):
        found = {}
        for kind, axes, size, *_ in facts["collectives"]:
            kind = "sum" if "reduce" in kind else kind
            found[kind, tuple(axes)] = found.get((kind, tuple(axes)), 0) + size
        return {key: size for key, size in found.items() if size > 0.05 * max(found.values())}

    a, b = moved(drawn), moved(compiled)
    assert a.keys() == b.keys()
    assert all(abs(a[key] / b[key] - 1) < 0.1 for key in a), (a, b)


@pytest.mark.thinned("each plan compiles in a process of its own")
@pytest.mark.parametrize("name", kinds())
def test_every_kind_plans(name):
    case = CASES[name]
    config = ef.read_config(case.torch().config)
    plan = ef.plan(
        config, task=case.task, mesh={"dp": 2, "fsdp": 2}, batch=4, sequence_length=16, dtype="float32", remat=None
    )
    assert plan.fits and plan.flops > 0 and plan.weights > 0
    assert {c.axes for c in plan.collectives} & {("fsdp",), ("dp", "fsdp")}
    assert config.model_type in str(plan)


def test_generation():
    plan = ef.plan(CONFIG, mesh={"fsdp": 2, "tp": 2}, batch=4, sequence_length=32, dtype="float32", generate=16)
    model = ef.abstract(CONFIG, dtype="float32")
    cache = jax.eval_shape(lambda: ef.init_cache(model, 4, 48))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))
    assert whole / 4 <= plan.cache < whole / 4 + 1000  # rows over fsdp, heads over tp; and the few bytes of its counts
    assert plan.optimizer == plan.gradients == 0
    assert (
        plan.flops == ef.flops(ef.stack(model), 4, 1) + 4 * 2 * 2 * 47 * 128 * 4
    )  # a token looks at 48 slots, not at 1
    assert plan.prompt_times is not None and plan.prompt_times.compute > plan.times.compute
    drawn = sketch(job(batch=4, sequence_length=32, generate=16), placed := mesh_of({"fsdp": 2, "tp": 2}, jax.devices()),
                   trace(job(batch=4, sequence_length=32, generate=16)))  # fmt: skip
    assert placed.size == 4 and abs(drawn["cache"] - plan.cache) < 1000 and drawn["weights"] == plan.weights


def test_losses_of_heads():
    config = ef.read_config(CASES["bert"].torch().config)
    for task in ("question-answering", "next-sentence", "sequence-classification", "token-classification"):
        batch = ef.planning.sample_batch(model := ef.abstract(config, task=task), 2, 8)
        loss, _ = jax.eval_shape(lambda m, b: ef.compute_loss(m, b), model, batch)
        assert loss.shape == ()
    with pytest.raises(ValueError, match="no loss; name a head with task="):
        ef.plan(config, task="base", mesh={"fsdp": 1}, batch=2, sequence_length=8)


# ---- In a process apart

ONE_B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip


def test_more_devices_than_there_are():
    """A billion parameters on 16 devices, of which this process has eight."""
    plan = ef.plan(ONE_B, mesh={"fsdp": 8, "tp": 2}, batch=16, sequence_length=4096, hardware="h200")
    params = ef.num_params(ef.abstract(ONE_B))
    assert plan.devices == 16 and plan.fits and not plan.advice
    norms = (2 * 16 + 1) * 2048  # whole on every device
    assert plan.weights == 2 * ((params - norms) // 16 + norms)
    assert plan.optimizer == 2 * plan.weights + 8  # two moments, two counts
    tokens = 16 * 4096
    assert 6 * params * tokens < plan.flops < 1.5 * 6 * params * tokens  # and attention
    assert plan.flops < plan.hardware_flops < 4 / 3 * plan.flops
    moved = {(c.kind, c.axes): c for c in plan.collectives}
    # each weight once for the forward and once for the backward pass, in bfloat16: no float32 copies of XLA:CPU
    assert 2 * 2 * params / 2 * 0.8 < moved["all-gather", ("fsdp",)].bytes < 2 * 2 * params / 2 * 1.2
    assert ("reduce-scatter", ("fsdp",)) in moved and ("all-reduce", ("tp",)) in moved
    residuals = 16 * 2 * 4096 * 2048 * 2
    assert residuals < plan.activations < 12e9


def test_errors_come_back_from_another_process():
    with pytest.raises(ef.ShardingError, match="does not divide by tp=24"):
        ef.plan(CONFIG, mesh={"tp": 24}, batch=2, sequence_length=8)
    with pytest.raises(TypeError, match="Name the optimizer"):
        ef.plan(CONFIG, mesh={"fsdp": 32}, batch=32, sequence_length=8, optimizer=optax.sgd(0.1))


# ---- Advice and search


def test_advice_is_computed():
    roomy = ef.plan(CONFIG, mesh={"dp": 2}, **SMALL)
    tight = dataclasses.replace(HARDWARE["h100"], name="tight", memory=0.75 * roomy.total / 0.92)
    plan = ef.plan(CONFIG, mesh={"dp": 2}, hardware=tight, **SMALL)
    assert roomy.fits and not roomy.advice
    assert not plan.fits and plan.total == roomy.total and "does not fit" in str(plan)
    ways = {line.split(":")[0]: line for line in plan.advice}
    assert {"accumulate=2", "lora=16", "batch=4"} <= ways.keys()
    assert any("fsdp" in way for way in ways)
    assert all("about" in line and "x the time" in line for line in plan.advice)
    page = dataclasses.replace(plan, name="<b>")._repr_html_()
    assert "<b>" not in page.split("easyfn-title")[-1].split("</div>")[0] and "&lt;b&gt; on 2 x tight" in page
    assert "of a device: does not fit" in page and page.count("<details") == page.count("</details>") == 4
    told = [", fits;" in line for line in plan.advice]
    assert any(told) and told == sorted(told, reverse=True)  # what helps comes first


def test_search(monkeypatch):
    monkeypatch.setattr("easyfn.planning.search.CONFIRMED", 1)
    found = ef.plan(CONFIG, mesh="search", devices=4, remat=None, **SMALL)
    assert found.devices == 4 and found.mesh == dict(found.searched[0][0])
    assert len(found.searched) == 6  # ways to write 4 as dp x fsdp x tp; all divide
    times = [seconds for *_, seconds in found.searched]
    assert times[0] <= min(times) * 1.06
    least = min(size for _, size, _ in found.searched)
    limit = dataclasses.replace(HARDWARE["h100"], memory=1.01 * least / 0.92)
    first = candidates(job(remat=None), jax.devices(), 4, limit)[0]
    assert first.total <= 1.01 * least  # what fits goes before what is fast
    with pytest.raises(ef.ShardingError, match="no mesh of 7 devices"):
        ef.plan(CONFIG, mesh="search", devices=7, **SMALL)


def test_shapes():
    assert len(list(shapes(8, ("dp", "fsdp", "tp")))) == 10
    assert all(s["dp"] * s["fsdp"] * s["tp"] == 12 for s in shapes(12, ("dp", "fsdp", "tp")))


# ---- Programs as text

TEXT = """
HloModule m, is_scheduled=true

%fused (p.0: f32[8,4], p.1: s32[]) -> f32[2,4] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %cut = f32[2,4]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={2,4}
}

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%arg), index=1
  %ag = bf16[16]{0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %t = (s32[], f32[4]{0}) tuple(%x, %x)
}

%idle (q: f32[8,4]) -> f32[8,4] {
  ROOT %q = f32[8,4]{1,0} parameter(0)
}

%busy (r: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} parameter(0)
  ROOT %moved = f32[8,4]{1,0} collective-permute(%r), source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}
}

ENTRY %main (a: f32[8,4]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %i = s32[] constant(0)
  %loop = (s32[], f32[4]{0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %sum = f32[8,4]{1,0} all-reduce(%a), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %part = f32[2,4]{1,0} fusion(%sum, %i), kind=kLoop, calls=%fused
  %both = (f32[8,4]{1,0}, f32[6]{0}) all-reduce(%a, %a), replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%add_promoted
  %either = f32[8,4]{1,0} conditional(%i, %a, %a), branch_computations={%idle, %busy}
  %p = f32[8,4]{1,0} collective-permute(%a), source_target_pairs={{0,2},{2,4},{4,6},{6,0}}
  %all = f32[8,4]{1,0} all-to-all(%a), replica_groups={}, dimensions={0}
  ROOT %out = f32[2,4]{1,0} copy(%part)
}
"""


@pytest.mark.quick("planning", "collectives are read from a text")
def test_collectives_of_a_text():
    """Every form of groups, loops, branches, sums that are cut, and sums that XLA:CPU widened."""
    found = {(c.kind, c.axes): c for c in read_collectives(TEXT, {"fsdp": 4, "ep": 1, "tp": 2})}
    assert found["all-gather", ("fsdp",)][2:] == (16 * 2 * 5, 5, (0, 2, 4, 6))
    assert found["reduce-scatter", ("fsdp",)][2:4] == (8 * 4 * 4, 1)
    assert found["all-reduce", ("tp",)][2:4] == ((32 + 6) * 2, 1)
    assert found["collective-permute", ("fsdp",)].bytes == 128
    assert found["all-to-all", ("fsdp", "tp")].group == tuple(range(8))
    assert found["collective-permute", ("tp",)].bytes == 128
    assert len(found) == 6


# ---- Times


@pytest.mark.quick("planning", "times by hand")
def test_times_by_hand():
    h = HARDWARE["h100"]
    inside = Collective("all-reduce", ("tp",), 1000, 1, tuple(range(8)))
    assert seconds(inside, h) == pytest.approx(2 * 1000 * 7 / 8 / h.links)
    across = Collective("all-gather", ("fsdp",), 1000, 1, tuple(range(0, 64, 8)))  # one of each node
    assert seconds(across, h) == pytest.approx(1000 * 7 / 8 / h.network)
    shared = Collective("reduce-scatter", ("fsdp",), 1000, 1, tuple(range(16)))  # eight of each of two nodes
    assert seconds(shared, h) == pytest.approx(max(1000 * 15 / 16 / h.links, 1000 / 2 / 8 / h.network))
    r = roofline(h, flops=8 * h.flops, touched=0.5 * h.bandwidth, collectives=[inside, across], devices=8)
    assert r.compute == pytest.approx(1 / 0.8) and r.memory == 0.5 and r.limit == "compute"
    assert r.exposed == seconds(inside, h) and r.hidden == seconds(across, h)
    assert r.step == r.compute + r.exposed


def test_hardware():
    assert hardware_of("Trillium") is HARDWARE["tpu-v6e"] and hardware_of("v5p") is HARDWARE["tpu-v5p"]
    assert hardware_of("H100-SXM") is HARDWARE["h100"]
    with pytest.raises(ValueError, match=r"no data sheet of 'h10'.*h100"):
        hardware_of("h10")


# ---- The shell


def test_command_line(tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({**ONE_B, "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2})
    )
    common = ["plan", str(file), "--batch", "4", "--sequence-length", "8", "--remat", "none", "--dtype", "float32"]
    main([*common, "--mesh", "fsdp=2,tp=2", "--lora", "4", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["fits"] is True and said["mesh"] == {"fsdp": 2, "tp": 2} and said["settings"]["lora"] == 4
    main([*common, "--devices", "2", "--hardware", "v5p"])
    out = capsys.readouterr().out
    assert "2 x tpu-v5p (fsdp=2)" in out and "all-gather over fsdp" in out
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*common, "--mesh", "fsdp"])
    assert "sizes by axis" in capsys.readouterr().err


@pytest.mark.quick("planning", "words that are none")
def test_words_that_are_none():
    with pytest.raises(ValueError, match=r"no optimizer 'adam_w'.*adamw"):
        ef.plan(CONFIG, mesh={"fsdp": 1}, optimizer="adam_w", **SMALL)
    with pytest.raises(ValueError, match="neither that nor one"):
        ef.plan(CONFIG, mesh="fsdp", **SMALL)
    with pytest.raises(ValueError, match="has 4 devices, not 8"):
        ef.plan(CONFIG, mesh={"fsdp": 4}, devices=8, **SMALL)


def test_the_parts_of_a_scan_are_found_by_their_shapes():
    """JAX 0.10 names how many constants and carries there are, 0.12 does not: both are read alike."""
    from types import SimpleNamespace

    from easyfn.planning.walk import scan_parts

    def looped(w, carry, xs):
        step = lambda c, x: ((c[0] @ w + x, c[1] + 1), (c[0], x.sum()))
        return jax.lax.scan(step, carry, xs)

    arguments = (jnp.ones((3, 3)), (jnp.ones((2, 3)), jnp.zeros(())), jnp.ones((3, 2, 3)))
    (scan,) = [e for e in jax.make_jaxpr(looped)(*arguments).eqns if e.primitive.name == "scan"]
    known = {k: v for k, v in scan.params.items() if k in ("jaxpr", "length")}
    bare = SimpleNamespace(params=known, invars=scan.invars, outvars=scan.outvars)
    assert scan_parts(bare) == scan_parts(scan) == (1, 3)
