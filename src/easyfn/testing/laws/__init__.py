"""The laws: plain functions of a [`Case`][easyfn.testing.Case], named as the sentence that they hold a model to.

```python
from easyfn.testing import Case, laws

@laws.parametrize(Case(make=..., torch=...))
def test_my_model(law):
    law()
```
"""

from .files import (
    names_are_a_bijection as names_are_a_bijection,
    save_then_load_is_identity as save_then_load_is_identity,
    torch_agrees as torch_agrees,
    torch_round_trip as torch_round_trip,
)
from .forward import (
    abstract_is_concrete as abstract_is_concrete,
    cache_is_no_cache as cache_is_no_cache,
    documents_do_not_see_each_other as documents_do_not_see_each_other,
    future_does_not_leak as future_does_not_leak,
    generate_is_step_by_step as generate_is_step_by_step,
    jit_is_eager as jit_is_eager,
    left_padding_is_invisible_to_the_cache as left_padding_is_invisible_to_the_cache,
    padding_is_invisible as padding_is_invisible,
    right_padding_is_invisible_to_the_cache as right_padding_is_invisible_to_the_cache,
    same_config_same_hash as same_config_same_hash,
    vmap_is_loop as vmap_is_loop,
)
from .law import Law as Law, applicable as applicable, known as known, law as law, parametrize as parametrize
from .training import (
    flops_are_positive as flops_are_positive,
    gradient_is_finite as gradient_is_finite,
    gradients_reach_exactly_the_trainable as gradients_reach_exactly_the_trainable,
    loss_counts_right as loss_counts_right,
)
from .weights import (
    bfloat16_is_close as bfloat16_is_close,
    fresh_lora_changes_nothing as fresh_lora_changes_nothing,
    lora_rests_on_quantized as lora_rests_on_quantized,
    merged_lora_is_lora as merged_lora_is_lora,
    quantize_commutes_with_stack as quantize_commutes_with_stack,
    quantize_is_close as quantize_is_close,
    quantize_twice_is_refused as quantize_twice_is_refused,
    shard_changes_nothing as shard_changes_nothing,
    stack_is_list as stack_is_list,
    unstack_inverts_stack as unstack_inverts_stack,
    weights_only_through_verbs as weights_only_through_verbs,
)
