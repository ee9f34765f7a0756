#!/usr/bin/env bash
# A sliding window of 1 in transformers: generation with the cache gives other logits than without it.
# Guess: with a window of 1 a token sees itself alone, with a cache and without.
# Seen (transformers 5.24.0): the cache cuts `[-window + 1:]`, which for a window of 1 is `[0:]`: it keeps the whole past, its mask
# counts one key, and the new token sees the wrong ones. A window of 2 is right.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import MistralConfig, MistralForCausalLM

sizes = dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
apart = {}
for window in (1, 2):
    torch.manual_seed(0)
    config = MistralConfig(**sizes, num_key_value_heads=2, sliding_window=window, initializer_range=0.3)
    model = MistralForCausalLM(config).eval()
    ids = torch.randint(3, 97, (1, 6))
    options = dict(max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0)
    with torch.no_grad():
        cached, whole = (model.generate(ids, use_cache=use, **options).logits[1] for use in (True, False))
    apart[window] = (cached - whole).abs().max().item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"logits of the second new token, with the cache and without: {apart[1]:.3g} apart (window 1), {apart[2]:.3g} (window 2)")
sys.exit(0 if apart[1] > 1e-2 and apart[2] < 1e-4 else "this has changed")
PY
