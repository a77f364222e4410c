import pytest
import ray

from twostream_ray.runs.train.mailbox import Mailbox


def a_board(leaving: dict[str, int], patch: pytest.MonkeyPatch) -> Mailbox:
    """A board of two workers on nodes a and b, while Ray says that some nodes will be taken away."""
    patch.setattr(ray._private.state.state, "get_draining_nodes", lambda: leaving)
    board = Mailbox()
    board.join(0, world_size=2, node="a")
    board.join(1, world_size=2, node="b")
    return board


def test_events_are_taken_once_and_in_order(cluster: None) -> None:
    board = Mailbox()
    assert [board.post({"kind": "begin"}), board.post({"kind": "step"})] == ["", ""]
    assert [event["kind"] for event in board.take()] == ["begin", "step"]
    assert board.take() == []


def test_a_run_asked_to_stop_hears_so_with_every_event(cluster: None) -> None:
    board = Mailbox()
    board.stop()
    assert [board.post({"kind": "step"}), board.post({"kind": "step"})] == ["stop", "stop"]


@pytest.mark.parametrize(("leaving", "wish"), [("b", "keep"), ("c", "")])
def test_a_run_is_to_be_kept_when_one_of_its_nodes_leaves_and_not_another(
    leaving: str, wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a_board({leaving: 0}, monkeypatch).post({"kind": "step"}) == wish


def test_nodes_of_workers_that_a_smaller_group_does_without_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    board = a_board({"b": 0}, monkeypatch)
    board.join(0, world_size=1, node="a")
    assert board.post({"kind": "step"}) == ""


def test_asking_to_stop_goes_before_a_node_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    board = a_board({"a": 0}, monkeypatch)
    board.stop()
    assert board.post({"kind": "step"}) == "stop"
