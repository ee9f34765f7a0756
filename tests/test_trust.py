"""What a stranger's file may hold and a user may be told: the right numbers, or a sentence that helps."""

import copy
import json
import pickle
import struct
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from easyfn.io.torch.export import ExportError
from easyfn.serve.errors import ApiError

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
CONFIG = ef.models.LlamaConfig(**TINY)
IDS = np.random.default_rng(0).integers(3, 60, (2, 9))


@pytest.fixture(scope="module")
def model():
    return ef.init(CONFIG, key=jax.random.key(0))


@pytest.fixture
def folder(model, tmp_path):
    return ef.save(model, tmp_path / "model")


def edit(path, **changes):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def logits(model):
    return np.asarray(ef.forward(model, jnp.asarray(IDS)).logits)


@pytest.fixture(scope="module")
def tied():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, tie_word_embeddings=True)).eval()
    with torch.no_grad():
        return module, module(torch.tensor(IDS)).logits.numpy()


def only_the_head(module, folder):
    """As `safetensors.torch.save_model` writes a tied model: of two names of one tensor the first in the alphabet."""
    from safetensors.torch import save_model

    module.save_pretrained(folder)
    save_model(module, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("task", ["causal-lm", "base"])
def test_a_tied_file_may_hold_the_head_alone(tied, tmp_path, task):
    module, want = tied
    model = ef.load(only_the_head(module, tmp_path), task=task, dtype="float32")
    if task == "base":
        got = (
            np.asarray(ef.forward(model, jnp.asarray(IDS)).last_hidden_state) @ np.asarray(model.embed_tokens.weight).T
        )
    else:
        got = logits(model)
    assert np.abs(got - want).max() < 1e-5


def test_untying_a_tied_file_starts_the_head_as_a_copy(tied, tmp_path):
    """What the errors about tied heads advise; and the head is an array of its own, loaded, stacked or quantized."""
    module, want = tied
    module.save_pretrained(tmp_path)
    model = ef.load(tmp_path, dtype="float32", config_overrides={"tie_word_embeddings": False})
    assert np.abs(logits(model) - want).max() < 1e-5
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    packed = ef.load(tmp_path, quantize="8bit", config_overrides={"tie_word_embeddings": False})
    assert np.abs(logits(packed) - want).max() < 0.1
    again = ef.load(ef.save(model, tmp_path / "untied"))
    assert again.config.tie_word_embeddings is False and np.array_equal(logits(again), logits(model))


def test_an_untied_config_with_a_tied_file_is_told_how(tied, tmp_path):
    module, want = tied
    module.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(ef.LoadError, match="'tie_word_embeddings': True") as error:
        ef.load(tmp_path)
    assert "random" not in str(error.value)
    for tie in (True, False):
        model = ef.load(tmp_path, dtype="float32", config_overrides={"tie_word_embeddings": tie})
        assert np.abs(logits(model) - want).max() < 1e-5


@pytest.mark.parametrize("dtype", [["F32"], {"F32": 1}, 5, None])
def test_a_dtype_in_a_header_that_is_no_word(folder, dtype):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = dtype
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(ef.LoadError, match=r"'model.norm.weight' has dtype"):
        ef.load(folder)


@pytest.mark.quick("io", "no file's counts are believed")
@pytest.mark.parametrize("count", [10**4, 10**5, 2**63, 1e300])
def test_counts_are_not_believed_before_the_files_are_asked(folder, count):
    """Nothing is built of a config that claims more layers than its files have tensors."""
    edit(folder / "config.json", num_hidden_layers=count)
    with pytest.raises(ef.LoadError, match="num_hidden_layers="):
        ef.load(folder)


def test_a_block_count_of_a_gguf_is_not_believed(model, tmp_path):
    file = ef.save(model, tmp_path / "model.gguf")
    data = bytearray(file.read_bytes())
    at = data.find(b"llama.block_count") + len(b"llama.block_count") + 4
    data[at : at + 4] = struct.pack("<I", 2**32 - 1)
    file.write_bytes(data)
    with pytest.raises(ef.LoadError, match="num_hidden_layers=4294967295"):
        ef.load(file)


ERRORS = [
    ef.LoadError("where", ["one", "two"]),
    ef.UnknownConfigKey("a key"),
    ef.NotSupported("a verb"),
    ef.ShardingError("an axis"),
    ef.EngineFull("come again"),
    ef.BadProgram("a node"),
    ef.io.safetensors.BadFile("a file"),
    ExportError("a module"),
    ApiError(429, "full", param="model", code="overloaded", headers={"Retry-After": "1"}),
]


def test_every_public_error_is_tried():
    public = {
        found for name in dir(ef) if isinstance(found := getattr(ef, name), type) and issubclass(found, Exception)
    }
    assert public <= {type(error) for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_errors_travel_between_processes(error, copied):
    again = copied(error)
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_a_key_that_is_none_is_not_its_default():
    """Mistral without a window: the reference's default is one of 4096 tokens."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MistralConfig(**TINY, sliding_window=None)
    module = transformers.MistralForCausalLM(config).eval()
    model = ef.from_torch(module)
    assert model.config.sliding_window is None
    assert ef.to_torch(model).config.sliding_window is None


BAD_IDS = [
    {"pad_token_id": 2**31},
    {"pad_token_id": 10**30},
    {"pad_token_id": 1e308},
    {"pad_token_id": 1.5},
    {"eos_token_id": 10**30},
    {"eos_token_id": [2**31]},
    {"eos_token_id": "a"},
    {"eos_token_id": {"a": 1}},
    {"forced_eos_token_id": [None]},
    {"bos_token_id": 2**40},
    {"do_sample": "yes"},
    {"num_beam_groups": [1]},
]


@pytest.mark.parametrize("file", BAD_IDS, ids=str)
def test_a_generation_config_that_does_not_fit(folder, file):
    (folder / "generation_config.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=next(iter(file))):
        ef.generate(ef.load(folder), [[5, 6]], max_new_tokens=2)


@pytest.mark.parametrize(
    "call", [{"max_length": 5}, {"max_new_tokens": 4}, {}, {"max_length": 5, "min_length": 4}], ids=str
)
def test_lengths_of_a_file_and_of_a_call(folder, call):
    """`max_new_tokens` wins wherever it is said, as in the reference: the rows are as long as its own."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file = {"max_new_tokens": 7, "min_new_tokens": 1, "eos_token_id": 60, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(file))
    ours, theirs = ef.load(folder), transformers.LlamaForCausalLM.from_pretrained(folder)
    want = theirs.generate(torch.tensor(IDS[:, :3]), **call).numpy()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = ef.generate(ours, IDS[:, :3], **call)
    assert np.array_equal(np.asarray(got.sequences), want)
    assert any("max_new_tokens=7" in str(w.message) for w in said) == ("max_length" in call)


def test_every_activation_of_transformers():
    """Each name of its table is the same function, or is refused with the reason."""
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    refused = []
    for name in activations.ACT2FN:
        try:
            ours = ef.nn.activation(name)
        except ValueError as error:
            refused.append(name)
            assert "weights of its own" in str(error)
            continue
        want = activations.ACT2FN[name](torch.tensor(x)).numpy()
        assert np.abs(np.asarray(ours(jnp.asarray(x))) - want).max() < 1e-5, name
    assert refused == ["prelu", "xielu"]


def test_a_width_of_zero():
    """LFM2 rounds two thirds of an `intermediate_size` of 1 down to an MLP that is nothing wide: it adds nothing."""
    assert not ef.dot(jnp.zeros((4, 0)), jnp.zeros((2, 3, 0))).any()
    assert ef.dot(jnp.zeros((4, 0)), jnp.zeros((2, 3, 0))).shape == (2, 3, 4)


def test_granites_logits_are_divided_by_a_number():
    with pytest.raises(ValueError, match="granite: logits_scaling=0 divides"):
        ef.abstract(ef.models.GraniteConfig(**TINY, logits_scaling=0))
