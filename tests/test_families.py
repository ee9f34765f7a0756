"""Every family against transformers: forward, decode, tokens, one gradient; and all transforms on it at once.

What holds for a kind of layer is tested on one family that has it (`cases.KINDS`), every law on every family by
`make test-all`. Here each family pays for three compiled programs, and each kind of layer for the
fourth: all transforms at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import easyfn as ef
from cases import CASES, COMPOSED, VOCAB, Case, in_test_all, names, positions, tokens
from encoder_cases import NAMES as ENCODERS

FAMILIES = names(variant=False)
ANSWERS = {  # of transformers' output -> of ours
    **{name: name for name in ("logits", "last_hidden_state", "start_logits", "end_logits", "seq_relationship_logits")},
    "sop_logits": "seq_relationship_logits",
    "prediction_logits": "logits",
}


def given(case: Case, pad: bool = True) -> tuple[dict[str, Any], np.ndarray | None]:
    """The inputs of a case, and the mask of its tokens (None where it does not read text)."""
    if case.inputs is not None:
        inputs = case.inputs()
        return inputs, inputs.get("attention_mask")
    ids, mask = tokens(pad=pad)
    if not (
        case.causal and case.left
    ):  # encoders count places, and read answers from the first: padding must not take it
        ids[0], mask[0] = np.roll(ids[0], -3), np.roll(mask[0], -3) if pad else mask[0]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if case.task == "multiple-choice":
        inputs = {k: np.stack([v, v[::-1]], axis=1) for k, v in inputs.items()}
        mask = inputs["attention_mask"].reshape(-1, ids.shape[1])
    if case.encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5]
    return inputs, mask


def torch_inputs(module: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same for transformers, which must be told the positions of rows padded on the left."""
    import torch

    takes = inspect.signature(module.forward).parameters
    padded = "input_ids" in inputs and not np.all(inputs["attention_mask"][..., 0])
    if "position_ids" in takes and padded and "position_ids" not in inputs:
        inputs = {**inputs, "position_ids": positions(inputs["attention_mask"])}
    return {k: torch.tensor(np.asarray(v)) for k, v in inputs.items() if k in takes or k == "labels"}


_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **facts: (
        _compiled.append(facts.get("fun_name", "?")) if event.endswith("backend_compile_duration") else None
    )
)


@contextlib.contextmanager
def at_most(programs: int) -> Iterator[None]:
    """The budget of a family, in programs that are compiled: exact where seconds are not."""
    before = len(_compiled)
    yield
    assert len(_compiled) - before <= programs, f"compiled {_compiled[before:]}: {programs} would do"


def close(got: Any, want: Any, mask: np.ndarray | None, atol: float = 1e-4) -> None:
    """Equal where there are tokens."""
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    assert got.shape == want.shape
    if mask is not None and got.shape[:2] == mask.shape:
        got, want = got[mask > 0], want[mask > 0]
    elif mask is not None and got.ndim == 4 and got.shape[1:3] == mask.shape:  # several streams of hidden states
        got, want = got[:, mask > 0], want[:, mask > 0]
    np.testing.assert_allclose(got, want, atol=atol, rtol=1e-4)


# Shared by the tests of a family, which run one after the other: its programs are these two, a generation and a `step`.
loss_and_gradient = jax.jit(jax.value_and_grad(lambda model, batch: ef.compute_loss(model, batch)[0], allow_int=True))
forward = jax.jit(lambda model, inputs: ef.forward(model, **inputs, output_hidden_states=True))


# The heads on encoders are compared in test_encoders.py.
@pytest.mark.quick(
    "models",
    "one family of each kind: a decoder, windows, experts, a recurrence, an encoder, both, a mixture of kinds",
    rows=["llama", "gemma3", "mixtral", "mamba2", "bert", "t5", "qwen3_next", "deepseek_v3"],
)
@pytest.mark.parametrize("name", [n for n in CASES if n in FAMILIES or n not in ENCODERS], scope="module")
def test_agrees_with_transformers(name):
    """Outputs and every hidden state, with rows padded on the left and on the right."""
    import torch

    case = CASES[name]
    inputs, mask = given(case)
    module = case.make() if "dynamic" in name else case.torch()  # dynamic frequencies are state of the module
    with torch.no_grad():
        want = module(**torch_inputs(module, inputs), output_hidden_states=True)
    model = case.model()
    if "input_ids" in inputs:
        assert ef.input_embeddings(model).padding == getattr(module.get_input_embeddings(), "padding_idx", None)
    with at_most(1):
        got = forward(model, inputs)
    answers = [k for k in ANSWERS if k in want]
    for key in answers:
        side = mask[:, :5] if mask is not None and "decoder_input_ids" in inputs else mask
        close(getattr(got, ANSWERS[key]), want[key], side)
    theirs = want.get("hidden_states")
    if theirs is not None and got.hidden_states is not None and not case.encoder_decoder:
        assert len(got.hidden_states) == len(theirs)
        for a, b in zip(got.hidden_states, theirs, strict=True):
            close(a, b, mask)
    assert answers or theirs is not None


