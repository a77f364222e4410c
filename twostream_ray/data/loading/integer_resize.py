"""Fixed-point bilinear resize of 8-bit planes on any device, bit-identical to OpenCV's INTER_LINEAR.

OpenCV multiplies by 11-bit coefficients, columns first; it drops four bits between its two passes and sixteen after
the second. Floating point, or another order of additions, is off by one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.data.transforms import Crop

_SCALE = np.float32(1 << 11)
_PLANES_AT_ONCE = 512
"""Limits intermediate results of four bytes per pixel to 0.1 GB each at 224 px."""


def sampling_tables(crops: Sequence[Crop], *, size_px: int) -> NDArray[np.int32]:
    """Source indices and coefficients of each crop's output rows and columns, (crops, 8, size), for `resized`.

    Rows of a table: left column, its coefficient, right column, its coefficient, upper row, its coefficient, lower row,
    its coefficient. A mirrored crop has its columns reversed.
    """
    tables = np.empty((len(crops), 8, size_px), np.int32)
    for table, crop in zip(tables, crops, strict=True):
        columns = _axis(crop.width, size_px, columns=True)
        table[:4] = columns[:, ::-1] if crop.mirrored else columns
        table[4:] = _axis(crop.height, size_px, columns=False)
        table[[0, 2]] += crop.left
        table[[4, 6]] += crop.top
    return tables


@lru_cache(maxsize=4096)
def _axis(length: int, size: int, *, columns: bool) -> NDArray[np.int32]:
    """(4, size): index of the first neighbour, its coefficient, index of the second, its coefficient."""
    centres = ((np.arange(size) + 0.5) * (1.0 / (size / length)) - 0.5).astype(np.float32)
    first = np.floor(centres)
    fraction = centres - first
    if columns:
        # Beyond the edge OpenCV uses the outermost column alone, but blends repeated rows, which rounds differently.
        fraction[(first < 0) | (first >= length - 1)] = 0
        first = np.clip(first, 0, length - 1)
    neighbours = [np.clip(first + step, 0, length - 1) for step in (0, 1)]
    coefficients = [np.rint(part * _SCALE) for part in (np.float32(1) - fraction, fraction)]
    axis = np.stack([neighbours[0], coefficients[0], neighbours[1], coefficients[1]]).astype(np.int32)
    axis.flags.writeable = False
    return axis


def resized(planes: Tensor, tables: Tensor) -> Tensor:
    """Crop, resize and mirror planes (F, C, H, W) uint8 by their tables (F, 8, size) -> (F, C, size, size) uint8."""
    size = tables.shape[-1]
    out = planes.new_empty((*planes.shape[:2], size, size))
    step = max(_PLANES_AT_ONCE // planes.shape[1], 1)
    for start in range(0, len(planes), step):
        part = slice(start, start + step)
        _resize(planes[part], tables[part], out=out[part])
    return out


def _resize(planes: Tensor, tables: Tensor, *, out: Tensor) -> None:
    fields, channels, height, _ = planes.shape
    size = tables.shape[-1]

    def weighted(source: Tensor, which: int, *, axis: int) -> Tensor:
        index, coefficients = tables[:, which], tables[:, which + 1]
        shape = (fields, 1, 1, size) if axis == 3 else (fields, 1, size, 1)
        wanted = (fields, channels, height, size) if axis == 3 else (fields, channels, size, size)
        return source.gather(axis, index.long().view(shape).expand(wanted)) * coefficients.view(shape)

    rows = (weighted(planes, 0, axis=3) + weighted(planes, 2, axis=3)) >> 4
    levels = (weighted(rows, 4, axis=2) >> 16) + (weighted(rows, 6, axis=2) >> 16)
    out.copy_((levels + 2) >> 2)
