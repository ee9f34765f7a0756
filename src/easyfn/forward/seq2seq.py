"""Encoder-decoders: what `forward`, `compute_loss` and generation do when there are two sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.rows import by_row, of_batch
from ..core.verb import verb
from ..generation.model import decoder_prompt
from ..inputs.checks import check_ids, checked, sequence_of
from ..inputs.context import advance, make_context
from ..inputs.statement import Inputs, accepted, by_custom, inputs as inputs_of
from ..nn.cache.cache import Cache
from ..nn.context import Runtime
from ..nn.output import Output
from ..nn.seq2seq import Seq2Seq, Seq2SeqLM, source_segments
from ..tasks.cross_entropy import LossConfig, Metrics, as_array, check_shape, segments_of, vocabulary_loss
from ..tasks.loss import compute_loss, setting, split_labels
from ..tasks.task import task
from .forward import call, forward

_OUTPUTS = ("hidden_states", "attentions")


@verb(example="@ef.encode.register({type})\ndef _(model, input_ids=None, **inputs): return ...   # an ef.Output")
def encode(
    model: Any,
    input_ids: Any = None,
    *,
    attention_mask: Any = None,
    segment_ids: Any = None,
    inputs_embeds: Any = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    adapter_ids: Any = None,
    **inputs: Any,
) -> Output:
    """The encoder of an encoder-decoder alone: `last_hidden_state` `(batch, source, embed)`.

    What is no text (`input_features`, ...) is given by its name. Give the output to [`easyfn.forward`][] as
    `encoder_outputs` to decode several times from one encoding.

    ```python
    import jax, easyfn as ef
    config = ef.models.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    model = ef.init(config, key=jax.random.key(0))
    ids = jax.numpy.array([[5, 6, 7, 1]])
    encoded = ef.encode(model, ids)
    again = ef.forward(model, encoder_outputs=encoded, decoder_input_ids=jax.numpy.array([[0, 9]]))
    assert again.logits.shape == (1, 2, 64)
    ```
    """
    if hasattr(model, "model"):
        return encode(
            model.model,
            input_ids,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            key=key,
            runtime=runtime,
            adapter_ids=adapter_ids,
            **inputs,
        )
    if not isinstance(model, Seq2Seq):
        raise encode.missing(model, "It is no encoder-decoder that easyfn knows of.")
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **inputs}
    if reads_text(model):
        ids, embeds = check_ids(model, input_ids, inputs_embeds)
        shape = (ids if ids is not None else embeds).shape[:2]
    else:
        stated = inputs_of(model.encoder)
        given = checked(stated, given, model.encoder)
        shape = sequence_of(stated, given)
        if not stated.sequence:  # it reads all that it is given
            attention_mask = segment_ids = None
    if adapter_ids is not None:
        model = by_row(model, adapter_ids, shape[0])
    context, _ = make_context(
        shape,
        attention_mask=attention_mask,
        segment_ids=segment_ids,
        key=key,
        runtime=runtime,
        outputs=_wanted(output_hidden_states, output_attentions),
    )
    if reads_text(model):
        given = {**inputs, "inputs_embeds": model.embed(ids) if embeds is None else embeds}
    return call(model.encoder, context, None, given)


def reads_text(model: Seq2Seq) -> bool:
    """Whether the source of an encoder-decoder is token ids."""
    return "inputs_embeds" in accepted(model.encoder)


def _wanted(hidden_states: bool, attentions: bool) -> frozenset[str]:
    return frozenset(name for name, want in zip(_OUTPUTS, (hidden_states, attentions), strict=True) if want)


@forward.register(Seq2Seq, Seq2SeqLM)
def seq2seq_forward(
    model: Any,
    input_ids: Any = None,
    *,
    attention_mask: Any = None,
    segment_ids: Any = None,
    inputs_embeds: Any = None,
    encoder_outputs: Any = None,
    decoder_input_ids: Any = None,
    decoder_attention_mask: Any = None,
    decoder_position_ids: Any = None,
    decoder_segment_ids: Any = None,
    decoder_inputs_embeds: Any = None,
    logits_to_keep: int | None = None,
    cache: Cache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    output_router_logits: bool = False,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    fresh: bool = False,
    adapter_ids: Any = None,
    **inputs: Any,
) -> Output:
    """[`easyfn.forward`][] of an encoder-decoder, with transformers' names for its second sequence.

    - `input_ids` or `inputs_embeds`, `attention_mask`, `segment_ids` and what else the encoder takes are the source;
      `encoder_outputs`, from [`easyfn.encode`][] (or an array of hidden states), replaces it: with the same
      `attention_mask`.
    - `decoder_input_ids` or `decoder_inputs_embeds`, with their `decoder_attention_mask`, `decoder_segment_ids`,
      `decoder_position_ids`, are what the decoder reads.
    - `cache`: of the decoder. Its first pass needs the source and keeps its keys and values; later ones need the new
      `decoder_input_ids` only.

    The output has the decoder's `last_hidden_state`, `hidden_states` and `attentions`, its `cross_attentions`, and
    `encoder_last_hidden_state`, `encoder_hidden_states`, `encoder_attentions`. Packed documents have the same
    numbers in `segment_ids` and `decoder_segment_ids`.
    """
    if output_router_logits:
        raise ValueError(f"forward: {type(model).__name__} has no routers")
    ids, embeds = check_ids(model, decoder_input_ids, decoder_inputs_embeds, prefix="decoder_")
    if adapter_ids is not None:  # of both sides
        model = by_row(model, adapter_ids, (ids if ids is not None else embeds).shape[0])
    if (segment_ids is None) != (decoder_segment_ids is None):
        raise ValueError("forward: packed documents need both segment_ids and decoder_segment_ids")
    options = {
        "output_hidden_states": output_hidden_states,
        "output_attentions": output_attentions,
        "runtime": runtime,
        "key": None if key is None else jax.random.fold_in(key, 1),
    }
    source = {"attention_mask": attention_mask, "segment_ids": segment_ids}
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **inputs}
    given = {name: value for name, value in given.items() if value is not None}
    encoded = None
    if encoder_outputs is not None:
        if given:
            raise ValueError(f"forward: encoder_outputs are given, so {', '.join(given)} would not be read")
        encoded = _as_output(encoder_outputs)
    elif given:
        encoded = encode(model, given.pop("input_ids", None), **source, **given, **options)
    elif cache is None or attention_mask is not None:
        asked = "attention_mask belongs to the source: " if attention_mask is not None else ""
        raise ValueError(f"forward: {asked}give input_ids, inputs_embeds or encoder_outputs as well")
    context, cache = make_context(
        (ids if ids is not None else embeds).shape[:2],
        attention_mask=decoder_attention_mask,
        position_ids=decoder_position_ids,
        segment_ids=decoder_segment_ids,
        cache=cache,
        key=None if key is None else jax.random.fold_in(key, 2),
        runtime=runtime,
        fresh=fresh,
        outputs=_wanted(output_hidden_states, output_attentions),
    )
    if encoded is not None:
        hidden = encoded.last_hidden_state
        assert hidden is not None
        if hidden.shape[0] != context.segment_ids.shape[0]:
            raise ValueError(
                f"the source has {hidden.shape[0]} rows and the decoder's input {context.segment_ids.shape[0]}"
            )
        base = model if isinstance(model, Seq2Seq) else model.model
        segments = _source_segments(base, hidden, attention_mask, segment_ids)
        context = context.replace(encoder=(hidden, segments))
    more = {"input_ids": ids, "inputs_embeds": embeds, "logits_to_keep": logits_to_keep}
    more = {name: value for name, value in more.items() if value is not None}
    out = model(context, None if cache is None else cache.layers, **more)
    if cache is not None:
        out = out.replace(cache=advance(cache, context, out.cache))
    if encoded is None:
        return out
    return out.replace(
        encoder_last_hidden_state=encoded.last_hidden_state,
        encoder_hidden_states=encoded.hidden_states,
        encoder_attentions=encoded.attentions,
    )


@accepted.register(Seq2Seq, Seq2SeqLM)
def _(model: Any) -> set[str]:
    second = {
        f"decoder_{name}" for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "segment_ids")
    }
    base = model if isinstance(model, Seq2Seq) else model.model
    source = {"input_ids", "inputs_embeds"} if reads_text(base) else accepted(base.encoder)
    own = {*source, "encoder_outputs", *second}
    return own | {"logits_to_keep"} if isinstance(model, Seq2SeqLM) else own


@inputs_of.register(Seq2Seq)
def _(model: Seq2Seq) -> Inputs:
    fields = {name: by_custom(name, model.config) for name in sorted(accepted(model))}
    if reads_text(model):
        return Inputs(fields)
    source = inputs_of(model.encoder)
    return source.replace(fields={**source.fields, **{n: one for n, one in fields.items() if n not in source.fields}})


def _as_output(encoded: Any) -> Output:
    if isinstance(encoded, Output):
        return encoded
    if isinstance(encoded, (tuple, list)):
        encoded = encoded[0]
    return Output(last_hidden_state=jnp.asarray(getattr(encoded, "last_hidden_state", encoded)))


def _source_segments(model: Seq2Seq, hidden: jax.Array, attention_mask: Any, segment_ids: Any) -> jax.Array:
    """The encoder's padding and documents, `(batch, source)`."""
    shape = hidden.shape[:2]
    inputs = {"attention_mask": attention_mask, "segment_ids": segment_ids}
    inputs = {name: as_array(value) for name, value in inputs.items() if value is not None}
    if inputs and not reads_text(model):
        found = segments_of(inputs, next(iter(inputs.values())).shape)
        assert found is not None
        return source_segments(model.encoder, found.astype(jnp.int32), shape[1])
    if any(value.shape != shape for value in inputs.values()):
        name, value = next((n, v) for n, v in inputs.items() if v.shape != shape)
        raise ValueError(f"{name} has shape {tuple(value.shape)} and the encoder's output {tuple(shape)}")
    found = segments_of(inputs, shape)
    return jnp.ones(shape, jnp.int32) if found is None else found.astype(jnp.int32)


