#!/usr/bin/env bash
# RWKV in transformers: a model that has run is saved with other weights, and answers otherwise when it is loaded.
# Guess: a model's answer and its file do not depend on whether it was called before it was saved.
# Seen (transformers 5.24.0): the first call in eval mode divides two matrices of every layer past the first `rescale_every`
# (6 by default) in place, `save_pretrained` writes them so, and the loaded model divides them once more. Nothing is said.
# `model.train()` does not bring them back by itself: a call in that mode does.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - "$dir" <<'PY'
import sys
import torch, transformers
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=8)).eval()
ids = torch.arange(3, 12)[None]
with torch.no_grad():
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(sys.argv[1] + "/before")
    said = model(ids).logits
    model.save_pretrained(sys.argv[1] + "/after")
    off = {
        when: (RwkvForCausalLM.from_pretrained(f"{sys.argv[1]}/{when}").eval()(ids).logits - said).abs().max().item()
        for when in ("before", "after")
    }
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for when, apart in off.items():
    print(f"saved {when} it ran, and loaded: logits are off by {apart:.2g}")
sys.exit(0 if off["before"] < 1e-5 and off["after"] > 1e-2 else "this has changed")
PY
