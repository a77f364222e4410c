"""Folders of runs and searches that have begun, made without training, beside small shard sets."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract, encode_field
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.shards.writer import ShardWriter, plan_shards, write_manifest
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import TrainingConfig

CONTRACT = FlowContract(short_side_px=16)


TOWER = TowerConfig(backbone="vgg_small", width=4, dropout=0.0)


def ingested(
    out: Path,
    *,
    clips: Sequence[int] = range(4),
    classes: Sequence[str] = ("a", "b"),
    splits: Sequence[str] = ("train", "val", "test"),
    contract: FlowContract = CONTRACT,
) -> ShardSet:
    """A small shard set without videos in place of what was there: clip n in a shard of its own, of class n mod K."""
    shutil.rmtree(out, ignore_errors=True)
    parts = []
    for n in clips:
        clip = Clip(
            uri=f"{n}.mp4",
            clip_id=f"{n}.mp4",
            class_name=classes[n % len(classes)],
            label=n % len(classes),
            splits=tuple(splits),
            size_bytes=n,
        )
        (plan,) = plan_shards([clip], contract=contract, rows_per_shard=16)
        writer = ShardWriter(plan, out=str(out), contract=contract)
        noise = np.random.default_rng(n).normal(size=(5, 16, 16, 2)).astype(np.float32)
        fields = [encode_field(field, contract) for field in noise]
        encoded = EncodedClip(video=b"", flow=fields, num_frames=6, height=16, width=16, fps=25.0)
        writer.add(clip, encoded, source_sha256="")
        parts.append(writer.finish())
    write_manifest(str(out), parts=parts, classes=list(classes), contract=contract)
    return open_shards(str(out))


def experiment(folder: Path, **change: Any) -> ExperimentConfig:
    return replace(
        ExperimentConfig(
            name="run",
            data=DataConfig(
                shards=str(folder / "shards"),
                validation_split="val",
                sampling=SamplingConfig(num_snippets=1, flow_length=2),
                transforms=TransformConfig(crop_px=16),
            ),
            model=ModelConfig(architecture="late", spatial=TOWER, temporal=TOWER),
            training=TrainingConfig(epochs=1, global_batch=8),
            workers=WorkersConfig(num_workers=1),
            storage=str(folder / "runs"),
            tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", register=False),
        ),
        **change,
    )


def search(folder: Path) -> TuneConfig:
    one = experiment(folder, name="search")
    values = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return TuneConfig(**values, search=SearchConfig(space={"seed": [0, 1]}))


def with_checkpoint(run: Path) -> None:
    """A run's folder as it is after its first epoch, for whoever looks for checkpoints."""
    (run / "epoch-0000").mkdir(parents=True)
    (run / "epoch-0000/state.json").write_text("{}")


def begun(folder: Path, *, finished: bool = False) -> ExperimentConfig:
    """A run that has begun, as a killed or a finished driver leaves it."""
    config, root = experiment(folder), folder / "runs/run"
    root.mkdir(parents=True)
    (root / "experiment.json").write_text(json.dumps(fixed_settings(config)))
    RunFolder.of(config).keep_data(open_shards(config.data.shards))
    with_checkpoint(root)
    if finished:
        report = {"name": "run", "checkpoint": f"{root}/epoch-0000", "history": [{"epoch": 0}], "parameters": 1}
        report |= {"seconds": 1.0, "run": {"experiment_id": "", "run_id": ""}, "done_before": False}
        (root / "report.json").write_text(json.dumps(report))
    return config


def begun_search(folder: Path) -> TuneConfig:
    from twostream_ray.runs.search.search import Search

    config = search(folder)
    made = Search(config, open_shards(config.data.shards))
    made.propose_first()
    made.folder.keep_data(open_shards(config.data.shards))
    with_checkpoint(folder / "runs/search/search-0000")
    return config
