"""Optical flow: its computation, its 8-bit coding, the contract that names both (Simonyan and Zisserman 2014)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twostream_ray.errors import ConfigError, ContractMismatchError
from twostream_ray.settings.bounds import require_within
from twostream_ray.storage import json_files
from twostream_ray.storage.json_files import record

_CHANNEL_ORDER = "x1 y1 x2 y2 ..."
_LEVELS = 127
"""Grey levels on either side of zero; 128 is no motion, so that zero is exact."""

_LEAST_BOUND_PX = 0.001
"""Below, all motion is clipped; far below, float32 overflows."""
_MOST_BOUND_PX = 10_000.0
_MOST_SHORT_SIDE_PX = 8192

CONTRACT_SCHEMA = record(
    {
        "algorithm": {"enum": ["dis", "tvl1", "dis+tvl1"]},
        "bound_px": {"type": "number", "minimum": _LEAST_BOUND_PX, "maximum": _MOST_BOUND_PX},
        "coding": {"enum": ["signed127", "legacy255"]},
        "short_side_px": {"type": "integer", "minimum": 16, "maximum": _MOST_SHORT_SIDE_PX, "multipleOf": 2},
        "jpeg_quality": {"type": "integer", "minimum": 1, "maximum": 100},
    },
    {"channel_order": {"const": _CHANNEL_ORDER}},
)
"""What `FlowContract.to_dict` gives, as part of the documents that carry it."""


@dataclass(frozen=True, kw_only=True)
class FlowContract:
    """How flow was made and coded: one value, stored in every shard, checkpoint and registered model."""

    algorithm: Literal["dis", "tvl1", "dis+tvl1"] = "dis"
    """`dis`: OpenCV DIS medium (about 140 frames/s and core, .22 px error); `tvl1`: the papers' (1.3 frames/s and
    core, .16 px); `dis+tvl1`: TV-L1 started from DIS (4.4 frames/s and core, .16 px)."""

    bound_px: float = 20.0
    """Displacements are clipped to +/- this many pixels (20 in the official code)."""

    coding: Literal["signed127", "legacy255"] = "signed127"
    """`signed127`: 128 + round(127 v / bound), zero exact; `legacy255`: the papers' linear 0..255, for flow images that
    exist already."""

    short_side_px: int = 256
    """Frames are resized to this shorter side before flow is computed (256 in the papers)."""

    jpeg_quality: int = 89
    """Quality of the grey JPEG that holds a field, x stacked over y (1..100; 89 adds about .01 px of error)."""

    def __post_init__(self) -> None:
        require_within(self, "flow.", bound_px="[0.001, 10_000]", short_side_px="[16, 8_192]", jpeg_quality="[1, 100]")
        if self.short_side_px % 2:
            raise ConfigError(f"flow.short_side_px must be even, got {self.short_side_px}")

    def to_dict(self) -> dict[str, Any]:
        """The contract as JSON values, with the order of channels in a stack spelt out."""
        return asdict(self) | {"channel_order": _CHANNEL_ORDER}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlowContract:
        """The contract that `to_dict` wrote.

        Raises:
            ConfigError: the values are no contract: a key too few or too many, a wrong type, a value out of range.
        """
        json_files.check(
            values,
            CONTRACT_SCHEMA,
            where="flow_contract",
            what="a flow contract",
            way_out="use shards and models as they were written",
            error=ConfigError,
        )
        whole = {name: int(values[name]) for name in ("short_side_px", "jpeg_quality")}  # for JSON, 48.0 is one as well
        return cls(**{name: value for name, value in values.items() if name != "channel_order"} | whole)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits; equal exactly when the contracts are equal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def require_same_contract(wanted: FlowContract, found: FlowContract, *, wanted_by: str, found_in: str) -> None:
    """Refuse flow of another kind, naming every difference (flow-encoding mix-ups cost peers half their accuracy).

    Raises:
        ContractMismatchError: the contracts differ.
    """
    ours, theirs = wanted.to_dict(), found.to_dict()
    differing = _differing(wanted, found)
    if differing:
        raise ContractMismatchError(
            f"{wanted_by} wants flow "
            + ", ".join(f"{name} {ours[name]}" for name in differing)
            + f"; {found_in} has "
            + ", ".join(f"{name} {theirs[name]}" for name in differing)
            + ": ingest again with the wanted settings, or choose a model made for this flow"
        )


def differences(found: FlowContract, wanted: FlowContract) -> str:
    """What differs between two contracts, as "bound_px 20, not 5"."""
    theirs, ours = found.to_dict(), wanted.to_dict()
    return "; ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in _differing(wanted, found))


def _differing(one: FlowContract, other: FlowContract) -> list[str]:
    return [name for name, value in one.to_dict().items() if value != other.to_dict()[name]]


def flow_function(contract: FlowContract) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]:
    """A function (grey frame, next grey frame), both (H, W) uint8 -> flow (H, W, 2) float32 in px, x then y.

    The same frames give the same flow on every x86 processor. The function keeps buffers: use one per thread.
    """
    import cv2 as opencv

    cv2: Any = opencv  # its type stubs lack both algorithms
    # Ray scales by processes; a second layer of threads only adds contention.
    cv2.setNumThreads(1)
    # OpenCV's code for AVX2 and IPP rounds otherwise: flow would depend on the processor. Without it nothing is slower.
    cv2.setUseOptimized(False)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if contract.algorithm == "dis":
        return lambda frame, following: dis.calc(frame, following, None)
    if contract.algorithm == "tvl1":
        tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()
        return lambda frame, following: tvl1.calc(frame, following, None)
    # One scale suffices because DIS has already found the large displacements.
    refine = cv2.optflow.DualTVL1OpticalFlow_create(nscales=1, warps=2, useInitialFlow=True)
    return lambda frame, following: refine.calc(frame, following, dis.calc(frame, following, None))


def quantise(flow: NDArray[np.float32], contract: FlowContract) -> NDArray[np.uint8]:
    """Displacements in px, any shape -> grey levels 0..255 by the contract's coding."""
    clipped = np.clip(flow, -contract.bound_px, contract.bound_px)
    if contract.coding == "signed127":
        return (np.rint(clipped * (_LEVELS / contract.bound_px)) + 128).astype(np.uint8)
    return np.rint((clipped + contract.bound_px) * (255 / (2 * contract.bound_px))).astype(np.uint8)


