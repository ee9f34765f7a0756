"""Configs: every key is used, declared ignorable, or refused by name; and written back."""

import json
from pathlib import Path

import jax
import pytest

import easyfn as ef
from cases import CASES
from easyfn.config import config as configs
from easyfn.generation.options import resolve

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.quick("config", "each key is used, ignored or refused by name")
def test_an_unknown_key_is_refused_by_name_with_the_way_out():
    with pytest.raises(ef.UnknownConfigKey, match=r"qk_clip=0.5.*config_overrides=\{'qk_clip': None\}"):
        ef.read_config({**LLAMA, "qk_clip": 0.5})
    assert ef.read_config({**LLAMA, "qk_clip": 0.5}, config_overrides={"qk_clip": None}).hidden_size == 32
    assert ef.read_config({**LLAMA, "qk_clip": None}).hidden_size == 32  # null says nothing


def test_ignorable_keys_are_kept_and_told():
    config = ef.read_config({**LLAMA, "use_cache": True, "bos_token_id": 7, "_name_or_path": "x"})
    assert configs.ignored(config)["bos_token_id"] == 7
    assert configs.write(config)["bos_token_id"] == 7


def test_required_keys():
    with pytest.raises(ValueError, match="LlamaConfig needs hidden_size"):
        ef.read_config({k: v for k, v in LLAMA.items() if k != "hidden_size"})


def test_unknown_architecture():
    with pytest.raises(ValueError, match=r"unknown architecture 'lama'.*llama"):
        ef.read_config({**LLAMA, "model_type": "lama"})
    with pytest.raises(ValueError, match="no model_type"):
        ef.read_config({k: v for k, v in LLAMA.items() if k != "model_type"})


def test_unknown_class_and_task():
    config = ef.read_config({**LLAMA, "architectures": ["LlamaForDivination"]})
    with pytest.raises(ValueError, match=r"no LlamaForDivination.*task="):
        ef.abstract(config)
    assert ef.abstract(config, task="base").embed_tokens.weight.shape == (64, 32)
    with pytest.raises(ValueError, match="no task 'divination'"):
        ef.abstract(config, task="divination")


@pytest.mark.quick("config", "broken files")
def test_broken_files(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ef.LoadError, match="no JSON"):
        ef.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ef.LoadError, match="no JSON object"):
        ef.read_config(tmp_path)


def test_folder_file_and_dict_agree(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 5, "eos_token_id": [1, 2]}))
    config = ef.read_config(tmp_path)
    assert (
        config
        == ef.read_config(tmp_path / "config.json")
        == ef.read_config(LLAMA, generation={"top_k": 5, "eos_token_id": [1, 2]})
    )
    assert config.generation["eos_token_id"] == (1, 2)
    assert hash(config) == hash(ef.read_config(str(tmp_path)))


def test_older_spellings_of_rope_are_the_same_config():
    old = ef.read_config({**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = ef.read_config({**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}})
    assert old.rope_parameters == new.rope_parameters


@pytest.mark.quick("config", "read, written and read again", rows=["llama", "gemma3", "t5", "qwen3_next"])
@pytest.mark.parametrize("name", list(CASES))
def test_write_and_read_again(name):
    config = CASES[name].model().config
    again = ef.read_config(json.loads(json.dumps(configs.write(config))))
    assert ef.read_config(json.loads(json.dumps(configs.write(again)))) == again
    fields = [f for f in config.__dataclass_fields__ if f not in ("extra", "generation")]
    assert all(getattr(config, f) == getattr(again, f) for f in fields)


def test_a_text_says_whether_its_head_is_tied():
    """What is not transformers' default for the text is written, also where the whole says otherwise."""
    for name in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Qwen3_5", "Qwen3_5Moe"):
        config = getattr(ef.models, f"{name}Config")
        text = type(config().text_config)
        for tied in (False, True):
            said = configs.write(config(text_config=text(tie_word_embeddings=tied)))["text_config"].get(
                "tie_word_embeddings"
            )
            assert said is tied or (said is None and text().tie_word_embeddings is tied), name


def test_abstract_takes_a_dtype_and_holds_no_numbers():
    model = ef.abstract(LLAMA, dtype="bfloat16")
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(model))


# Configs of well-known checkpoints in their own, mostly older spelling, and how many parameters those have.
HUB = json.loads(Path(__file__).with_name("hub_configs.json").read_text())


@pytest.mark.parametrize("name", list(HUB))
def test_configs_of_the_hub(name):
    config = ef.read_config(HUB[name]["config"], generation=HUB[name].get("generation"))
    model = ef.abstract(config)
    assert ef.num_params(model) == HUB[name]["parameters"]
    if ef.can_generate(model):
        resolve(config, None, {})  # every key of its generation_config.json has a meaning


def test_a_switch_is_harmless_only_while_it_is_off():
    assert ef.read_config({**LLAMA, "rope_interleaved": False})
    with pytest.raises(ef.UnknownConfigKey, match="rope_interleaved=True"):
        ef.read_config({**LLAMA, "rope_interleaved": True})


def test_a_config_of_transformers():
    from transformers import LlamaConfig

    theirs = LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})
    assert ef.read_config(theirs).hidden_size == 32
    for config in (theirs, LLAMA):
        with pytest.raises(ValueError, match=r"ef\.read_config"):
            ef.init(config, key=jax.random.key(0))


@pytest.mark.parametrize("value", [[], "abc"])
def test_a_float_that_is_none(value):
    with pytest.raises(ValueError, match=r"config.json: rms_norm_eps is .*is no number"):
        ef.read_config({**LLAMA, "rms_norm_eps": {"__float__": value}})


@pytest.mark.parametrize("value", ["32", 32.5, -32])
def test_sizes_are_whole_numbers(value):
    with pytest.raises(ValueError, match=f"hidden_size={value!r} must be an integer"):
        ef.read_config({**LLAMA, "hidden_size": value})


@pytest.mark.parametrize(
    "kind, needs", [("linear", "factor"), ("llama3", "low_freq_factor"), ("longrope", "long_factor")]
)
def test_a_rotary_scaling_without_its_numbers(kind, needs):
    with pytest.raises(ValueError, match=f"{kind}.*needs.*{needs}"):
        ef.read_config({**LLAMA, "rope_scaling": {"type": kind}})


def test_a_class_of_long_ago_has_a_successor():
    small = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    model = ef.abstract({"model_type": "t5", "architectures": ["T5WithLMHeadModel"], **small})
    assert ef.torch_class(model).__name__ == "T5ForConditionalGeneration"


def test_only_floating_dtypes(tmp_path):
    for dtype in ("int8", "auto", "float33"):
        with pytest.raises(ValueError, match=f"dtype='{dtype}' is no floating point dtype.*quantize"):
            ef.abstract(LLAMA, dtype=dtype)
