"""Inspection of a shard set: counts, classes, flow contract and a contact sheet; optionally verifies every byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twostream_ray import storage, visualize
from twostream_ray.data import flow
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ShardSet, open_shards, read_clips
from twostream_ray.data.shards.verify import verify_shards
from twostream_ray.data.video import clips, second_decoder
from twostream_ray.errors import ShardError
from twostream_ray.runs.outputs import marked, refuse_foreign_picture
from twostream_ray.runs.settings import InspectConfig
from twostream_ray.storage.temporary_folders import temporary_folder

_MOST_FRAMES = 8
_LONGEST_NAME = 50


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Content of a shard set."""

    shard_set: ShardSet
    """The set, with its index and contract."""
    clips_by_split: dict[str, int]
    """Clips in each split; a clip may be in several."""
    clips_by_class: dict[str, int]
    """Clips of each class, in the order of labels."""
    frames: int
    """Frames of all clips."""
    picture: str
    """Path or URI of the contact sheet."""
    pictured: tuple[str, ...]
    """Names of the clips that it shows."""
    second_opinion: str | None = None
    """With `verify`: result of the comparison with a second decoder, in a sentence."""

    @property
    def contract(self) -> FlowContract:
        """The flow contract."""
        return self.shard_set.contract


def inspect(config: InspectConfig, *, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Summarise a shard set, draw some of its clips, and with `verify` check every byte and compare decoded frames.

    Raises:
        ConfigError: the picture would overwrite a file that this verb did not write.
        StorageError: the picture cannot be written.
        ShardError: the set or clip does not exist, or a shard is damaged; names shard and row.
    """
    refuse_foreign_picture(Path(storage.absolute(config.out)), verb="inspect")
    storage.require_writable(config.out)  # before minutes of verifying
    shard_set = open_shards(config.shards)
    index = shard_set.index
    positions = list(range(0, len(index), max(1, len(index) // config.num_clips)))[: config.num_clips]
    if config.clip is not None:
        positions = [index["clip_id"].index(config.clip).as_py()]
        if positions == [-1]:
            (first,) = shard_set.clip_ids([0])
            raise ShardError(
                f"clip {config.clip!r} was wanted of {config.shards}, but it is not one of its {len(index)} clips: "
                f"name one of {first}, ..."
            )
    second_opinion = _verify(shard_set, progress=progress) if config.verify else None
    with temporary_folder() as folder:
        picture = Path(folder) / "picture.png"
        _draw(shard_set, positions, picture)
        storage.write_bytes(config.out, marked(picture.read_bytes()))
    labels = np.bincount(shard_set.labels, minlength=len(shard_set.classes)).tolist()
    return Inspection(
        shard_set=shard_set,
        clips_by_split={name: len(shard_set.split(name)) for name in shard_set.split_names},
        clips_by_class={name: labels[label] for label, name in enumerate(shard_set.classes)},
        frames=int(index["num_frames"].to_numpy().sum()),
        picture=config.out,
        pictured=tuple(shard_set.clip_ids(positions)),
        second_opinion=second_opinion,
    )


def _verify(shard_set: ShardSet, *, progress: Callable[[int, int], None] | None) -> str:
    """Check every byte and, if decord is installed, compare its frames; returns the result in a sentence."""
    if not second_decoder.is_installed():
        verify_shards(shard_set, progress=progress)
        return "decord is not installed: frames were not compared with a second decoder's"
    with second_decoder.SecondDecoder() as decoder:
        verify_shards(shard_set, progress=progress, check_video=decoder.compare)
    return decoder.sentence()


def _draw(shard_set: ShardSet, positions: list[int], path: Path) -> None:
    """Draw a row of frames above their flow for each clip, with a heading; several rows for a single clip."""
    frames, fields, captions, headings = [], [], [], []
    shown = 4 * _MOST_FRAMES if len(positions) == 1 else _MOST_FRAMES
    for position in positions:
        clip_id, clip = next(read_clips(shard_set, [position], want_rgb=True, want_flow=True))
        times = np.linspace(0, clip.num_frames - 2, shown).round().astype(int).tolist()
        captions += [f"frame {times[0]}", *map(str, times[1:])]
        headings += [_heading(shard_set, position, clip_id, clip), *[""] * (shown // _MOST_FRAMES - 1)]
        frames += list(clips.fetch_frames(clip.video or b"", times, num_frames=clip.num_frames))
        for time in times:
            levels = flow.decode_field(clip.flow[time])  # type: ignore[index]
            fields.append(flow.dequantise(levels, shard_set.contract).transpose(1, 2, 0))
    height, width = (min(frame.shape[axis] for frame in frames) for axis in (0, 1))
    motion = np.stack([field[:height, :width] for field in fields])
    visualize.contact_sheet(
        np.stack([frame[:height, :width] for frame in frames]),
        motion,
        path,
        # A quantile, as a few outliers must not make all other pixels pale.
        max_px=max(1.0, round(float(np.quantile(np.linalg.norm(motion, axis=-1), 0.98)), 1)),
        captions=captions,
        headings=headings,
        columns=_MOST_FRAMES,
    )


def _heading(shard_set: ShardSet, position: int, clip_id: str, clip: EncodedClip) -> str:
    """As in "v_Run_g01.avi   class Run   splits train1, train2   120 frames, 25 fps, 320 x 240 px"."""
    name = clip_id.rpartition("/")[2]
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    splits = shard_set.index["splits"][position].as_py()
    known = f"split{'' if len(splits) == 1 else 's'} {', '.join(splits)}" if splits else "no split"
    size = f"{clip.num_frames} frames, {clip.fps:.4g} fps, {clip.width} x {clip.height} px"
    return f"{name}   class {shard_set.classes[shard_set.labels[position]]}   {known}   {size}"
