"""GLM-5: two of five layers have an indexer, the others share its choice of four keys."""

from cases import SMALL, case, reference
from families.deepseek_v32 import CHOSEN, INDEXER, SIZES


@case("glm_moe_dsa", moe=True, expected_failures=CHOSEN)
def _():
    from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

    sizes = {**SIZES, "num_hidden_layers": 5, "hidden_size": SMALL["hidden_size"]}
    config = GlmMoeDsaConfig(**sizes, **INDEXER, index_topk_pattern="FSFSS")
    return reference(GlmMoeDsaForCausalLM, config)
