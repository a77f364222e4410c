from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from forked_processes import processes
from numpy.typing import NDArray

from twostream_ray.evaluation.metrics import own_head_first
from twostream_ray.evaluation.report import report_on
from twostream_ray.training.clip_scores import ClipScores

CPU = torch.device("cpu")
HEADS = (3, 2)
CLIPS, VIEWS = 23, 3
SHARES = ("clips", "views", "uneven")


def views() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Scores (69, 5), labels and clips of the views of 23 clips, in the order in which workers are given them."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, sum(HEADS), CLIPS)
    clips = np.repeat(np.arange(CLIPS) + 100, VIEWS)
    return rng.normal(size=(CLIPS * VIEWS, sum(HEADS))).astype(np.float32), labels[clips - 100], clips


def added(rows: NDArray[np.int64]) -> ClipScores:
    """Scores that a worker has which was given these views, and one of padding."""
    scores, labels, clips = views()
    found = ClipScores(head_classes=HEADS)
    rows = np.append(rows, 0)
    weights = torch.tensor([1.0] * (len(rows) - 1) + [0.0])
    named = {"network": torch.from_numpy(scores[rows]), "spatial": torch.from_numpy(-scores[rows])}
    found.add(named, clips=clips[rows].tolist(), labels=torch.from_numpy(labels[rows]), weights=weights)
    return found


def shares(world_size: int, how: str) -> list[NDArray[np.int64]]:
    """Which views each worker scores."""
    rows = np.arange(CLIPS * VIEWS)
    if how == "clips":
        return [rows[rows // VIEWS % world_size == rank] for rank in range(world_size)]
    if how == "views":
        return [rows[rows % world_size == rank] for rank in range(world_size)]
    return [rows[:61], rows[61:]]  # cut within a clip


Found = tuple[int, dict[str, int], dict[int, list[float]]]
"""Clips, hits by name, and this worker's mean scores."""


def worker(rank: int, world_size: int, meeting: str) -> dict[str, Found]:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    results = {}
    for how in SHARES:
        found = added(shares(world_size, how)[rank])
        found.gather()
        accuracy = found.accuracy(CPU)
        means = {clip: mean.tolist() for clip, mean in found.means("network").items()}
        results[how] = (accuracy.clips, dict(accuracy.hits), means)
    dist.destroy_process_group()
    return results


def test_clips_count_once_and_exactly_however_their_views_are_shared_out(tmp_path: Path) -> None:
    with processes(2) as several:
        begun = [several.submit(worker, rank, 2, f"{tmp_path}/meeting") for rank in range(2)]
        workers = [one.result() for one in begun]
    scores, labels, _ = views()
    alone = added(np.arange(len(scores)))
    expected = alone.accuracy(CPU)
    for how in SHARES:
        found = [results[how] for results in workers]
        assert [(clips, hits) for clips, hits, _ in found] == [(CLIPS, expected.hits)] * 2
        together = {clip: mean for _, _, means in found for clip, mean in means.items()}
        assert sum(len(means) for _, _, means in found) == CLIPS, "each clip is one worker's"
        assert together == {clip: mean.tolist() for clip, mean in alone.means("network").items()}, "bit for bit"
    means = np.stack([together[clip] for clip in range(100, 100 + CLIPS)])
    report = report_on(
        own_head_first(means, labels[::VIEWS], head_classes=HEADS),
        labels[::VIEWS],
        classes=tuple("abcde"),
        n_expected=CLIPS,
    )
    assert expected.top1("network") == report.top1


def test_a_clip_is_right_by_the_mean_of_its_views_though_most_of_them_are_wrong() -> None:
    found = ClipScores(head_classes=(2,))
    scores = torch.tensor([[0.4, 0.6], [0.4, 0.6], [1.0, 0.0]])
    found.add({"network": scores}, clips=[7, 7, 7], labels=torch.zeros(3, dtype=torch.int64), weights=torch.ones(3))
    assert (found.accuracy(CPU).clips, found.accuracy(CPU).top1("network")) == (1, 1.0)


def test_scores_that_are_not_finite_are_no_hits() -> None:
    found = ClipScores(head_classes=(2,))
    scores = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    found.add({"network": scores}, clips=[0, 1], labels=torch.zeros(2, dtype=torch.int64), weights=torch.ones(2))
    assert found.accuracy(CPU).top1("network") == 0.5


def test_nothing_scored_is_no_clip() -> None:
    assert ClipScores(head_classes=(2,)).accuracy(CPU).top1("network") == 0.0
