"""Reproduction of the papers' comparisons on synthetic videos: many networks, several seeds each, mean and spread."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twostream_ray import storage, visualize
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.sources.synthetic import Group
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError, TrainingError, own_error
from twostream_ray.evaluation.intervals import Interval, metric_intervals
from twostream_ray.models.build import build_network
from twostream_ray.runs import demo
from twostream_ray.runs.cluster.session import polled, ray_session
from twostream_ray.runs.compared_networks import SIZE_PX, Comparison, comparisons
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.settings import FindingsConfig, Towers
from twostream_ray.storage.json_files import COUNT, list_of, read_json, record

_FILES: dict[Towers, tuple[str, str]] = {
    "papers": ("findings.md", "findings.png"),
    "modern": ("findings_modern.md", "findings_modern.png"),
}
_TABLE_BEGINS = "| videos | network | top-1 |"
_RESULT_SCHEMA = record(
    {
        "experiment": {"type": "object"},
        "top1": {"type": "number", "minimum": 0, "maximum": 1},
        "clips": {"type": "string"},
        "parameters": COUNT,
    },
    {"wrong": list_of(COUNT)},
    others=True,
)


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """A network's accuracy over seeds."""

    group: Group
    """Group of videos."""
    network: str
    """Name of the network in the table."""
    parameters: int
    """Number of the network's parameters."""
    top1: tuple[float, ...]
    """Accuracy on the test split for each seed, in [0, 1]."""
    clips: str
    """Scored clips, as in "n of N clips"."""
    interval: Interval | None = None
    """95 % interval of the mean over seeds, by bootstrap over test clips, each with the predictions of all seeds; None
    if an earlier version stored only a seed's accuracy."""

    def sentence(self) -> str:
        """Mean and spread (sample standard deviation) in percent."""
        spread = f" ± {statistics.stdev(self.top1):.1%}" if len(self.top1) > 1 else ""
        return f"{statistics.mean(self.top1):.1%}{spread}"


Progress = Callable[[int, int], None]
"""Called with (trainings done, trainings in all)."""


def prepare(config: FindingsConfig, comparison: Comparison, *, progress: Callable[[int, int], None]) -> str:
    """Write a comparison's videos and shards below `config.out` unless they exist; returns the shards' URI."""
    shards = storage.join(storage.absolute(config.out), comparison.clips.group, "shards")
    demo.prepare(comparison.clips, shards=shards, progress=lambda done, _, total: progress(done, total))
    return shards


def findings(
    config: FindingsConfig, shards: Mapping[Group, str], *, progress: Progress | None = None
) -> list[ComparisonRow]:
    """Train every network of every comparison with every seed, as many at a time as there are CPUs.

    Results are stored below `config.out`, so that the same call resumes an interrupted one. Each training is one
    process with one thread, so a result depends only on its seed.

    Raises:
        ConfigError: files that this verb did not write would be overwritten, or a stored result is damaged.
        TrainingError: not every clip of the test split was scored.
        ShardError, StorageError: the shards cannot be read.
    """
    refuse_foreign_files(
        storage.absolute(config.out), _FILES[config.towers], begins=_TABLE_BEGINS.encode(), verb="findings"
    )
    out = Path(storage.absolute(config.out)) / "results"
    out.mkdir(parents=True, exist_ok=True)
    wanted = [
        (group, network, seed)
        for seed in range(config.num_seeds)
        for group, comparison in comparisons(config.towers).items()
        if group in shards
        for network in comparison.networks
    ]
    with ray_session():
        results = _results(wanted, shards, towers=config.towers, folder=out, progress=progress)
    seeds = range(config.num_seeds)
    return [
        ComparisonRow(
            group=group,
            network=network,
            parameters=results[group, network, 0]["parameters"],
            top1=tuple(results[group, network, seed]["top1"] for seed in seeds),
            clips=results[group, network, 0]["clips"],
            interval=_interval(open_shards(shards[group]), [results[group, network, seed] for seed in seeds]),
        )
        for group in shards
        for network in comparisons(config.towers)[group].networks
    ]


