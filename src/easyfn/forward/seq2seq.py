"""Encoder-decoders: the encoder alone, and the two sequences of a call told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..core.rows import by_row
from ..core.verb import verb
from ..inputs.checks import check_ids, checked, sequence_of
from ..inputs.context import make_context
from ..inputs.statement import Inputs, accepted, by_custom, inputs as inputs_of
from ..nn.context import Context, Runtime
from ..nn.output import Output
from ..nn.seq2seq import Seq2Seq, Seq2SeqLM, moved_right, source_segments

OUTPUTS = ("hidden_states", "attentions", "router_logits")
_MASKS = ("attention_mask", "position_ids", "segment_ids")


def wanted(*asked: bool) -> frozenset[str]:
    """The names of the optional outputs that are asked for, in the order of `OUTPUTS`."""
    return frozenset(name for name, want in zip(OUTPUTS, asked, strict=True) if want)


def call(model: Any, context: Context, layers: Any, inputs: dict[str, Any]) -> Output:
    """Calls a model with the inputs that are given; an input that it does not know is refused by name."""
    given = {name: jnp.asarray(v) if isinstance(v, np.ndarray) else v for name, v in inputs.items() if v is not None}
    unknown = set(given) - accepted(model)
    if unknown:
        known = ", ".join(sorted(accepted(model)))
        raise TypeError(f"forward: {type(model).__name__} takes no {', '.join(sorted(unknown))}; it takes {known}")
    return model(context, layers, **given)


@verb(example="@ef.encode.register({type})\ndef _(model, input_ids=None, **inputs): return ...   # an ef.Output")
def encode(
    model: Any,
    input_ids: Int[Array, "batch seq"] | Host | None = None,
    *,
    attention_mask: Shaped[Array, "rows keys"] | Host | None = None,
    position_ids: Int[Array, "*axes rows seq"] | Host | None = None,
    segment_ids: Int[Array, "rows seq"] | Host | None = None,
    inputs_embeds: Float[Array, "batch seq embed"] | Host | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    output_router_logits: bool = False,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    adapter_ids: Int[Array, " rows"] | Host | None = None,
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
    model = base(model)
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
            attention_mask = position_ids = segment_ids = None
    if adapter_ids is not None:
        model = by_row(model, adapter_ids, shape[0])
    context, _ = make_context(
        shape,
        attention_mask=attention_mask,
        position_ids=position_ids,
        segment_ids=segment_ids,
        key=key,
        runtime=runtime,
        outputs=wanted(output_hidden_states, output_attentions, output_router_logits),
    )
    if reads_text(model):
        given = {**inputs, "inputs_embeds": model.embed(ids, "encoder") if embeds is None else embeds}
    return call(model.encoder, context, None, given)


def reads_text(model: Seq2Seq) -> bool:
    """Whether the source of an encoder-decoder is token ids."""
    return "inputs_embeds" in accepted(model.encoder)


def base(model: Any) -> Any:
    """The model under all heads."""
    return base(model.model) if hasattr(model, "model") else model


@accepted.register(Seq2Seq)
def _(model: Seq2Seq) -> set[str]:
    second = {f"decoder_{name}" for name in ("input_ids", "inputs_embeds", *_MASKS)}
    source = {"input_ids"} if reads_text(model) else set()
    return {*source, "encoder_outputs", *second, *accepted(model.encoder)}


@accepted.register(Seq2SeqLM)
def _(model: Seq2SeqLM) -> set[str]:
    return accepted(model.model) | {"logits_to_keep"}


@inputs_of.register(Seq2Seq)
def _(model: Seq2Seq) -> Inputs:
    fields = {name: by_custom(name, model.config) for name in sorted(accepted(model))}
    if reads_text(model):
        return Inputs(fields)
    source = inputs_of(model.encoder)
    return source.replace(fields={**source.fields, **{n: one for n, one in fields.items() if n not in source.fields}})


def two_sequences(stated: Inputs) -> bool:
    """Whether a model reads a source and continues another sequence."""
    return "decoder_input_ids" in stated.fields


@dataclasses.dataclass(frozen=True)
class Source:
    """What of a call is for the encoder: `given`, its masks, and the outputs that replace it."""

    given: Mapping[str, Any]
    masks: Mapping[str, Any]
    encoder_outputs: Any

    def encoded(self, model: Any, **options: Any) -> Output | None:
        """The encoder's output; `None` where the cache holds what is made of it."""
        if self.encoder_outputs is not None:
            return _as_output(self.encoder_outputs)
        return encode(model, **self.given, **self.masks, **options) if self.given else None

    def into(self, model: Any, context: Context, encoded: Output | None) -> Context:
        """The decoder's context with the encoder's output in it."""
        if encoded is None:
            return context
        hidden = encoded.last_hidden_state
        assert hidden is not None
        if hidden.shape[0] != context.segment_ids.shape[0]:
            raise ValueError(
                f"the source has {hidden.shape[0]} rows and the decoder's input {context.segment_ids.shape[0]}"
            )
        masks = {name: value for name, value in self.masks.items() if name != "position_ids" and value is not None}
        rows, length = hidden.shape[:2]
        read = shape = (rows, length)
        if masks and not reads_text(base(model)):  # what the encoder reads may be longer than what it says
            rows, length = np.shape(next(iter(masks.values())))
            read = (rows, length)
        elif wrong := [(name, np.shape(value)) for name, value in masks.items() if np.shape(value) != shape]:
            raise ValueError(f"{wrong[0][0]} has shape {wrong[0][1]} and the encoder's output {shape}")
        seen = make_context(read, **masks)[0].segment_ids
        if read != shape:
            seen = source_segments(base(model).encoder, seen, shape[1])
        return context.replace(encoder=(hidden, seen))


