#!/usr/bin/env bash
# MiniMax in transformers: with a cache, a model whose first layer is linear attends to padding and past its window.
# Guess: a cache changes the speed of generation and not its result, as MiniMax-Text-01 (linear layers first) needs.
# Seen (transformers 5.24.0): the mask of every decoded token is as long as what layer 0 has cached, which is nothing where
# that layer is linear. So there is no mask at all, and logits move, padded or not. With a softmax layer first they agree.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM

sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
ids = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
mask = torch.ones_like(ids)
mask[1, :4] = 0


def moved(kinds, window):
    """How far a cache moves the logits of the second token: of the whole row, and of the padded one."""
    torch.manual_seed(0)
    config = MiniMaxConfig(**sizes, num_key_value_heads=2, num_local_experts=2, layer_types=kinds, sliding_window=window)
    model = MiniMaxForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    options = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    with torch.no_grad():
        with_, without = (model.generate(ids, attention_mask=mask, use_cache=c, eos_token_id=None, **options) for c in (True, False))
    return (with_.logits[1] - without.logits[1]).abs().amax(1).tolist()


full, linear = "full_attention", "linear_attention"
cases = {
    "linear first, window of 4": ([linear, full, linear], 4),
    "linear first, no window": ([linear, full, linear], None),
    "softmax first, window of 4": ([full, linear, full], 4),
}
seen = {name: moved(*case) for name, case in cases.items()}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
for name, (whole, padded) in seen.items():
    print(f"{name}: a cache moves the logits of a whole row by {whole:.2g}, of a padded one by {padded:.2g}")
window, plain, first = seen.values()
sys.exit(0 if min(window) > 1e-3 and plain[1] > 1e-3 and plain[0] < 1e-4 and max(first) < 1e-4 else "this has changed")
PY
