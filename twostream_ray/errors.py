"""Exception hierarchy: each message says what was expected, what was found, where, and what to do.

TwoStreamError
├── ConfigError            a setting: unknown key, bad value, impossible combination
├── CatalogError           a data set's folders or lists
├── VideoError             one video cannot be used; ingest quarantines it
│   ├── EmptyClipError     it has too few frames
│   ├── TooLongError       it has more frames than a clip may have
│   └── DecodeError        its bytes cannot be decoded whole
├── ShardError             a shard or manifest is missing, damaged or of another version
├── ContractMismatchError  flow contracts of data, model, shard or checkpoint differ
├── TooManyBadVideosError  ingest quarantined more than max_bad_fraction allows
├── StorageError           a path or URI cannot be read or written
│   └── AccessError        retrying does not help: access is denied, it is no regular file, it is too large
│       └── MissingError   it does not exist
├── LeaseError             a run's folder or a shard set is in use by another process
├── CheckpointError        a checkpoint is missing, damaged or of another network
├── WeightsError           pretrained weights are missing or do not fit
├── TrainingError          a run cannot continue
│   └── NonFiniteLossError a step's loss was NaN or infinite
├── ClusterError           the Ray cluster cannot be reached or started, has too little room, or has died
├── TrackingError          a run's outbox cannot be delivered to MLflow
│   └── OutboxError        it is missing, or a file of it is damaged or not one of ours
└── RegistryError          MLflow's registry has no such model or version
"""

import errno

from twostream_ray.redaction import redact

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TwoStreamError(Exception):
    """Base of all errors that twostream_ray raises; the command line prints it in one line and exits with 2.

    Its message names URIs and quotes other programs: secrets in it are hidden when it is made.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in parts))


class ConfigError(TwoStreamError):
    """A setting has an unknown key or an invalid value, or contradicts another."""


class CatalogError(TwoStreamError):
    """A data set's folders or lists do not match its layout."""


class VideoError(TwoStreamError):
    """One video cannot be used."""


class EmptyClipError(VideoError):
    """A clip has too few frames."""


class TooLongError(VideoError):
    """A clip exceeds the limit of frames, duration or size."""


class DecodeError(VideoError):
    """A video's bytes cannot be decoded, or not whole."""


class ShardError(TwoStreamError):
    """A shard or a manifest is missing, damaged or of another version."""


class ContractMismatchError(TwoStreamError):
    """The flow contracts of data, model, shard or checkpoint differ."""


class TooManyBadVideosError(TwoStreamError):
    """More videos were quarantined than max_bad_fraction allows."""


class StorageError(TwoStreamError):
    """A path or URI cannot be read or written."""


class AccessError(StorageError):
    """A path or URI cannot be accessed, and retrying would not help."""


class MissingError(AccessError):
    """A path or URI does not exist."""


class LeaseError(TwoStreamError):
    """A run's folder or a shard set is in use by another process, or was taken over by one."""


class CheckpointError(TwoStreamError):
    """A checkpoint is missing, damaged or of another network."""


class WeightsError(TwoStreamError):
    """Pretrained weights are missing or do not fit the network."""


class TrainingError(TwoStreamError):
    """A training run cannot continue."""


class NonFiniteLossError(TrainingError):
    """A step's loss was NaN or infinite."""

    clips: tuple[int, ...] = ()
    """Positions in the shard set's index of the step's clips, from the workers whose part was not finite."""


class ClusterError(TwoStreamError):
    """The Ray cluster cannot be reached or started, has too little room, or has died."""


class TrackingError(TwoStreamError):
    """A run's outbox cannot be delivered: there is none, or MLflow does not answer."""


class OutboxError(TrackingError):
    """A run has no outbox, or a file of it is damaged or was not written by this package."""


class RegistryError(TwoStreamError):
    """The model registry has no such model, version or alias, or cannot be reached."""


def own_error(error: BaseException) -> TwoStreamError | None:
    """Unwrap the package's own error from a scheduler's wrappers (Ray's task errors); None where there is none.

    An error of a disk that is full or may not be written becomes a StorageError.
    """
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        if isinstance(seen, TwoStreamError) and not isinstance(inner, TwoStreamError):
            # Our messages are one line; Ray Data appends advice of its own.
            message = str(seen).partition("\n")[0]
            return seen if message == str(seen) else type(seen)(message)
        if isinstance(seen, OSError) and (fault := _disk_fault(seen)):
            return StorageError(fault)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return None


_FINAL = (
    ConfigError,
    WeightsError,
    ShardError,
    ContractMismatchError,
    CheckpointError,
    AccessError,
    NonFiniteLossError,
)


def is_final(error: BaseException) -> bool:
    """Whether a retry would fail with the same error: wrong settings, missing or damaged files."""
    return isinstance(own_error(error), _FINAL)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error was caused by a full disk or an exhausted quota."""
    causes = (error, error.__cause__)
    return any(isinstance(cause, OSError) and cause.errno in _FULL for cause in causes)


def _disk_fault(error: OSError) -> str | None:
    """The message for a full or read-only disk, or a missing temporary directory; None for other errors."""
    # Ray Data puts its advice, several lines, where the file's name was.
    named = error.filename is not None and "\n" not in str(error.filename)
    where = error.filename if named else "temporary files"
    if error.errno in _FULL:
        return (
            f"a disk is full or its quota used up ({error.strerror}: {where}): make room, or let TMPDIR name a "
            "directory with some, and run the same command again"
        )
    if error.errno == errno.EROFS:
        return (
            f"a disk cannot be written ({error.strerror}: {where}): let TMPDIR, or the setting that names this path, "
            "name one that can, and run the same command again"
        )
    if "No usable temporary directory" in str(error):
        return "no directory for temporary files can be written: let TMPDIR name one that can"
    return None
