"""Shard reader, run in Ray Data tasks: row groups -> Arrow blocks of encoded clips and views, or of decoded samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.buffers import SampleBuffers
from twostream_ray.data.loading.decode_cpu import decode_views
from twostream_ray.data.loading.lanes import Pass, Unit
from twostream_ray.data.loading.rows import decoded_block, encoded_block, rows_of
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.cache import ShardCache
from twostream_ray.data.shards.shards import ShardSet, read_clips
from twostream_ray.data.snippets import needed_fields
from twostream_ray.data.views import View, evaluation_views, training_view
from twostream_ray.errors import DecodeError, ShardError


class ShardReader:
    """Reads units of shards; small when pickled, because every task receives it."""

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        config: DataConfig,
        passes: Sequence[Pass],
        seed: int,
        want_rgb: bool,
        want_flow: bool,
    ) -> None:
        """`passes` are those that a unit's `pass_index` refers to."""
        self.shard_set, self._config, self._passes, self._seed = shard_set, config, tuple(passes), seed
        self._want_rgb, self._want_flow = want_rgb, want_flow
        self._buffers = SampleBuffers(config, want_rgb=want_rgb, want_flow=want_flow)

    def blocks(self, unit: Unit) -> Iterator[pa.Table]:
        """Blocks to stream to the worker: encoded clips, or samples with data.decode_at=stream.

        Raises:
            ShardError: the shard is missing, damaged or not the one in the manifest.
            DecodeError: with data.decode_at=stream, a clip is damaged.
        """
        if self._config.decode_at == "stream":
            yield from self.decode_unit(unit)
        else:
            yield self.read_unit(unit)

    def read_unit(self, unit: Unit) -> pa.Table:
        """The encoded clips of a unit, each with its views and only the flow fields that they need.

        Raises:
            ShardError: the shard is missing, damaged or not the one in the manifest.
        """
        rows = self._read_rows(unit)
        views = [self._views(self._passes[unit.pass_index], clip_id, clip) for clip_id, clip in rows]
        fields: list[list[int]] = []
        for (_, clip), clip_views in zip(rows, views, strict=True):
            times = np.concatenate([view.times for view in clip_views])
            needed = needed_fields(times, config=self._config.sampling, num_frames=clip.num_frames)
            fields.append(needed if self._want_flow else [])
        return encoded_block(unit, [clip for _, clip in rows], views=views, fields=fields)

    def decode_unit(self, unit: Unit) -> Iterator[pa.Table]:
        """The decoded samples of a unit, one clip per block, as each takes megabytes.

        Raises:
            ShardError: the shard is missing, damaged or not the one in the manifest.
            DecodeError: a clip is damaged; names it with shard and row.
        """
        for row in rows_of(self.read_unit(unit)):
            if row.encoded is None:
                raise ValueError("expected an encoded row")
            rgb, flow = self._buffers.streams(len(row.views))
            try:
                decode_views(
                    row.encoded,
                    row.views,
                    config=self._config.sampling,
                    contract=self.shard_set.contract,
                    rgb=rgb,
                    flow=flow,
                )
            except DecodeError as error:
                raise DecodeError(f"{self.shard_set.locate(row.clip)}: {error}; ingest again") from error
            yield decoded_block(row, rgb=rgb, flow=flow)

    def _views(self, a_pass: Pass, clip_id: str, clip: EncodedClip) -> list[View]:
        config, shape = self._config, (clip.num_frames, clip.height, clip.width)
        if not a_pass.training:
            return evaluation_views(*shape, sampling_config=config.sampling, transform_config=config.transforms)
        return [
            training_view(
                *shape,
                sampling_config=config.sampling,
                transform_config=config.transforms,
                seed=self._seed,
                epoch=a_pass.epoch,
                clip_id=clip_id,
            )
        ]

    def _read_rows(self, unit: Unit) -> list[tuple[str, EncodedClip]]:
        shards = self.shard_set
        uri = storage.join(shards.uri, "shards", shards.shard_names[unit.shard])

        def read(copy: str | None = None) -> list[tuple[str, EncodedClip]]:
            return list(read_clips(shards, unit.clips, want_rgb=self._want_rgb, want_flow=self._want_flow, copy=copy))

        if self._config.cache is None or not storage.is_s3(uri):
            return read()
        cache = ShardCache(self._config.cache, limit_bytes=int(self._config.cache_gb * 1e9))
        sha256, size = shards.shard_sha256[unit.shard], shards.shard_bytes[unit.shard]
        entry = cache.fetch(uri, sha256=sha256, size=size)
        if entry is not None:
            try:
                return read(str(entry))
            except ShardError:
                cache.drop(entry)  # its checksum matched on arrival: the local disk has damaged it
        return read()
