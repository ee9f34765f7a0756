"""PEFT's `target_parameters`, both ways: on stacked experts, and on a converted module's own parameters."""

import json

import jax
import numpy as np
import pytest
import torch
from torch import nn

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


class Own(nn.Module):
    """Parameters that are no module's `weight`, one of them `(in, out)`."""

    def __init__(self):
        super().__init__()
        self.v, self.w = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(4, 6) * 0.3)

    def forward(self, x):
        return nn.functional.linear(torch.tanh(x @ self.w), self.v)


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.own = nn.Linear(4, 4), Own()

    def forward(self, x):
        return self.own(self.first(x))


def test_parameters_of_a_converted_module(tmp_path):
    from peft import PeftModel

    torch.manual_seed(0)
    module, x = Holds().eval(), torch.randn(3, 7, 4)
    model = ef.from_torch(module, (torch.ones(2, 5, 4),))
    adapted = ef.apply_lora(model, "all-linear", rank=2, key=jax.random.key(0))
    adapted = ef.with_params(adapted, {k: v + 0.1 for k, v in ef.params(adapted).items() if k.endswith(".b")})
    ef.save_adapter(adapted, tmp_path / "ours")
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["first"] and settings["target_parameters"] == ["v", "w"]
    wanted = ef.forward(adapted, x.numpy())
    theirs = PeftModel.from_pretrained(module, tmp_path / "ours")
    np.testing.assert_allclose(theirs(x).detach(), wanted, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        np.testing.assert_allclose(ef.forward(ef.load_adapter(model, tmp_path / folder), x.numpy()), wanted, atol=1e-6)
    alone = ef.from_torch(Own(), (torch.ones(2, 4),))
    with pytest.raises(ValueError, match="a parameter of the whole model"):
        ef.save_adapter(ef.apply_lora(alone, "all-linear", rank=2, key=jax.random.key(0)), tmp_path)
