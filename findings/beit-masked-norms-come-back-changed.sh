#!/usr/bin/env bash
# BEiT for masked patches with use_mean_pooling=False, saved and loaded again by transformers, answers otherwise.
# Guess: what save_pretrained writes, from_pretrained reads back.
# Seen (transformers 5.24.0): with a norm in the encoder and another in the head, both come back with other weights, and the
# loading report has nothing missing, unexpected or mismatched. With mean pooling, where the encoder has none, all is well.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import tempfile
import torch, transformers
from transformers import BeitConfig, BeitForMaskedImageModeling

torch.manual_seed(0)
small = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8, vocab_size=11
)
moved = {}
for pooling in (True, False):
    model = BeitForMaskedImageModeling(BeitConfig(use_mask_token=True, use_mean_pooling=pooling, **small)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    pixels, mask = torch.randn(1, 3, 16, 16), torch.tensor([[True, False, True, False]])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again, info = BeitForMaskedImageModeling.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        a, b = (m.eval()(pixels, bool_masked_pos=mask).logits for m in (model, again))
    moved[pooling] = (a - b).abs().max().item()
    mine, theirs = model.state_dict(), again.state_dict()
    differ = [n for n in mine if not torch.equal(mine[n], theirs[n])]
    said = {k: sorted(v) for k, v in info.items() if v}
    print(f"use_mean_pooling={pooling}: logits move by {moved[pooling]:.3g}; changed: {differ}; reported: {said}")
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
sys.exit(0 if moved[False] > 1e-3 and moved[True] == 0 else "this has changed")
PY
