#!/usr/bin/env bash
# Mamba and Falcon-Mamba in transformers: a second piece of several tokens on a cache is answered wrongly.
# Guess: a prompt given in two pieces is the prompt given at once, as it is for Mamba-2 token by token and for attention.
# Seen (transformers 5.24.0): the second piece starts from an empty state of the recurrence; one token at a time is right.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM


def differences(config, cls):
    torch.manual_seed(0)
    model = cls(config(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=6)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        ids = torch.arange(3, 11)[None]
        whole = model(ids).logits[:, 4:]
        found = []
        for size in (4, 1):
            out = model(ids[:, :4], use_cache=True)
            parts = []
            for start in range(4, 8, size):
                out = model(ids[:, start : start + size], use_cache=True, cache=out.cache)
                parts.append(out.logits)
            found.append((torch.cat(parts, 1) - whole).abs().max().item())
        return found


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
right = True
for config, cls in ((MambaConfig, MambaForCausalLM), (FalconMambaConfig, FalconMambaForCausalLM)):
    piece, single = differences(config, cls)
    print(f"{cls.__name__}: the last four tokens in one piece on a cache {piece:.3g}, one by one {single:.3g}")
    right &= piece > 1e-2 and single < 1e-4
sys.exit(0 if right else "this has changed")
PY
