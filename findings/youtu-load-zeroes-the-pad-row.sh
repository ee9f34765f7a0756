#!/usr/bin/env bash
# Youtu-LLM in transformers: `from_pretrained` sets the embedding of `pad_token_id` to zeros, whatever the file holds.
# Guess: a checkpoint that is read back has the weights that were saved.
# Seen (transformers 5.24.0): the initializer writes zeros to `weight.data[padding_idx]`, a view that does not know that the
# weight came from a file. Where a checkpoint pads with its end token, the embedding of that token is lost; a tied head has
# a logit of 0 for it. Llama, whose initializer asks first, reads the row as it is.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys, tempfile
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM, YoutuConfig, YoutuForCausalLM

sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
sizes |= {"num_key_value_heads": 2, "pad_token_id": 2, "eos_token_id": 2}
latent = {"kv_lora_rank": 10, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14, "q_lora_rank": 20}


def read_back(model):
    """The row of the pad token before a model is saved and after it is read, each as its largest entry, and the end token's
    largest logit."""
    with torch.no_grad():
        model.model.embed_tokens.weight[2] = 0.5
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder)
    rows = [m.model.embed_tokens.weight[2].abs().max().item() for m in (model, again)]
    logits = [m.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1, 2].item() for m in (model, again)]
    return *rows, *logits


torch.manual_seed(0)
youtu = read_back(YoutuForCausalLM(YoutuConfig(**sizes, **latent, tie_word_embeddings=True)))
llama = read_back(LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)))
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for name, (before, after, said, says) in (("Youtu", youtu), ("Llama", llama)):
    print(f"{name}: the row of the pad (and end) token was {before} and is {after}; its logit was {said:.3f} and is {says:.3f}")
lost = youtu[0] == 0.5 and youtu[1] == 0.0 and youtu[3] == 0.0 and youtu[2] != 0.0
sys.exit(0 if lost and llama[0] == llama[1] == 0.5 else "this has changed")
PY
