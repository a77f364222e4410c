from dataclasses import replace

import pytest
from healthy_node import GPU, HEALTHY, VERSIONS

from twostream_ray.runs.doctor.checks import Check, Wanted, checks_of_nodes, worst
from twostream_ray.runs.doctor.facts import StoreFacts

WANTED = Wanted(python="3.11.7", versions=VERSIONS, shared=True, cache_bytes=100e9)

FAULTS = {
    "another Python": ({"python": "3.12.1"}, "Python", "wrong"),
    "another patch of Python": ({"python": "3.11.9"}, "Python", "doubtful"),
    "another Ray": ({"versions": VERSIONS | {"ray": "2.59.0"}}, "packages", "wrong"),
    "no package": ({"versions": {n: v for n, v in VERSIONS.items() if n != "twostream_ray"}}, "packages", "wrong"),
    "another PyAV, whose encoder writes other bytes": ({"versions": VERSIONS | {"av": "17"}}, "packages", "doubtful"),
    "a driver older than torch's CUDA": ({"driver": "550.90", "driver_cuda": (12, 4)}, "GPU driver", "wrong"),
    "no driver where Ray counts GPUs": (
        {"driver": None, "driver_cuda": None, "gpus": (), "accelerator": None},
        "GPU driver",
        "wrong",
    ),
    "torch for CPUs": ({"torch_cuda": None}, "GPU driver", "wrong"),
    "fewer GPUs than Ray counts": ({"gpus": ("H100",)}, "GPUs", "wrong"),
    "more GPUs than Ray counts": ({"ray_gpus": 1}, "GPUs", "doubtful"),
    "a GPU that does not compute": ({"accelerator": replace(GPU, fault="CUDA error")}, "GPUs", "wrong"),
    "GPUs in use": ({"accelerator": None}, "GPUs", "unknown"),
    "no JPEG engine": ({"accelerator": replace(GPU, jpeg_fault="no decoder")}, "video capability", "doubtful"),
    "no video capability": ({"accelerator": None, "video_library": False}, "video capability", "doubtful"),
    "no compiler": ({"accelerator": replace(GPU, compiler_fault="no gcc")}, "torch.compile", "doubtful"),
    "no NCCL": ({"accelerator": replace(GPU, nccl=None)}, "NCCL", "wrong"),
    "a container's own /dev/shm": ({"shm_bytes": 64 << 20}, "/dev/shm", "doubtful"),
    "few open files": ({"open_files": 1024}, "open files", "doubtful"),
    "hardly any open files": ({"open_files": 64}, "open files", "wrong"),
    "a full disk of temporary files": ({"temporary_free_bytes": 100 << 20}, "temporary files", "wrong"),
    "a disk smaller than the cache": ({"cache_free_bytes": 50 << 30}, "data.cache", "doubtful"),
    "a clock that is off by seconds": ({"clock_skew_s": -5.0}, "clock", "doubtful"),
    "a clock that is off by minutes": ({"clock_skew_s": 300.0}, "clock", "wrong"),
    "no way to the store": ({"store": StoreFacts(uri="s3://b/s", fault="denied")}, "shards", "wrong"),
    "another directory of that name": ({"sees_storage": False}, "storage", "wrong"),
    "a directory that cannot be written": ({"storage_fault": "denied", "sees_storage": None}, "storage", "wrong"),
    "no token": ({"auth_mode": ""}, "token", "doubtful"),
    "authentication switched off": ({"auth_mode": "disabled"}, "token", "doubtful"),
}
"""What is planted in a healthy node's facts -> the fields, the check that finds it, and how bad it is."""


def test_a_healthy_node_passes_every_check() -> None:
    checks = checks_of_nodes([HEALTHY, replace(HEALTHY, node="gpu-2")], WANTED)
    assert {check.status for check in checks} == {"ok"} and worst(checks) == 0
    assert {check.name for check in checks} >= {name for _, name, _ in FAULTS.values()} - {"nodes"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_node_is_found_there_and_alone_and_has_a_way_out(fault: str) -> None:
    fields, name, status = FAULTS[fault]
    ill = replace(HEALTHY, node="gpu-2", **fields)
    amiss = [check for check in checks_of_nodes([HEALTHY, ill], WANTED) if check.status != "ok"]
    assert (name, status) in {(check.name, check.status) for check in amiss}
    assert all(check.way_out and check.found and check.node in ("gpu-2", "") for check in amiss)
    assert worst(amiss) == {"wrong": 2, "doubtful": 1, "unknown": 0}[status]


def test_a_node_without_gpus_is_asked_for_none() -> None:
    plain = replace(
        HEALTHY,
        driver=None,
        driver_cuda=None,
        gpus=(),
        gpu_bytes=None,
        ray_gpus=0,
        video_library=None,
        accelerator=None,
    )
    checks = checks_of_nodes([plain], WANTED)
    assert worst(checks) == 0 and not {"GPUs", "GPU driver", "video capability", "NCCL"} & {one.name for one in checks}


def test_a_clock_is_doubted_only_by_more_than_the_question_s_own_time() -> None:
    slow = replace(HEALTHY, clock_skew_s=3.0, clock_error_s=2.5)
    assert worst(checks_of_nodes([slow], WANTED)) == 0


def test_different_kinds_of_gpu_and_versions_of_nccl_are_seen_across_nodes() -> None:
    other = replace(HEALTHY, node="gpu-2", gpus=("L4", "L4"), accelerator=replace(GPU, nccl="2.27.3"))
    found = {check.name: check.status for check in checks_of_nodes([HEALTHY, other], WANTED)}
    assert found["kinds of GPU"] == "doubtful" and found["NCCL"] == "wrong"


def test_a_cluster_without_nodes_is_wrong() -> None:
    assert worst(checks_of_nodes([], WANTED)) == 2


def test_a_run_s_own_cluster_needs_no_token_mode() -> None:
    checks = checks_of_nodes([replace(HEALTHY, auth_mode="")], replace(WANTED, shared=False))
    assert "token" not in {check.name for check in checks}


def test_exit_codes_go_by_the_worst() -> None:
    def of(*statuses: str) -> int:
        return worst([Check(name="a", status=status, found="") for status in statuses])

    assert (of("ok", "unknown"), of("ok", "doubtful"), of("doubtful", "wrong", "ok")) == (0, 1, 2)
