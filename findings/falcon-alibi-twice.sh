#!/usr/bin/env bash
# Falcon with ALiBi in transformers: the eager attention adds the position bias twice, sdpa once.
# Guess: attention implementations agree up to rounding, as they do for Falcon with rotary positions.
# Seen (transformers 5.24.0): logits of falcon-rw's layout differ by tenths.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import FalconConfig, FalconForCausalLM


def difference(alibi):
    config = FalconConfig(vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, alibi=alibi,
                          multi_query=False, parallel_attn=False)
    torch.manual_seed(0)
    model = FalconForCausalLM(config).eval()
    ids = torch.arange(3, 14)[None]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        found = {}
        for kind in ("eager", "sdpa"):
            model.config._attn_implementation = kind
            found[kind] = model(ids).logits
    return (found["eager"] - found["sdpa"]).abs().max().item()


alibi, rotary = difference(True), difference(False)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"logits, eager against sdpa: {alibi:.3g} with ALiBi, {rotary:.3g} with rotary positions")
sys.exit(0 if alibi > 1e-2 and rotary < 1e-4 else "this has changed")
PY
