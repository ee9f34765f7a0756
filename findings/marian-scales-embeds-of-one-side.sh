#!/usr/bin/env bash
# Marian and PEGASUS in transformers: `inputs_embeds` and `decoder_inputs_embeds` mean two things.
# Guess: embeddings of get_input_embeddings() give the answer that the ids give, on both sides.
# Seen (transformers 5.24.0): with scale_embedding the decoder multiplies what it is given by sqrt(d_model), the encoder
# does not, so the encoder's embeddings must be scaled by the caller and the decoder's must not. BART needs neither.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import BartConfig, BartForConditionalGeneration, MarianConfig, MarianMTModel

sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 8), ("attention_heads", 2))}
source, target = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[3, 9, 10]])
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
off = {}
for cls, config in ((MarianMTModel, MarianConfig), (BartForConditionalGeneration, BartConfig)):
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 3}
    model = cls(config(vocab_size=50, d_model=16, **sizes, **special, scale_embedding=True)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        table = model.get_input_embeddings()
        want = model(input_ids=source, decoder_input_ids=target).logits
        encoder = model(inputs_embeds=table(source), decoder_input_ids=target).logits
        decoder = model(input_ids=source, decoder_inputs_embeds=table(target)).logits
    off[cls] = [(x - want).abs().max().item() for x in (encoder, decoder)]
    print(f"{cls.__name__}: off by {off[cls][0]:.3g} with the encoder's embeddings, {off[cls][1]:.3g} with the decoder's")
marian, bart = off.values()
sys.exit(0 if marian[0] > 1e-2 and max(marian[1], *bart) < 1e-5 else "this has changed")
PY
