"""What is checked and decided before a program runs: the facts that shape it (`Plan`) and its data (`Data`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..inputs.checks import aligned, by_token, check_ids, checked, fits
from ..inputs.statement import accepted, inputs as inputs_of
from ..nn.cache.cache import Cache
from ..nn.context import Runtime
from . import checks
from .chain import part, processors_of
from .config import GenerationConfig
from .constraint import constrained
from .model import can_generate, decoder_prompt, encodes, source_name
from .options import resolve, with_defaults
from .speech import default_prompt
from .stop import stop_table

Tracer = jax.core.Tracer


@dataclasses.dataclass(frozen=True)
class Plan:
    """The facts of a call that shape its program; everything else (ids, keys, temperatures) is data."""

    prompt_length: int
    max_length: int
    eos: tuple[int, ...]
    pad: int
    text: bool  # what the model reads first is token ids
    infer_mask: bool
    start: Any
    rows: int  # for each prompt: its beams, or the answers drawn
    returned: int  # for each prompt
    beams: bool
    early_stopping: Any
    sample: bool
    guided: bool
    outputs: frozenset[str]  # scores, logits, hidden_states, attentions, cache
    resumed: int  # columns of the prompt that a given cache holds
    chunk: int | None  # columns of the prompt that are run at once
    quantized: bool  # the cache
    drafted: int  # tokens that a round drafts
    ngram: int  # the longest run of tokens that is looked up for a draft
    runtime: Runtime
    processors: tuple[Any, tuple[Any, ...]]  # treedef and what in it is no number

    @property
    def inputs(self) -> dict[str, Any]:
        """What every pass of the model is given."""
        given: dict[str, Any] = {name: True for name in self.recorded}
        return given if self.runtime == Runtime() else {"runtime": self.runtime, **given}

    @property
    def recorded(self) -> tuple[str, ...]:
        """The outputs of the model that are kept of every pass."""
        return tuple(f"output_{name}" for name in ("hidden_states", "attentions") if name in self.outputs)


class Data(NamedTuple):
    """The arrays of a call."""

    ids: Any
    mask: Any
    keys: Any
    numbers: Any  # of the processors
    inputs: dict[str, Any]  # of the model, for the prompt
    cache: Any = None
    stop: Any = None  # the table of `stop.py`
    negative: Any = None  # (ids, mask) of the prompt to be guided away from
    guidance: Any = None
    length_penalty: Any = None
    draft: Any = None  # a model


class Call(NamedTuple):
    plan: Plan
    data: Data


def prepare(
    model: Any,
    ids: Any,
    attention_mask: Any,
    key: Any,
    config: Any,
    processors: Sequence[Any],
    runtime: Runtime,
    options: Mapping[str, Any],
    *,
    return_cache: bool = False,
    cache: Any = None,
    tokenizer: Any = None,
    negative_prompt_ids: Any = None,
    negative_prompt_attention_mask: Any = None,
    assistant_model: Any = None,
) -> Call:
    """Everything that is checked and decided before a program runs."""
    if not can_generate(model):
        raise can_generate.missing(
            model,
            "generate continues token ids, so it needs a language model with a head over them: ef.load(path, task='causal-lm') "
            "where the checkpoint has one. What this model answers is ef.forward(model, ...); the vectors of texts are "
            "ef.embed(model, texts, tokenizer=ef.tokenizer(path)).",
        )
    source = source_name(model)
    ids, options = _source(source, ids, options)
    text = source == "input_ids"
    if text:
        ids, attention_mask = checks.prompt(model, ids, attention_mask)
    else:
        ids = checked(inputs_of(model), {source: ids}, model)[source]
    inputs, options = _inputs(model, options, source)
    images = features_of(model, source, ids, inputs)
    c = resolve(getattr(model, "config", None), config, options)

    start_id = c.decoder_start_token_id if c.decoder_start_token_id is not None else c.bos_token_id
    if not text and "decoder_input_ids" not in inputs and start_id is not None:
        inputs["decoder_input_ids"] = default_prompt(model.config, start_id, ids.shape[0])
    shape = lambda: decoder_prompt(model, jnp.zeros(ids.shape, jnp.int32), None, start_id, inputs)[0]
    length = jax.eval_shape(shape).shape[1]
    second = encodes(model)
    infer_mask = text and c.pad_token_id is not None and c.pad_token_id not in c.eos
    mask = attention_mask
    if mask is None and infer_mask and not isinstance(ids, Tracer):
        mask = np.asarray(ids) != c.pad_token_id
        checks.no_empty_rows(mask, f"nothing but pad_token_id={c.pad_token_id}")
    max_length = checks.longest(model, c, length, None if second else mask, in_pieces=bool(c.prefill_chunk_size))
    asked = c
    c = with_defaults(c)
    checks.vocabulary(model, c)
    beams, returned = c.num_beams or 1, c.num_return_sequences or 1
    drafted, ngram = checks.drafts(model, asked, assistant_model)
    for name, used in (("num_assistant_tokens", assistant_model is not None), ("max_matching_ngram_size", ngram > 0)):
        if options.get(name) is not None and not used:
            needs = "assistant_model=" if name == "num_assistant_tokens" else "prompt_lookup_num_tokens="
            raise ValueError(f"generate: {name} has an effect only with {needs}; leave it out")
    if beams == 1 and returned > 1 and not c.do_sample:
        raise ValueError(
            f"num_return_sequences={returned}: greedy decoding has one answer; add do_sample=True, or num_beams="
        )
    guided = not isinstance(c.guidance_scale, (int, float)) or c.guidance_scale != 1
    checks.together(
        beams=beams > 1 and f"num_beams={beams}",
        drafts=drafted > 0 and ("assistant_model" if assistant_model is not None else "prompt_lookup_num_tokens"),
        guided=guided and f"guidance_scale={c.guidance_scale}",
        cache=cache is not None and "cache",
        second=second and type(model).__name__,
        images=not second and images,
        chunks=c.prefill_chunk_size and f"prefill_chunk_size={c.prefill_chunk_size}",
        inner=(c.output_hidden_states and "output_hidden_states") or (c.output_attentions and "output_attentions"),
        scores=(c.output_scores and "output_scores") or (c.output_logits and "output_logits"),
        return_cache=return_cache and "return_cache",
        quantized=c.cache_implementation == "quantized" and "cache_implementation='quantized'",
        encoder=(c.encoder_no_repeat_ngram_size and "encoder_no_repeat_ngram_size")
        or (c.encoder_repetition_penalty != 1.0 and "encoder_repetition_penalty"),
    )
    negative = None
    if guided:
        negative = checks.negative(model, ids.shape[0], negative_prompt_ids, negative_prompt_attention_mask)
    elif negative_prompt_ids is not None or negative_prompt_attention_mask is not None:
        raise ValueError("generate: negative_prompt_ids has an effect only with guidance_scale= other than 1")
    resumed = checks.resumed(cache, ids.shape[0], length, max_length, mask)
    outputs = {name for name in ("scores", "logits", "hidden_states", "attentions") if getattr(c, f"output_{name}")}

    encoder_ids = None
    rows = beams if beams > 1 else returned
    if c.encoder_no_repeat_ngram_size or c.encoder_repetition_penalty != 1.0:
        if not text:
            raise ValueError(
                f"generate: encoder_no_repeat_ngram_size and encoder_repetition_penalty speak of tokens, and {source} are none"
            )
        if mask is None:
            mask = ids != c.pad_token_id if infer_mask else jnp.ones_like(ids)
        encoder_ids = jnp.repeat(jnp.where(mask != 0, ids, -1), rows, axis=0)
    extra = constrained(processors, c.eos, ids.shape[0])
    chain = processors_of(c, prompt_length=length, max_length=max_length, encoder_ids=encoder_ids, extra=extra)
    numbers, fixed = part(chain)
    plan = Plan(
        prompt_length=length,
        max_length=max_length,
        eos=c.eos,
        pad=c.pad if c.pad is not None else 0,
        text=text,
        infer_mask=infer_mask,
        start=start_id,
        rows=rows,
        returned=returned,
        beams=beams > 1,
        early_stopping=c.early_stopping if beams > 1 else None,
        sample=bool(c.do_sample),
        guided=guided,
        outputs=frozenset(outputs | {"cache"} if return_cache else outputs),
        resumed=resumed,
        chunk=c.prefill_chunk_size,
        quantized=c.cache_implementation == "quantized",
        drafted=drafted,
        ngram=ngram,
        runtime=runtime,
        processors=fixed,
    )
    data = Data(
        ids=ids,
        mask=attention_mask,
        keys=checks.keys(key, ids.shape[0]) if c.do_sample else None,  # greedy: a key is not another program either
        numbers=numbers,
        inputs=inputs,
        cache=cache,
        stop=_stop(c, tokenizer, model),
        negative=negative,
        guidance=jnp.asarray(c.guidance_scale, jnp.float32) if guided else None,
        length_penalty=jnp.asarray(c.length_penalty, jnp.float32) if beams > 1 else None,
        draft=assistant_model,
    )
    return Call(plan, data)


def _source(name: str, ids: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The prompt, which may also be given by its name (`input_features=`), and the other options."""
    named = options.get(name)
    if (ids is None) == (named is None):
        raise ValueError(
            f"generate: give {name}, as the second argument or by name, "
            + ("not both" if named is not None else "once")
        )
    return named if ids is None else ids, {key: value for key, value in options.items() if key != name}


