"""Optical flow: computation, 8-bit quantisation, and the contract that records both (Simonyan and Zisserman 2014)."""

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
"""Grey levels on either side of zero; level 128 is zero motion, exactly."""

_LEAST_BOUND_PX = 0.001
"""Below this all motion is clipped; far below it float32 overflows."""
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
"""JSON Schema of `FlowContract.to_dict`, embedded in the schemas of manifests and model packages."""


@dataclass(frozen=True, kw_only=True)
class FlowContract:
    """Flow algorithm, parameters and 8-bit coding, stored as one value in every shard, checkpoint and model."""

    algorithm: Literal["dis", "tvl1", "dis+tvl1"] = "dis"
    """`dis`: OpenCV DIS medium (about 140 frames/s per core, 0.22 px error); `tvl1`: as in the papers (1.3 frames/s per
    core, 0.16 px); `dis+tvl1`: TV-L1 initialised with DIS (4.4 frames/s per core, 0.16 px)."""

    bound_px: float = 20.0
    """Displacements are clipped to +/- this many pixels (20 in the official code)."""

    coding: Literal["signed127", "legacy255"] = "signed127"
    """`signed127`: 128 + round(127 v / bound), zero exact; `legacy255`: the papers' linear 0..255, for existing flow
    images."""

    short_side_px: int = 256
    """Frames are resized to this shorter side before flow is computed (256 in the papers)."""

    jpeg_quality: int = 89
    """JPEG quality of a stored flow field, x stacked over y (1..100; 89 adds about 0.01 px of error)."""

    def __post_init__(self) -> None:
        require_within(self, "flow.", bound_px="[0.001, 10_000]", short_side_px="[16, 8_192]", jpeg_quality="[1, 100]")
        if self.short_side_px % 2:
            raise ConfigError(f"flow.short_side_px must be even, got {self.short_side_px}")

    def to_dict(self) -> dict[str, Any]:
        """The contract as JSON values, with the channel order of a flow stack."""
        return asdict(self) | {"channel_order": _CHANNEL_ORDER}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlowContract:
        """The contract that `to_dict` wrote.

        Raises:
            ConfigError: a missing or unknown key, a wrong type, or a value out of range.
        """
        json_files.check(
            values,
            CONTRACT_SCHEMA,
            where="flow_contract",
            what="a flow contract",
            way_out="use shards and models as they were written",
            error=ConfigError,
        )
        # JSON Schema accepts 48.0 as an integer.
        integers = {name: int(values[name]) for name in ("short_side_px", "jpeg_quality")}
        return cls(**{name: value for name, value in values.items() if name != "channel_order"} | integers)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of a SHA-256; equal for equal contracts."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def require_same_contract(wanted: FlowContract, found: FlowContract, *, wanted_by: str, found_in: str) -> None:
    """Raise unless both contracts are equal, naming every difference.

    A model fed with flow of another coding or bound loses accuracy silently.

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
    """The differences between two contracts, for example "bound_px 20, not 5"."""
    theirs, ours = found.to_dict(), wanted.to_dict()
    return "; ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in _differing(wanted, found))


def _differing(one: FlowContract, other: FlowContract) -> list[str]:
    return [name for name, value in one.to_dict().items() if value != other.to_dict()[name]]


def flow_function(contract: FlowContract) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]:
    """Build a function (grey frame, next grey frame), both (H, W) uint8 -> flow (H, W, 2) float32 in px, x then y.

    Flow is bit-identical on every x86 processor. The function reuses buffers: not thread-safe, build one per thread.
    """
    import cv2 as opencv

    cv2: Any = opencv  # its type stubs lack both algorithms
    # Ray scales by processes; a second layer of threads only adds contention.
    cv2.setNumThreads(1)
    # OpenCV's AVX2 and IPP paths round differently: flow would depend on the processor. Disabling them costs no speed.
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
    """Grey levels of -v from those of v, any shape: for x when mirrored, for both components backward in time."""
    if contract.coding == "legacy255":
        return np.invert(levels)  # 255 - v
    # uint8 wraps around to 256 - v, except for level 0, which JPEG loss can produce from level 1.
    negative = np.negative(levels)
    negative[levels == 0] = 255
    return negative


def mean_vectors(fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean displacement of each field in px, (..., 2, H, W) -> (..., 2, 1, 1) (Simonyan and Zisserman 2014, 3.1)."""
    return fields.mean(axis=(-2, -1), keepdims=True)


def mean_subtraction_tables(mean_levels: NDArray[np.float64], contract: FlowContract) -> NDArray[np.uint8]:
    """Lookup tables for mean subtraction in the grey-level domain: (...) mean levels -> (..., 256) uint8 levels.

    A mean of levels is a sum of integers, exact in any order, so every device gives the same result.
    """
    displacements = dequantise(np.arange(256, dtype=np.uint8), contract)
    means = dequantise(mean_levels.astype(np.float32), contract)
    return quantise(displacements - means[..., None], contract)


def along_trajectories(fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Trajectory stacking: each field is sampled along motion trajectories (Simonyan and Zisserman 2014, sec. 3.1).

    p_1 = (u, v) and p_k = p_{k-1} + d_{k-1}(p_{k-1}); channel k is d_k(p_k). Subpixel positions are interpolated
    bilinearly; positions outside the frame take its border value.

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
    """Grey levels of one field, x and y (H, W) uint8 each -> one grey JPEG of (2H, W)."""
    import cv2

    stacked = np.concatenate([x, y])
    # Optimised Huffman tables make a field a fifth smaller, losslessly.
    options = [cv2.IMWRITE_JPEG_QUALITY, contract.jpeg_quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", stacked, options)[1].tobytes()


def decode_field(content: bytes | memoryview, *, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """One grey JPEG -> grey levels (2, H, W) uint8: x, y; decoded into `buffer` (2 H W bytes) if given.

    Raises:
        ValueError: the bytes are not a JPEG, or do not fit into the buffer.
    """
    import simplejpeg

    stacked = simplejpeg.decode_jpeg(memoryview(content).cast("B"), colorspace="GRAY", fastdct=False, buffer=buffer)
    levels: NDArray[np.uint8] = stacked[:, :, 0].reshape(2, -1, stacked.shape[1])
    return levels
