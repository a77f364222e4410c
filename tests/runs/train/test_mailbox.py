import subprocess
import sys

import pytest
import ray

from twostream_ray.runs.train.events import StepEnded, WorkersStarted
from twostream_ray.runs.train.mailbox import Mailbox

STARTED = WorkersStarted(num_workers=2, epoch=0, step=0)
STEP = StepEnded(epoch=0, num_epochs=1, step=1, num_steps=2, loss=1.0)


def two_workers(draining: dict[str, int], patch: pytest.MonkeyPatch) -> Mailbox:
    """The mailbox of workers on nodes a and b, while Ray says that some nodes will be taken away."""
    patch.setattr(ray._private.state.state, "get_draining_nodes", lambda: draining)
    mailbox = Mailbox()
    mailbox.join(0, world_size=2, node="a")
    mailbox.join(1, world_size=2, node="b")
    return mailbox


def test_events_are_taken_once_and_in_order(cluster: None) -> None:
    mailbox = Mailbox()
    assert [mailbox.post(STARTED), mailbox.post(STEP)] == ["continue", "continue"]
    assert mailbox.take() == [STARTED, STEP]
    assert mailbox.take() == []


def test_a_run_requested_to_stop_gets_that_reply_to_every_event(cluster: None) -> None:
    mailbox = Mailbox()
    mailbox.stop()
    assert [mailbox.post(STEP), mailbox.post(STEP)] == ["stop", "stop"]


@pytest.mark.parametrize(("draining", "request_"), [("b", "checkpoint"), ("c", "continue")])
def test_a_checkpoint_is_requested_when_a_node_of_the_run_drains_and_not_for_another(
    draining: str, request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two_workers({draining: 0}, monkeypatch).post(STEP) == request_


def test_nodes_of_workers_that_a_smaller_group_does_without_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = two_workers({"b": 0}, monkeypatch)
    mailbox.join(0, world_size=1, node="a")
    assert mailbox.post(STEP) == "continue"


def test_a_requested_stop_goes_before_a_draining_node(monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = two_workers({"a": 0}, monkeypatch)
    mailbox.stop()
    assert mailbox.post(STEP) == "stop"


def test_the_actors_process_imports_neither_torch_nor_ray_train() -> None:
    script = "import sys, twostream_ray.runs.train.mailbox; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
