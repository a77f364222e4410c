"""Shared decoding for multi-view testing: each frame and flow field of a clip is decoded once and cropped per view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import flow, sampling, snippets
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import Crop
from twostream_ray.data.video import clips
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError


class DecodedClip:
    """Iterates over the samples of a clip's views, decoding each frame and field once.

    Frames and fields are decoded lazily and kept, uncropped, from the first to the last view that needs them, so
    memory does not grow with the number of views. Samples are bit-identical to those of `decode_sample`.
    """

    def __init__(
        self,
        clip: EncodedClip,
        views: Sequence[View],
        *,
        config: SamplingConfig,
        contract: FlowContract,
        want_rgb: bool = True,
        want_flow: bool = True,
    ) -> None:
        """Prepare without decoding.

        Raises:
            DecodeError: a requested stream is not in the clip.
        """
        if want_rgb and clip.video is None:
            raise DecodeError("RGB frames requested from a clip that was read without its video column")
        if want_flow and clip.flow is None:
            raise DecodeError("flow requested from a clip that was read without its flow column")
        self._clip, self._views = clip, views
        self._config, self._contract = config, contract
        self._want_rgb, self._want_flow = want_rgb, want_flow
        self._done = 0
        self._windows = {
            int(time): sampling.field_indices(int(time), config=config, num_frames=clip.num_frames).tolist()
            for view in views
            for time in view.times
        }
        self._frames = _KeptLevels([view.times.tolist() for view in views])
        self._fields = _KeptLevels(
            [[index for time in view.times.tolist() for index in self._windows[time]] for view in views]
        )
        self._trajectories = _KeptLevels([view.times.tolist() for view in views])
        self._video = clips.each_frame(clip.video or b"", [*self._windows], num_frames=clip.num_frames)

    def decode(self) -> None:
        """Decode everything that the views need eagerly.

        Raises:
            DecodeError: the clip is damaged.
        """
        for time, window in self._windows.items():
            if self._want_rgb:
                self._frame(time)
            if self._want_flow:
                for index in window:
                    self._field(index)

    def next_samples(self, count: int) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """Samples of the next `count` views, (count, T, 3, H, W) and (count, T, 2L, H, W) uint8.

        The views must have equal sizes. A stream that was not requested is None.

        Raises:
            DecodeError: the clip is damaged.
        """
        numbers = range(self._done, self._done + count)
        views = [self._views[number] for number in numbers]
        (shape,) = {(len(view.times), *view.size) for view in views}
        num_snippets, *size = shape
        length = 2 * self._config.flow_length
        rgb = np.empty((count, num_snippets, 3, *size), np.uint8) if self._want_rgb else None
        stacks = np.empty((count, num_snippets, length, *size), np.uint8) if self._want_flow else None
        written: dict[tuple[int, Crop], NDArray[np.uint8]] = {}
        for position, (number, view) in enumerate(zip(numbers, views, strict=True)):
            if rgb is not None:
                snippets.rgb_snippets(
                    ((time, self._frame(time)) for time in sorted({*view.times.tolist()})), view, out=rgb[position]
                )
            if stacks is not None:
                for time, stack in zip(view.times.tolist(), stacks[position], strict=True):
                    if self._config.flow_stack == "trajectory":
                        self._stack_trajectory(time, view, out=stack)
                    else:
                        self._stack_fields(self._windows[time], view, out=stack, written=written)
            for levels in (self._frames, self._fields, self._trajectories):
                levels.drop_after(number)
        if stacks is not None and self._config.flow_stack == "bidirectional":
            backward = stacks[:, :, self._config.flow_length :]
            backward[...] = flow.negated(backward, self._contract)
        self._done += count
        return rgb, stacks

    def _stack_fields(
        self,
        window: Sequence[int],
        view: View,
        *,
        out: NDArray[np.uint8],
        written: dict[tuple[int, Crop], NDArray[np.uint8]],
    ) -> None:
        """Fill one stack (2L, H, W); `written` has the cropped fields that overlapping stacks share."""
        for number, index in enumerate(window):
            stacked = out[2 * number : 2 * number + 2]
            first = written.setdefault((index, view.crop), stacked)
            if first is stacked:
                snippets.write_field(self._field(index), view, self._contract, out=stacked)
            else:
                stacked[...] = first

    def _stack_trajectory(self, time: int, view: View, *, out: NDArray[np.uint8]) -> None:
        """Fill one stack (2L, H, W); sampling positions depend on the stack's start, so stacks share no fields."""
        if time not in self._trajectories:
            fields = [self._field(index) for index in self._windows[time]]
            self._trajectories[time] = snippets.along_trajectories(fields, self._config, self._contract)
        for number, levels in enumerate(self._trajectories[time]):
            snippets.write_field(levels, view, self._contract, out=out[2 * number : 2 * number + 2])

    def _frame(self, time: int) -> NDArray[np.uint8]:
        while time not in self._frames:
            index, frame = next(self._video)
            self._frames[index] = frame
        return self._frames[time]

    def _field(self, index: int) -> NDArray[np.uint8]:
        if index not in self._fields:
            levels = snippets.decoded_field(self._clip, index)
            less_mean = self._config.flow_mean_subtraction and self._config.flow_stack != "trajectory"
            self._fields[index] = snippets.without_mean(levels, self._contract) if less_mean else levels
        return self._fields[index]


class _KeptLevels(dict[int, NDArray[np.uint8]]):
    """Decoded frames or fields by index, each kept until the last view that needs it."""

    def __init__(self, needed: Sequence[Sequence[int]]) -> None:
        """`needed`: the indices that each view needs."""
        super().__init__()
        last = {index: number for number, indices in enumerate(needed) for index in indices}
        self._last: dict[int, list[int]] = {}
        for index, number in last.items():
            self._last.setdefault(number, []).append(index)

    def drop_after(self, number: int) -> None:
        """Drop what no view after this one needs."""
        for index in self._last.get(number, ()):
            self.pop(index, None)