def _inputs(model: Any, options: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of the options the model itself takes, and the others."""
    takes = accepted(model) - {source, "input_ids", "inputs_embeds", "logits_to_keep"}
    types = inputs_of(model).fields.get("token_type_ids")
    if types is None or types.kind != "mask":  # types of segments would go on with the answer, those of images do not
        takes -= {"token_type_ids"}
    inputs = {name: value for name, value in options.items() if name in takes and value is not None}
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"], _ = check_ids(model, inputs["decoder_input_ids"], None, prefix="decoder_")
    inputs = {name: jnp.asarray(v) if isinstance(v, (list, np.ndarray)) else v for name, v in inputs.items()}
    return inputs, {name: value for name, value in options.items() if name not in takes}


def features_of(model: Any, source: str, ids: Any, inputs: dict[str, Any]) -> str:
    """The names of inputs that enter with the whole prompt (pixels, sound, which tokens they are), checked against what the
    model states; `""` for none."""
    stated = inputs_of(model)
    enters = lambda one: one.floating or (one.kind == "mask" and by_token(one))
    names = [name for name in inputs if name in stated.fields and enters(stated.fields[name])]
    if names:
        given = {name: inputs[name] for name in inputs if name in stated.fields}
        inputs |= {
            name: value for name, value in checked(stated, {source: ids, **given}, model).items() if name in given
        }
        if source == "input_ids":
            aligned(stated, {source: ids, **given})
        fits(model, {source: ids, **inputs})
    return ", ".join(names)


def _stop(c: GenerationConfig, tokenizer: Any, model: Any) -> Any:
    if c.stop_strings is None:
        return None
    if tokenizer is None:
        raise ValueError("generate: stop_strings need the tokenizer that says which text each token is: tokenizer=")
    strings = (c.stop_strings,) if isinstance(c.stop_strings, str) else c.stop_strings
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    return jnp.asarray(stop_table(tokenizer, strings, size))


def slots(plan: Plan, data: Data) -> int:
    """The places that a cache of the whole generation has."""
    longer = 0 if data.negative is None else max(0, data.negative[0].shape[1] - plan.prompt_length)
    return plan.max_length + longer + plan.drafted


def empty(cache: Cache) -> bool:
    """Whether a cache is known to hold nothing."""
    return not isinstance(cache.length, Tracer) and int(np.max(np.asarray(cache.length))) == 0
