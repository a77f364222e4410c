"""What is in a shard set: counts, classes, flow contract, a contact sheet; and whether every byte of it is right."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twostream_ray import storage, visualize
from twostream_ray.data import flow
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet, open_shards, read_clips
from twostream_ray.data.video import clips
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.runs.outputs import marked, refuse_foreign_picture
from twostream_ray.settings.bounds import require_within
from twostream_ray.storage.temporary_folders import temporary_folder

_MOST_FRAMES = 8
_LONGEST_NAME = 23


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a shard set: counts, classes, flow contract, and a picture of frames over their flow."""

    shards: str
    """Directory or s3:// prefix that `ingest` wrote."""

    out: str = "inspect.png"
    """File of the picture, a PNG; one that is there is written over only if `inspect` drew it."""

    num_clips: int = 6
    """Clips to draw, spread over the set; a row each."""

    clip: str | None = None
    """One clip to draw instead, by its id: its path below the root that was ingested."""

    verify: bool = False
    """Read every byte and hold it against the checksums."""

    def __post_init__(self) -> None:
        if not self.out.lower().endswith(".png"):
            raise ConfigError(f"out must name a file that ends in .png, got {self.out!r}")
        require_within(self, num_clips="[1, 200]")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What there is."""

    shard_set: ShardSet
    """The set, with its index and contract."""
    clips_by_split: dict[str, int]
    """Clips in each split; a clip may be in several."""
    clips_by_class: dict[str, int]
    """Clips of each class, in the order of labels."""
    frames: int
    """Frames of all clips."""
    picture: str
    """Where the contact sheet lies."""
    pictured: tuple[str, ...]
    """The clips it shows."""

    @property
    def contract(self) -> FlowContract:
        """How the flow was made."""
        return self.shard_set.contract


def inspect(config: InspectConfig, *, progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Look at a shard set, draw some of its clips, and with `verify` read and check every byte.

    Raises:
        ConfigError: the picture would be written over somebody else's file.
        StorageError: the picture cannot be written.
        ShardError: there is no such set, a clip is not in it, or a shard is damaged; names shard and row.
    """
    refuse_foreign_picture(Path(storage.absolute(config.out)), verb="inspect")
    storage.require_writable(config.out)  # before minutes of verifying
    shard_set = open_shards(config.shards)
    index = shard_set.index
    ids = index["clip_id"].to_pylist()
    if config.clip is not None and config.clip not in ids:
        raise ShardError(
            f"clip {config.clip!r} was wanted of {config.shards}, it is not one of its {len(ids)}: {ids[0]}, ..."
        )
    if config.verify:
        _verify(shard_set, progress=progress)
    every = max(1, len(ids) // config.num_clips)
    positions = list(range(0, len(ids), every))[: config.num_clips] if config.clip is None else [ids.index(config.clip)]
    with temporary_folder() as folder:
        picture = Path(folder) / "picture.png"
        _draw(shard_set, positions, picture)
        storage.write_bytes(config.out, marked(picture.read_bytes()))
    labels = Counter(index["label"].to_pylist())
    splits = Counter(split for splits in index["splits"].to_pylist() for split in splits)
    return Inspection(
        shard_set=shard_set,
        clips_by_split=dict(sorted(splits.items())),
        clips_by_class={name: labels[label] for label, name in enumerate(shard_set.classes)},
        frames=sum(index["num_frames"].to_pylist()),
        picture=config.out,
        pictured=tuple(ids[position] for position in positions),
    )


def _verify(shard_set: ShardSet, *, progress: Callable[[int, int], None] | None) -> None:
    """Hold every shard against the manifest's sha256, and every row against the index and its own checksums."""
    shards, rows = (shard_set.index[name].to_numpy() for name in ("shard", "row"))
    in_order = np.lexsort((rows, shards))
    for number, (name, sha256) in enumerate(zip(shard_set.shard_names, shard_set.shard_sha256, strict=True)):
        uri = storage.join(shard_set.uri, "shards", name)
        members = in_order[shards[in_order] == number]
        for start in range(0, len(members), ROWS_PER_GROUP):
            group = members[start : start + ROWS_PER_GROUP].tolist()
            for _ in read_clips(shard_set, group, want_rgb=True, want_flow=True):
                pass
        content = storage.read_bytes(uri, limit_bytes=shard_set.shard_bytes[number])
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ShardError(f"{uri} is not the file that the manifest names (sha256): delete it and ingest again")
        _verify_labels(shard_set, members.tolist(), pa.py_buffer(content), uri=uri)
        if progress is not None:
            progress(number + 1, len(shard_set.shard_names))


def _verify_labels(shard_set: ShardSet, members: list[int], content: pa.Buffer, *, uri: str) -> None:
    """Hold what a shard says of its rows' classes and splits against what training reads of the index."""
    table = pq.read_table(pa.BufferReader(content), columns=["clip_id", "class_name", "splits"])
    if len(table) != len(members):
        raise ShardError(f"{uri} has {len(table)} rows, the index {len(members)}: ingest again")
    index = shard_set.index.select(["clip_id", "label", "splits"]).take(members).to_pylist()
    for number, (stored, said) in enumerate(zip(table.to_pylist(), index, strict=True)):
        told = (said["clip_id"], shard_set.classes[said["label"]], said["splits"])
        if told != (stored["clip_id"], stored["class_name"], stored["splits"]):
            splits = ", ".join(map(str, stored["splits"] or ["no split"]))
            raise ShardError(
                f"{uri}, row {number}, is {stored['clip_id']!r} of class {stored['class_name']!r} in "
                f"{splits}; index and manifest say {told[0]!r} of class {told[1]!r} in "
                f"{', '.join(told[2])}: ingest again"
            )


def _draw(shard_set: ShardSet, positions: list[int], path: Path) -> None:
    """A row of frames over their flow for each clip; one clip alone gets several."""
    frames, fields, captions = [], [], []
    shown = 4 * _MOST_FRAMES if len(positions) == 1 else _MOST_FRAMES
    for position in positions:
        clip_id, clip = next(read_clips(shard_set, [position], want_rgb=True, want_flow=True))
        times = np.linspace(0, clip.num_frames - 2, shown).round().astype(int).tolist()
        name = clip_id.rpartition("/")[2]
        captions += [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…", *map(str, times[1:])]
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
        # A few pixels of wild flow must not make all others pale.
        max_px=max(1.0, round(float(np.quantile(np.linalg.norm(motion, axis=-1), 0.98)), 1)),
        captions=captions,
        columns=_MOST_FRAMES,
    )
