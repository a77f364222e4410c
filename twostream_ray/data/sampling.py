"""Temporal sampling of frames and flow stacks, in training and at test time (Feichtenhofer et al. 2016, sec. 3.3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from twostream_ray.errors import ConfigError, EmptyClipError
from twostream_ray.settings.bounds import require_within

FlowStack = Literal["centred", "forward", "bidirectional", "trajectory"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the snippets of a sample are chosen."""

    num_snippets: int = 5
    """T: snippets per sample, each one RGB frame and its flow stack."""

    min_stride_frames: int = 5
    """Smallest stride tau between snippets, in frames; training draws tau uniformly (5..15 in the official code)."""

    max_stride_frames: int = 15
    """Largest stride tau between snippets, in frames; the stride at test time."""

    flow_length: int = 10
    """L: flow fields per snippet; the stack has 2L channels, ordered x1, y1, x2, y2, ..."""

    flow_stack: FlowStack = "centred"
    """centred: L/2 fields before the frame and L/2 after it (official code of 2016); forward: the L fields that follow
    the frame; bidirectional: L/2 forward, L/2 backward; trajectory: forward, sampled along motion trajectories
    (Simonyan and Zisserman 2014, sec. 3.1)."""

    flow_mean_subtraction: bool = False
    """Subtract the mean vector from each field, a simple camera motion compensation (Simonyan and Zisserman 2014,
    sec. 3.1)."""

    test_times: int = 4
    """Samples per clip at test time, evenly spaced; a clip's score is their mean."""

    def __post_init__(self) -> None:
        require_within(
            self,
            "data.sampling.",
            num_snippets="[1, 1_000]",
            min_stride_frames="[1, 100_000]",
            max_stride_frames="[1, 100_000]",
            flow_length="[1, 1_000]",
            test_times="[1, 1_000]",
        )
        if self.min_stride_frames > self.max_stride_frames:
            raise ConfigError(
                "data.sampling.min_stride_frames must be at most max_stride_frames, got "
                f"{self.min_stride_frames} and {self.max_stride_frames}"
            )
        if self.flow_stack not in get_args(FlowStack):
            raise ConfigError(
                f"data.sampling.flow_stack must be one of {', '.join(get_args(FlowStack))}, got {self.flow_stack!r}"
            )
        if self.flow_length % 2 and self.flow_stack in ("centred", "bidirectional"):
            raise ConfigError(
                f"data.sampling.flow_length must be even for flow_stack {self.flow_stack}, which has two halves, got "
                f"{self.flow_length}: choose an even length, or flow_stack forward or trajectory"
            )


def chunk_centres(num_frames: int, *, num_chunks: int, stride_frames: int, start: int = 0) -> NDArray[np.int64]:
    """Centre frame of each chunk: start, start + tau, ... (Feichtenhofer et al. 2016, sec. 3.3).

    A short clip repeats its last frame. Shape (num_chunks,), values in [0, num_frames).

    Raises:
        EmptyClipError: the clip has no frame.
    """
    if num_frames < 1:
        raise EmptyClipError(f"a clip needs at least 1 frame, got {num_frames}")
    return np.minimum(start + stride_frames * np.arange(num_chunks), num_frames - 1)


def training_times(num_frames: int, *, config: SamplingConfig, rng: np.random.Generator) -> NDArray[np.int64]:
    """Snippet times of one training sample: random stride and start, with the window inside the clip if it fits.

    Shape (T,), values in [0, num_frames).

    Raises:
        EmptyClipError: the clip has no frame.
    """
    stride = int(rng.integers(config.min_stride_frames, config.max_stride_frames, endpoint=True))
    last_start = max(num_frames - 1 - stride * (config.num_snippets - 1), 0)
    start = int(rng.integers(0, last_start, endpoint=True))
    return chunk_centres(num_frames, num_chunks=config.num_snippets, stride_frames=stride, start=start)


def evaluation_times(num_frames: int, *, config: SamplingConfig) -> NDArray[np.int64]:
    """Snippet times of every test sample of a clip, starts evenly spaced and centred.

    Shape (test_times, T), values in [0, num_frames).

    Raises:
        EmptyClipError: the clip has no frame.
    """
    stride = config.max_stride_frames
    last_start = max(num_frames - 1 - stride * (config.num_snippets - 1), 0)
    # Midpoints of equal parts, so that a single test sample is taken from the middle of the clip; in integers, because
    # floats would round midpoints that fall on a frame either way.
    starts = (2 * np.arange(config.test_times) + 1) * (last_start + 1) // (2 * config.test_times)
    return np.stack(
        [
            chunk_centres(num_frames, num_chunks=config.num_snippets, stride_frames=stride, start=int(start))
            for start in starts
        ]
    )


def spread_times(num_frames: int, *, config: SamplingConfig) -> NDArray[np.int64]:
    """Snippet times of every test sample of a clip, each sample spread evenly over the whole clip.

    The clip is cut into test_times x T equal parts; sample i takes the midpoints i, i + test_times, ..., like the
    chunks of the official test code (Feichtenhofer et al. 2016b). Shape (test_times, T), values in [0, num_frames).

    Raises:
        EmptyClipError: the clip has no frame.
    """
    if num_frames < 1:
        raise EmptyClipError(f"a clip needs at least 1 frame, got {num_frames}")
    count = config.test_times * config.num_snippets
    return ((2 * np.arange(count) + 1) * num_frames // (2 * count)).reshape(config.num_snippets, config.test_times).T


def field_indices(time: int, *, config: SamplingConfig, num_frames: int) -> NDArray[np.int64]:
    """Indices of the flow fields stacked for a frame, in channel order; beyond the ends of the clip they repeat.

    Field k is the motion from frame k to k + 1. centred: offsets -L/2 .. L/2 - 1. forward and trajectory: 0 .. L - 1.
    bidirectional: 0 .. L/2 - 1, then backward in time -1 .. -L/2. Shape (L,), values in [0, num_frames - 2].
    """
    length = config.flow_length
    match config.flow_stack:
        case "centred":
            offsets = np.arange(length) - length // 2
        case "forward" | "trajectory":
            offsets = np.arange(length)
        case "bidirectional":
            offsets = np.concatenate([np.arange(length // 2), -1 - np.arange(length // 2)])
    return np.clip(time + offsets, 0, num_frames - 2)


def clip_rng(*, seed: int, epoch: int, clip_id: str) -> np.random.Generator:
    """Counter-based generator (Philox) for all random draws of a clip in an epoch, keyed by (seed, epoch, clip id)."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{clip_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
