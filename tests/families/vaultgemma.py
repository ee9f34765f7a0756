"""VaultGemma: Gemma 2 with norms before the parts only."""

from cases import SMALL, case, reference


@case("vaultgemma")
def _():
    from transformers import VaultGemmaConfig, VaultGemmaForCausalLM

    config = VaultGemmaConfig(
        **SMALL,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )
    return reference(VaultGemmaForCausalLM, config)
