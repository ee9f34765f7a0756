#!/usr/bin/env bash
# DebertaV2ForMaskedLM with legacy=False in transformers: after resize_token_embeddings the model cannot run.
# Guess: the word embeddings and the bias of the head get the new size, as for any masked language model, and it runs on.
# Seen (transformers 5.24.0): get_output_embeddings answers the head's dense layer, whose outputs are resized from the hidden
# size to the vocabulary's, and the norm behind it refuses them. With legacy=True all is as guessed.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

ids = torch.arange(3, 8)[None]


def resized(legacy):
    config = DebertaV2Config(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=16, legacy=legacy)
    model = DebertaV2ForMaskedLM(config).eval()
    assert model(ids).logits.shape == (1, 5, 50)
    model.resize_token_embeddings(60)
    if not legacy:
        print(f"the head's dense layer, of a model 16 wide, is now {tuple(model.lm_predictions.lm_head.dense.weight.shape)}")
    try:
        return f"logits {tuple(model(ids).logits.shape)}"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


old, new = resized(True), resized(False)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"legacy=True: {old}\nlegacy=False: {new}")
sys.exit(0 if old == "logits (1, 5, 60)" and new.startswith("RuntimeError") else "this has changed")
PY
