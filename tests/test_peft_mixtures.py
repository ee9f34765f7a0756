"""PEFT's `target_parameters` on stacked experts, both ways: as the modules hold them, transposed, and under other names."""

import numpy as np
import pytest
import torch

import easyfn as ef
from cases import CASES, positions, tokens


@pytest.mark.parametrize(("name", "part"), [("gpt_oss", "mlp"), ("granitemoe", "block_sparse_moe")])
def test_experts_adapted_by_peft(name, part, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    targets = [f"{part}.experts.gate_up_proj", f"{part}.experts.down_proj"]
    adapted = get_peft_model(
        CASES[name].make(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=targets)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "lora_" in key:
                value.copy_(torch.randn_like(value) * 0.1)
    ids, mask = tokens()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}

    def answers(module):
        with torch.no_grad():
            return module.eval()(**{k: torch.tensor(v) for k, v in inputs.items()}).logits.numpy()[mask > 0]

    want = answers(adapted)
    adapted.save_pretrained(tmp_path / "theirs")
    model = ef.load_adapter(CASES[name].model(), tmp_path / "theirs")
    np.testing.assert_allclose(ef.forward(model, ids, attention_mask=mask).logits[mask > 0], want, atol=1e-4)
    ef.save_adapter(model, tmp_path / "ours")
    again = PeftModel.from_pretrained(CASES[name].make(), tmp_path / "ours")
    np.testing.assert_allclose(answers(again), want, atol=1e-5)
