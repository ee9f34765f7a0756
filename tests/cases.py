"""Tiny reference models: what transformers computes, for every parity test.

A family's cases are in `tests/families/<model_type>.py`, named as its file in `src/easyfn/models/`, and found there:
adding a family changes no other file of the tests. Such a file reads, under its docstring,

    from cases import SMALL, case, reference


    @case("llama")  # the one case that stands for the family; its facts are the fields of `Case`
    def _():
        from transformers import LlamaConfig, LlamaForCausalLM

        return reference(LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=16, attention_bias=True))


    @case("llama-classifier", task="sequence-classification", variant=True)  # one more head or setting
    def _(): ...

Each case is a seeded Hugging Face model in eval mode with eager attention, made awkward on purpose: key heads in
groups of three, `head_dim` apart from `hidden_size / heads`, windows shorter than the sequences of the tests (11
tokens), and noise on every parameter, so that no norm or bias is neutral. Keep it at two or three layers, or at the
fewest that show each kind of layer twice. The function imports its transformers classes itself, so that collecting
the tests stays cheap.

What is run on it: a family's first case is held to `test_families.py` (parity with both paddings, cached decode, greedy
tokens, one gradient, all transforms together) and to `test_io.py` (files both ways); a variant only agrees with
transformers and keeps its files. `make test-all` runs every law of `easyfn.testing` on every case that is no variant: a
law that the family does not keep is named with its reason in `expected_failures={"name_of_the_law": "why"}`, and must
fail. What holds for a *kind* of layer (windows, experts, recurrence, ...) is tested on the model of `KINDS` that has
it, and not again on each family.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
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
    causal: bool = True  # a token sees only those before it
    encoder_decoder: bool = False
    recurrent: bool = False  # no attention: state, and no attentions to compare
    moe: bool = False
    inputs: Callable[[], dict[str, np.ndarray]] | None = None  # what a model takes that reads no plain `input_ids`
    variant: bool = False  # one more setting of a family that is here already: it agrees with torch, and that is all
    left: bool = True  # the reference looks past padding on the left; else it is given rows without any
    files: bool = True  # the reference writes the tensors that it reads
    expected_failures: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name of a law -> the reason

    @property
    def family(self) -> str:
        """The file that the case is in, without its ending."""
        return self.make.__module__.removeprefix("families.")

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
KINDS = {  # what a model is made of -> the case on which it is tested
    "dense": "llama",
    "learned positions": "gpt2",
    "window": "mistral",
    "windows by layer": "gemma3",
    "experts": "mixtral",
    "recurrence": "mamba2",
    "encoder": "bert",
    "encoder-decoder": "t5",
}


def case(name: str, **facts: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a builder of a reference model under a name."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in CASES, f"there is a case {name} already"
        CASES[name] = Case(name, make, **facts)
        return make

    return register


IMAGES: dict[str, Case] = {}  # models whose main input is pixels, which the tests of tokens cannot run


def images(name: str, **facts: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """As `case`, for a model of images: `test_vision.py` compares it."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in IMAGES, f"there is a case {name} already"
        IMAGES[name] = Case(name, make, **{"causal": False, **facts})
        return make

    return register


def names(**facts: Any) -> list[str]:
    """The names of the cases with the given facts: `names(task="causal-lm", variant=False)`, for `parametrize`."""
    return [n for n, c in CASES.items() if all(getattr(c, k) == v for k, v in facts.items())]


def kinds(**facts: Any) -> list[str]:
    """As `names`, of the cases that stand for a kind of layer: a list that does not grow with families."""
    return [name for name in names(**facts) if name in KINDS.values()]


# For what is more than parity: one family for each kind of layer, and one for each way of putting them together.
COMPOSED = [*KINDS.values(), "gemma2", "cohere", "gpt_oss", "deepseek_v3", "qwen3_next", "falcon_h1", "lfm2", "mamba"]
COMPOSED += ["bloom"]


def in_test_all(some: Iterable[str], every: Iterable[str]) -> list[Any]:
    """Names for `parametrize`: `some` of them, and the rest of `every` by `make test-all` alone."""
    import pytest

    some = list(some)
    return [*some, *(pytest.param(n, marks=pytest.mark.every_family) for n in every if n not in some)]


def reference(cls: Any, config: Any, seed: int = 0) -> Any:
    """A seeded model of a transformers class: eval mode, eager attention, noise on every parameter."""
    import torch

    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = cls(config).eval()
    fixed = getattr(model, "_keys_to_ignore_on_save", None) or ()  # no file holds them, so they are what they are
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in fixed:
                continue
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.2))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.2)
    return model.requires_grad_(False)


@functools.cache
def _torch(name: str) -> Any:
    return (CASES | IMAGES)[name].make()


@functools.cache
def _model(name: str, dtype: Any) -> Any:
    return port(_torch(name), (CASES | IMAGES)[name].task, dtype)


def port(hf: Any, task: str = "causal-lm", dtype: Any = None) -> Any:
    """The easyfn model with the numbers of a Hugging Face module, without files."""
    from easyfn.config.config import read
    from easyfn.core.tree import replace
    from easyfn.io.torch.modules import tensors_of
    from easyfn.names.rules import file_name, tensors
    from easyfn.registry.family import abstract_config, family_of

    known = family_of(hf.config.model_type)
    config = read(known.config, {**hf.config.to_dict(), "architectures": [type(hf).__name__]}, known.ignore)
    model = abstract_config(config, task, None)
    held = {
        name: value.float().numpy() if value.is_floating_point() else value.numpy()
        for name, value in hf.state_dict().items()
    }
    written = tensors_of(hf).items()  # under the names of files
    held |= {name: np.asarray(value, np.float32) if value.dtype.kind not in "iu" else value for name, value in written}
    new = {}
    for path, (found,) in tensors(model, known.names(model)).items():
        if found.names[0] not in held:  # a file may hold in pieces what the module holds whole
            name = file_name(path, known.names(model))
            assert name in held, (
                f"{type(hf).__name__} has no {name} for {path}, by the rules of {hf.config.model_type}; "
                f"it has {', '.join(difflib.get_close_matches(name, held, n=3))}. In a rule {{rest}} and {{tail}} are "
                "anything, and every other {name} is a number."
            )
            new[path] = held[name]
        else:
            new[path] = found.join([held[n] for n in found.names])
        assert new[path].shape == found.shape, (path, new[path].shape, found.shape)
        kind = (dtype or new[path].dtype) if new[path].dtype.kind == "f" else np.int32
        new[path] = jax.device_put(np.array(new[path], kind))  # jnp.asarray would compile a program for each shape
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


for _path in sorted((Path(__file__).parent / "families").glob("*.py")):
    importlib.import_module(f"families.{_path.stem}")
