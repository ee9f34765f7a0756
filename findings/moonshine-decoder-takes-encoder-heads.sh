#!/usr/bin/env bash
# Moonshine in transformers: the decoder is built with the encoder's number of heads, whatever the config says.
# Guess: decoder_num_attention_heads=6 beside encoder_num_attention_heads=2 makes decoder layers of 6 heads.
# Seen (transformers 5.24.0): building an encoder layer writes its numbers of heads over those of the decoder in the
# config, so that the decoder has 2 heads too, and config.json is saved with 2.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import MoonshineConfig, MoonshineForConditionalGeneration

torch.manual_seed(0)
sizes = dict(vocab_size=60, hidden_size=48, intermediate_size=64, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1)
config = MoonshineConfig(**sizes, encoder_num_attention_heads=2, decoder_num_attention_heads=6)
asked = config.decoder_num_attention_heads
config._attn_implementation = "eager"
model = MoonshineForConditionalGeneration(config).eval()
with torch.no_grad():
    out = model(torch.randn(1, 3000), decoder_input_ids=torch.tensor([[1, 2, 3]]), output_attentions=True)
heads = out.decoder_attentions[0].shape[1]
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"decoder heads asked for: {asked}; of its attention: {heads}; in the config now: {config.decoder_num_attention_heads}")
sys.exit(0 if (asked, heads, config.decoder_num_attention_heads) == (6, 2, 2) else "this has changed")
PY