@pytest.mark.quick("models", "the same tokens with a cache", rows=["llama", "mamba2", "t5"])
@pytest.mark.parametrize(
    "name", [n for n in FAMILIES if CASES[n].generates and CASES[n].inputs is None], scope="module"
)
def test_greedy_decoding(name):
    """Ten tokens after prompts padded on the left, past the window of those that have one: each step's logits, too."""
    import torch

    case = CASES[name]
    ids = np.random.RandomState(3).randint(3, VOCAB, (3, 11))
    mask = np.ones_like(ids)
    mask[1, :2] = mask[2, :4] = 0
    ids = np.where(mask > 0, ids, 0)
    if case.encoder_decoder:  # encoders count places
        ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    options |= {"repetition_penalty": 1.3, "output_logits": True, "return_dict_in_generate": True}  # no token for ever
    rows = [(ids, mask)] if case.left else [(i[m > 0][None], m[m > 0][None]) for i, m in zip(ids, mask, strict=True)]
    with torch.no_grad():  # without its cache: an encoder-decoder's fails where the decoder is deeper than the encoder
        each = [
            case.torch().generate(
                torch.tensor(i), attention_mask=torch.tensor(m), use_cache=not case.encoder_decoder, **options
            )
            for i, m in rows
        ]
    new = -len(each[0].logits)
    want = np.concatenate([found.sequences[:, new:].numpy() for found in each])
    logits = [torch.cat(step).numpy() for step in zip(*(found.logits for found in each), strict=True)]
    # Of an encoder-decoder, the settings of its generation too: which tokens are forced.
    model = ef.from_torch(case.torch()) if case.encoder_decoder else case.model()
    with at_most(4):  # one, and of a family that forces a token what puts it there
        ours = ef.generate(model, ids, attention_mask=mask, **options)
    np.testing.assert_array_equal(np.asarray(ours.sequences)[:, new:], want)
    for got, one in zip(ours.logits, logits, strict=True):
        np.testing.assert_allclose(got, one, atol=1e-4, rtol=1e-4)


TRAINS = {
    "causal-lm": lambda ids, mask: np.where(mask * np.roll(mask, 1, axis=1) > 0, ids, -100),  # none after padding
    "seq2seq-lm": lambda ids, mask: ids[:, :5],
    "masked-lm": lambda ids, mask: np.where(mask > 0, ids, -100),
    "sequence-classification": lambda ids, mask: np.arange(len(ids)) % 2,
    "image-classification": lambda ids, mask: np.arange(2) % 2,
}


