#!/usr/bin/env bash
# wav2vec 2.0's vector of a speaker (Wav2Vec2ForXVector): how many frames of a padded recording count is reckoned without
# tdnn_dilation, so that frames which read padding are averaged, too.
# Guess: with an attention_mask a padded recording has the vector that it has alone, where no dilation spreads the layers and where
# one does (norms by layer: feat_extract_norm="layer").
# Seen (transformers 5.24.0): equal with dilations of 1, not with (1, 2, 3), of which the default is made.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import Wav2Vec2Config, Wav2Vec2ForXVector


def difference(dilation):
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16), conv_stride=(5, 2),
        conv_kernel=(10, 3), num_conv_pos_embeddings=6, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        tdnn_dim=(16, 16, 16), tdnn_kernel=(3, 3, 3), tdnn_dilation=dilation, xvector_output_dim=8,
    )
    model = Wav2Vec2ForXVector(config).eval()
    sound = torch.randn(1, 400)
    padded, mask = torch.zeros(1, 800), torch.zeros(1, 800, dtype=torch.long)
    padded[:, :400], mask[:, :400] = sound, 1
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
        alone = model(sound).embeddings
        return (alone - model(padded, attention_mask=mask).embeddings).abs().max().item()


plain, spread = difference((1, 1, 1)), difference((1, 2, 3))
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"a padded recording against it alone: {plain:.3g} with dilations of 1, {spread:.3g} with 1, 2 and 3")
sys.exit(0 if plain < 1e-5 and spread > 1e-3 else "this has changed")
PY
