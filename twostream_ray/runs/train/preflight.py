"""Preflight checks of a training run: splits, shards, lanes and weights are validated before workers start.

This module imports neither torch nor Ray, which take seconds, so that a wrong command is refused at once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import AccessError, ConfigError, ShardError, WeightsError
from twostream_ray.models.settings import PUBLISHED_BY_TIMM, PUBLISHED_WEIGHTS, ModelConfig
from twostream_ray.redaction import one_line
from twostream_ray.runs.cluster.session import require_cluster
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.splits import split_options

SPLITS = ("train_split", "validation_split", "test_split")
"""Settings of `data` that name splits."""

_MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file: the library refuses longer ones."""
_PICKLED = (b"PK\x03\x04", b"\x80")
"""First bytes of what torch.save writes: a ZIP archive, and earlier a pickle."""


def require_ready(config: ExperimentConfig, *, splits: Sequence[str], folder: RunFolder) -> ShardSet:
    """Refuse what would make a training run, or a search over it, fail, before anything slow starts.

    Returns the shard set.

    Raises:
        ConfigError: data.lanes fits neither the batch nor the workers; not checked if the search varies them.
        ShardError: the shards are missing, lack a split that `splits` (settings of `data`) name, or lack files.
        WeightsError, StorageError: a weights file cannot be read.
        ClusterError: the cluster cannot be reached, or none can be started on this machine.
    """
    shard_set = open_shards(config.data.shards)
    require_splits(config, shard_set, splits)
    if not searched_settings(config) & {"training.global_batch", "data.lanes"}:
        require_lanes(config, workers=fewest_workers(config))
    require_trainable(config, shard_set, folder=folder)
    require_cluster()
    return shard_set


def require_trainable(config: ExperimentConfig, shard_set: ShardSet, *, folder: RunFolder) -> None:
    """Refuse shards and weights that workers could not start with; a finished run needs neither.

    Raises:
        ShardError, WeightsError, StorageError: as `require_ready`.
    """
    if storage.exists(folder.report):
        return
    require_shard_files(shard_set)
    weights_are_read = config.init is None and not folder.has_checkpoint()
    if weights_are_read and not any(name.endswith(".weights") for name in searched_settings(config)):
        require_weights(config.model)


def searched_settings(config: ExperimentConfig) -> set[str]:
    """Dotted names of the settings that a search varies; their values in `config` need not make a valid network."""
    search = getattr(config, "search", None)
    return set() if search is None else {name.strip() for names in search.space for name in names.split(",")}


def require_lasting_storage(config: ExperimentConfig) -> None:
    """Refuse to keep checkpoints in a job's uploaded working directory.

    Raises:
        ConfigError: names the setting and the way out.
    """
    way_out = "set --storage to s3://BUCKET/PREFIX or to an absolute path that all nodes see"
    storage.refuse_uploaded(storage.absolute(config.storage), setting="storage", way_out=way_out)


def require_splits(config: ExperimentConfig, shard_set: ShardSet, names: Sequence[str]) -> None:
    """Refuse settings of `data` that name splits which the shards do not have, before anything slow.

    Raises:
        ShardError: names the split, the existing ones, and the options to give; or nothing can be held out from
            the training split.
    """
    for name in names:
        if (split := getattr(config.data, name)) is not None:
            try:
                shard_set.split(split)
            except ShardError as error:
                raise ShardError(f"{error}: {split_options(config.data, shard_set)}") from None
    shard_set.split(config.data.split_to_train)


def fewest_workers(config: ExperimentConfig) -> int:
    """The fewest workers a training can have: as set, or one where the settings leave it to the cluster."""
    return 1 if config.workers.num_workers is None else config.workers.most_workers(gpus=0)


