#!/usr/bin/env bash
# Swin in transformers: one small image in eval mode changes what the model answers to every later image.
# Guess: a forward pass in eval mode changes nothing.
# Seen (transformers 5.24.0): an image whose grid of patches is no larger than the window sets the shift of the shifted
# layers to 0, and it stays 0; a fresh copy of the model answers as before.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import copy
import sys
import torch, transformers
from transformers import SwinConfig, SwinModel

torch.manual_seed(0)
config = SwinConfig(image_size=32, patch_size=2, embed_dim=12, depths=[2], num_heads=[2], window_size=4)
model = SwinModel(config).eval()
with torch.no_grad():
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    fresh = copy.deepcopy(model)
    large, small = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 8, 8)
    before = model(large).last_hidden_state
    again = model(large).last_hidden_state
    model(small)
    after = model(large).last_hidden_state
    untouched = fresh(large).last_hidden_state
moved = (after - before).abs().max().item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"the same image twice: {(again - before).abs().max().item():.3g}; after a small image: {moved:.3g}")
print(f"a copy that never saw the small image: {(untouched - before).abs().max().item():.3g}")
sys.exit(0 if moved > 1e-2 and torch.equal(before, untouched) else "this has changed")
PY
