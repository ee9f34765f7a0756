#!/usr/bin/env bash
# PEFT's LoRA on the out_proj of torch's MultiheadAttention (SigLIP's pooling head; "all-linear" takes it): no effect until merged.
# Guess: an adapter changes the answer, and merging it changes nothing more.
# Seen (peft 0.21.2, transformers 5.24.0, torch 2.13.0): torch reads `out_proj.weight` itself and never calls the module, so the
# adapter does nothing, in training too; merge_and_unload() writes it into the weight, and the answer moves.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0" "peft==0.21.2"
"$dir/env/bin/python" - <<'PY'
import sys
import peft, torch, transformers
from peft import LoraConfig, get_peft_model
from transformers import SiglipVisionConfig, SiglipVisionModel

torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8)
base = SiglipVisionModel(SiglipVisionConfig(**sizes)).eval()
config = LoraConfig(r=2, target_modules=r".*head\.attention\.out_proj", init_lora_weights=False)
model = get_peft_model(base, config).eval()
image = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    with model.disable_adapter():
        without = model(image).pooler_output
    adapted = model(image).pooler_output
    merged = model.merge_and_unload()(image).pooler_output
unmerged, moved = ((x - without).abs().max().item() for x in (adapted, merged))
print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print(f"the answer moves by {unmerged:.3g} with the adapter, and by {moved:.3g} with the same adapter merged")
sys.exit(0 if unmerged == 0.0 and moved > 1e-2 else "this has changed")
PY
