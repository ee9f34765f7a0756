"""The list of tiny reference models: what transformers computes, for every parity test.

Each case is a seeded Hugging Face model in eval mode with eager attention, made awkward on purpose: key heads in
groups of three, `head_dim` apart from `hidden_size / heads`, windows shorter than the sequences of the tests, and
noise on every parameter, so that no norm or bias is neutral. Add one with `@case("name", ...)` on a function that
returns `reference(Class, config)`; it imports its transformers classes itself, so that this module stays cheap.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

VOCAB = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A reference model and the facts that tests choose by."""

    name: str
    make: Callable[[], Any]  # a fresh Hugging Face model; the same numbers at every call
    task: str = "causal-lm"
    causal: bool = True
    encoder_decoder: bool = False
    recurrent: bool = False  # no attention: state, and no attentions to compare
    moe: bool = False
    variant: bool = False  # one more setting of a family that is here already: skip it in slow tests

    @property
    def generates(self) -> bool:
        return self.task in ("causal-lm", "seq2seq-lm")

    def torch(self) -> Any:
        """The Hugging Face model, made once per process: do not change it."""
        return _torch(self.name)

    def model(self, dtype: Any = None) -> Any:
        """The easyfn model with the same numbers, made once per process (models are values)."""
        return _model(self.name, dtype)


CASES: dict[str, Case] = {}


def case(name: str, **facts: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a builder of a reference model under a name."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in CASES, f"there is a case {name} already"
        CASES[name] = Case(name, make, **facts)
        return make

    return register


def names(**facts: Any) -> list[str]:
    """The names of the cases with the given facts: `names(task="causal-lm", variant=False)`, for `parametrize`."""
    return [n for n, c in CASES.items() if all(getattr(c, k) == v for k, v in facts.items())]


def reference(cls: Any, config: Any, seed: int = 0) -> Any:
    """A seeded model of a transformers class: eval mode, eager attention, noise on every parameter."""
    import torch

    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.2))
    return model.requires_grad_(False)


@functools.cache
def _torch(name: str) -> Any:
    return CASES[name].make()


@functools.cache
def _model(name: str, dtype: Any) -> Any:
    return port(_torch(name), CASES[name].task, dtype)


def port(hf: Any, task: str = "causal-lm", dtype: Any = None) -> Any:
    """The easyfn model with the numbers of a Hugging Face module, without files."""
    from easyfn.config.config import read
    from easyfn.core.tree import replace
    from easyfn.names.rules import tensors
    from easyfn.registry.family import abstract_config, family_of

    known = family_of(hf.config.model_type)
    config = read(known.config, {**hf.config.to_dict(), "architectures": [type(hf).__name__]}, known.ignore)
    model = abstract_config(config, task, None)
    held = {name: value.float().numpy() for name, value in hf.state_dict().items()}
    new = {}
    for path, (found,) in tensors(model, known.names(model)).items():
        if found.names[0] not in held:  # a file may hold in pieces what the module holds whole
            new[path] = held[path]
        else:
            new[path] = found.join([held[n] for n in found.names])
        assert new[path].shape == found.shape, (path, new[path].shape, found.shape)
        new[path] = jax.numpy.asarray(new[path], dtype)
    return replace(model, new)


def tokens(rows: int = 3, length: int = 11, *, seed: int = 0, pad: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """`(ids, mask)`: without the special ids, row 0 padded on the left, row 1 on the right (with the pad id 0)."""
    ids = np.random.RandomState(seed).randint(3, VOCAB, (rows, length))
    mask = np.ones_like(ids)
    if pad:
        mask[0, : length // 3] = 0
        mask[1, -(length // 4) :] = 0
    return np.where(mask > 0, ids, 0), mask


def positions(mask: np.ndarray) -> np.ndarray:
    """Position ids as easyfn derives them from a mask: transformers must be told."""
    return np.maximum(mask.cumsum(1) - 1, 0)


# --- llama


@case("llama")
def _():
    from transformers import LlamaConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True))


@case("llama-tied", variant=True)
def _():
    from transformers import LlamaConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, LlamaConfig(**{**SMALL, "num_hidden_layers": 2}, tie_word_embeddings=True))


@case("llama-base", task="base", variant=True)
def _():
    from transformers import LlamaConfig, LlamaModel

    return reference(LlamaModel, LlamaConfig(**SMALL))


@case("llama-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return reference(LlamaForSequenceClassification, LlamaConfig(**SMALL, num_labels=3))


# --- gpt2


@case("gpt2")
def _():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=48, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return reference(GPT2LMHeadModel, config)


# --- rotary variants: sequences of the tests pass the trained length of 8

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 1, "truncate": False},
    "yarn-mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.5 * i for i in range(8)],
    },
}


