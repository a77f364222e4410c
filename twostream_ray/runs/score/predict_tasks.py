"""Ray Data UDFs of batch prediction: a task that prepares a part, and an actor that scores and writes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twostream_ray import storage
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.protocols import Protocol
from twostream_ray.heads import choose_heads
from twostream_ray.runs.score.predict_video import PreparedVideo, RowScorer, prepare_video, window_rows
from twostream_ray.runs.score.prediction_table import PredictionRow, encode_rows
from twostream_ray.storage.temporary_folders import temporary_folder


@dataclass(frozen=True, kw_only=True)
class Work:
    """Settings that are the same for all parts."""

    files: Any
    """Reference to the model's files in Ray's object store: name -> bytes."""
    out: str
    """Where the parts are written."""
    metadata: dict[str, Any]
    """Metadata of each Parquet file."""
    contract: FlowContract
    """The model's flow contract."""
    protocol: Protocol
    """Which views of a video are scored."""
    top_k: int
    """Number of best classes for each data set."""
    head: str | None
    """Name of the data set to predict for; None for all."""
    max_frames: int
    """Most frames of a video that is predicted as a whole."""
    windows: tuple[float, float] | None
    """(seconds between starts of windows, seconds of a window); None to predict videos as a whole."""
    threads: int
    """torch's threads on a CPU."""

    def prepare(self, uri: str) -> PreparedVideo:
        """Read and decode a video and compute its flow."""
        return prepare_video(uri, contract=self.contract, max_frames=self.max_frames)


def prepare_part(batch: dict[str, Any], *, work: Work) -> dict[str, Any]:
    """Prepare the videos of one part in a CPU task, for an actor with a GPU."""
    prepared = np.empty(1, dtype=object)
    prepared[0] = [work.prepare(uri) for uri in json.loads(batch["uris"][0])]
    return {"name": batch["name"], "prepared": prepared}


class PartScorer:
    """A Ray Data actor that loads the model once, and writes each part's rows as one file."""

    def __init__(self, work: Work) -> None:
        """Load the model, onto the GPU if the actor has one."""
        import ray
        import torch

        from twostream_ray.inference import Classifier

        torch.set_num_threads(work.threads)
        with temporary_folder() as folder:
            for name, content in ray.get(work.files).items():
                (Path(folder) / name).write_bytes(content)
            device = "cuda" if ray.get_gpu_ids() else "cpu"
            classifier = Classifier.load(folder, device=device, protocol=work.protocol)
        heads = choose_heads(classifier.heads, work.head, of="the model")
        self._work, self._scorer = work, RowScorer(classifier=classifier, heads=heads, top_k=work.top_k)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score and write one part; returns its counts as JSON: videos, and rows by status."""
        rows: list[PredictionRow] = []
        videos = 0
        for of_a_video in self._rows(batch):
            rows += of_a_video
            videos += 1
        content = encode_rows(rows, metadata=self._work.metadata)
        storage.write_bytes(storage.join(self._work.out, str(batch["name"][0])), content)
        counted = {"videos": videos, "statuses": Counter(row.status for row in rows)}
        return {"counted": np.array([json.dumps(counted)])}

    def _rows(self, batch: dict[str, Any]) -> Iterator[Iterator[PredictionRow]]:
        """The rows of each video of a part."""
        work = self._work
        if "prepared" in batch:
            yield from map(self._scorer.rows, batch["prepared"][0])
            return
        for uri in json.loads(batch["uris"][0]):
            if work.windows is not None:
                every, length = work.windows
                yield window_rows(uri, self._scorer, every_seconds=every, window_seconds=length)
            else:
                yield self._scorer.rows(work.prepare(uri))
