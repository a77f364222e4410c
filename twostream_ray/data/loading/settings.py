"""Settings of data loading: splits, sampling, augmentation, decoding and caches."""

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
    """Shards, splits, and how samples are drawn from them."""

    shards: str
    """Directory or s3:// prefix of a shard set written by `ingest`."""

    train_split: str = "train"
    """Split to train on; the official lists of UCF101 give train1, train2, train3."""

    validation_split: str | None = None
    """Split scored after each epoch; none by default."""

    validation_fraction: float | None = None
    """Hold out this fraction of every class of the training split, in [0.001, 0.5], for validation after each epoch,
    for sets such as UCF101 that have no validation split. Whole groups of clips of one source are held out and not
    trained on, the same ones for every worker, run and trial of a search, whatever training.seed. None by default."""

    validation_seed: int = 0
    """Seed of the groups that validation_fraction holds out."""

    test_split: str = "test"
    """Split that `evaluate` scores."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Temporal sampling of frames and flow."""

    transforms: TransformConfig = field(default_factory=TransformConfig)
    """Crops and augmentation."""

    lanes: int = 8
    """Number of lanes that a pass is cut into and assigned to workers round-robin; at least the number of workers, and
    a divisor of the global batch."""

    read_tasks: int | None = None
    """Concurrent Ray tasks per worker that read shards, each a process; by default one per four of the worker's CPUs,
    and at least 2."""

    decode_processes: int | None = None
    """Decoder processes per worker, at most the number of its machine's CPUs; 0: two threads of the worker. By default
    one per CPU of the worker, none for a single CPU or for a few hundred samples."""

    decode_at: DecodeAt = "auto"
    """device: the training worker's GPU decodes the flow fields of a batch, its CPUs RGB; worker: processes of the
    worker decode both; stream: the reading tasks decode, on any node, and stream samples of about 6 MB. auto: device on
    a GPU that supports it (the log says why if not), otherwise worker. Samples are bit-identical."""

    cache: str | None = None
    """Directory on each machine's disk that caches whole shards of s3://, for later passes and runs; none by default.
    """

    cache_gb: float = 100.0
    """Maximum size of that directory, in 1e9 bytes; shards that do not fit are read from the store every time."""

    sample_cache: str | None = None
    """Directory on each machine's disk that caches decoded samples, about 6 MB each, for later runs that draw the same
    ones, and validation views for later epochs; none by default, except that each search has one of its own."""

    sample_cache_gb: float = 50.0
    """Maximum size of that directory, in 1e9 bytes; samples that do not fit are decoded every time."""

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
                f"data.validation_fraction and data.validation_split exclude each other, got "
                f"{self.validation_fraction} and {self.validation_split!r}: set one of them to null "
                "(--data.validation_split null)"
            )
        if self.decode_at not in get_args(DecodeAt):
            raise ConfigError(f"data.decode_at must be one of {', '.join(get_args(DecodeAt))}, got {self.decode_at!r}")
        if self.sample_cache is not None and self.decode_at not in ("auto", "worker"):
            raise ConfigError(f"data.sample_cache needs data.decode_at worker or auto, got {self.decode_at}")
        if self.decode_at == "device" and self.sampling.flow_stack == "trajectory":
            raise ConfigError(
                "data.decode_at=device does not support data.sampling.flow_stack=trajectory, which is sampled on CPUs: "
                "choose auto or worker"
            )

    @property
    def split_to_train(self) -> str:
        """Name of the split, or of the part of it, that is trained on."""
        return self.train_split if self.validation_fraction is None else self._part(is_validation=False)

    @property
    def split_to_validate(self) -> str | None:
        """Name of the split, or of the held-out part of the training split, for validation; None without validation."""
        return self.validation_split if self.validation_fraction is None else self._part(is_validation=True)

    def _part(self, *, is_validation: bool) -> str:
        fraction = self.validation_fraction or 0.0
        seed = self.validation_seed
        return Part(split=self.train_split, is_validation=is_validation, fraction=fraction, seed=seed).name