@task.register(Seq2SeqLM)
def _(model: Seq2SeqLM) -> str:
    return "seq2seq-lm"


@decoder_prompt.register(Seq2SeqLM)
def _(model: Seq2SeqLM, ids: Any, attention_mask: Any, start: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    if inputs.get("decoder_input_ids") is not None:
        return as_array(inputs["decoder_input_ids"]), inputs.get("decoder_attention_mask")
    start = decoder_start(model.config) if start is None else start
    return jnp.full((ids.shape[0], 1), start, jnp.int32), None


def decoder_start(config: Any) -> int:
    """The id that a decoder starts from; `ValueError` if neither the config nor its generation settings name it."""
    for name in ("decoder_start_token_id", "bos_token_id"):
        found = (getattr(config, "generation", None) or {}).get(name)
        found = setting(config, name) if found is None else found
        if found is not None:
            return int(found)
    raise ValueError("the config has no decoder_start_token_id: give decoder_input_ids yourself")


def shift_right(labels: jax.Array, start: int, pad: int | None) -> jax.Array:
    """What a decoder reads to predict `labels` `(batch, seq)`: `start`, then all but the last; -100 becomes `pad`."""
    if pad is None:
        raise ValueError(
            "the config has no pad_token_id, which stands for ignored labels: give decoder_input_ids yourself"
        )
    moved = jnp.concatenate([jnp.full_like(labels[:, :1], start), labels[:, :-1]], axis=1)
    return jnp.where(moved == -100, pad, moved)


@compute_loss.register(Seq2SeqLM)
def seq2seq_loss(
    model: Seq2SeqLM,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of the decoder's scores and `labels`, which are not shifted.

    Without `decoder_input_ids` the decoder reads the labels moved one place right, after the config's
    `decoder_start_token_id`.
    """
    if cfg.kind not in (None, "cross-entropy"):
        raise ValueError(f"compute_loss: the labels of {type(model).__name__} are a cross entropy, not {cfg.kind!r}")
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels']")
    if "decoder_input_ids" not in inputs and "decoder_inputs_embeds" not in inputs:
        inputs["decoder_input_ids"] = shift_right(
            labels, decoder_start(model.config), setting(model.config, "pad_token_id")
        )
    model, inputs = of_batch(model, inputs, labels.shape[0])
    out = forward(model.model, **inputs, key=key, runtime=runtime)
    assert out.last_hidden_state is not None
    check_shape(labels, out.last_hidden_state.shape[:2])
    given = {"attention_mask": inputs.get("decoder_attention_mask"), "segment_ids": inputs.get("decoder_segment_ids")}
    segments = segments_of({name: value for name, value in given.items() if value is not None}, labels.shape)
    weights = None if segments is None else segments > 0
    return vocabulary_loss(model, out.last_hidden_state, labels, weights, cfg)