def _interval(shard_set: ShardSet, results: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Interval of a network's mean accuracy over its seeds, by resampling test clips."""
    if any("wrong" not in result for result in results):
        return None
    members = shard_set.split("test")
    hits = np.concatenate([~np.isin(members, result["wrong"]) for result in results])
    return metric_intervals(
        hits,
        None,
        np.tile(shard_set.labels[members], len(results)),
        num_classes=len(shard_set.classes),
        groups=np.tile(members, len(results)),
    ).top1


def _results(
    wanted: Sequence[tuple[Group, str, int]],
    shards: Mapping[Group, str],
    *,
    towers: Towers,
    folder: Path,
    progress: Progress | None,
) -> dict[tuple[Group, str, int], dict[str, Any]]:
    """Results by (group, network, seed): from `folder` if an earlier call stored them, otherwise from Ray tasks."""
    import ray

    results: dict[tuple[Group, str, int], dict[str, Any]] = {}
    task = ray.remote(_train_one).options(num_cpus=1)
    pending: dict[Any, tuple[tuple[Group, str, int], Path]] = {}
    for group, network, seed in wanted:
        experiment = _experiment(group, network, seed, shards=shards[group], towers=towers)
        path = folder / f"{group}, {network}, seed {seed}.json"
        kept = _kept(str(path))
        if kept is not None and kept["experiment"] == experiment:
            results[group, network, seed] = kept
        else:
            pending[task.remote(group, network, seed, shards[group], towers)] = ((group, network, seed), path)

    def show() -> None:
        if progress is not None:
            progress(len(results), len(wanted))

    with polled(show, every_seconds=0.5):
        while pending:
            try:
                (done,), _ = ray.wait(list(pending))
                result = ray.get(done)
            except Exception as error:
                own = own_error(error)
                if own is None:
                    raise
                raise own from None
            key, path = pending.pop(done)
            results[key] = result
            storage.write_json(str(path), result)
    return results


def _kept(uri: str) -> dict[str, Any] | None:
    """The stored result of an earlier call; None if there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    if not storage.exists(uri):
        return None
    return dict(
        read_json(
            uri,
            _RESULT_SCHEMA,
            what="the result of a training",
            way_out="delete it and run the same command again, which trains it again",
            error=ConfigError,
            metrics=True,
        )
    )


def write(config: FindingsConfig, found: list[ComparisonRow]) -> str:
    """Write table (findings.md) and plot (findings.png) below `config.out`; returns the directory."""
    out = Path(storage.absolute(config.out))
    lines = [f"{_TABLE_BEGINS} 95 % interval | clips | parameters |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.group} | {row.network} | {row.sentence()} | {'-' if row.interval is None else row.interval.to_text()} "
        f"| {row.clips} | {row.parameters:,} |"
        for row in found
    ]
    text, picture = _FILES[config.towers]
    storage.write_bytes(str(out / text), ("\n".join(lines) + "\n").encode())
    visualize.accuracies_picture(
        {
            group: {row.network: row.top1 for row in found if row.group == group}
            for group in dict.fromkeys(row.group for row in found)
        },
        out / picture,
    )
    return str(out)


def _experiment(group: Group, network: str, seed: int, *, shards: str, towers: Towers) -> dict[str, Any]:
    """All that a result depends on, as JSON types."""
    comparison = comparisons(towers)[group]
    settings = {
        "manifest_hash": open_shards(shards).hash,
        "sampling": asdict(comparison.sampling),
        "training": asdict(comparison.training),
        "model": asdict(comparison.networks[network]),
        "seed": seed,
    }
    return dict(json.loads(json.dumps(settings)))


def _loader(
    comparison: Comparison, shard_set: ShardSet, *, seed: int, want_rgb: bool, want_flow: bool
) -> SnippetLoader:
    """Batches of all epochs and of the test split, read in this process."""
    return SnippetLoader(
        shard_set,
        config=DataConfig(
            shards=shard_set.uri,
            sampling=comparison.sampling,
            # Left and right are different classes.
            transforms=TransformConfig(crop_px=SIZE_PX, size_jitter=0.0, flip=False),
            decode_processes=0,
        ),
        passes=list(_passes(comparison.training.epochs)),
        global_batch=comparison.training.global_batch,
        seed=seed,
        want_rgb=want_rgb,
        want_flow=want_flow,
        through_ray=False,
    )


def _train_one(group: Group, network_name: str, seed: int, shards: str, towers: Towers = "papers") -> dict[str, Any]:
    """Train one network of a comparison and score the test split in this process."""
    import torch

    from twostream_ray.evaluation.metrics import top_k_hits
    from twostream_ray.evaluation.report import report_on
    from twostream_ray.training.loop import score_pass, train_pass
    from twostream_ray.training.recipe import build_optimiser
    from twostream_ray.training.step import TrainingStep

    started = time.monotonic()
    comparison = comparisons(towers)[group]
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    shard_set, device = open_shards(shards), torch.device("cpu")
    network = build_network(
        comparison.networks[network_name],
        num_classes=len(shard_set.classes),
        flow_length=comparison.sampling.flow_length,
    )
    optimiser = build_optimiser(network, config=comparison.training)
    step = TrainingStep(network, optimiser, config=comparison.training, seed=seed, device=device)
    loader = _loader(comparison, shard_set, seed=seed, want_rgb=network.needs_rgb, want_flow=network.needs_flow)
    scores: dict[int, Any] = {}
    losses = []
    for a_pass, batches in loader:
        if a_pass.training:
            result = train_pass(step, batches, epoch=a_pass.epoch, num_steps=loader.num_steps(a_pass))
            losses.append(result.losses)
        else:
            _, scores = score_pass(network, batches, device=device)
    members = shard_set.split("test")
    if set(scores) != set(members.tolist()):
        raise TrainingError(f"all {len(members)} test clips of {group} should be scored, got {len(scores)}")
    labels, found = shard_set.labels[members], np.stack([scores[int(clip)] for clip in members])
    report = report_on(
        found,
        labels,
        classes=shard_set.classes,
        n_expected=len(members) + shard_set.quarantined.get("test", 0),
    )
    return {
        "experiment": _experiment(group, network_name, seed, shards=shards, towers=towers),
        "top1": report.top1,
        "clips": report.coverage,
        "wrong": members[~top_k_hits(found, labels, k=1)].tolist(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "losses": losses,
        "seconds": time.monotonic() - started,
    }


def _passes(epochs: int) -> Iterator[Pass]:
    yield from (Pass(split="train", epoch=epoch, training=True) for epoch in range(epochs))
    yield Pass(split="test")
