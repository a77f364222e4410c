"""Download of torchvision's pretrained weights (ImageNet, Kinetics-400), verified by sha256, to shared storage."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from twostream_ray import storage
from twostream_ray.errors import ConfigError, StorageError, WeightsError
from twostream_ray.models.settings import VideoNetwork
from twostream_ray.storage.temporary_folders import temporary_folder

PUBLISHED = ("vgg16", "resnet50", *get_args(VideoNetwork))
"""Networks whose weights torchvision publishes."""

_PART_BYTES = 1 << 20
_SILENCE_S = 30.0
"""Read timeout: how long a server may send nothing."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Download pretrained weights to shared storage, verified against their published sha256.

    For instance `twostream weights fetch vgg16 --to s3://bucket/weights`. An existing file is verified and kept; a
    different file of the same name is never overwritten.
    """

    backbone: str
    """Network: vgg16 or resnet50, trained on ImageNet by torchvision; or a network of model.clip3d, on Kinetics-400."""

    to: str
    """Directory or s3:// prefix for the file."""

    def __post_init__(self) -> None:
        if self.backbone not in PUBLISHED:
            raise ConfigError(f"weights are published for {', '.join(PUBLISHED)}, got {self.backbone!r}")

    def parts(self) -> tuple[str, ...]:
        """The parts of a model that can use them."""
        return ("clip3d",) if self.backbone in get_args(VideoNetwork) else ("spatial", "temporal")


@dataclass(frozen=True, kw_only=True)
class FetchedWeights:
    """A weights file in shared storage."""

    uri: str
    """URI to set as model.spatial.weights, model.temporal.weights or model.clip3d.weights."""
    num_bytes: int
    """Size of the file."""
    was_there: bool
    """Whether it existed already."""


def fetch_weights(
    config: FetchConfig, *, progress: Callable[[int, int], object] = lambda _done, _total: None
) -> FetchedWeights:
    """Download the weights of a backbone to `config.to`; `progress` is called with (bytes received, bytes in all).

    Raises:
        WeightsError: they cannot be downloaded, or have another sha256.
        StorageError: another file has the name, or the file cannot be written.
    """
    # torch takes seconds to import.
    from twostream_ray.models.pretrained import published_weights

    url, sha256 = published_weights(config.backbone)
    target = storage.join(storage.absolute(config.to), url.rpartition("/")[2])
    if (size := _existing_size(target, sha256)) is not None:
        return FetchedWeights(uri=target, num_bytes=size, was_there=True)
    storage.require_writable(target)
    with temporary_folder() as scratch:
        file = Path(scratch, "weights")
        try:
            received = _download(url, file, progress=progress)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(
                f"{config.backbone}'s weights at {url} could not be downloaded ({' '.join(str(error).split())[:200]}): "
                f"run the same command on a machine with network access, or download the file and copy it to {target}"
            ) from error
        if not received.startswith(sha256):
            raise WeightsError(
                f"{url} sent a file of sha256 {received[:16]}..., {sha256}... was wanted: run the same command again; "
                "if the error persists, check the proxy"
            )
        # Another process may have written it meanwhile.
        if (size := _existing_size(target, sha256)) is None:
            storage.write_file(target, file)
        return FetchedWeights(uri=target, num_bytes=file.stat().st_size, was_there=size is not None)


def _existing_size(target: str, sha256: str) -> int | None:
    """Size of the file at `target`; None if there is none.

    Raises:
        StorageError: it is another file.
    """
    if not storage.exists(target):
        return None
    with storage.on_disk(target) as path:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(sha256):
            raise StorageError(
                f"{target} is another file (sha256 {found[:16]}..., {sha256}... was wanted), which is not overwritten: "
                "name another directory with --to, or move it away"
            )
        return path.stat().st_size


def _download(url: str, path: Path, *, progress: Callable[[int, int], object]) -> str:
    """Download into a new file; returns its sha256.

    Raises:
        OSError, http.client.HTTPException: the download failed or was incomplete.
    """
    digest, done = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_SILENCE_S) as answer, path.open("xb") as file:  # noqa: S310 - torchvision's
        total = int(answer.headers["Content-Length"]) if answer.headers["Content-Length"] else None
        while part := answer.read(_PART_BYTES):
            file.write(part)
            digest.update(part)
            done += len(part)
            progress(done, total or done)
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    return digest.hexdigest()
