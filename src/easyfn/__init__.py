"""easyfn: any Hugging Face checkpoint as an immutable Equinox pytree, and everything you do to it a free function."""

from typing import TYPE_CHECKING, Any as _Any

from .core.later import later as _later, teachers as _teachers
from .registry.teachers import TEACHERS as _TEACHERS

if TYPE_CHECKING:
    from jax import P as P

    from . import models as models, nn as nn, planning as planning
    from .config.config import UnknownConfigKey as UnknownConfigKey
    from .core.dtype import cast as cast, dtype_of as dtype_of, float32 as float32, half as half
    from .core.frozen import Frozen as Frozen
    from .core.params import (
        combine as combine,
        params as params,
        shapes as shapes,
        split as split,
        with_params as with_params,
    )
    from .core.placement import mesh_of as mesh_of
    from .core.slots import find_slots as find_slots, map_slots as map_slots, select_slots as select_slots
    from .core.stack import stack as stack, unstack as unstack
    from .core.trainable import is_adapter as is_adapter, trainable as trainable
    from .core.tree import Pipelined as Pipelined, Stacked as Stacked
    from .core.verb import (
        NodeVerb as NodeVerb,
        NotSupported as NotSupported,
        Verb as Verb,
        node_verb as node_verb,
        verb as verb,
    )
    from .core.weight import (
        Slot as Slot,
        Weight as Weight,
        affine as affine,
        axes_of as axes_of,
        dense as dense,
        dot as dot,
        format_of as format_of,
        ragged_dot as ragged_dot,
        randomized as randomized,
        requantize as requantize,
        routed as routed,
        shape_of as shape_of,
        slots as slots,
        take as take,
    )
    from .data.batches import batches as batches
    from .data.examples import tokenize as tokenize
    from .data.pack import best_fit as best_fit, packed_row as packed_row, padded as padded
    from .engine.engine import Engine as Engine, EngineStats as EngineStats
    from .engine.request import EngineFull as EngineFull, Request as Request
    from .evaluation.embed import embed as embed
    from .evaluation.harness import lm_eval_model as lm_eval_model
    from .evaluation.likelihood import (
        loglikelihoods as loglikelihoods,
        multiple_choice as multiple_choice,
        perplexity as perplexity,
    )
    from .evaluation.mteb import mteb_model as mteb_model
    from .forward.forward import forward as forward, init_cache as init_cache, pure as pure
    from .forward.paged import init_paged_cache as init_paged_cache
    from .forward.seq2seq import encode as encode
    from .generation.config import GenerationConfig as GenerationConfig
    from .generation.constraint import (
        Constraint as Constraint,
        choice as choice,
        json_schema as json_schema,
        regex as regex,
    )
    from .generation.generate import generate as generate
    from .generation.model import (
        can_generate as can_generate,
        decode_step as decode_step,
        decoder_prompt as decoder_prompt,
        prefill as prefill,
    )
    from .generation.result import Generation as Generation
    from .generation.state import State as State
    from .generation.stream import stream as stream, stream_text as stream_text
    from .generation.transcribe import Segment as Segment, Transcription as Transcription, transcribe as transcribe
    from .inputs.audio import log_mel as log_mel, normalize_sound as normalize_sound, pad_sound as pad_sound
    from .inputs.sample import sample_inputs as sample_inputs
    from .inputs.statement import Input as Input, Inputs as Inputs, inputs as inputs
    from .inspect.card import model_card as model_card
    from .inspect.facts import model_type as model_type, supports as supports
    from .inspect.flops import (
        count_flops as count_flops,
        flops as flops,
        flops_per_token as flops_per_token,
        matmul_peak as matmul_peak,
    )
    from .inspect.observe import observe as observe, second_moment as second_moment
    from .inspect.show import describe as describe, num_bytes as num_bytes, num_params as num_params, show as show
    from .io.adapters import load_adapters as load_adapters, save_adapters as save_adapters
    from .io.build import from_state_dict as from_state_dict
    from .io.checkpoint import LoadError as LoadError
    from .io.configs import abstract as abstract, read_config as read_config
    from .io.gguf.read import read_gguf as read_gguf
    from .io.gguf.save import save_gguf as save_gguf
    from .io.gguf.tokenizer import gguf_tokenizer as gguf_tokenizer, tokenizer_metadata as tokenizer_metadata
    from .io.load import load as load
    from .io.peft.load import load_adapter as load_adapter, read_adapter_config as read_adapter_config
    from .io.peft.save import save_adapter as save_adapter
    from .io.plain import load_params as load_params
    from .io.push import push_to_hub as push_to_hub
    from .io.save import save as save, to_state_dict as to_state_dict
    from .io.tokenizer import chat_template as chat_template, tokenizer as tokenizer
    from .io.torch.graph import BadProgram as BadProgram
    from .io.torch.interpret import Part as Part, Program as Program
    from .io.torch.modules import from_torch as from_torch, to_torch as to_torch, torch_class as torch_class
    from .io.torch.ops import torch_op as torch_op
    from .lora import (
        IA3 as IA3,
        Adapters as Adapters,
        Full as Full,
        LoHa as LoHa,
        LoKr as LoKr,
        LoRA as LoRA,
        Prefix as Prefix,
        Prompt as Prompt,
        Rows as Rows,
        VeRA as VeRA,
        adapter_names as adapter_names,
        apply_eva as apply_eva,
        apply_ia3 as apply_ia3,
        apply_loha as apply_loha,
        apply_lokr as apply_lokr,
        apply_lora as apply_lora,
        apply_vera as apply_vera,
        combine_adapters as combine_adapters,
        has_lora as has_lora,
        join_lora as join_lora,
        loftq as loftq,
        lora_plus as lora_plus,
        merge_lora as merge_lora,
        prefix_tuning as prefix_tuning,
        prompt_tuning as prompt_tuning,
        remove_lora as remove_lora,
        single_adapter as single_adapter,
        split_adapters as split_adapters,
        split_lora as split_lora,
        unmerge_lora as unmerge_lora,
        use_adapter as use_adapter,
        with_adapters as with_adapters,
    )
    from .nn import (
        Context as Context,
        Output as Output,
        Runtime as Runtime,
        fork as fork,
        input_embeddings as input_embeddings,
        reorder as reorder,
    )
    from .nn.adopt import adopt as adopt
    from .planning.hardware import Hardware as Hardware
    from .planning.plan import Plan as Plan, plan as plan
    from .quant import (
        QuantConfig as QuantConfig,
        calibrate as calibrate,
        dequantize as dequantize,
        fake_quantize as fake_quantize,
        is_quantized as is_quantized,
        quantize as quantize,
    )
    from .registry.family import families as families, family as family
    from .registry.init import init as init
    from .sharding import (
        ShardingError as ShardingError,
        ShardingRules as ShardingRules,
        data_sharding as data_sharding,
        default_rules as default_rules,
        fully_gather as fully_gather,
        fully_shard as fully_shard,
        gather as gather,
        gather_fns as gather_fns,
        make_mesh as make_mesh,
        named_shardings as named_shardings,
        partition_specs as partition_specs,
        shard as shard,
        shard_batch as shard_batch,
        shard_fns as shard_fns,
    )
    from .sharding.pipeline import pipeline as pipeline, unpipeline as unpipeline
    from .tasks.cross_entropy import LossConfig as LossConfig, loss_from_logits as loss_from_logits
    from .tasks.ctc import ctc_decode as ctc_decode, ctc_loss as ctc_loss
    from .tasks.embeddings import (
        decoder as decoder,
        encoder as encoder,
        output_embeddings as output_embeddings,
        resize_embeddings as resize_embeddings,
        with_decoder as with_decoder,
        with_input_embeddings as with_input_embeddings,
        with_output_embeddings as with_output_embeddings,
    )
    from .tasks.layers import prune_layers as prune_layers
    from .tasks.loss import compute_loss as compute_loss
    from .tasks.task import task as task
    from .train.distill import distillation_loss as distillation_loss
    from .train.groups import ema as ema, ema_model as ema_model, groups as groups
    from .train.guard import GuardState as GuardState, guard as guard, guard_state as guard_state
    from .train.logprobs import token_logprobs as token_logprobs
    from .train.policy import (
        gae as gae,
        group_advantages as group_advantages,
        grpo_loss as grpo_loss,
        ppo_loss as ppo_loss,
        rollout_batch as rollout_batch,
    )
    from .train.precision import (
        float32_moments as float32_moments,
        master_weights as master_weights,
        stochastic_rounding as stochastic_rounding,
    )
    from .train.preference import (
        dpo_loss as dpo_loss,
        kto_loss as kto_loss,
        orpo_loss as orpo_loss,
        reward_loss as reward_loss,
        rewards as rewards,
        simpo_loss as simpo_loss,
    )
    from .train.state import (
        Checkpoints as Checkpoints,
        load_data_state as load_data_state,
        load_state as load_state,
        save_state as save_state,
        saved_steps as saved_steps,
    )
    from .train.step import TrainState as TrainState, to_state as to_state, train_step as train_step

    def __getattr__(name: str) -> _Any: ...  # rooms that are asked for by name, as `ef.serve`


_teachers(_TEACHERS)
_later(__name__)
