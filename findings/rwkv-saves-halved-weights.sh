#!/usr/bin/env bash
# RWKV-4 in transformers: a pass in eval mode divides weights in place, and `save_pretrained` then writes the divided ones.
# Guess: a model that was used and saved is the model that was loaded.
# Seen (transformers 5.24.0): layers from `rescale_every` on are divided by 2, 4, ..., and once more when the file is loaded and used.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys, tempfile
import torch, transformers
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=4, rescale_every=2)).eval()
with torch.no_grad():
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.2)
    ids, folder = torch.arange(3, 11)[None], tempfile.mkdtemp()
    first = model(ids).logits
    model.save_pretrained(folder)
    again = RwkvForCausalLM.from_pretrained(folder).eval()(ids).logits
difference = (first - again).abs().max().item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"logits before saving and after loading differ by {difference:.3g}")
sys.exit(0 if difference > 1e-3 else "this has changed")
PY
