"""Values of a config.json: of the type that their field has, in any name that transformers knows, or refused by name."""

import dataclasses
import json
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, port
from easyfn.config.check import AtLeast, Reader, check
from easyfn.config.config import read, write
from easyfn.config.fields import CommonFields, DecoderFields, Size, alias

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.quick("config", "values have types")
@pytest.mark.parametrize(
    "key, value, must",
    [
        ("architectures", 3, "a list"),
        ("architectures", [["a"]], "a list, each a string"),
        ("rope_scaling", 0.5, "an object"),
        ("rope_parameters", [1], "an object"),
        ("quantization_config", 7, "an object"),
        ("quantization_config", [1], "an object"),
        ("id2label", 0.5, "an object"),
        ("num_attention_heads", False, "an integer of at least 1"),
        ("num_attention_heads", 0, "an integer of at least 1"),
        ("rms_norm_eps", "1", "a number"),
        ("rms_norm_eps", {"a": 1}, "a number"),
        ("hidden_act", 5, "a string"),
        ("hidden_act", ["silu"], "a string"),
        ("tie_word_embeddings", "no", "true or false"),
        ("head_dim", 0, "an integer of at least 1 or null"),
        ("initializer_range", "x", "a number"),
        ("mlp_bias", None, "true or false"),
        ("original_max_position_embeddings", "8", "an integer"),
    ],
)
def test_the_error_names_file_key_value_and_type(tmp_path, key, value, must):
    rope = {"rope_scaling": {"type": "yarn", "factor": 2.0}} if key.startswith("original") else {}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **rope, key: value}))
    with pytest.raises(ValueError) as error:
        ef.read_config(tmp_path)
    text = str(error.value)
    assert all(part in text for part in ("config.json", f"{key}=", must)), text


