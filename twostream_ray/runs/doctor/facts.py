"""Facts about a Ray node: versions, drivers, limits, disks and access to the store, gathered by a process on it.

They are judged elsewhere (`checks`), and nothing raises: what cannot be found out is None, or a fault in words.
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
"""Distributions whose versions must be the same on all nodes."""

_READ_BYTES = 32 << 20
"""Bytes of a shard that are read to measure a store's rate."""
_SHM = Path("/dev/shm")  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """A node's access to the shards."""

    uri: str
    fault: str | None = None
    """Why it cannot read them."""
    first_byte_s: float | None = None
    """Seconds from a request to its first byte."""
    bytes_per_second: float | None = None
    """Rate of one large request."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a process found out about its node."""

    node: str
    """Its host name."""
    python: str
    versions: Mapping[str, str]
    """Versions of the installed ones of `PACKAGES`."""
    torch_cuda: str | None = None
    """CUDA version that torch is built for."""
    driver: str | None = None
    """Version of NVIDIA's driver; None without one."""
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA version that it supports."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs that the driver lists."""
    gpu_bytes: int | None = None
    """Memory of the smallest of them."""
    ray_gpus: int = 0
    """GPUs that Ray counts on the node."""
    video_library: bool | None = None
    """Whether the driver's video decoder can be loaded, as with the container capability `video`; None without GPUs."""
    cpus: int = 1
    """CPUs that a process may run on."""
    ray_cpus: float = 1.0
    """CPUs that Ray counts on the node."""
    memory_bytes: int = 0
    shm_bytes: int | None = None
    """Size of /dev/shm; None without one."""
    object_store_bytes: int = 0
    """Size of Ray's object store on the node."""
    open_files: int | None = None
    """Limit of a process; None if unlimited."""
    temporary_free_bytes: int = 0
    """Free on the disk of temporary files."""
    cache_free_bytes: int | None = None
    """Free on the disk of data.cache; None without a cache."""
    auth_mode: str = ""
    """RAY_AUTH_MODE of the node's processes."""
    clock_skew_s: float = 0.0
    """The node's clock minus that of the machine that runs the doctor."""
    clock_error_s: float = 0.0
    """Bound of the error of `clock_skew_s`: half the round-trip time."""
    store: StoreFacts | None = None
    storage_fault: str | None = None
    """Why it cannot write checkpoints."""
    sees_storage: bool | None = None
    """Whether it sees the probe file among the checkpoints; None if not checked."""
    accelerator: AcceleratorFacts | None = None
    """What a process that holds a GPU of the node found; None if no GPU was free."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorFacts:
    """What torch can do on a GPU."""

    device: str
    """Name of the GPU."""
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
    """What a node is asked to find out."""

    shards: str = ""
    """URI of the shard set to read from; empty for none."""
    shard: str = ""
    """Name of a large shard of it."""
    storage: str | None = None
    """URI of the checkpoints; None if not to be checked."""
    mark: str = ""
    """URI of a probe file there that the doctor has written."""
    cache: str | None = None
    """Directory of data.cache."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Ray's resources of the node."""


def node_facts(questions: Questions) -> NodeFacts:
    """All facts about this process's node except the clock and what torch can do on its GPUs."""
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
    """Versions of the installed ones of `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def accelerator_facts() -> AcceleratorFacts | None:
    """What torch can do on the GPU that this process holds; None without one."""
    import torch

    if not os.environ.get("CUDA_VISIBLE_DEVICES") and not torch.cuda.is_available():
        return None
    device = torch.device("cuda", 0)
    try:
        name = torch.cuda.get_device_name(device)
        total = float(torch.ones(1024, device=device).sum())
    except (RuntimeError, AssertionError) as error:
        return AcceleratorFacts(device="GPU", fault=one_line(error))
    from twostream_ray.data.loading.decode_device import device_decoder_fault
    from twostream_ray.training.distributed import no_compiler

    return AcceleratorFacts(
        device=name,
        fault=None if total == 1024 else f"it adds 1,024 ones to {total:g}",
        nccl=".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        jpeg_fault=device_decoder_fault(device),
        compiler_fault=no_compiler(device),
    )


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def _driver() -> tuple[str | None, tuple[int, int] | None, tuple[str, ...], int | None]:
    """Driver version, newest CUDA, names of the GPUs and memory of the smallest (bytes), from NVML."""
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
    """Free on the disk of a directory that may not exist yet."""
    existing = next(one for one in (path, *path.parents) if one.is_dir())
    return shutil.disk_usage(existing).free


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
    # A large request's latency is counted separately.
    return StoreFacts(uri=uri, first_byte_s=first, bytes_per_second=got / max(seconds - first, 0.1 * seconds, 1e-9))


def _storage(questions: Questions) -> tuple[str | None, bool | None]:
    """Why checkpoints cannot be written on this node, and whether it sees the doctor's probe file."""
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
