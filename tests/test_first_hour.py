"""What a new user types and breaks: no silent damage, and the wrong call says which is right."""

import json
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import easyfn as ef

CONFIG = ef.models.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
IDS = jnp.array([[1, 2, 3, 4]])
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=KEY)


def test_the_names_that_errors_tell_are_there():
    import re

    from easyfn.core.habits import ELSEWHERE, HABITS

    texts = [*ELSEWHERE.values(), *(text for table in HABITS.values() for text in table.values())]
    named = {name for text in texts for name in re.findall(r"\bef\.(\w+)", text)}
    assert [name for name in sorted(named) if not hasattr(ef, name)] == []


# --- a folder that is written can be loaded


class Wrap(eqx.Module):
    inner: eqx.Module

    def __call__(self, x, context, cache=None):
        return self.inner(x, context, cache)


CHANGED = {
    "wrapped": (
        lambda m: eqx.tree_at(lambda k: k.model.layers[2], m, replace_fn=Wrap),
        r"model\.layers\.2\.inner.*comes off again with eqx\.tree_at",
    ),
    "dropped": (
        lambda m: eqx.tree_at(lambda k: k.model.layers, m, m.model.layers[:3]),
        r"missing: model\.layers\.3.*ef\.prune_layers",
    ),
    "wider": (
        lambda m: eqx.tree_at(lambda k: k.lm_head.weight, m, jnp.zeros((99, 32))),
        r"lm_head\.weight is \(99, 32\), not \(64, 32\).*ef\.resize_embeddings",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_model_that_its_config_does_not_describe_is_not_saved(model, tmp_path, name):
    change, said = CHANGED[name]
    with pytest.raises(ValueError, match=said):
        ef.save(change(model), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "how", [lambda m: m, ef.stack, lambda m: ef.quantize(m, "int8")], ids=["plain", "stack", "int8"]
)
def test_one_that_is_described_is_saved(model, tmp_path, how):
    ef.save(how(model), tmp_path)
    assert len(ef.load(tmp_path).model.layers) == 4


def test_what_is_written_otherwise_is_held_to_the_config_too(model, tmp_path):
    changed = CHANGED["wrapped"][0](model)
    for call in (
        lambda: ef.save_gguf(changed, tmp_path / "model.gguf"),
        lambda: ef.to_torch(changed),
        lambda: ef.save_adapter(ef.apply_lora(changed, key=KEY), tmp_path / "adapter"),
    ):
        with pytest.raises(ValueError, match=r"model\.layers\.2\.inner"):
            call()
    assert not list(tmp_path.iterdir())


def test_another_checkpoint_is_told_of_refused_or_gone(model, tmp_path, caplog):
    """transformers writes over it, and then reads the tokenizer and the adapter of the old one with the new one."""
    there = lambda: sorted(path.name for path in tmp_path.iterdir())
    ef.save(model, tmp_path, max_shard_size=20_000)
    for name in ("tokenizer.json", "README.md", "vocab.txt"):
        (tmp_path / name).write_text("{}")
    ef.save(ef.prune_layers(ef.resize_embeddings(model, 70, key=KEY), [0]), tmp_path)  # a later state of the same
    mine = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert there() == mine
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    gpt2 = ef.init(ef.read_config({"model_type": "gpt2", **sizes}), key=KEY)
    for other, said in ((gpt2, "a llama model"), (ef.testing.tiny(hidden_size=64), "hidden_size 32, not 64")):
        with pytest.raises(FileExistsError, match=f"{said}.*overwrite=True"):
            ef.save(other, tmp_path, overwrite=False)
    assert there() == mine and not caplog.records
    ef.save(gpt2, tmp_path)
    assert there() == mine and "held a llama model: weights and config are replaced" in caplog.text
    ef.save(model, tmp_path)
    ef.save(gpt2, tmp_path, overwrite=True)
    assert there() == ["README.md", "config.json", "model.safetensors"]
    tuned = ef.apply_lora(gpt2, key=KEY)
    ef.save_adapter(tuned, tmp_path)
    with pytest.raises(FileExistsError, match=r"an adapter.*once more"):
        ef.save(ef.merge_lora(tuned), tmp_path, overwrite=False)
    ef.save(ef.merge_lora(tuned), tmp_path)
    assert "adapter_model.safetensors" in there() and "an adapter, which transformers puts on any model" in caplog.text
    ef.save(ef.merge_lora(tuned), tmp_path, overwrite=True)
    assert there() == ["README.md", "config.json", "model.safetensors"]


def test_prune_layers(model, tmp_path):
    small = ef.prune_layers(model, [0, -1])
    by_hand = eqx.tree_at(lambda m: m.model.layers, model, (model.model.layers[0], model.model.layers[3]))
    want = ef.forward(by_hand, IDS).logits
    assert np.array_equal(ef.forward(small, IDS).logits, want)
    assert np.array_equal(ef.forward(ef.load(ef.save(small, tmp_path)), IDS).logits, want)
    packed = ef.prune_layers(ef.apply_lora(ef.quantize(model, "int8"), "q_proj", rank=2, key=KEY), range(1, 3))
    assert ef.has_lora(packed) and ef.is_quantized(packed) and ef.forward(packed, IDS).logits.shape == (1, 4, 64)
    for keep in ([], [4], [1, 1], [-5]):
        with pytest.raises(ValueError, match="must be different numbers of the 4 layers"):
            ef.prune_layers(model, keep)
    with pytest.raises(ValueError, match=r"ef\.unstack"):
        ef.prune_layers(ef.stack(model), [0])


def test_prune_layers_keeps_the_kinds_of_layers():
    """Gemma's windows are told layer by layer; Qwen2's by a number, which only some choices can keep."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    base = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    data = {"model_type": "gemma3_text", **base, "num_key_value_heads": 2, "head_dim": 8, "layer_types": kinds}
    model = ef.init(ef.read_config({**data, "sliding_window": 4}), key=KEY)
    small = ef.prune_layers(model, [1, 2, 3])
    assert list(small.config.layer_types) == [kinds[i] for i in (1, 2, 3)]
    by_hand = eqx.tree_at(lambda m: m.model.layers, model, model.model.layers[1:])
    ids = jnp.arange(1, 13)[None]
    assert np.allclose(ef.forward(small, ids).logits, ef.forward(by_hand, ids).logits, atol=1e-6)


# --- slots


class Pair(eqx.Module):
    a: ef.Weight
    b: ef.Weight


def slots_of(field="b", role="linear", axis="embed"):
    """Registers a fresh type whose slots are wrong in one place, and uses them."""
    kind = type("Pair", (eqx.Module,), {"__annotations__": {"a": ef.Weight, "b": ef.Weight}})

    @ef.slots.register(kind)
    def _(pair):
        return {"a": ef.Slot("linear", ("mlp", "embed")), field: ef.Slot(role, ("mlp", axis))}

    return ef.find_slots(kind(ef.nn.declare(4, 4), ef.nn.declare(4, 4)))


@pytest.mark.quick("core", "slots are checked")
def test_slots_are_checked():
    assert len(slots_of()) == len(slots_of(axis="mine.patches")) == len(slots_of(axis=None)) == 2
    for wrong, said in (
        ({"role": "linaer"}, "no role 'linaer'.*linear"),
        ({"axis": "embd"}, "no axis 'embd'.*embed"),
        ({"field": "weight"}, "no field 'weight'.*a, b"),
    ):
        with pytest.raises(ValueError, match=said):
            slots_of(**wrong)


# --- models made of Equinox's own layers


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list

    def __init__(self, size, key):
        a, b = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(4, size, key=a)
        self.mlp = eqx.nn.MLP(size, size, 2 * size, 1, activation=jax.nn.gelu, key=b)
        self.norms = [eqx.nn.LayerNorm(size), eqx.nn.LayerNorm(size)]

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class ViT(eqx.Module):
    """A vision transformer of Equinox's layers: patches by a convolution, learned positions by an embedding."""

    patches: eqx.nn.Conv2d
    positions: eqx.nn.Embedding
    cls: jax.Array
    blocks: tuple
    head: eqx.nn.Sequential

    def __init__(self, size=32, depth=2, classes=10, *, key):
        keys = jax.random.split(key, depth + 3)
        self.patches = eqx.nn.Conv2d(3, size, 4, stride=4, key=keys[0])
        self.positions = eqx.nn.Embedding(17, size, key=keys[1])
        self.cls = jnp.zeros(size)
        self.blocks = tuple(Block(size, k) for k in keys[3:])
        self.head = eqx.nn.Sequential([eqx.nn.LayerNorm(size), eqx.nn.Linear(size, classes, key=keys[2])])

    def __call__(self, image):
        x = self.patches(image).reshape(self.cls.size, -1).T
        x = jnp.concatenate([self.cls[None], x]) + jax.vmap(self.positions)(jnp.arange(17))
        for block in self.blocks:
            x = block(x)
        return self.head(x[0])


MODELS = {
    "mlp": (eqx.nn.MLP(32, 8, 64, 2, key=KEY), jax.random.normal(KEY, (5, 32))),
    "vit": (ViT(key=KEY), jax.random.normal(KEY, (2, 3, 16, 16))),
}


@pytest.mark.parametrize("name", MODELS)
def test_equinox_layers_take_part(name, tmp_path):
    theirs, x = MODELS[name]
    run = eqx.filter_jit(lambda m, x: jax.vmap(m)(x))
    ours, want = ef.adopt(theirs), jax.vmap(theirs)(x)
    assert np.allclose(run(ours, x), want, atol=1e-5)
    paths = [p for p in ef.params(theirs)]
    assert list(ef.params(ours)) == paths  # the same arrays under the same names
    gradient = lambda m: jax.tree.leaves(eqx.filter_grad(lambda m: (jax.vmap(m)(x) ** 2).sum())(m))
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(gradient(ours), gradient(theirs), strict=True))
    packed = ef.quantize(ours, "8bit")
    assert ef.is_quantized(packed) and np.allclose(run(packed, x), want, atol=0.1)
    tuned = ef.apply_lora(packed, "all-linear", rank=2, key=KEY)
    # XLA may fuse the two programs in other ways, and the integer products round their inputs: not equal bit by bit.
    assert np.allclose(run(tuned, x), run(packed, x), atol=1e-4) and ef.has_lora(tuned)
    merged = ef.merge_lora(ef.apply_lora(ours, "all-linear", rank=2, key=KEY))
    assert np.allclose(run(merged, x), want, atol=1e-5)
    half = ef.cast(ours, "bfloat16")
    assert ef.dtype_of(half) == jnp.bfloat16
    assert "linear" in str(ef.show(ours)) or "weight" in str(ef.show(ours))
    mesh = ef.make_mesh(fsdp=1, tp=-1)
    spread = ef.shard(ours, ef.ShardingRules({"mlp": "tp"}, indivisible="replicate"), mesh)
    assert np.allclose(run(spread, x), want, atol=1e-5)
    for model in (theirs, ours, packed):
        path = ef.save(model, tmp_path / "weights.safetensors")
        blank = jax.tree.map(lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, model)
        assert np.allclose(run(ef.load_params(blank, path), x), run(model, x))
    if name == "mlp":
        with pytest.raises(ef.LoadError, match=r"missing tensor 'layers\.3\.weight'"):
            ef.load_params(eqx.nn.MLP(32, 8, 64, 3, key=KEY), ef.save(theirs, tmp_path / "w.safetensors"))
    trainable = ef.trainable(tuned)
    assert any(jax.tree.leaves(trainable)) and not all(jax.tree.leaves(trainable))
    whole = ef.fully_gather(ef.fully_shard(ours))
    assert np.array_equal(run(whole, x), run(ours, x))
    adapter = ef.split_lora(tuned)[1]
    assert ef.num_params(adapter) == ef.num_params(tuned, trainable_only=True) > 0 and "a" in str(ef.show(adapter))
    state = ef.to_state(tuned, optax.sgd(0.1))
    ef.save_state(state, tmp_path / "states")
    back = ef.load_state(state, tmp_path / "states")
    assert np.array_equal(run(back.model, x), run(tuned, x))
    for call in (lambda: ef.forward(ours, pixel_values=x), lambda: ef.pure(ours), lambda: ef.flops(ours, 1, 1)):
        with pytest.raises(ef.NotSupported, match=r"jax\.vmap\(model\)\(x\)"):
            call()
    for call in (lambda: ef.save(ours, tmp_path / "folder"), lambda: ef.save_adapter(tuned, tmp_path / "folder")):
        with pytest.raises(ValueError, match=r"ef\.save\(model, 'weights\.safetensors'\)"):
            call()
    if name == "mlp":  # its loop is its own
        with pytest.raises(TypeError, match=r"ef\.unstack"):
            ef.stack(ef.adopt(eqx.nn.MLP(8, 8, 8, 3, key=KEY)))(x[0, :8])
    else:  # its layers hold numbers that are no arrays
        assert np.array_equal(run(ef.stack(ours), x), run(ours, x))


def test_without_slots_the_way_is_said():
    mlp = eqx.nn.MLP(8, 8, 16, 2, key=KEY)
    for call in (lambda: ef.quantize(mlp, "8bit"), lambda: ef.apply_lora(mlp, "layers", rank=2, key=KEY)):
        with pytest.raises(ValueError, match=r"ef\.adopt\(model\).*@ef\.slots\.register"):
            call()
    with pytest.raises(ValueError, match="holds no eqx"):
        ef.adopt(eqx.nn.LayerNorm(4))


class Plain(eqx.Module):
    w: jax.Array


def test_matrices_that_no_layer_declared_are_told(caplog):
    both = (ef.init(ef.nn.Linear(64, 64), key=KEY), Plain(jnp.ones((64, 64))))
    for call in (lambda: ef.quantize(both, "8bit"), lambda: ef.apply_lora(both, key=KEY)):
        caplog.clear()
        call()
        assert re.search(r"1\.w stay as they are.*ef\.adopt.*@ef\.slots\.register", caplog.text)
    caplog.clear()
    assert ef.is_quantized(ef.quantize(both, ef.QuantConfig("8bit", pattern="^0")))  # which asks for no more
    assert not caplog.records


def test_logits_to_keep_is_a_number_or_places():
    model, ids = ef.testing.tiny(), jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    whole = ef.forward(model, ids).logits
    for kept, same in ((2, whole[:, -2:]), (jnp.array([0, 2]), whole[:, [0, 2]]), ([3], whole[:, [3]]), (0, whole)):
        assert np.allclose(ef.forward(model, ids, logits_to_keep=kept).logits, same, atol=1e-6)


# --- the natural wrong call

# Verbs of a model that need no more than it: a path in its place is refused by all.
OF_A_MODEL = """show num_params num_bytes params shapes trainable model_card task model_type can_generate dtype_of mesh_of half
float32 stack unstack unpipeline shard gather fully_shard fully_gather partition_specs named_shardings shard_fns gather_fns
default_rules find_slots inputs split adopt quantize dequantize is_quantized has_lora merge_lora remove_lora split_lora
adapter_names input_embeddings output_embeddings encoder decoder pure forward generate to_torch to_state_dict torch_class"""


def wrong_calls(model, ids, key, tmp):
    """What users of transformers, PEFT, Equinox, optax and Flax write first, and what the error must name."""

    more = {"quantize": ("nf4",), "generate": (ids,), "forward": (ids,)}
    paths = {
        f"{name} a path": (lambda name=name: getattr(ef, name)(Path("nosuch"), *more.get(name, ())), "ef.load(path)")
        for name in OF_A_MODEL.split()
    }
    batch = {"input_ids": ids}
    state = ef.to_state(model, optax.sgd(0.1))
    tuned, tied = ef.apply_lora(model, rank=2, key=key), ef.testing.tiny(tie_word_embeddings=True)
    adapter, own = ef.save_adapter(tuned, Path(tmp) / "adapter"), (ef.nn.Linear(2, 2), {"own": ids})
    labels, apart = jax.tree.map(lambda _: "a", model), ef.split(model, lambda leaf: False)[0]
    grown = {
        "optax labels": (
            lambda: optax.multi_transform({"a": optax.sgd(1)}, labels).init(model),
            "lambda params: labels",
        ),
        "forward a part": (lambda: ef.forward(apart, ids), "eqx.combine"),
        "jit generate": (
            lambda: jax.jit(ef.generate)(model, ids, max_new_tokens=3),
            "static_argnames='max_new_tokens'",
        ),
        "jit a switch": (
            lambda: jax.jit(ef.forward)(model, ids, key=key, output_attentions=True),
            "output_attentions=...",
        ),
        "forward swapped": (lambda: ef.forward(ids, model), "the model comes first"),
        "load an adapter": (lambda: ef.load(adapter), "ef.load_adapter(ef.load("),
        "apply_lora no slot": (lambda: ef.apply_lora(own, "own", key=key), "@ef.slots.register"),
        "init a name": (lambda: ef.init("llama", key=key), "ef.read_config(path)"),
        "from_state_dict a model": (lambda: ef.from_state_dict(model, {}), "model.config"),
        "cast fp16": (lambda: ef.cast(model, "fp16"), "'float16'"),
        "apply_lora key=0": (lambda: ef.apply_lora(model, key=0), "jax.random.key(0)"),
        "quantize NF4": (lambda: ef.quantize(model, "NF4"), "Near misses: nf4"),
        "quantize without a method": (lambda: ef.quantize(model), "'8bit'"),
        "calibrate gptq": (lambda: ef.calibrate(model, [ids], "gptq"), "calibration='gptq'"),
        "batches of texts": (lambda: ef.batches(["a text"], batch_size=1, length=4), "ef.tokenize"),
        "plan a number": (lambda: ef.plan(tmp, mesh=8, batch=8, sequence_length=4), "mesh={'fsdp': 8}"),
        "prune_layers a number": (lambda: ef.prune_layers(model, 1), "range(1)"),
        "make_mesh as jax": (lambda: ef.make_mesh((1, 1), ("a", "b")), "everything by name: pp="),
        "with_params a tied head": (
            lambda: ef.with_params(tied, {"lm_head.weight": ids}),
            "'model.embed_tokens.weight'",
        ),
        "tokenizer a model": (lambda: ef.tokenizer(model), "ef.tokenizer(path)"),
        "Engine max_num_seqs": (lambda: ef.Engine(model, max_num_seqs=3), "max_batch_size="),
        "a layer in a stack": (lambda: ef.stack(model).model.layers[0].mlp, "ef.unstack"),
        "with_params in a stack": (
            lambda: ef.with_params(ef.stack(model), {"model.layers.1.mlp.up_proj.weight": ids}),
            "ef.unstack",
        ),
        "to_state_dict adapters": (lambda: ef.to_state_dict(tuned), "ef.merge_lora"),
    }
    return (
        paths
        | grown
        | {
            "supports a path": (lambda: ef.supports(tmp, "generate"), "ef.abstract(path)"),
            "cast a path": (lambda: ef.cast(tmp, "bfloat16", "norm"), "ef.load(path)"),
            "apply_lora a path": (lambda: ef.apply_lora(tmp, key=key), "ef.load(path)"),
            "flops a path": (lambda: ef.flops(tmp, 1, 4), "ef.load(path)"),
            "compute_loss a path": (lambda: ef.compute_loss(tmp, batch), "ef.load(path)"),
            "to_state a path": (lambda: ef.to_state(tmp, optax.sgd(0.1)), "ef.load(path)"),
            "load torch_dtype": (lambda: ef.load(tmp, torch_dtype="float32"), "dtype="),
            "load device_map": (lambda: ef.load(tmp, device_map="auto"), "mesh="),
            "load trust_remote_code": (lambda: ef.load(tmp, trust_remote_code=True), "ef.family"),
            "load load_in_4bit": (lambda: ef.load(tmp, load_in_4bit=True), "quantize="),
            "load quantization_config": (lambda: ef.load(tmp, quantization_config={}), "quantize="),
            "load attn_implementation": (lambda: ef.load(tmp, attn_implementation="sdpa"), "ef.Runtime"),
            "load dtyp": (lambda: ef.load(tmp, dtyp="float32"), "Near misses: dtype"),
            "generate with a base model": (lambda: ef.generate(model.model, ids), "ef.embed(model, texts"),
            "load num_labels": (lambda: ef.load(tmp, num_labels=3), "config_overrides"),
            "load ignore_mismatched_sizes": (lambda: ef.load(tmp, ignore_mismatched_sizes=True), "key="),
            "load an integer dtype": (lambda: ef.load(tmp, dtype="int8"), "quantize="),
            "load with a dtype by position": (lambda: ef.load(tmp, "float32"), "dtype="),
            "load a task that is none": (lambda: ef.load(tmp, task="text-generation"), "causal-lm"),
            "load nothing there": (lambda: ef.load("./no/such/folder"), "no folder"),
            "model(ids)": (lambda: model(ids), "ef.forward"),
            "base model(ids)": (lambda: model.model(ids), "ef.forward"),
            "from_pretrained": (lambda: ef.from_pretrained("x"), "ef.load"),
            "AutoModelForCausalLM": (lambda: ef.AutoModelForCausalLM, "ef.load"),
            "AutoTokenizer": (lambda: ef.AutoTokenizer, "ef.tokenizer"),
            "LoraConfig": (lambda: ef.LoraConfig(r=8), "ef.apply_lora"),
            "get_peft_model": (lambda: ef.get_peft_model(model), "ef.apply_lora"),
            "BitsAndBytesConfig": (lambda: ef.BitsAndBytesConfig(), "ef.quantize"),
            "ef.filter_jit": (lambda: ef.filter_jit, "jax.jit"),
            "ef.apply": (lambda: ef.apply, "ef.pure"),
            "forward text": (lambda: ef.forward(model, "hello"), "ef.tokenizer"),
            "forward a batch": (lambda: ef.forward(model, batch), r"**batch"),
            "forward past_key_values": (lambda: ef.forward(model, ids, past_key_values=None), "cache="),
            "forward labels": (lambda: ef.forward(model, ids, labels=ids), "ef.compute_loss"),
            "forward use_cache": (lambda: ef.forward(model, ids, use_cache=True), "ef.init_cache"),
            "forward deterministic": (lambda: ef.forward(model, ids, deterministic=True), "key="),
            "forward a mask by position": (lambda: ef.forward(model, ids, ids), "attention_mask="),
            "forward one row": (lambda: ef.forward(model, ids[0]), "batch"),
            "generate text": (lambda: ef.generate(model, "hello"), "token"),
            "generate texts": (lambda: ef.generate(model, ["hello"]), "ef.tokenizer"),
            "generate input_ids=": (lambda: ef.generate(model, input_ids=ids), "ef.generate(model, ids)"),
            "generate max_tokens": (lambda: ef.generate(model, ids, max_tokens=3), "max_new_tokens"),
            "generate without a key": (lambda: ef.generate(model, ids, do_sample=True), "jax.random.key"),
            "generate seed": (lambda: ef.generate(model, ids, seed=0), "jax.random.key"),
            "generate temperature alone": (lambda: ef.generate(model, ids, temperature=0.7), "do_sample=True"),
            "generate streamer": (lambda: ef.generate(model, ids, streamer=None), "ef.stream"),
            "generate logits_processor": (lambda: ef.generate(model, ids, logits_processor=[]), "processors="),
            "generate generation_config": (
                lambda: ef.generate(model, ids, generation_config=None),
                "ef.GenerationConfig",
            ),
            "generate a misspelt option": (lambda: ef.generate(model, ids, max_new_token=3), "max_new_tokens"),
            "compute_loss inputs": (lambda: ef.compute_loss(model, {"inputs": ids}), "input_ids"),
            "compute_loss ids": (lambda: ef.compute_loss(model, ids), "'input_ids'"),
            "compute_loss labels=": (lambda: ef.compute_loss(model, batch, labels=ids), "key of the batch"),
            "save swapped": (lambda: ef.save(tmp, model), "ef.save(model, directory)"),
            "save safe_serialization": (lambda: ef.save(model, tmp, safe_serialization=True), "leave it out"),
            "apply_lora r": (lambda: ef.apply_lora(model, "q_proj", r=4, key=key), "rank"),
            "apply_lora lora_alpha": (lambda: ef.apply_lora(model, "q_proj", lora_alpha=4, key=key), "alpha="),
            "apply_lora target_modules": (lambda: ef.apply_lora(model, target_modules=["q_proj"], key=key), "pattern"),
            "apply_lora lora_dropout": (lambda: ef.apply_lora(model, lora_dropout=0.1, key=key), "dropout="),
            "apply_lora without a key": (lambda: ef.apply_lora(model, "q_proj"), "jax.random.key"),
            "apply_lora a pattern of nothing": (lambda: ef.apply_lora(model, "query", key=key), "q_proj"),
            "apply_lora a config": (lambda: ef.apply_lora(model, object(), key=key), "regular expression"),
            "load_adapter swapped": (lambda: ef.load_adapter(tmp, model), "ef.load_adapter(model, path)"),
            "merge without an adapter": (lambda: ef.merge_lora(model), "ef.apply_lora"),
            "quantize bits": (lambda: ef.quantize(model, bits=4), "nf4"),
            "quantize pattern": (lambda: ef.quantize(model, "nf4", pattern="mlp"), "ef.QuantConfig"),
            "quantize a method that is none": (lambda: ef.quantize(model, "4bit"), "nf4"),
            "quantize eqx.nn": (lambda: ef.quantize(eqx.nn.MLP(8, 8, 16, 2, key=key), "8bit"), "ef.adopt"),
            "shard a dict": (lambda: ef.shard(model, {"embed": "fsdp"}, ef.make_mesh()), "ef.ShardingRules"),
            "shard a mesh": (lambda: ef.shard(model, ef.make_mesh()), "mesh="),
            "plan a path": (
                lambda: ef.plan(tmp),
                "needs mesh, batch, sequence_length, as in ef.plan('org/name', mesh=",
            ),
            "plan nothing": (lambda: ef.plan(), "needs config_or_path, mesh"),
            "plan without a length": (lambda: ef.plan(tmp, mesh={"fsdp": 1}, batch=1), "needs sequence_length, as in"),
            "plan batch_size": (lambda: ef.plan(tmp, mesh={"fsdp": 1}, batch_size=1), "batch="),
            "dot a layer": (lambda: ef.dot(model.lm_head, jnp.ones((1, 32))), "give its .weight"),
            "take a layer": (lambda: ef.take(model.model.embed_tokens, ids), "give its .weight"),
            "make_mesh data": (lambda: ef.make_mesh(data=1), "dp="),
            "init without a key": (lambda: ef.init(model.config), "jax.random.key"),
            "init a key by position": (lambda: ef.init(model.config, key), "key="),
            "init seed": (lambda: ef.init(model.config, seed=0), "jax.random.key"),
            "cast to integers": (lambda: ef.cast(model, "int8"), "ef.quantize"),
            "to_state a name": (lambda: ef.to_state(model, "adamw"), "optax.adamw"),
            "to_state tx": (lambda: ef.to_state(model, tx=optax.sgd(0.1)), "second argument"),
            "train_step a model": (lambda: ef.train_step(model, batch), "ef.to_state"),
            "train_step accumulation": (
                lambda: ef.train_step(state, batch, gradient_accumulation_steps=2),
                "accumulate=",
            ),
            "with_params a path that is none": (
                lambda: ef.with_params(model, {"model.norm": ids}),
                "model.norm.weight",
            ),
        }
    )


CALLS = """
import json, sys, jax, jax.numpy as jnp
sys.path.insert(0, sys.argv[2])
import easyfn as ef
from test_first_hour import CONFIG, wrong_calls
model, key, said = ef.init(CONFIG, key=jax.random.key(0)), jax.random.key(0), {}
ef.save(model, sys.argv[1])
for name, (call, word) in wrong_calls(model, jnp.ones((1, 4), int), key, sys.argv[1]).items():
    try:
        call()
        said[name] = (word, "nothing was raised")
    except Exception as error:
        said[name] = (word, f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""


@pytest.mark.quick("core", "a wrong call says what to write")
def test_the_natural_wrong_call_teaches(tmp_path):
    """In a process of its own: these are the errors as users see them, without the types that our tests check."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", CALLS, str(tmp_path), here], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) >= 50
    silent = {name: (word, text[:200]) for name, (word, text) in said.items() if word not in text.partition(": ")[2]}
    assert not silent, silent
