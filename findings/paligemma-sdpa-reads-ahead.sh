#!/usr/bin/env bash
# PaliGemma in transformers: without token_type_ids its text is causal with eager attention, and reads ahead with sdpa, the default.
# Guess: attention implementations agree up to rounding; a prompt without token_type_ids is causal, as with eager attention.
# Seen (transformers 5.24.0): with sdpa the logits of the first token change with the last one; with eager attention they do not.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

text = dict(model_type="gemma", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=1, head_dim=8)
vision = dict(model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=1,
              num_attention_heads=4, image_size=16, patch_size=8, vision_use_head=False)
config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=63, projection_dim=32, hidden_size=32)


def reads_ahead(kind):
    """How far the logits of the first token move when the last token is another."""
    config._attn_implementation = kind
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(config).eval()
    one, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        return (model(one).logits[:, 0] - model(other).logits[:, 0]).abs().max().item()


eager, sdpa = reads_ahead("eager"), reads_ahead("sdpa")
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"the first token's logits move with the last token by {eager:.3g} (eager) and {sdpa:.3g} (sdpa)")
sys.exit(0 if eager == 0 and sdpa > 1e-4 else "this has changed")
PY