@pytest.mark.parametrize(
    "data, message",
    [
        (
            {**LLAMA, "model_type": "gemma2", "query_pre_attn_scalar": 0},
            "query_pre_attn_scalar=0 must be a number above 0",
        ),
        (
            {**LLAMA, "model_type": "gemma3_text", "query_pre_attn_scalar": -8.0},
            "query_pre_attn_scalar=-8.0 must be a number",
        ),
        ({**LLAMA, "hidden_size": 30}, "hidden_size=30 is no multiple of num_attention_heads=4"),
        ({**LLAMA, "rope_parameters": {"rope_type": ["a"]}}, "rope_parameters.rope_type=.* must be a string"),
        ({**LLAMA, "partial_rotary_factor": [1]}, "partial_rotary_factor=.* must be a number"),
        ({**LLAMA, "model_type": "x" * 10000}, "unknown architecture 'x{20,80} ...*"),
        ({"model_type": "t5", "d_model": 0}, "d_model=0 must be an integer of at least 1"),
        ({"model_type": "t5", "feed_forward_proj": 0.5}, "feed_forward_proj=0.5 must be a string"),
        ({"model_type": "bert", "layer_norm_eps": "1"}, "layer_norm_eps='1' must be a number"),
        (
            {**LLAMA, "model_type": "gemma3_text", "rope_parameters": {"sliding_attention": [1]}},
            "rope_parameters.sliding_attention=.* must be an object",
        ),
        ({**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": "2"}, "num_hidden_layers='2' must be an integer"),
        ({**LLAMA, "model_type": "mixtral", "num_local_experts": None}, "num_local_experts=None must be an integer"),
    ],
)
def test_depths_that_an_error_must_not_come_from(data, message):
    with pytest.raises(ValueError, match=message) as error:
        ef.abstract(data)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_brackets_without_end(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(ef.LoadError, match=f"{name}: 1 problem"):
        ef.read_config(tmp_path)


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int"}}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"quant_method": 1.5}, "quant_method=1.5 must be a string"),
        ({"quant_method": {}}, "quant_method={} must be a string"),
        ({"config_groups": [[1]]}, "config_groups=.* must be an object"),
        ({"config_groups": {"group_0": 1}}, "group_0=1 must be an object"),
        ({"config_groups": {"group_0": {**GROUP, "targets": 1}}}, "group_0: targets=1 must be a list"),
        ({"config_groups": {"group_0": {**GROUP, "targets": [2]}}}, "targets=.* must be a list, each a string"),
        ({"config_groups": {"group_0": {"weights": GROUP["weights"]}}}, "group_0 needs targets"),
        ({"config_groups": {"group_0": {**GROUP, "weights": 1}}}, "weights=1 must be an object"),
        ({"config_groups": {"group_0": {**GROUP, "weights": {"num_bits": ["a"]}}}}, "num_bits=.* must be an integer"),
        ({"config_groups": {"group_0": {**GROUP, "weights": {"num_bits": 10**30}}}}, "num_bits must be .* at most 64"),
        ({"ignore": -1}, "ignore=-1 must be a list"),
        ({"bits": "4"}, "bits='4' must be an integer"),
    ],
)
def test_quantization_config(settings, message):
    data = {**LLAMA, "quantization_config": {"quant_method": "compressed-tensors", **settings}}
    with pytest.raises(ValueError, match=f"quantization_config: .*{message}"):
        ef.read_config(data)


@pytest.mark.parametrize(
    "value, hint, found",
    [
        (1, float | int, 1),
        (1, float, 1.0),
        (None, int | None, None),
        ([1, 2], tuple[Size, ...], (1, 2)),
        ([0.5, 2], tuple[float, float], (0.5, 2.0)),
        ({"a": [1]}, ef.Frozen, ef.Frozen(a=(1,))),
        ("b", Literal["a", "b"], "b"),
        (-1, Annotated[int, AtLeast(-1)], -1),
        ([{"a": []}], Any, (ef.Frozen(a=()),)),
    ],
)
def test_what_fits_is_taken_in_its_hashable_form(value, hint, found):
    got = check("key", value, hint, "config.json")
    assert got == found and type(got) is type(found) and hash(got) == hash(found)


@pytest.mark.parametrize(
    "value, hint",
    [
        (True, int),
        (True, float),
        (1.0, int),
        (-1, int),
        ("1", float | int | None),
        (None, str),
        ([1], tuple[str, ...]),
        ([1], tuple[int, int]),
        ("c", Literal["a", "b"]),
        (1, Literal["1"]),
        ([], ef.Frozen),
    ],
)
def test_what_does_not_fit_is_refused(value, hint):
    with pytest.raises(ValueError, match=r"config\.json: key=.* must be "):
        check("key", value, hint, "config.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower(CommonFields):
    width: Size = 8
    hidden_size = alias("width")
    layers: tuple[int, ...] = (1, 2)


def _any_tower(data: Any, where: str) -> Any:
    return read(Tower, data, where=where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Both(DecoderFields):
    model_type: ClassVar[str] = "both"
    ignored: ClassVar[tuple[str, ...]] = ("remark",)
    vision_config: Tower = Tower()
    audio_config: Annotated[Any, Reader(_any_tower)] = None


@pytest.mark.quick("config", "configs inside configs")
def test_nested_configs_are_read_checked_and_written():
    data = {k: v for k, v in LLAMA.items() if k != "model_type"}
    config = read(Both, {**data, "vision_config": {"hidden_size": 5, "use_cache": True}, "audio_config": {"width": 3}})
    assert config.vision_config.width == config.vision_config.hidden_size == 5 and config.audio_config.width == 3
    assert hash(config) and read(Both, json.loads(json.dumps(write(config)))) == config
    assert write(config)["vision_config"]["width"] == 5 and write(config)["vision_config"]["use_cache"] is True
    assert read(Both, data).vision_config == Tower() and read(Both, {**data, "remark": 1}).extra["remark"] == 1
    with pytest.raises(ValueError, match=r"config\.json: vision_config: width=0 must be"):
        read(Both, {**data, "vision_config": {"width": 0}})
    with pytest.raises(ef.UnknownConfigKey, match=r"config\.json: vision_config: Tower does not know heads=2"):
        read(Both, {**data, "vision_config": {"heads": 2}})
    with pytest.raises(ValueError, match=r"audio_config: layers=3 must be a list"):
        read(Both, {**data, "audio_config": {"layers": 3}})
    with pytest.raises(ValueError, match=r"vision_config=3 must be"):
        read(Both, {**data, "vision_config": 3})


def test_other_names_of_a_key():
    small = {"model_type": "mixtral", **{k: v for k, v in LLAMA.items() if k != "model_type"}}
    config = ef.read_config({**small, "num_experts": 4})
    assert config.num_local_experts == config.num_experts == 4 and "num_experts" not in write(config)
    gpt2 = {"vocab_size": 8, "max_position_embeddings": 4, "hidden_size": 8, "num_hidden_layers": 1}
    config = ef.read_config({"model_type": "gpt2", **gpt2, "num_attention_heads": 2})
    assert (config.n_positions, config.n_embd, config.n_layer, config.n_head) == (4, 8, 1, 2)
    assert (config.hidden_size, config.num_attention_heads) == (8, 2)


BUILT_IN = sorted(n for n, f in ef.families().items() if f.config.__module__.startswith("easyfn."))


def differences(cls: type, theirs: Any) -> dict[str, Any]:
    """The defaults that say another thing than the reference's attribute of that name, those of inner configs included.

    `None`, "auto" and -1 are worked out when the model is built, where transformers does it when the config is made.
    """
    found = {}
    for field in dataclasses.fields(cls):
        mine = field.default
        if field.name in ("extra", "generation") or mine in (dataclasses.MISSING, None, "auto", -1):
            continue
        plain = theirs if isinstance(theirs, dict) else theirs.to_dict()  # attributes that differ by layer raise
        if (their := plain[field.name] if field.name in plain else getattr(theirs, field.name, None)) is None:
            continue
        if field.name == "sliding_window" and getattr(theirs, "use_sliding_window", True) is False:
            continue  # transformers forgets a window that is not used
        if field.name == "rope_parameters" and "rope_theta" in mine:
            their = {key: value for key, value in their.items() if key in mine}  # others say the same again
        if dataclasses.is_dataclass(mine):
            inner = differences(type(mine), their)
            found |= {f"{field.name}.{name}": pair for name, pair in inner.items()}
        elif ef.Frozen(x=mine) != ef.Frozen(x=their):
            found[field.name] = (mine, their)
    return found


@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults_are_those_of_the_reference(name):
    """What a file leaves out means what it means to transformers."""
    from transformers import AutoConfig

    wrong = differences(ef.families()[name].config, AutoConfig.for_model(name))
    assert not wrong, f"of ours and of transformers: {wrong}"


def test_private_keys_of_transformers_say_nothing_and_are_not_kept(tmp_path):
    data = {**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 4, "_sliding_window_pattern": 2}
    config = ef.read_config(data)
    assert config.layer_types == ("sliding_attention",) * 4 and "_sliding_window_pattern" not in config.extra
    assert ef.read_config({**data, "sliding_window_pattern": 2}).layer_types[1] == "full_attention"
    model = ef.init(config, key=jax.random.key(0))
    again = ef.load(ef.save(model, tmp_path / "saved"), progress=False)
    assert again.config == model.config and jax.tree.structure(again) == jax.tree.structure(model)


def test_a_trained_length_beside_the_scaling():
    """transformers lets `original_max_position_embeddings` win where it stands at the top of the config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {k: v for k, v in LLAMA.items() if k != "model_type"}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 64}
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig.from_dict({**sizes, **old, "original_max_position_embeddings": 8})).eval()
    ids = np.random.RandomState(0).randint(3, 60, (2, 12))
    with torch.no_grad():
        theirs = hf(torch.tensor(ids)).logits.numpy()
    config = ef.read_config({**LLAMA, **old, "original_max_position_embeddings": 8})
    assert config.rope_parameters["original_max_position_embeddings"] == 8
    model = port(hf)
    model = ef.from_state_dict(config, ef.to_state_dict(model))
    np.testing.assert_allclose(ef.forward(model, jnp.asarray(ids)).logits, theirs, atol=1e-5)


def test_a_part_says_at_once_which_fields_it_reads():
    @dataclasses.dataclass(frozen=True)
    class Bare:
        vocab_size: int = 8

    with pytest.raises(ValueError, match="Bare has no hidden_size, max_position_embeddings: give it fields"):
        ef.nn.Decoder(Bare(), [], None, head_dim=8, rope={"default": {"rope_theta": 1e4}})


@pytest.mark.quick("config", "configs are values")
def test_configs_are_values():
    config = CASES["llama"].model().config
    assert hash(config) == hash(dataclasses.replace(config)) and dataclasses.replace(config, mlp_bias=False) != config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vocab_size = 3