def dequantise(levels: NDArray[np.uint8] | NDArray[np.float32], contract: FlowContract) -> NDArray[np.float32]:
    """Grey levels 0..255 -> displacements in px, float32, the same shape."""
    values = levels.astype(np.float32)
    if contract.coding == "signed127":
        return (values - 128) * np.float32(contract.bound_px / _LEVELS)
    return values * np.float32(2 * contract.bound_px / 255) - np.float32(contract.bound_px)


def negated(levels: NDArray[np.uint8], contract: FlowContract) -> NDArray[np.uint8]:
    """Grey levels of -v for the grey levels of v: x in a horizontal mirror, both components backward in time."""
    if contract.coding == "legacy255":
        return np.invert(levels)  # 255 - v
    turned = np.negative(levels)  # 256 - v, except at 0, which JPEG may make of 1
    turned[levels == 0] = 255
    return turned


def mean_vectors(fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean displacement of each field in px, (..., 2, H, W) -> (..., 2, 1, 1), to be subtracted from it."""
    return fields.mean(axis=(-2, -1), keepdims=True)


def mean_subtraction_tables(mean_levels: NDArray[np.float64], contract: FlowContract) -> NDArray[np.uint8]:
    """What each grey level becomes when the mean displacement is taken off: (...) mean levels -> (..., 256) levels.

    Means of levels are sums of whole numbers, exact in any order: every device makes the same of a field.
    """
    displacements = dequantise(np.arange(256, dtype=np.uint8), contract)
    means = dequantise(mean_levels.astype(np.float32), contract)
    return quantise(displacements - means[..., None], contract)


def along_trajectories(fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fields of consecutive frames, each sampled where the motion has led (Simonyan and Zisserman 2014, sec. 3.1).

    A point starts at its own position, p_1 = (u, v), and moves, p_k = p_{k-1} + d_{k-1}(p_{k-1}); d_k(p_k) is stacked.
    Positions between pixels are interpolated linearly, beyond the frame its edge counts.

    Shape: (L, 2, H, W) in px, x then y -> the same.
    """
    import cv2

    height, width = fields.shape[-2:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    sampled = []
    for field in fields:
        step = [cv2.remap(part, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for part in field]
        sampled.append(np.stack(step))
        x, y = x + step[0], y + step[1]
    return np.stack(sampled)


def encode_field(flow: NDArray[np.float32], contract: FlowContract) -> bytes:
    """One field (H, W, 2) in px -> one grey JPEG of (2H, W): x above y."""
    levels = quantise(flow, contract)
    return encode_levels(levels[:, :, 0], levels[:, :, 1], contract)


def encode_levels(x: NDArray[np.uint8], y: NDArray[np.uint8], contract: FlowContract) -> bytes:
    """Grey levels of one field, (H, W) each -> one grey JPEG of (2H, W)."""
    import cv2

    stacked = np.concatenate([x, y])
    # Huffman tables of its own make a field a fifth smaller; the pixels stay the same.
    options = [cv2.IMWRITE_JPEG_QUALITY, contract.jpeg_quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", stacked, options)[1].tobytes()


def decode_field(content: bytes | memoryview, *, room: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """One grey JPEG -> grey levels (2, H, W) uint8: x, y; in `room`, of as many bytes, where it is given.

    Raises:
        ValueError: the bytes are no JPEG, or a larger one than there is room for.
    """
    import simplejpeg

    stacked = simplejpeg.decode_jpeg(memoryview(content).cast("B"), colorspace="GRAY", fastdct=False, buffer=room)
    levels: NDArray[np.uint8] = stacked[:, :, 0].reshape(2, -1, stacked.shape[1])
    return levels
