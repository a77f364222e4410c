import threading
import time

import pytest
import ray

from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.resources import describe_resources, fits, require_room


@pytest.mark.parametrize(
    ("wanted", "nodes", "answer"),
    [
        ([{"CPU": 1}] * 4, [{"CPU": 4}], True),
        ([{"CPU": 1}] * 5, [{"CPU": 4}], False),
        ([{"CPU": 3}], [{"CPU": 2}, {"CPU": 2}], False),
        ([{"CPU": 1, "GPU": 1}] * 2, [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], True),
        ([{"CPU": 1, "GPU": 1}] * 3, [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], False),
        ([{"CPU": 0.1}, {"CPU": 0.95}, {"CPU": 0.95}], [{"CPU": 1}, {"CPU": 1}], False),
        ([{"CPU": 0.1}] * 10, [{"CPU": 1}], True),
        ([{"CPU": 1, "memory": 2**31}], [{"CPU": 1, "memory": 2**30}], False),
        ([], [], True),
    ],
)
def test_what_is_wanted_fits_when_each_part_finds_a_node(
    wanted: list[dict[str, float]], nodes: list[dict[str, float]], answer: bool
) -> None:
    assert fits(wanted, nodes) is answer


def test_resources_are_described_in_ray_s_own_words() -> None:
    assert (
        describe_resources([{"CPU": 1.0, "GPU": 1.0}] * 12 + [{"CPU": 0.1}]) == "12 x (1 CPU, 1 GPU) and 1 x (0.1 CPU)"
    )
    assert describe_resources([{"CPU": 2.0, "memory": 3.0 * 2**30, "node:x": 1.0}], free=True) == (
        "1 x (2 CPU, 0 GPU, 3.0 GiB of memory)"
    )


@pytest.mark.parametrize(
    "wanted", [[{"CPU": 1.0}] * 999, [{"CPU": 999.0}], [{"CPU": 0.1, "GPU": 64.0}], [{"CPU": 1.0, "memory": 2.0**50}]]
)
def test_more_than_a_private_cluster_has_is_refused_at_once_and_both_are_named(
    cluster: None, wanted: list[dict[str, float]]
) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError) as refused:
        require_room(wanted, what="the workers", way_out="lower them")
    assert time.monotonic() - started < 5
    total = ray.cluster_resources()["CPU"]
    assert str(refused.value).startswith(
        f"the workers want {describe_resources(wanted)}, the Ray cluster has 1 x ({total:g} CPU, "
    )
    assert str(refused.value).endswith(": lower them")


def test_what_fits_is_let_pass_at_once(cluster: None) -> None:
    stop = threading.Event()
    stop.set()
    require_room([{"CPU": 0.5}, {"CPU": 0.1}], what="the workers", way_out="lower them", stop=stop)


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(300)
def test_with_an_autoscaler_a_line_reports_the_wait_and_sigterm_or_a_node_ends_it() -> None:
    import os
    import signal
    import subprocess
    import sys

    code = (
        "import os, sys, threading\n"
        "from twostream_ray.runs.cluster import resources\n"
        "from twostream_ray.runs.cluster.session import ray_session, stop_on_sigterm\n"
        "resources._LINE_EVERY_S = 3.0\n"
        "with ray_session(), stop_on_sigterm() as stop:\n"
        "    resources.require_room([{'CPU': float(sys.argv[1])}], what='the workers', way_out='-', stop=stop)\n"
        "    print('there is room', flush=True)\n"
    )
    from ray.cluster_utils import AutoscalingCluster

    from twostream_ray.runs.cluster.private_cluster import authenticated

    with authenticated():
        scaled = AutoscalingCluster(
            head_resources={"CPU": 0},
            worker_node_types={
                "cpus": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1}
            },
        )
        scaled.start()
        try:
            environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:6379"}
            come = subprocess.run(
                [sys.executable, "-c", code, "2"], env=environment, capture_output=True, text=True, timeout=120
            )
            assert come.stdout == "there is room\n", come.stderr
            waiting = subprocess.Popen(
                [sys.executable, "-c", code, "64"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert waiting.stderr is not None
            lines = [next(waiting.stderr) for _ in range(2)]
            assert all("the workers want 1 x (64 CPU), the Ray cluster has" in line for line in lines), lines
            waiting.send_signal(signal.SIGTERM)
            assert "KeyboardInterrupt" in waiting.communicate(timeout=30)[1]
        finally:
            scaled.shutdown()
