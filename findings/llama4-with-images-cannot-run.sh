#!/usr/bin/env bash
# Llama 4 with images in transformers: no call of the model succeeds, with images or without.
# Guess: text alone and text with images answer logits, as in the releases before.
# Seen (transformers 5.24.0): AttributeError, since the answer of the text model is asked for `image_outputs`, which it does not have.
# The text model by itself runs.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration

torch.manual_seed(0)
text = dict(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=32, intermediate_size_mlp=32, num_local_experts=2, moe_layers=[1], pad_token_id=0,
)
vision = dict(
    hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=24, patch_size=4,
    projector_input_dim=20, projector_output_dim=20, vision_output_dim=20,
)
config = Llama4Config(text_config=text, vision_config=vision, image_token_index=7)
ids = torch.tensor([[5, 6, 8, 9]])
with torch.no_grad():
    alone = Llama4ForCausalLM(config.text_config).eval()(ids).logits.shape
    print(f"Llama4ForCausalLM: logits {tuple(alone)}")
    try:
        said = str(Llama4ForConditionalGeneration(config).eval()(ids).logits.shape)
    except AttributeError as error:
        said = f"AttributeError: {error}"
print(f"Llama4ForConditionalGeneration, text alone: {said}")
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
sys.exit(0 if "image_outputs" in said else "this has changed")
PY