def _rope(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {**SMALL, "head_dim": 16, "num_hidden_layers": 2, "max_position_embeddings": 8}
        parameters = {"rope_theta": 500.0, **ROPES[kind]}
        if kind in ("llama3", "yarn", "yarn-mscale", "longrope"):
            parameters["original_max_position_embeddings"] = 8
        return reference(LlamaForCausalLM, LlamaConfig(**sizes, rope_parameters=parameters))

    return make


for _kind in ROPES:
    case(f"llama-{_kind}", variant=True)(_rope(_kind))


# --- mistral, qwen2, qwen3


@case("mistral")
def _():
    from transformers import MistralConfig, MistralForCausalLM

    return reference(MistralForCausalLM, MistralConfig(**SMALL, head_dim=16, sliding_window=4))


@case("mistral-full", variant=True)
def _():
    from transformers import MistralConfig, MistralForCausalLM

    return reference(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=None, tie_word_embeddings=True))


@case("qwen2")
def _():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return reference(Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=True))


@case("qwen2-window", variant=True)
def _():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    return reference(Qwen2ForCausalLM, config)


@case("qwen2-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    return reference(Qwen2ForSequenceClassification, Qwen2Config(**SMALL, num_labels=4))


@case("qwen3")
def _():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return reference(Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16))


@case("qwen3-window", variant=True)
def _():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen3Config(
        **SMALL, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=3, layer_types=kinds
    )
    return reference(Qwen3ForCausalLM, config)


# --- gemma3


@case("gemma3")
def _():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {**SMALL, "num_hidden_layers": 7}
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    }
    config = Gemma3TextConfig(
        **sizes,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=20,
        final_logit_softcapping=3.0,
        attention_bias=True,
        rope_parameters=rope,
    )
    return reference(Gemma3ForCausalLM, config)


@case("gemma3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=4, layer_types=kinds, num_labels=3)
    return reference(Gemma3TextForSequenceClassification, config)


# --- mixtral


@case("mixtral", moe=True)
def _():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**SMALL, head_dim=16, num_local_experts=5, num_experts_per_tok=2, sliding_window=4)
    return reference(MixtralForCausalLM, config)


@case("mixtral-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import MixtralConfig, MixtralForSequenceClassification

    return reference(MixtralForSequenceClassification, MixtralConfig(**SMALL, num_local_experts=3, num_labels=3))


# --- mamba2


@case("mamba2", recurrent=True)
def _():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=3,
        num_heads=12,
        head_dim=8,
        state_size=10,
        n_groups=4,
        conv_kernel=3,
        chunk_size=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return reference(Mamba2ForCausalLM, config)


# --- bert


def _bert(head: str, **more: Any) -> Any:
    import transformers.models.bert.modeling_bert as bert
    from transformers import BertConfig

    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "pad_token_id",
    )
    small = {k: SMALL[k] for k in keys}
    return reference(
        getattr(bert, head), BertConfig(**{**small, "max_position_embeddings": 40, "type_vocab_size": 3, **more})
    )


@case("bert-base", task="base", causal=False)
def _():
    return _bert("BertModel")


@case("bert", task="masked-lm", causal=False)
def _():
    return _bert("BertForMaskedLM", hidden_act="gelu_new", layer_norm_eps=1e-5)


@case("bert-untied", task="masked-lm", causal=False, variant=True)
def _():
    return _bert("BertForMaskedLM", tie_word_embeddings=False)  # its decoder has a bias of its own


@case("bert-pretraining", task="pretraining", causal=False, variant=True)
def _():
    return _bert("BertForPreTraining")


@case("bert-next-sentence", task="next-sentence", causal=False, variant=True)
def _():
    return _bert("BertForNextSentencePrediction")


@case("bert-sequence-classification", task="sequence-classification", causal=False, variant=True)
def _():
    return _bert("BertForSequenceClassification", num_labels=3)


@case("bert-token-classification", task="token-classification", causal=False, variant=True)
def _():
    return _bert("BertForTokenClassification", num_labels=5)


@case("bert-question-answering", task="question-answering", causal=False, variant=True)
def _():
    return _bert("BertForQuestionAnswering")


# --- t5


def _t5(head: str, **more: Any) -> Any:
    import transformers
    from transformers import T5Config

    small = {"vocab_size": VOCAB, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_heads": 4}
    deep = {"num_layers": 2, "num_decoder_layers": 3, "relative_attention_num_buckets": 8}
    config = T5Config(
        **small,
        **{**deep, "relative_attention_max_distance": 7, "decoder_start_token_id": 0, "eos_token_id": 2, **more},
    )
    return reference(getattr(transformers, head), config)


@case("t5", task="seq2seq-lm", causal=False, encoder_decoder=True)
def _():
    return _t5("T5ForConditionalGeneration")


@case("t5-v1.1", task="seq2seq-lm", causal=False, encoder_decoder=True, variant=True)
def _():
    import torch

    hf = _t5("T5ForConditionalGeneration", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    hf.lm_head.weight = torch.nn.Parameter(torch.randn_like(hf.shared.weight) * 0.2, requires_grad=False)
    return hf


@case("t5-base", task="base", causal=False, encoder_decoder=True, variant=True)
def _():
    return _t5("T5Model", feed_forward_proj="gated-silu")


@case("t5-encoder", task="encoder", causal=False, variant=True)
def _():
    return _t5("T5EncoderModel")
