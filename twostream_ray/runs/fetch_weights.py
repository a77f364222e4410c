"""Download of torchvision's pretrained weights (ImageNet, Kinetics-400): once, checked, to where all nodes read."""

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
"""How long a server may send nothing."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Download pretrained weights once to where every node reads them, checked against their published sha256.

    For instance `twostream weights fetch vgg16 --to s3://bucket/weights`. A file that is there already is checked and
    left; another one under its name is never written over.
    """

    backbone: str
    """Whose weights: vgg16 or resnet50, as torchvision trained them on ImageNet; or a network of model.clip3d, on
    Kinetics-400."""

    to: str
    """Directory or s3:// prefix for the file."""

    def __post_init__(self) -> None:
        if self.backbone not in PUBLISHED:
            raise ConfigError(f"weights are published for {', '.join(PUBLISHED)}, got {self.backbone!r}")

    def parts(self) -> tuple[str, ...]:
        """The parts of a model that may start from them."""
        return ("clip3d",) if self.backbone in get_args(VideoNetwork) else ("spatial", "temporal")


@dataclass(frozen=True, kw_only=True)
class FetchedWeights:
    """A file of weights that every node can read."""

    uri: str
    """What to give as model.spatial.weights, or as model.clip3d.weights."""
    num_bytes: int
    """Its size."""
    was_there: bool
    """It was there already."""


def fetch_weights(
    config: FetchConfig, *, progress: Callable[[int, int], object] = lambda _done, _total: None
) -> FetchedWeights:
    """Have the weights of a backbone in `config.to`; `progress` is called with the bytes that came and those wanted.

    Raises:
        WeightsError: they cannot be downloaded, or other bytes came.
        StorageError: another file has the name, or it cannot be written.
    """
    # torch takes seconds to import.
    from twostream_ray.models.pretrained import published_weights

    url, sha256 = published_weights(config.backbone)
    target = storage.join(storage.absolute(config.to), url.rpartition("/")[2])
    if (size := _there(target, sha256)) is not None:
        return FetchedWeights(uri=target, num_bytes=size, was_there=True)
    storage.require_writable(target)
    with temporary_folder() as scratch:
        file = Path(scratch, "weights")
        try:
            received = _download(url, file, progress=progress)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(
                f"{config.backbone}'s weights at {url} could not be downloaded ({' '.join(str(error).split())[:200]}): "
                f"run the same command where there is a network, or bring the file there and copy it to {target}"
            ) from error
        if not received.startswith(sha256):
            raise WeightsError(
                f"{url} sent bytes of sha256 {received[:16]}..., {sha256}... was wanted: run the same command again; "
                "if that changes nothing, something between here and there answers in its place"
            )
        # Somebody may have put a file there meanwhile.
        if (size := _there(target, sha256)) is None:
            storage.write_file(target, file)
        return FetchedWeights(uri=target, num_bytes=file.stat().st_size, was_there=size is not None)


def _there(target: str, sha256: str) -> int | None:
    """Bytes of the file that is there already; None if there is none.

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
                f"{target} holds another file (sha256 {found[:16]}..., {sha256}... was wanted), which is not written "
                "over: name another directory as --to, or move it away"
            )
        return path.stat().st_size


def _download(url: str, path: Path, *, progress: Callable[[int, int], object]) -> str:
    """Download into a new file; returns the sha256 of what came.

    Raises:
        OSError, http.client.HTTPException: it could not be had, or not whole.
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
