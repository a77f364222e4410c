"""Health checks of a cluster: pure functions from facts about its nodes to checks with a status.

Each says what was found, on which node, and how to fix it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from twostream_ray.runs.doctor.facts import PACKAGES, NodeFacts

Status = Literal["ok", "doubtful", "wrong", "unknown"]
"""wrong: training cannot work; doubtful: it works, but worse or less safely; unknown: it could not be checked."""

LEAST_DRIVERS = {12: (525,), 13: (580,)}
"""CUDA major version -> the oldest NVIDIA driver that runs all of its minor versions (CUDA compatibility, table 2)."""

_LEAST_OPEN_FILES, _GOOD_OPEN_FILES = 256, 4096
_DOUBTFUL_SKEW_S, _WRONG_SKEW_S = 2.0, 60.0
"""Leases are renewed within a minute; S3 accepts signatures for 15 minutes."""
_LEAST_TEMPORARY_BYTES, _GOOD_TEMPORARY_BYTES = 1 << 30, 10 << 30
_LEAST_SHM_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one health check."""

    name: str
    """What was checked."""
    status: Status
    found: str
    """What was found, in words."""
    node: str = ""
    """Host name; empty for a check of the whole cluster."""
    way_out: str = ""
    """How to fix it if it is not ok."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the training needs of its nodes."""

    python: str
    """Python's version on the machine that runs the doctor."""
    versions: dict[str, str]
    """Versions of packages on that machine."""
    shared: bool
    """Whether it is a shared cluster, which others can reach, not this process's private one."""
    cache_bytes: float = 0.0
    """Largest size of data.cache; 0 without a cache."""
    decodes_on_gpu: bool = True
    """Whether flow is to be decoded on a GPU that can."""
    compiles: bool = True
    """Whether the network is to be compiled on a GPU."""


def worst(checks: Sequence[Check]) -> int:
    """The exit code: 0 if all is ok, 1 if something is doubtful, 2 if something is wrong."""
    statuses = {check.status for check in checks}
    return 2 if "wrong" in statuses else 1 if "doubtful" in statuses else 0


def checks_of_nodes(facts: Sequence[NodeFacts], wanted: Wanted) -> list[Check]:
    """Checks of each node, and of all nodes together."""
    found = [check for one in facts for check_node in _OF_A_NODE for check in check_node(one, wanted)]
    return [*found, *_gpus_together(facts), *_any_node(facts)]