def require_lanes(config: ExperimentConfig, *, workers: int) -> None:
    """Refuse more workers than lanes, and a batch size that is not a multiple of the lanes.

    Raises:
        ConfigError: names both numbers and the settings.
    """
    lanes, batch = config.data.lanes, config.training.global_batch
    if workers > lanes:
        raise ConfigError(
            f"{workers} workers want at least as many data.lanes, got {lanes}: raise data.lanes to a divisor of "
            f"training.global_batch ({batch}), or set workers.num_workers to at most {lanes}"
        )
    if batch % lanes:
        raise ConfigError(f"training.global_batch must be a multiple of data.lanes ({lanes}), got {batch}")


def require_shard_files(shard_set: ShardSet) -> None:
    """Refuse a shard set with missing files, or files of another size than in its manifest; one listing, no reads.

    Raises:
        ShardError: names the first file that is missing or of another size.
        StorageError: they cannot be listed.
    """
    uri = storage.join(shard_set.uri, "shards")
    sizes = dict(storage.list_files(uri)) if storage.exists(uri) else {}
    wrong = [
        (name, wanted)
        for name, wanted in zip(shard_set.shard_names, shard_set.shard_bytes, strict=True)
        if sizes.get(name) != wanted
    ]
    if wrong:
        name, wanted = wrong[0]
        found = f"it has {sizes[name]:,}" if name in sizes else "it is missing"
        others = f" (so are {len(wrong)} of {len(shard_set.shard_names)} shards)" if len(wrong) > 1 else ""
        raise ShardError(
            f"a shard of {wanted:,} bytes was wanted at {storage.join(uri, name)}, {found}{others}: ingest again"
        )


def require_weights(model: ModelConfig) -> None:
    """Refuse missing or truncated files of pretrained weights; only their headers are read.

    Raises:
        WeightsError: the file holds neither safetensors nor what torch.save writes, or is truncated, or timm has no
            weights to load.
        StorageError: it is missing or cannot be read.
    """
    for stream in ("spatial", "temporal"):
        tower = getattr(model, stream)
        if model.architecture == "clip3d" or model.streams not in ("both", stream):
            continue
        if tower.weights == PUBLISHED_BY_TIMM:
            from twostream_ray.models.timm_registry import require_published  # only here: it imports torch

            require_published(tower.backbone)
        elif tower.weights not in (None, *PUBLISHED_WEIGHTS):
            _require_weights_file(tower.weights, setting=f"model.{stream}.weights")
    if model.architecture == "clip3d" and model.clip3d.weights not in (None, *PUBLISHED_WEIGHTS):
        _require_weights_file(str(model.clip3d.weights), setting="model.clip3d.weights")


def _require_weights_file(uri: str, *, setting: str) -> None:
    def read() -> bool:
        with storage.open_regular(uri) as file:
            return file.read_at(4, 0).startswith(_PICKLED) or has_all_tensors(file)

    try:
        complete = storage.patiently(read, uri=storage.absolute(uri))
    except FileNotFoundError as error:
        raise WeightsError(f"{setting} names {uri}, which does not exist: check the path") from error
    except AccessError as error:
        raise WeightsError(f"{setting} wants a readable file: {error}") from error
    except OSError as error:
        raise WeightsError(
            f"{setting} names {uri}, which cannot be read ({one_line(error)}): check the path"
        ) from error
    if not complete:
        raise WeightsError(
            f"{setting} names {uri}, which is truncated or no weights file: name a complete safetensors file"
        )


def has_all_tensors(file: Any) -> bool:
    """Whether a safetensors file, open for random access, ends where the tensors that its header names do.

    Only the header is read; one that is longer than safetensors itself accepts is not.
    """
    size, begin = file.size(), file.read_at(8, 0)
    (length,) = struct.unpack("<Q", begin) if len(begin) == 8 else (size,)
    if length > min(size - 8, _MOST_HEADER_BYTES):
        return False
    try:
        tensors = json.loads(file.read_at(length, 8))
        end = max((entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"), default=0)
        return bool(size == 8 + length + end)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return False