@pytest.mark.quick("models", "the same gradient", rows=["llama", "bert"])
@pytest.mark.parametrize("name", [n for n in FAMILIES if CASES[n].task in TRAINS], scope="module")
def test_gradient(name):
    """The loss of transformers, and its gradient by every parameter that is stored as transformers stores it."""
    import torch

    from easyfn.io.torch.modules import tensors_of

    case = CASES[name]
    inputs, mask = given(case)
    target = inputs.pop("decoder_input_ids", None)
    labels = TRAINS[case.task](inputs.get("input_ids", target), mask)
    module = case.make().requires_grad_(True)
    cache = {"use_cache": False} if case.recurrent else {}  # which some write in place
    want = module(**torch_inputs(module, {**inputs, "labels": labels}), **cache).loss
    want.backward()

    model = case.model()
    with at_most(1):
        loss, grads = loss_and_gradient(model, {**inputs, "labels": labels})
    np.testing.assert_allclose(loss, want.item(), rtol=1e-4)
    trained = lambda g, t: g if t and g.dtype != jax.dtypes.float0 else np.full(g.shape, np.nan)  # buffers are not
    ours = ef.to_state_dict(jax.tree.map(trained, grads, ef.trainable(model)))
    ours = {n: g for n, g in ours.items() if not np.isnan(g).all()}
    theirs = {n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
    # And under the names of files: what renames and stacks weights does so to gradients.
    for parameter in module.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    for buffer in module.buffers():  # which have none
        buffer.zero_()
    theirs |= tensors_of(module)
    both = [n for n in theirs if n in ours and ours[n].shape == theirs[n].shape]
    assert len(both) > len(ours) // 2, sorted(set(ours) - set(both))
    for n in both:
        scale = np.abs(theirs[n]).max() + 1e-3
        np.testing.assert_allclose(np.asarray(ours[n]) / scale, theirs[n] / scale, atol=3e-4, err_msg=n)


TRAINED = [n for n in FAMILIES if CASES[n].task in TRAINS]


@jax.jit
def step(base: Any, adapter: Any, batch: dict[str, Any]) -> Any:
    """The step of training that a user writes: the loss and its gradient by the adapter."""
    return jax.value_and_grad(lambda a: ef.compute_loss(ef.join_lora(base, a), batch)[0])(adapter)


@pytest.mark.quick("models", "all transforms on one model", rows=["llama"])
@pytest.mark.parametrize("name", in_test_all(COMPOSED, TRAINED), scope="module")
def test_all_transforms_at_once(name):
    """Stacked, quantized, adapted and sharded: the loss is that of the dense, merged, listed model on one device."""
    case = CASES[name]
    inputs, mask = given(case)
    target = inputs.pop("decoder_input_ids", None)
    batch = {**inputs, "labels": TRAINS[case.task](inputs.get("input_ids", target), mask)}

    model = ef.quantize(case.model(), ef.QuantConfig("8bit"))
    base, adapter = ef.split_lora(ef.apply_lora(model, "all-linear", rank=2, key=jax.random.key(0)))
    noise = np.random.default_rng(1)
    adapter = jax.tree.map(lambda x: x + 0.05 * noise.standard_normal(x.shape, np.float32), adapter)
    model = ef.join_lora(base, adapter)
    rules = ef.ShardingRules(indivisible="replicate")  # three rows, 97 tokens
    moved = ef.shard(ef.stack(model), rules, ef.make_mesh(fsdp=2, tp=2, dp=2))
    base, adapter = ef.split_lora(moved)
    with at_most(1):
        loss, grads = step(base, adapter, batch)
    want = jax.jit(lambda m, b: ef.compute_loss(ef.merge_lora(ef.dequantize(m)), b)[0])(model, batch)
    np.testing.assert_allclose(loss, want, rtol=5e-5)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        # No gradient goes through a choice of keys, nor, of a masked language model, through a pooler that its files hold.
        idle = any(part in jax.tree_util.keystr(path) for part in ("indexer", "pooler"))
        assert np.isfinite(g).all() and (idle or np.abs(g).max() > 0), path


def test_heads_on_decoders_are_named_as_transformers_names_them():
    """Every class is one of transformers, of that config; and of heads that tag and answer, where they and the decoder are in a
    file, and how wide they are."""
    import torch
    import transformers

    from easyfn.names.rules import tensors
    from easyfn.registry.family import abstract_config

    heads, compared = ("score", "classifier", "qa_outputs"), 0
    for name in (n for n in FAMILIES if CASES[n].task == "causal-lm" and CASES[n].inputs is None):
        module = CASES[name].torch()
        if type(module).config_class is not type(module.config):
            continue  # it has Llama's classes there, and files name those of the checkpoint's own code
        known = ef.families()[module.config.model_type]
        for architecture, task in known.architectures.items():
            if architecture in ("LLaMAForCausalLM",):  # of old files
                continue
            cls = getattr(transformers, architecture, None) or getattr(inspect.getmodule(type(module)), architecture)
            assert cls.config_class is type(module.config), architecture
            if task not in ("token-classification", "question-answering"):
                continue
            with torch.device("meta"):
                theirs = {n: tuple(x.shape) for n, x in cls(module.config).state_dict().items()}
            model = abstract_config(CASES[name].model().config, task, None)
            found = [t for some in tensors(model, known.names(model)).values() for t in some]
            ours = {n: t.shape for t in found for n in t.names}
            first, second = ({n.split(".")[0] for n in names} for names in (ours, theirs))
            assert first == second, architecture
            assert {n: ours[n] for n in ours if n.split(".")[0] in heads} == {
                n: theirs[n] for n in theirs if n.split(".")[0] in heads
            }, architecture
            compared += 1
    assert compared > 55


@pytest.mark.quick("models", "the pages are up to date")
def test_the_pages_name_every_family():
    """docs/families.md and README.md are what `python benchmarks/families.py` writes."""
    path = Path(__file__).parent.parent / "benchmarks/families.py"
    spec = importlib.util.spec_from_file_location("families_page", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run python benchmarks/families.py"
    assert made.README.read_text(encoding="utf-8") == made.readme(), "run python benchmarks/families.py"
