"""Preflight checks of a training: splits, shards, lanes and weights, found wrong in seconds and not on every worker.

In a light module: what it refuses is refused before torch and Ray, which take seconds to import, are needed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import AccessError, ConfigError, ShardError, WeightsError
from twostream_ray.models.settings import PUBLISHED_WEIGHTS, ModelConfig
from twostream_ray.redaction import one_line
from twostream_ray.runs.cluster.session import require_cluster
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.splits import split_options

SPLITS = ("train_split", "validation_split", "test_split")
"""Settings of `data` that name splits."""

_PICKLED = (b"PK\x03\x04", b"\x80")
"""First bytes of what torch.save writes: a ZIP archive, and earlier a pickle."""


def require_ready(config: ExperimentConfig, *, splits: Sequence[str], folder: RunFolder) -> ShardSet:
    """Refuse what a training, or a search over it, would stumble over, before anything slow has started.

    Returns its shard set.

    Raises:
        ConfigError: lanes do not go with the batch or the workers, unless a search looks for either.
        ShardError: the shards are missing, lack a split of `splits` (settings of `data`), or files of theirs.
        WeightsError, StorageError: a file of weights cannot be read.
        ClusterError: the cluster cannot be reached, or none can be started here.
    """
    shard_set = open_shards(config.data.shards)
    require_splits(config, shard_set, splits)
    if not searched(config) & {"training.global_batch", "data.lanes"}:
        require_lanes(config, workers=fewest_workers(config))
    require_trainable(config, shard_set, folder=folder)
    require_cluster()
    return shard_set


def require_trainable(config: ExperimentConfig, shard_set: ShardSet, *, folder: RunFolder) -> None:
    """Refuse shards and weights that workers could not begin with; a finished run needs neither.

    Raises:
        ShardError, WeightsError, StorageError: as `require_ready`.
    """
    if storage.exists(folder.report):
        return
    require_shard_files(shard_set)
    weights_are_read = config.init is None and not folder.has_learnt()
    if weights_are_read and not any(name.endswith(".weights") for name in searched(config)):
        require_weights(config.model)


def searched(config: ExperimentConfig) -> set[str]:
    """Dotted names of the settings that a search looks for: its own settings alone need not make a network."""
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
        ShardError: names the split, those that there are, and the options to give; or nothing can be cut from the
            training split.
    """
    for name in names:
        if (split := getattr(config.data, name)) is not None:
            try:
                shard_set.split(split)
            except ShardError as error:
                raise ShardError(f"{error}: {split_options(config.data, shard_set)}") from None
    shard_set.split(config.data.split_to_train)


def fewest_workers(config: ExperimentConfig) -> int:
    """Workers that a training has in any case: what the settings say, or one where they leave it to the cluster."""
    return 1 if config.workers.num_workers is None else config.workers.most_workers(gpus=0)


def require_lanes(config: ExperimentConfig, *, workers: int) -> None:
    """Refuse more workers than lanes, and batches that lanes cannot share, before anything starts.

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
    """Refuse a shard set without all of its files, each as large as its manifest says; one listing, nothing is read.

    Raises:
        ShardError: names the first file that is missing or of another size.
        StorageError: they cannot be listed.
    """
    uri = storage.join(shard_set.uri, "shards")
    there = dict(storage.list_files(uri)) if storage.exists(uri) else {}
    wrong = [
        (name, wanted)
        for name, wanted in zip(shard_set.shard_names, shard_set.shard_bytes, strict=True)
        if there.get(name) != wanted
    ]
    if wrong:
        name, wanted = wrong[0]
        found = f"it has {there[name]:,}" if name in there else "it is not there"
        others = f" ({len(wrong)} of {len(shard_set.shard_names)} shards are so)" if len(wrong) > 1 else ""
        raise ShardError(
            f"a shard of {wanted:,} bytes was wanted at {storage.join(uri, name)}, {found}{others}: ingest again"
        )


def require_weights(model: ModelConfig) -> None:
    """Refuse files of pretrained weights that are not there, or not what they claim; only their heads are read.

    Raises:
        WeightsError: the file holds neither safetensors nor what torch.save writes, or is cut.
        StorageError: it is missing or cannot be read.
    """
    for stream in ("spatial", "temporal"):
        weights = getattr(model, stream).weights
        is_file = weights not in (None, *PUBLISHED_WEIGHTS)
        if is_file and model.architecture != "clip3d" and model.streams in ("both", stream):
            _require_weights_file(str(weights), setting=f"model.{stream}.weights")
    if model.architecture == "clip3d" and model.clip3d.weights not in (None, *PUBLISHED_WEIGHTS):
        _require_weights_file(str(model.clip3d.weights), setting="model.clip3d.weights")


def _require_weights_file(uri: str, *, setting: str) -> None:
    def read() -> bool:
        with storage.open_regular(uri) as file:
            size, begin = file.size(), file.read(8)
            if any(map(begin.startswith, _PICKLED)):
                return True
            (length,) = struct.unpack("<Q", begin) if len(begin) == 8 else (size,)
            return length <= size - 8 and ends_with_its_tensors(size, header=file.read(length))

    try:
        whole = storage.patiently(read, uri=storage.absolute(uri))
    except FileNotFoundError as error:
        raise WeightsError(f"{setting} names {uri}, which is not there: check the path") from error
    except AccessError as error:
        raise WeightsError(f"{setting} wants a file that can be read: {error}") from error
    except OSError as error:
        raise WeightsError(
            f"{setting} names {uri}, which cannot be read ({one_line(error)}): check the path"
        ) from error
    if not whole:
        raise WeightsError(
            f"{setting} names {uri}, which is cut, or no file of weights: name a safetensors file that is whole"
        )


def ends_with_its_tensors(size: int, *, header: bytes) -> bool:
    """Whether the tensors that a safetensors header names end where the file, of `size` bytes, does."""
    try:
        tensors = json.loads(header)
        end = max((entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"), default=0)
        return bool(size == 8 + len(header) + end)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return False
