#!/usr/bin/env bash
# MiniMax in transformers: beams are told apart by their keys alone; their linear layers keep the states of other beams.
# Guess: a cache changes the speed of beam search and not what it finds.
# Seen (transformers 5.24.0): MiniMaxCache takes the cache's `reorder_cache`, which knows nothing of its `linear_cache`. So
# a beam that goes on from another one reads that one's keys and its own old state, and the scores of the sequences move.
# The layer in front is one of softmax attention: with it the masks are right (minimax-cache-forgets-the-mask.sh), and greedy
# decoding is the same with a cache and without.
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


def generated(kinds, beams, use_cache):
    """New tokens of each row, and the scores of the sequences."""
    torch.manual_seed(0)
    config = MiniMaxConfig(**sizes, num_key_value_heads=2, num_local_experts=2, layer_types=kinds)
    model = MiniMaxForCausalLM(config).eval()
    options = {"num_beams": beams, "use_cache": use_cache, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), eos_token_id=None, output_scores=True, return_dict_in_generate=True, **options
        )
    return out.sequences[:, 11:].tolist(), out.sequences_scores.tolist() if beams > 1 else []


full, linear = "full_attention", "linear_attention"
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
same = {}
for name, kinds in {"a linear layer": [full, linear, full], "no linear layer": [full, full, full]}.items():
    for beams in (1, 4):
        with_, without = (generated(kinds, beams, cache) for cache in (True, False))
        same[name, beams] = with_[0] == without[0] and all(abs(a - b) < 1e-4 for a, b in zip(with_[1], without[1]))
        print(f"{name}, {beams} beam(s): {'the same' if same[name, beams] else f'with a cache {with_}, without {without}'}")
expected = {("a linear layer", 1): True, ("a linear layer", 4): False, ("no linear layer", 1): True, ("no linear layer", 4): True}
sys.exit(0 if same == expected else "this has changed")
PY
