#!/usr/bin/env bash
# Yarn's `truncate: false` (keep fractions of the range that is corrected) in models whose kinds of layer rotate differently.
# Guess: it is read where the rest of a kind's yarn stands, rope_parameters["sliding_attention"].
# Seen (transformers 5.24.0): there it does nothing. It is read one level up, beside the kinds, where nobody else looks.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import LlamaConfig, LlamaModel, ModernBertDecoderConfig, ModernBertDecoderModel

SIZES = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, pad_token_id=0,
             bos_token_id=1, eos_token_id=2)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=8.0, beta_slow=2.0, original_max_position_embeddings=64)


def of_a_kind(**more):
    rope = {"sliding_attention": {**YARN, **more}}
    config = ModernBertDecoderConfig(**SIZES, cls_token_id=1, sep_token_id=2, rope_parameters=rope)
    return ModernBertDecoderModel(config).rotary_emb.sliding_attention_inv_freq


def of_all(**more):
    return LlamaModel(LlamaConfig(**SIZES, rope_parameters={**YARN, **more})).rotary_emb.inv_freq


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
read = {make.__name__: not torch.equal(make(truncate=True), make(truncate=False)) for make in (of_a_kind, of_all)}
for name, moved in read.items():
    print(f"{name}: truncate {'changes' if moved else 'does not change'} the frequencies")
sys.exit(0 if read == {"of_a_kind": False, "of_all": True} else "this has changed")
PY
