"""Layers: everything that more than one family is made of."""

from typing import TYPE_CHECKING

from ..core.later import later as _later

if TYPE_CHECKING:
    from ..core.halves import product_form as product_form
    from .activation import ACTIVATIONS as ACTIVATIONS, ClampedGate as ClampedGate, activation as activation
    from .attention.attention import (
        Attention as Attention,
        Temperature as Temperature,
        attend as attend,
        attend_within as attend_within,
        self_attention as self_attention,
        split_qkv as split_qkv,
    )
    from .attention.block_indexer import BlockIndexer as BlockIndexer
    from .attention.compressed import CompressedAttention as CompressedAttention, EntryIndexer as EntryIndexer
    from .attention.compressor import Compressor as Compressor
    from .attention.core import merge_heads as merge_heads, split_heads as split_heads
    from .attention.disentangled import DisentangledAttention as DisentangledAttention, log_buckets as log_buckets
    from .attention.gated import GatedAttention as GatedAttention
    from .attention.indexer import Indexer as Indexer
    from .attention.latent import ChoosingBlock as ChoosingBlock, LatentAttention as LatentAttention
    from .attention.rope import inverse_frequencies as inverse_frequencies, rope_table as rope_table, rotate as rotate
    from .audio import (
        CTC as CTC,
        ChannelNorm as ChannelNorm,
        WeightNormConv as WeightNormConv,
        frame_context as frame_context,
    )
    from .audio_heads import (
        AudioClassifier as AudioClassifier,
        AudioFrameClassifier as AudioFrameClassifier,
        SpeakerEmbedding as SpeakerEmbedding,
    )
    from .block import (
        AddNormBlock as AddNormBlock,
        Block as Block,
        ParallelBlock as ParallelBlock,
        PostNormBlock as PostNormBlock,
        SandwichBlock as SandwichBlock,
        feed_forward as feed_forward,
    )
    from .cache.axes import cache_axes as cache_axes
    from .cache.cache import (
        KV as KV,
        Cache as Cache,
        CrossKV as CrossKV,
        Ring as Ring,
        at_layer as at_layer,
        attend_to as attend_to,
        empty_kv as empty_kv,
        empty_slots as empty_slots,
        fork as fork,
        key_scores as key_scores,
        layer_cache as layer_cache,
        order_of as order_of,
        reorder as reorder,
        rewindable as rewindable,
        stored as stored,
        value_sums as value_sums,
    )
    from .cache.int8 import Int8Slots as Int8Slots
    from .cache.paged import Paged as Paged, paged as paged
    from .context import (
        Context as Context,
        Mask as Mask,
        Runtime as Runtime,
        along_batch as along_batch,
        dropout as dropout,
        encoder_mask as encoder_mask,
        in_chunks as in_chunks,
    )
    from .conv import Conv as Conv, within_documents as within_documents
    from .decoder import Decoder as Decoder
    from .encoder import (
        AddNorm as AddNorm,
        Dense as Dense,
        EncoderEmbeddings as EncoderEmbeddings,
        EncoderLayer as EncoderLayer,
        EncoderLayers as EncoderLayers,
        SharedLayers as SharedLayers,
        TextEncoder as TextEncoder,
        chosen_rows as chosen_rows,
        learned_positions as learned_positions,
    )
    from .encoder_heads import (
        ClassificationHead as ClassificationHead,
        LastMarkClassifier as LastMarkClassifier,
        MaskedLM as MaskedLM,
        MultipleChoice as MultipleChoice,
        NextSentence as NextSentence,
        PooledClassifier as PooledClassifier,
        QuestionAnswering as QuestionAnswering,
        ReplacedTokens as ReplacedTokens,
        TokenClassifier as TokenClassifier,
    )
    from .fold import fold as fold, hands_on as hands_on
    from .heads import (
        CausalLM as CausalLM,
        PredictionHead as PredictionHead,
        SequenceClassifier as SequenceClassifier,
        head_logits as head_logits,
        input_embeddings as input_embeddings,
        max_positions as max_positions,
    )
    from .image_heads import ImageClassifier as ImageClassifier
    from .linear import Embedding as Embedding, Linear as Linear, along_last as along_last, declare as declare
    from .manifold import ManifoldConnection as ManifoldConnection, ManifoldHead as ManifoldHead, Streamed as Streamed
    from .mlp import MLP as MLP, FusedGatedMLP as FusedGatedMLP, GatedMLP as GatedMLP
    from .moe.experts import Experts as Experts
    from .moe.hashed import HashRouter as HashRouter
    from .moe.layer import SparseMoE as SparseMoE
    from .moe.plain import PlainExperts as PlainExperts
    from .moe.router import Router as Router, Routing as Routing, experts_per_token as experts_per_token, route as route
    from .moe.scaled import ScaledRouter as ScaledRouter
    from .norm import BatchNorm as BatchNorm, HeadNorm as HeadNorm, LayerNorm as LayerNorm, RMSNorm as RMSNorm
    from .output import Output as Output
    from .parallel.pipeline import schedule as schedule
    from .pooling import (
        POOLINGS as POOLINGS,
        at_token as at_token,
        first_token as first_token,
        last_token as last_token,
        last_token_by_id as last_token_by_id,
        pool as pool,
    )
    from .positions import (
        Alibi as Alibi,
        FixedPositions as FixedPositions,
        LearnedPositions as LearnedPositions,
        SinusoidalPositions as SinusoidalPositions,
        alibi_slopes as alibi_slopes,
        sinusoids as sinusoids,
    )
    from .recurrent.backbone import MixerBlock as MixerBlock, MixerModel as MixerModel
    from .recurrent.block import RecurrentBlock as RecurrentBlock
    from .recurrent.conv import CausalConv1d as CausalConv1d
    from .recurrent.delta import GatedDeltaNet as GatedDeltaNet, delta_chunks as delta_chunks, delta_step as delta_step
    from .recurrent.kda import (
        KimiDeltaAttention as KimiDeltaAttention,
        channel_delta_chunks as channel_delta_chunks,
    )
    from .recurrent.mamba import MambaMixer as MambaMixer, selective_scan as selective_scan
    from .recurrent.mamba2 import Mamba2Mixer as Mamba2Mixer
    from .recurrent.mlstm import MatrixLSTM as MatrixLSTM, matrix_memory as matrix_memory
    from .recurrent.rglru import RGLRU as RGLRU, GriffinMixer as GriffinMixer
    from .recurrent.short import ShortConv as ShortConv
    from .recurrent.ssd import GatedRMSNorm as GatedRMSNorm, scan_chunks as scan_chunks, scan_step as scan_step
    from .recurrent.state import Documents as Documents, RecurrentState as RecurrentState
    from .relative import RelativeBias as RelativeBias, buckets as buckets
    from .resize import resize_grid as resize_grid, resize_matrix as resize_matrix
    from .sentence import SentenceEmbedding as SentenceEmbedding, sentence_embedding as sentence_embedding
    from .seq2seq import (
        Seq2Seq as Seq2Seq,
        Seq2SeqLM as Seq2SeqLM,
        attend_to_encoder as attend_to_encoder,
        empty_cross as empty_cross,
        source_segments as source_segments,
    )
    from .streams import HyperConnection as HyperConnection, StreamNorm as StreamNorm, Streams as Streams
    from .text_to_text import (
        T5MLP as T5MLP,
        T5Attention as T5Attention,
        T5Block as T5Block,
        T5Encoder as T5Encoder,
        T5Stack as T5Stack,
    )
    from .token_ids import TokenIds as TokenIds
    from .translation import (
        TranslationAttention as TranslationAttention,
        TranslationBlock as TranslationBlock,
        TranslationStack as TranslationStack,
    )
    from .vision import (
        ClassTokens as ClassTokens,
        EncoderBlock as EncoderBlock,
        FirstToken as FirstToken,
        ImageEncoder as ImageEncoder,
        LayerScale as LayerScale,
    )

_later(__name__)
