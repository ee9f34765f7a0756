#!/usr/bin/env bash
# ModernBertForMultipleChoice in transformers: with classifier_pooling="mean" it cannot run without an attention_mask.
# Guess: without a mask nothing is padding, as everywhere, and the mean is over all tokens (ModernBertForSequenceClassification).
# Seen (transformers 5.24.0): AttributeError, 'NoneType' object has no attribute 'sum'. With pooling "cls" it runs.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check "torch==2.13.0" "transformers==5.24.0"
"$dir/env/bin/python" - <<'PY'
import sys
import torch, transformers
from transformers import ModernBertConfig, ModernBertForMultipleChoice, ModernBertForSequenceClassification

ids = torch.tensor([[[1, 2, 3], [1, 4, 5]]])


def answer(cls, ids, pooling):
    config = ModernBertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                              pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
                              classifier_pooling=pooling)
    try:
        return f"logits {tuple(cls(config).eval()(input_ids=ids).logits.shape)}"
    except AttributeError as error:
        return f"AttributeError: {error}"


found = {
    "multiple choice, cls": answer(ModernBertForMultipleChoice, ids, "cls"),
    "classification, mean": answer(ModernBertForSequenceClassification, ids[0], "mean"),
    "multiple choice, mean": answer(ModernBertForMultipleChoice, ids, "mean"),
}
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("\n".join(f"{name}: {said}" for name, said in found.items()))
first, second, last = found.values()
sys.exit(0 if "logits" in first and "logits" in second and "AttributeError" in last else "this has changed")
PY
