"""Settings of data loading: which splits, which samples, how they are decoded and what is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.held_out import Part
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within

DecodeAt = Literal["auto", "device", "worker", "stream"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards, which splits, and how samples are drawn from them."""

    shards: str
    """Directory or s3:// prefix that `ingest` wrote."""

    train_split: str = "train"
    """Split to train on; the official lists of UCF101 give train1, train2, train3."""

    validation_split: str | None = None
    """Split scored after each epoch; none by default."""

    validation_fraction: float | None = None
    """Cut this fraction of every class of the training split, in [0.001, 0.5], and score it after each epoch instead of
    a validation split: whole groups of clips of one source, which are not trained on. The same ones for every worker,
    run and trial of a search, whatever its seed. For sets such as UCF101 that have none; none by default."""

    validation_seed: int = 0
    """Fixes which groups validation_fraction cuts."""

    test_split: str = "test"
    """Split that `evaluate` scores."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Which frames."""

    transforms: TransformConfig = field(default_factory=TransformConfig)
    """Which crops."""

    lanes: int = 8
    """Parallel reading positions of a pass; at least the number of workers, and a divisor of the global batch."""

    read_tasks: int | None = None
    """Ray tasks per worker that read shards at the same time, each a process; by default one for every four CPUs that
    are the worker's, and at least 2."""

    decode_processes: int | None = None
    """Processes that decode samples beside each worker, as many as its machine has CPUs at most; 0: two threads of the
    worker. By default one for each CPU that is the worker's, none for a single CPU or for a few hundred samples."""

    decode_at: DecodeAt = "auto"
    """device: the training worker decodes RGB, and its GPU the flow fields of a batch, in lists; worker: processes
    beside the worker decode both; stream: the tasks that read decode, on any node, and stream samples of about 6 MB.
    auto: device on a GPU that can, and says why where not, worker elsewhere. Samples are the same, bit for bit."""

    cache: str | None = None
    """Directory on each machine's disk to keep whole shards of s3:// in, for later passes and runs; none by default."""

    cache_gb: float = 100.0
    """Size of that directory at most, in 1e9 bytes; what does not fit is read from the store every time."""

    sample_cache: str | None = None
    """Directory on each machine's disk to keep decoded samples in, about 6 MB each, for later runs that draw the same
    ones, and validation views for later epochs; none by default, and one of its own for each search."""

    sample_cache_gb: float = 50.0
    """Size of that directory at most, in 1e9 bytes; what does not fit is decoded every time."""

    def __post_init__(self) -> None:
        require_within(
            self,
            "data.",
            cache_gb="(0, 1e9]",
            sample_cache_gb="(0, 1e9]",
            lanes="[1, 100_000]",
            validation_fraction="[0.001, 0.5]",
            validation_seed="[0, 9_223_372_036_854_775_807]",
            read_tasks="[1, 10_000]",
            decode_processes="[0, 10_000]",
        )
        if self.validation_fraction is not None and self.validation_split is not None:
            raise ConfigError(
                f"data.validation_fraction cuts what validates from data.train_split, data.validation_split names "
                f"{self.validation_split!r}: give one of them, and null for the other (--data.validation_split null)"
            )
        if self.decode_at not in get_args(DecodeAt):
            raise ConfigError(f"data.decode_at must be one of {', '.join(get_args(DecodeAt))}, got {self.decode_at!r}")
        if self.sample_cache is not None and self.decode_at not in ("auto", "worker"):
            raise ConfigError(f"data.sample_cache goes with data.decode_at=worker or auto, got {self.decode_at}")
        if self.decode_at == "device" and self.sampling.flow_stack == "trajectory":
            raise ConfigError(
                "data.decode_at=device does not go with data.sampling.flow_stack=trajectory, which CPUs sample: choose "
                "auto or worker"
            )

    @property
    def split_to_train(self) -> str:
        """The split, or the part of it, whose clips are trained on."""
        return self.train_split if self.validation_fraction is None else self._part(is_validation=False)

    @property
    def split_to_validate(self) -> str | None:
        """The split, or the part of the training split, that is scored after each epoch; None if none is."""
        return self.validation_split if self.validation_fraction is None else self._part(is_validation=True)

    def _part(self, *, is_validation: bool) -> str:
        fraction = self.validation_fraction or 0.0
        seed = self.validation_seed
        return Part(split=self.train_split, is_validation=is_validation, fraction=fraction, seed=seed).name
