"""Baselines of the loader benchmark: original videos or folders of JPEG frames, with flow as folders of JPEGs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data import flow, sampling, transforms
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet, read_clips
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.data.views import View, training_view

Frames = Literal["decord in order", "decord seeking", "jpeg"]

_SEED = 0
_JPEG_QUALITY = 95
"""OpenCV's default, which common extraction tools do not change."""


@dataclass(frozen=True, kw_only=True)
class FolderClip:
    """A clip extracted into a folder."""

    clip_id: str
    video: str
    """Path of the original video."""
    folder: str
    """Directory of img_00001.jpg, flow_x_00001.jpg, flow_y_00001.jpg, ..."""
    num_frames: int
    height: int
    """Of the JPEG frames and fields in px, to which frames of the original video are resized."""
    width: int

    def view(self, config: DataConfig, *, epoch: int) -> View:
        """The view that this package's loader would draw of it."""
        return training_view(
            self.num_frames,
            self.height,
            self.width,
            sampling_config=config.sampling,
            transform_config=config.transforms,
            seed=_SEED,
            epoch=epoch,
            clip_id=self.clip_id,
        )


def encoded_clips(shard_set: ShardSet) -> Iterator[tuple[str, EncodedClip]]:
    """Every clip of a shard set, as (clip id, both streams), row group by row group."""
    shard, row = (shard_set.index[name].to_numpy() for name in ("shard", "row"))
    in_order = np.lexsort((row, shard)).tolist()
    for _, positions in groupby(in_order, key=lambda position: (shard[position], row[position] // ROWS_PER_GROUP)):
        yield from read_clips(shard_set, list(positions), want_rgb=True, want_flow=True)


def extract(shard_set: ShardSet, *, videos: str, out: Path) -> list[FolderClip]:
    """Write every clip's frames and fields as JPEG files below `out`; clips extracted earlier are skipped."""
    import cv2

    written = []
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    for number, (clip_id, clip) in enumerate(encoded_clips(shard_set)):
        folder = out / shard_set.hash[:12] / f"{number:05}"
        written.append(
            FolderClip(
                clip_id=clip_id,
                video=storage.join(videos, clip_id),
                folder=str(folder),
                num_frames=clip.num_frames,
                height=clip.height,
                width=clip.width,
            )
        )
        if (folder / "whole").exists() or clip.video is None or clip.flow is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(FrameStream(clip.video), start=1):
            cv2.imwrite(str(folder / f"img_{index:05}.jpg"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)
        for index in range(clip.num_frames - 1):
            for name, plane in zip("xy", flow.decode_field(clip.flow[index]), strict=True):
                cv2.imwrite(str(folder / f"flow_{name}_{index + 1:05}.jpg"), plane, quality)
        (folder / "whole").touch()
    return written


class FolderDataset:
    """Map-style torch Dataset with the views that this package's loader draws, read from folders or videos.

    A field that several snippets share is read once.
    """

    def __init__(self, clips: list[FolderClip], *, config: DataConfig, frames: Frames) -> None:
        self.clips, self.config, self.frames = clips, config, frames

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, uri: int) -> tuple[Any, Any]:
        """RGB (T, 3, H, W) and flow (T, 2L, H, W), uint8 tensors."""
        import cv2
        import torch

        cv2.setNumThreads(1)
        # The sampler's numbers continue beyond the list's end: the quotient is the epoch.
        epoch, number = divmod(uri, len(self.clips))
        clip, config = self.clips[number], self.config
        view = clip.view(config, epoch=epoch)
        frames = [
            transforms.apply_crop(frame, view.crop, size=view.size).transpose(2, 0, 1)
            for frame in self._read_frames(clip, [int(time) for time in view.times])
        ]
        planes: dict[int, list[NDArray[np.uint8]]] = {}
        stacks = []
        for time in view.times:
            window = sampling.field_indices(int(time), config=config.sampling, num_frames=clip.num_frames)
            for index in map(int, window):
                if index not in planes:
                    files = (f"{clip.folder}/flow_{name}_{index + 1:05}.jpg" for name in "xy")
                    pair: list[Any] = [cv2.imread(file, cv2.IMREAD_GRAYSCALE) for file in files]
                    planes[index] = [transforms.apply_crop(plane, view.crop, size=view.size) for plane in pair]
            stacks.append(np.stack([plane for index in map(int, window) for plane in planes[index]]))
        return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(stacks))

    def _read_frames(self, clip: FolderClip, times: list[int]) -> list[NDArray[np.uint8]]:
        import cv2

        if self.frames == "jpeg":
            read: list[Any] = [cv2.imread(f"{clip.folder}/img_{time + 1:05}.jpg") for time in times]
            return [cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in read]
        import decord

        reader = decord.VideoReader(clip.video, num_threads=1)
        times = [min(time, len(reader) - 1) for time in times]
        if self.frames == "decord seeking":
            chosen = reader.get_batch(times).asnumpy()
        else:
            chosen = reader.get_batch(range(max(times) + 1)).asnumpy()[times]
        return [cv2.resize(frame, (clip.width, clip.height)) for frame in chosen]
