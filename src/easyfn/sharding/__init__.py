"""Sharding: logical axes of weights to the axes of a mesh."""

from .rules import (
    PRESETS as PRESETS,
    ShardingError as ShardingError,
    ShardingRules as ShardingRules,
    default_rules as default_rules,
    make_mesh as make_mesh,
)
from .shard import (
    Placement as Placement,
    Report as Report,
    data_sharding as data_sharding,
    fully_gather as fully_gather,
    fully_shard as fully_shard,
    gather as gather,
    gather_fns as gather_fns,
    named_shardings as named_shardings,
    partition_specs as partition_specs,
    shard as shard,
    shard_batch as shard_batch,
    shard_fns as shard_fns,
)