def apart(
    model: Any, stated: Inputs, given: Mapping[str, Any], masks: Mapping[str, Any], cached: bool
) -> tuple[Source, dict[str, Any], dict[str, Any]]:
    """The source of a call, and the decoder's inputs and masks under the plain names.

    Where nothing is given for the decoder of a model that was trained to restore texts (`Seq2Seq.restores`), it reads
    the source, moved one place right.
    """
    given = {name: value for name, value in given.items() if value is not None}
    main = ("decoder_input_ids", "decoder_inputs_embeds")
    second = {name: given.pop(name) for name in (*main, "logits_to_keep") if name in given}
    their = {name: given.pop(f"decoder_{name}", None) for name in _MASKS}
    outputs = given.pop("encoder_outputs", None)
    if unknown := set(given) - set(stated.fields):
        takes = ", ".join(sorted(stated.fields))
        raise TypeError(f"forward: {type(model).__name__} takes no {', '.join(sorted(unknown))}; it takes {takes}")
    if base(model).restores and not set(main) & set(second) and "input_ids" in given:
        second["decoder_input_ids"], their["attention_mask"] = _restored(model, given["input_ids"], masks)
    if "source_ids" in stated.fields and (ids := given.pop("source_ids", given.get("input_ids"))) is not None:
        second["source_ids"] = jnp.asarray(ids)  # of a head that looks for a token of the source
    second = checked(stated.replace(main=main), second, model)
    if (masks["segment_ids"] is None) != (their["segment_ids"] is None):
        raise ValueError("forward: packed documents need both segment_ids and decoder_segment_ids")
    if outputs is not None and given:
        raise ValueError(f"forward: encoder_outputs are given, so {', '.join(given)} would not be read")
    if outputs is None and not given and (not cached or masks["attention_mask"] is not None):
        asked = "attention_mask belongs to the source: " if masks["attention_mask"] is not None else ""
        raise ValueError(f"forward: {asked}give input_ids, inputs_embeds or encoder_outputs as well")
    return Source(given, masks, outputs), {n.removeprefix("decoder_"): v for n, v in second.items()}, their


def _restored(model: Any, ids: Any, masks: Mapping[str, Any]) -> tuple[jax.Array, jax.Array | None]:
    if masks["segment_ids"] is not None:
        raise ValueError("forward: packed documents need decoder_input_ids and decoder_segment_ids")
    ids, _ = check_ids(model, ids, None)
    mask = masks["attention_mask"]
    seen = None if mask is None else jnp.asarray(mask)
    config = model.config
    moved = moved_right(base(model), ids, config.decoder_start_token_id, config.pad_token_id)
    return moved, None if seen is None else jnp.concatenate([jnp.ones_like(seen[:, :1]), seen[:, :-1]], axis=1)


def beside(out: Output, encoded: Output | None) -> Output:
    """The decoder's output with what the encoder said in this call."""
    if encoded is None:
        return out
    return out.replace(
        encoder_last_hidden_state=encoded.last_hidden_state,
        encoder_hidden_states=encoded.hidden_states,
        encoder_attentions=encoded.attentions,
        encoder_router_logits=encoded.router_logits,
    )


def _as_output(encoded: Any) -> Output:
    if isinstance(encoded, Output):
        return encoded
    if isinstance(encoded, (tuple, list)):
        encoded = encoded[0]
    return Output(last_hidden_state=jnp.asarray(getattr(encoded, "last_hidden_state", encoded)))
