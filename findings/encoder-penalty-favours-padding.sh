#!/usr/bin/env bash
# generate(encoder_repetition_penalty=...), which favours tokens of the source, on rows of different lengths.
# Guess: a padded row is answered as the row alone, as with repetition_penalty, whose processor is told where padding ends.
# Seen (transformers 5.24.0): the padding token counts as one of the source, becomes likelier, and other tokens are generated.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
config = T5Config(vocab_size=97, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1,
                  decoder_start_token_id=0)
model = T5ForConditionalGeneration(config).eval()
with torch.no_grad():
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    model.shared.weight[0] += 0.4
ids = torch.arange(5, 12)[None]
padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
mask = (padded > 0).long()


def tokens(ids, mask, **options):
    return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **options)[0].tolist()


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
same = {}
for options in ({}, {"repetition_penalty": 3.0}, {"encoder_repetition_penalty": 3.0}):
    alone, among = tokens(ids, torch.ones_like(ids), **options), tokens(padded, mask, **options)
    same[next(iter(options), "no penalty")] = alone == among
    print(f"{options}: alone {alone}, padded {among}")
sys.exit(0 if same == {"no penalty": True, "repetition_penalty": True, "encoder_repetition_penalty": False} else "this has changed")
PY
