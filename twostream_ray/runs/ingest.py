"""Ingest (ETL): labelled raw videos into shards with optical flow, by Ray tasks that prepare a clip each."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from twostream_ray import storage
from twostream_ray.data.shards.records import IngestState, delete_stale, refuse_loss, stale_notes, survey
from twostream_ray.data.shards.shards import ROWS_PER_GROUP
from twostream_ray.data.shards.writer import (
    ShardPlan,
    plan_shards,
    record_of_missing,
    write_manifest,
    write_quarantine,
)
from twostream_ray.data.sources import lists
from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, Clip, in_text_order, read_catalogs
from twostream_ray.data.sources.open_source import open_source
from twostream_ray.data.video import encoder
from twostream_ray.errors import AccessError, ConfigError, TooManyBadVideosError, VideoError, own_error
from twostream_ray.runs.cluster.session import ray_session, require_cluster
from twostream_ray.runs.ingest_tasks import write_shards
from twostream_ray.runs.settings import IngestConfig
from twostream_ray.storage import lease
from twostream_ray.storage.temporary_folders import sweep

_SHARDS_WANTED = 64
_PROBED_CLIPS = 5
_SHOWN_MISSING = 3


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """Result of an ingest."""

    clips: int
    """Clips in the shards."""
    frames: int
    """Frames in the shards."""
    hours: float
    """Total duration of the clips in the shards."""
    megabytes: float
    """Size of all shards in 1e6 bytes."""
    quarantined: int
    """Quarantined videos, including missing ones."""
    missing: int
    """Missing videos that a list or table names."""
    reasons: dict[str, int]
    """Number of bad videos by kind of error."""
    done_before: int
    """Videos that an earlier run had finished."""
    seconds: float
    """Wall time of this run."""
    notes: list[str] = field(default_factory=list)
    """Notes on the catalog and on videos that were used, one sentence each."""

    def sentence(self) -> str:
        """The report in one sentence."""
        new = self.clips + self.quarantined - self.missing - self.done_before
        missing = f" ({self.missing} of them listed but missing)" if self.missing else ""
        return (
            f"{self.clips} clips, {self.frames} frames, {self.hours:.2f} h, {self.megabytes:.1f} MB in shards; "
            f"{self.quarantined} videos quarantined{missing}; {new} done now in {self.seconds:.0f} s"
            + (f" ({new / self.seconds:.1f} clips/s)" if new else "")
            + (f", {self.done_before} before" if self.done_before else "")
        )


Progress = Callable[[int, int, int], None]
"""Called with (videos done, videos bad, videos in all)."""


def ingest(
    config: IngestConfig, *, progress: Progress | None = None, announce: Callable[[str], None] | None = None
) -> IngestReport:
    """Update the shard set at `config.out` to match the catalog; finished shards are not written again.

    `announce` is called with sentences before the work starts: what is to be done, how long it takes, how large it is.

    Raises:
        CatalogError: folders or lists do not match the layout.
        ConfigError: `out` overlaps the videos, or has shards that would be lost (see `replace`).
        ShardError: shards of an earlier ingest are damaged.
        StorageError: a directory or prefix cannot be read or written.
        TooManyBadVideosError: more videos are bad than max_bad_fraction allows; shards and quarantine table are kept,
            including earlier ones.
        LeaseError: another ingest writes to `out`.
    """
    started = time.monotonic()
    catalog = catalog_of(config)
    refuse_overlap(config, catalog)
    way_out = "wait for it, or choose another --out"
    sweep()
    with lease.held(config.out, work="ingest", way_out=way_out):
        return _ingest(config, catalog, started=started, progress=progress, announce=announce)


def _ingest(
    config: IngestConfig,
    catalog: Catalog,
    *,
    started: float,
    progress: Progress | None,
    announce: Callable[[str], None] | None,
) -> IngestReport:
    out = storage.absolute(config.out)
    before = survey(out, clips=catalog.clips, contract=config.flow, max_frames=config.max_frames)
    if not config.replace and (labelled_as_before := _labelled_as(before, catalog, config)) is not None:
        catalog = labelled_as_before
        before = survey(out, clips=catalog.clips, contract=config.flow, max_frames=config.max_frames)
    refuse_loss(before, clips=catalog.clips, root=config.catalog.root, replaced=config.replace)
    _refuse_too_many_missing(config, catalog, out=out)
    parts = list(before.kept)
    finished = {entry["identity"][0] for part in parts for entry in part["clips"] + part["quarantined"]}
    waiting = [clip for clip in catalog.clips if clip.clip_id not in finished]
    if waiting:
        require_cluster()
        if announce is not None:
            for sentence in (*stale_notes(before.stale, "will go"), estimate(waiting, config)):
                announce(sentence)
        plans = plan_shards(waiting, contract=config.flow, rows_per_shard=_rows_per_shard(config, len(catalog.clips)))
        parts += _write_all(plans, out=out, config=config, progress=progress)
    parts.append(record_of_missing(catalog.missing))
    write_manifest(
        out,
        parts=parts,
        classes=catalog.classes,
        head_classes=catalog.head_classes,
        contract=config.flow,
        groups={clip.clip_id: clip.group for clip in catalog.clips},
        data_set="-".join(one.name for one in (config.catalog, *config.more) if one.name),
    )
    report = _report(parts, catalog, done_before=len(finished), started=started)
    num_listed = len(catalog.clips) + len(catalog.missing)
    if report.quarantined > config.max_bad_fraction * num_listed:
        raise TooManyBadVideosError(
            f"{report.quarantined} of {num_listed} videos could not be used, at most "
            f"{config.max_bad_fraction:.1%} may: see {storage.join(out, 'quarantine.csv')}, repair them or raise "
            "max_bad_fraction and run again (finished shards are kept)"
        )
    # Last, as a root that becomes unreachable meanwhile must not cost the earlier shards.
    report.notes.extend(delete_stale(before, written=parts))
    return report


def _refuse_too_many_missing(config: IngestConfig, catalog: Catalog, *, out: str) -> None:
    """Raise TooManyBadVideosError if the missing videos alone exceed max_bad_fraction.

    A new set then gets its quarantine table; that of a finished set is not changed.
    """
    missing, num_listed = catalog.missing, len(catalog.clips) + len(catalog.missing)
    if len(missing) <= config.max_bad_fraction * num_listed:
        return
    where = ""
    if not storage.exists(storage.join(out, "manifest.json")):
        write_quarantine(out, parts=[record_of_missing(missing)])
        where = f"; all are in {storage.join(out, 'quarantine.csv')}"
    raise TooManyBadVideosError(
        f"{len(missing)} of {num_listed} videos could not be used, at most {config.max_bad_fraction:.1%} may: they are "
        f"listed but missing, as {', '.join(clip.uri for clip in missing[:_SHOWN_MISSING])}{where}; correct the list "
        "or catalog.root, or ingest the existing ones with --max_bad_fraction "
        f"{_next_percent(len(missing) / num_listed)}"
    )


def _next_percent(fraction: float) -> float:
    """A fraction rounded up to percent, with room for some bad videos."""
    return min(1.0, (int(fraction * 100) + 2) / 100)


def _report(parts: Sequence[dict[str, Any]], catalog: Catalog, *, done_before: int, started: float) -> IngestReport:
    return IngestReport(
        clips=sum(len(part["clips"]) for part in parts),
        frames=sum(entry["num_frames"] for part in parts for entry in part["clips"]),
        hours=sum(entry["seconds"] for part in parts for entry in part["clips"]) / 3600,
        megabytes=sum(part["bytes"] for part in parts) / 1e6,
        quarantined=sum(len(part["quarantined"]) for part in parts),
        reasons=dict(Counter(entry["reason"].split(":")[0] for part in parts for entry in part["quarantined"])),
        missing=len(catalog.missing),
        done_before=done_before,
        seconds=time.monotonic() - started,
        notes=[
            *catalog.notes,
            *_notes_of(parts),
            *encoder.version_notes([part.get("encoder") for part in parts if part["shard"]]),
        ],
    )


def _labelled_as(before: IngestState, catalog: Catalog, config: IngestConfig) -> Catalog | None:
    """The catalog with the class order of finished shards, if an earlier version made them with lexicographic order."""
    identities = [
        entry["identity"]
        for record in [*before.kept, *(one.record for one in before.stale)]
        for entry in record["clips"] + record["quarantined"]
    ]
    held = {class_name: label for _, _, label, class_name, _ in identities}

    def fits(one: Catalog) -> bool:
        return all(held.get(name, label) == label for label, name in enumerate(one.classes))

    earlier = in_text_order(catalog, (config.catalog, *config.more))
    if fits(catalog) or not fits(earlier):
        return None
    note = (
        f"classes keep the order of texts ({', '.join(earlier.classes[:3])} ...) that the finished shards have; to "
        "have them in the order of numbers choose another --out, or --replace true"
    )
    return replace(earlier, notes=(*catalog.notes, note))


def refuse_overlap(config: IngestConfig, catalog: Catalog) -> None:
    """Refuse an `out` among videos and lists: its folders would be read as classes, or classes as shards.

    Raises:
        ConfigError: `out` is, contains or is inside a folder that is read, also through links.
    """
    out = config.out
    own = (out, storage.join(out, "shards"), storage.join(out, "parts"))
    for one in (config.catalog, *config.more):
        for name in ("root", "lists", "flow_images"):
            path = getattr(one, name)
            if path is not None and (storage.contains(out, path) or any(storage.contains(path, x) for x in own)):
                raise ConfigError(
                    f"out must be separate from catalog.{name}, got {out} and {path}, of which one contains the other: "
                    "choose another --out, beside it"
                )
    # Links below a root may lead anywhere.
    folders = {clip.uri if clip.frames else clip.uri.rpartition("/")[0] for clip in catalog.clips}
    for path in sorted(folders | {uri for clip in catalog.clips for uri in clip.flow_uris}):
        if storage.contains(out, path):
            raise ConfigError(
                f"out must be separate from the videos, {path} is a link into {out}: choose another --out"
            )


def _notes_of(parts: Sequence[dict[str, Any]]) -> list[str]:
    clips = [entry for part in parts for entry in part["clips"]]
    noted: dict[str, list[str]] = {}
    for entry in clips:
        for note in entry.get("notes", ()):
            noted.setdefault(note, []).append(entry["identity"][0])
    return [f"{len(ids)} of {len(clips)} clips have {note} ({min(ids)})" for note, ids in sorted(noted.items())]


def catalog_of(config: IngestConfig) -> Catalog:
    """The clips of all data sets to ingest, with absolute URIs, as tasks have other working directories.

    Raises:
        CatalogError: folders or lists do not match the layout.
        StorageError: a directory or prefix cannot be read.
    """
    catalogs = [_with_absolute_uris(catalog) for catalog in (config.catalog, *config.more)]
    return read_catalogs(
        catalogs,
        list_files=storage.list_entries,
        read_bytes=partial(storage.read_bytes, limit_bytes=lists.LIMIT_BYTES),
    )


def estimate(clips: Sequence[Clip], config: IngestConfig) -> str:
    """Estimated time and size of ingesting these clips, in a sentence, from the first frames of a few of them.

    The time is for this machine's cores.
    """
    from twostream_ray.data.video.isolation import probe_in_subprocess

    by_size = sorted(clips, key=lambda clip: clip.size_bytes)
    costs = []
    for number in range(_PROBED_CLIPS):
        clip = by_size[(2 * number + 1) * len(by_size) // (2 * _PROBED_CLIPS)]
        with suppress(VideoError, AccessError):
            with open_source(clip) as source:
                cost = probe_in_subprocess(source, config.flow, name=clip.clip_id, max_frames=config.max_frames)
            costs.append((clip, cost))
    if not costs:
        return f"{len(clips)} clips to ingest; no estimate, as none of the sampled ones can be decoded"
    cores = len(os.sched_getaffinity(0))
    frames = sum(cost.frames for _, cost in costs) / len(costs) * len(clips)
    seconds = frames * statistics.median(cost.seconds_per_frame for _, cost in costs) / cores
    size = frames * statistics.median(cost.bytes_per_frame for _, cost in costs)
    return (
        f"{len(clips)} clips to ingest: about {frames:,.0f} frames, {size / 1e6:,.0f} MB of shards, "
        f"{seconds / 60:,.1f} min on {cores} cores ({len(costs)} clips sampled)"
    )


def _with_absolute_uris(catalog: CatalogConfig) -> CatalogConfig:
    lists = catalog.lists and storage.absolute(catalog.lists)
    flow_images = catalog.flow_images and storage.absolute(catalog.flow_images)
    return replace(catalog, root=storage.absolute(catalog.root), lists=lists, flow_images=flow_images)


def _rows_per_shard(config: IngestConfig, num_clips: int) -> int:
    """A multiple of a row group; a small set gets several small shards, so that a kill does not lose all of it."""
    groups = max(1, num_clips // (_SHARDS_WANTED * ROWS_PER_GROUP))
    return min(config.rows_per_shard, groups * ROWS_PER_GROUP)


def _write_all(
    plans: list[ShardPlan], *, out: str, config: IngestConfig, progress: Progress | None
) -> list[dict[str, Any]]:
    total = sum(len(plan.clips) for plan in plans)

    def show(done: int, bad: int) -> None:
        if progress is not None:
            progress(done, bad, total)

    with ray_session():
        try:
            return write_shards(plans, out=out, contract=config.flow, max_frames=config.max_frames, progress=show)
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            raise own from None