def _python(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:
    mine, theirs = (version.split(".")[:2] for version in (wanted.python, facts.python))
    yield Check(
        name="Python",
        node=facts.node,
        status="ok" if facts.python == wanted.python else "doubtful" if mine == theirs else "wrong",
        found=facts.python if facts.python == wanted.python else f"{facts.python}, {wanted.python} here",
        way_out="give all nodes one image, with the Python of the driver",
    )


def _packages(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:
    differing = [name for name in PACKAGES if facts.versions.get(name) != wanted.versions.get(name)]
    essential = [name for name in differing if name in ("twostream_ray", "ray", "torch")]
    differences = ", ".join(
        f"{name} {facts.versions.get(name, 'missing')} ({wanted.versions.get(name, 'missing')} here)"
        for name in differing
    )
    shown = ", ".join(f"{name} {facts.versions[name]}" for name in ("ray", "torch") if name in facts.versions)
    yield Check(
        name="packages",
        node=facts.node,
        status="wrong" if essential else "doubtful" if differing else "ok",
        found=differences or shown,
        way_out="install constraints.txt on all nodes: other versions decode other bytes, or cannot talk to each other",
    )


def _driver(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    if facts.driver is None:
        if facts.ray_gpus:
            yield Check(
                name="GPU driver",
                node=facts.node,
                status="wrong",
                found=f"Ray counts {facts.ray_gpus} GPUs, but NVIDIA's driver does not answer",
                way_out="install the driver, and start the container with --gpus all and the capability `utility`",
            )
        return
    if facts.torch_cuda is None:
        status: Status = "wrong" if facts.ray_gpus else "doubtful"
        found = f"driver {facts.driver}, torch {facts.versions.get('torch', '')} is built for CPUs"
        way_out = "install PyPI's torch, which includes CUDA: the GPUs of this node are not used"
    else:
        newest, wants = facts.driver_cuda or (0, 0), tuple(map(int, facts.torch_cuda.split(".")[:2]))
        status = "ok" if newest[0] >= wants[0] else "wrong"
        found = f"driver {facts.driver} runs CUDA {newest[0]}.{newest[1]}, torch wants {facts.torch_cuda}"
        least = LEAST_DRIVERS.get(wants[0])
        wanted_driver = f"{least[0]} or newer" if least else f"one for CUDA {wants[0]}"
        way_out = f"install driver {wanted_driver} on the node (its host, not the container)"
    yield Check(name="GPU driver", node=facts.node, status=status, found=found, way_out=way_out)


def _gpus(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    if not facts.gpus and not facts.ray_gpus:
        return
    counted = facts.ray_gpus == len(facts.gpus)
    kinds = ", ".join(f"{count} x {name}" for name, count in Counter(facts.gpus).items()) or "none"
    fault = None if facts.accelerator is None else facts.accelerator.fault
    status: Status = "wrong" if fault or facts.ray_gpus > len(facts.gpus) else "ok" if counted else "doubtful"
    if status == "ok" and facts.accelerator is None:
        status = "unknown"
        kinds += ", all in use: not checked"
    yield Check(
        name="GPUs",
        node=facts.node,
        status=status,
        found=f"{kinds}{'' if counted else f', Ray counts {facts.ray_gpus}'}{f': {fault}' if fault else ''}",
        way_out="start Ray with --num-gpus, or check the GPU (nvidia-smi, dmesg)"
        if status != "unknown"
        else "run the doctor again when they are free",
    )


def _video(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:
    if not facts.gpus:
        return
    fault = None if facts.accelerator is None else facts.accelerator.jpeg_fault
    engines = f"JPEG on the GPU: {'not checked' if facts.accelerator is None else fault or 'works'}"
    library = "the driver's video decoder can be loaded" if facts.video_library else "no libnvcuvid.so.1"
    yield Check(
        name="video capability",
        node=facts.node,
        status="doubtful"
        if fault and wanted.decodes_on_gpu
        else "ok"
        if facts.accelerator
        else "unknown"
        if facts.video_library
        else "doubtful",
        found=f"{library}; {engines}",
        way_out="set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video in the image: until then CPUs decode flow",
    )


def _compiler(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:
    if facts.accelerator is None or facts.accelerator.fault or not wanted.compiles:
        return
    fault = facts.accelerator.compiler_fault
    yield Check(
        name="torch.compile",
        node=facts.node,
        status="doubtful" if fault else "ok",
        found=fault or "has what it needs",
        way_out="install gcc and Python's headers on the node, or set training.compile=false: steps take longer",
    )


def _shared_memory(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    if facts.shm_bytes is None:
        return
    small = facts.shm_bytes < facts.object_store_bytes
    yield Check(
        name="/dev/shm",  # noqa: S108  (shown, not used)
        node=facts.node,
        status="doubtful" if small or facts.shm_bytes < _LEAST_SHM_BYTES else "ok",
        found=f"{gib(facts.shm_bytes)}, Ray's object store {gib(facts.object_store_bytes)}",
        way_out="raise it (docker --shm-size, in Kubernetes an emptyDir with medium Memory), or Ray's store is on disk",
    )


def _limits(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    files = facts.open_files
    status: Status = "ok"
    if files is not None and files < _GOOD_OPEN_FILES:
        status = "wrong" if files < _LEAST_OPEN_FILES else "doubtful"
    yield Check(
        name="open files",
        node=facts.node,
        status=status,
        found="unlimited" if files is None else f"{files:,} per process",
        way_out="run `ulimit -n 65536` before Ray starts on the node: it opens a socket for every process it talks to",
    )


def _disks(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:
    free = facts.temporary_free_bytes
    yield Check(
        name="temporary files",
        node=facts.node,
        status="wrong" if free < _LEAST_TEMPORARY_BYTES else "doubtful" if free < _GOOD_TEMPORARY_BYTES else "ok",
        found=f"{gib(free)} free",
        way_out="make room, or set TMPDIR to a larger disk: checkpoints are written there first, and Ray spills there",
    )
    if facts.cache_free_bytes is not None and wanted.cache_bytes:
        fits = facts.cache_free_bytes >= wanted.cache_bytes
        yield Check(
            name="data.cache",
            node=facts.node,
            status="ok" if fits else "doubtful",
            found=f"{gib(facts.cache_free_bytes)} free, it may take {gib(wanted.cache_bytes)}",
            way_out="lower data.cache_gb, or choose a larger disk: what does not fit is read from the store each epoch",
        )


def _clock(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    surely = max(0.0, abs(facts.clock_skew_s) - facts.clock_error_s)
    yield Check(
        name="clock",
        node=facts.node,
        status="wrong" if surely > _WRONG_SKEW_S else "doubtful" if surely > _DOUBTFUL_SKEW_S else "ok",
        found=f"{facts.clock_skew_s:+.3f} s (to {facts.clock_error_s:.3f} s) from this machine's",
        way_out="run chrony or ntpd on the node: leases and S3's signatures depend on the time",
    )


def _store(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    store = facts.store
    if store is None:
        return
    rate = (
        f"{(store.bytes_per_second or 0) / 1e6:,.0f} MB/s, first byte after {1000 * (store.first_byte_s or 0):.1f} ms"
    )
    yield Check(
        name="shards",
        node=facts.node,
        status="wrong" if store.fault else "ok",
        found=store.fault or rate,
        way_out="make data.shards reachable from this node: mounts, AWS_ENDPOINT_URL, credentials, security groups",
    )


def _storage(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:  # noqa: ARG001
    if facts.storage_fault is None and facts.sees_storage is None:
        return
    found = facts.storage_fault or (
        "can be written" if facts.sees_storage else "does not see the file that this machine wrote"
    )
    yield Check(
        name="storage",
        node=facts.node,
        status="ok" if facts.storage_fault is None and facts.sees_storage else "wrong",
        found=found,
        way_out="set --storage to s3://BUCKET/PREFIX or to a directory that all nodes share and may write",
    )


def _token(facts: NodeFacts, wanted: Wanted) -> Iterator[Check]:
    if not wanted.shared:
        return
    yield Check(
        name="token",
        node=facts.node,
        status="ok" if facts.auth_mode == "token" else "doubtful",
        found=f"RAY_AUTH_MODE={facts.auth_mode}" if facts.auth_mode else "RAY_AUTH_MODE is not set",
        way_out="start Ray with RAY_AUTH_MODE=token: anyone who reaches its ports can run code on the cluster",
    )


def _gpus_together(facts: Sequence[NodeFacts]) -> Iterator[Check]:
    found = {one.node: one.accelerator for one in facts if one.accelerator is not None and not one.accelerator.fault}
    if not found:
        return
    nccl = {accelerator.nccl for accelerator in found.values()}
    yield Check(
        name="NCCL",
        status="ok" if len(nccl) == 1 and None not in nccl else "wrong",
        found=", ".join(sorted(str(version or "missing") for version in nccl)),
        way_out="give all GPU nodes one image: workers with different versions of NCCL wait for each other forever",
    )
    devices = Counter(name for one in facts for name in one.gpus)
    if len(devices) > 1:
        yield Check(
            name="kinds of GPU",
            status="doubtful",
            found=", ".join(f"{count} x {name}" for name, count in devices.items()),
            way_out="train on one kind: every step waits for the slowest",
        )


def _any_node(facts: Sequence[NodeFacts]) -> Iterator[Check]:
    if not facts:
        yield Check(name="nodes", status="wrong", found="the cluster has none", way_out="start Ray on a node")


def gib(count: float) -> str:
    """A number of bytes as text, as in "1.5 GiB"."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


_OF_A_NODE: tuple[Callable[[NodeFacts, Wanted], Iterator[Check]], ...] = (
    _python,
    _packages,
    _driver,
    _gpus,
    _video,
    _compiler,
    _shared_memory,
    _limits,
    _disks,
    _clock,
    _store,
    _storage,
    _token,
)
