"""What `generate` returns."""

from __future__ import annotations

from typing import Any

import equinox as eqx


class Generation(eqx.Module):
    """What [`easyfn.generate`][] returns.

    - `sequences`: int32 `(rows, columns)`: the prompt as given, then the new tokens; after a row's end
      `pad_token_id`. (Of an encoder-decoder: the decoder's tokens, its start token first.) Beams give the best first.
    - `lengths`: int32 `(rows,)`: the columns of each row up to its end: `sequences[i, :lengths[i]]`.
    - `scores`, `logits`: float32 `(steps, rows, vocab)` after and before the processors, if asked for. Beams score
      log probabilities, one row for each running beam.
    - `hidden_states`, `attentions`, `cross_attentions`: if asked for, one entry for each step, the first for the whole
      prompt, and in it one for each layer: `(rows, prompt or 1, embed)` and `(rows, heads, prompt or 1, columns so
      far)`, as transformers returns them. Of an encoder-decoder, `encoder_hidden_states` and `encoder_attentions` too.
    - `sequences_scores`, float32 `(rows,)`, and `beam_indices`, int32 `(rows, steps)`: of beams, each sequence's score
      and which running beam each of its tokens extended (-1 after its end).
    - `accepted`, `proposed`: int32 `(rows,)`: of drafted tokens, how many were kept, of how many.
    - `cache`: with `return_cache=True`, what the model remembers: all columns but the last.
    - `prompt_length`: the columns of the prompt.
    """

    sequences: Any
    lengths: Any
    scores: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    encoder_hidden_states: Any = None
    encoder_attentions: Any = None
    sequences_scores: Any = None
    beam_indices: Any = None
    accepted: Any = None
    proposed: Any = None
    cache: Any = None
    prompt_length: int = eqx.field(static=True, default=0)

    @property
    def new_tokens(self) -> Any:
        """The columns after the prompt."""
        return self.sequences[:, self.prompt_length :]
