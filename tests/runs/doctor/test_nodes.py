import socket

import pytest

from twostream_ray.runs.doctor.facts import Questions
from twostream_ray.runs.doctor.nodes import facts_of_nodes


def test_every_node_of_a_cluster_answers_and_its_clock_is_compared(cluster: None) -> None:
    facts, silent = facts_of_nodes(Questions())
    assert [one.node for one in facts] == [socket.gethostname()] and silent == []
    # One machine has one clock.
    assert abs(facts[0].clock_skew_s) <= facts[0].clock_error_s + 0.01
    assert facts[0].ray_cpus == pytest.approx(facts[0].cpus) and facts[0].object_store_bytes > 0
