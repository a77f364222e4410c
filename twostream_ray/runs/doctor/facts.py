"""Facts about a node: versions, drivers, limits, disks and its way to the store, gathered by a process on it.

Nothing is judged here, and nothing raises: what cannot be found out is None, or a fault in words.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from twostream_ray import storage
from twostream_ray.data.loading.cpus import cpus_of_this_machine
from twostream_ray.errors import TwoStreamError
from twostream_ray.redaction import one_line, redact

PACKAGES = ("twostream_ray", "ray", "torch", "pyarrow", "av", "opencv-contrib-python-headless")
"""Whose versions must be the same everywhere, by their names as distributions."""

_READ_BYTES = 32 << 20
"""Of a shard, to measure a store's rate."""
_SHM = Path("/dev/shm")  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """A node's way to the shards."""

    uri: str
    fault: str | None = None
    """Why it cannot read there."""
    first_byte_s: float | None = None
    """Seconds from a request to its first byte."""
    bytes_per_second: float | None = None
    """Of one large request."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a process on a node found out."""

    node: str
    """Its host name."""
    python: str
    versions: Mapping[str, str]
    """Of `PACKAGES` that are installed."""
    torch_cuda: str | None = None
    """CUDA that torch is built for."""
    driver: str | None = None
    """NVIDIA's driver; None where there is none."""
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA that it runs."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs that the driver lists."""
    gpu_bytes: int | None = None
    """Memory of the smallest of them."""
    ray_gpus: int = 0
    """GPUs that Ray counts on the node."""
    video_library: bool | None = None
    """Whether the driver's video decoder can be loaded, as with the container capability `video`; None without GPUs."""
    cpus: int = 1
    """That a process may run on."""
    ray_cpus: float = 1.0
    """That Ray counts on the node."""
    memory_bytes: int = 0
    shm_bytes: int | None = None
    """Size of /dev/shm; None where there is none."""
    object_store_bytes: int = 0
    """Of Ray's object store on the node."""
    open_files: int | None = None
    """Limit of a process; None: unlimited."""
    temporary_free_bytes: int = 0
    """Left on the disk of temporary files."""
    cache_free_bytes: int | None = None
    """Left on the disk of data.cache; None where there is no cache."""
    auth_mode: str = ""
    """RAY_AUTH_MODE of its processes."""
    clock_skew_s: float = 0.0
    """Its clock less this machine's."""
    clock_error_s: float = 0.0
    """How far off that may be: half the time that the question took."""
    store: StoreFacts | None = None
    storage_fault: str | None = None
    """Why it cannot write where checkpoints go."""
    sees_storage: bool | None = None
    """Whether a file that this machine wrote there is seen; None where nobody looked."""
    accelerator: AcceleratorFacts | None = None
    """What a process that holds a GPU of the node found; None where nobody could look."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorFacts:
    """What torch finds on a GPU."""

    device: str
    """Its name."""
    fault: str | None = None
    """Why torch cannot compute on it."""
    nccl: str | None = None
    """Version of NCCL; None where torch has none."""
    jpeg_fault: str | None = None
    """Why flow cannot be decoded on it."""
    compiler_fault: str | None = None
    """Why torch.compile cannot work there."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a node is asked about."""

    shards: str = ""
    """Shard set to read from; empty: none."""
    shard: str = ""
    """A file of it that is large."""
    storage: str | None = None
    """Where checkpoints go; None: not looked at."""
    mark: str = ""
    """A file there that the asking machine has written."""
    cache: str | None = None
    """Directory of data.cache."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What Ray counts on the node."""


def node_facts(questions: Questions) -> NodeFacts:
    """Everything about the node that this process runs on, but the clock and its GPUs' own view."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resources = questions.resources
    driver, driver_cuda, gpus, gpu_bytes = _driver()
    fault, seen = _storage(questions)
    return NodeFacts(
        node=socket.gethostname(),
        python=platform.python_version(),
        versions=versions(),
        torch_cuda=_torch_cuda(),
        driver=driver,
        driver_cuda=driver_cuda,
        gpus=gpus,
        gpu_bytes=gpu_bytes,
        ray_gpus=int(resources.get("GPU", 0)),
        video_library=_video_library() if gpus else None,
        cpus=cpus_of_this_machine(),
        ray_cpus=resources.get("CPU", 0.0),
        memory_bytes=psutil.virtual_memory().total,
        shm_bytes=shutil.disk_usage(_SHM).total if _SHM.is_dir() else None,
        object_store_bytes=int(resources.get("object_store_memory", 0)),
        open_files=None if soft == resource.RLIM_INFINITY else soft,
        temporary_free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        cache_free_bytes=None if questions.cache is None else _free_bytes(Path(questions.cache)),
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        store=_store(questions) if questions.shards else None,
        storage_fault=fault,
        sees_storage=seen,
    )


def versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def accelerator_facts() -> AcceleratorFacts | None:
    """What torch finds on the GPU that this process holds; None where it holds none."""
    import torch

    if not os.environ.get("CUDA_VISIBLE_DEVICES") and not torch.cuda.is_available():
        return None
    device = torch.device("cuda", 0)
    try:
        name = torch.cuda.get_device_name(device)
        total = float(torch.ones(1024, device=device).sum())
    except (RuntimeError, AssertionError) as error:
        return AcceleratorFacts(device="GPU", fault=one_line(error))
    from twostream_ray.data.loading.decode_device import engine_fault
    from twostream_ray.training.distributed import no_compiler

    return AcceleratorFacts(
        device=name,
        fault=None if total == 1024 else f"it adds 1,024 ones to {total:g}",
        nccl=".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        jpeg_fault=engine_fault(device),
        compiler_fault=no_compiler(device),
    )


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def _driver() -> tuple[str | None, tuple[int, int] | None, tuple[str, ...], int | None]:
    """Version, newest CUDA, GPUs' names and the smallest one's memory, by NVIDIA's management library."""
    import pynvml

    try:
        pynvml.nvmlInit()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = tuple(_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
        memory = [int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
        return _text(pynvml.nvmlSystemGetDriverVersion()), divmod(cuda // 10, 100), names, min(memory, default=None)
    except pynvml.NVMLError:
        return None, None, (), None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _video_library() -> bool:
    import ctypes

    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return True


def _free_bytes(path: Path) -> int:
    """Left on the disk where a directory is or would be."""
    there = next(one for one in (path, *path.parents) if one.is_dir())
    return shutil.disk_usage(there).free


def _store(questions: Questions) -> StoreFacts:
    manifest = storage.join(questions.shards, "manifest.json")
    uri = storage.join(questions.shards, "shards", questions.shard) if questions.shard else manifest
    try:
        with storage.open_regular(uri) as file:
            size = min(file.size(), _READ_BYTES)
            started = time.perf_counter()
            file.read_at(1, 0)
            first = time.perf_counter() - started
            started = time.perf_counter()
            got = len(file.read_at(size, 0))
            seconds = time.perf_counter() - started
    except (TwoStreamError, OSError) as error:
        return StoreFacts(uri=uri, fault=redact(one_line(error)))
    # What goes before a large request's first byte is counted apart.
    return StoreFacts(uri=uri, first_byte_s=first, bytes_per_second=got / max(seconds - first, 0.1 * seconds, 1e-9))


def _storage(questions: Questions) -> tuple[str | None, bool | None]:
    """Why checkpoints cannot be written here, and whether the asking machine's file is seen."""
    if questions.storage is None:
        return None, None
    mine = storage.join(questions.storage, f".doctor-{socket.gethostname()}-{os.getpid()}")
    try:
        seen = storage.exists(questions.mark)
        if seen:  # otherwise it is another directory of that name, or none
            storage.write_bytes(mine, b"written by `twostream doctor`, which removes it")
            storage.delete(mine)
    except (TwoStreamError, OSError) as error:
        return redact(one_line(error)), None
    return None, seen
