"""Decoding once for many views: a clip's frames and flow fields as levels, out of which the views' samples are cut."""

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
    """The samples of a clip's views, in their order: each frame and field is decoded once.

    Levels are kept as they are stored, from the first view that needs them to the last one, and decoded when a view
    asks for them: what is kept does not grow with the number of views. The samples are those of `decode_sample`, bit
    for bit.
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
        """Decode nothing yet.

        Raises:
            DecodeError: a wanted stream is not in the clip.
        """
        if want_rgb and clip.video is None:
            raise DecodeError("RGB frames were wanted of a clip read without its video column")
        if want_flow and clip.flow is None:
            raise DecodeError("flow was wanted of a clip read without its flow column")
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
        """Decode all that the views need now, instead of when a view asks.

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
        """Samples of the next `count` views, of one size: (count, T, 3, H, W) and (count, T, 2L, H, W) uint8.

        A stream that is not wanted is None.

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
        shown: dict[tuple[int, Crop], NDArray[np.uint8]] = {}
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
                        self._stack_fields(self._windows[time], view, out=stack, shown=shown)
            for kept in (self._frames, self._fields, self._trajectories):
                kept.drop_after(number)
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
        shown: dict[tuple[int, Crop], NDArray[np.uint8]],
    ) -> None:
        """One stack (2L, H, W); `shown` has what overlapping stacks share."""
        for number, index in enumerate(window):
            stacked = out[2 * number : 2 * number + 2]
            there = shown.setdefault((index, view.crop), stacked)
            if there is stacked:
                snippets.show_field(self._field(index), view, self._contract, out=stacked)
            else:
                stacked[...] = there

    def _stack_trajectory(self, time: int, view: View, *, out: NDArray[np.uint8]) -> None:
        """One stack (2L, H, W). Where a field is sampled depends on where its stack begins: no field is shared."""
        if time not in self._trajectories:
            fields = [self._field(index) for index in self._windows[time]]
            self._trajectories[time] = snippets.along_trajectories(fields, self._config, self._contract)
        for number, levels in enumerate(self._trajectories[time]):
            snippets.show_field(levels, view, self._contract, out=out[2 * number : 2 * number + 2])

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
    """Decoded levels by frame or field, each until the last view that needs it."""

    def __init__(self, needed: Sequence[Sequence[int]]) -> None:
        """`needed`: what each view needs."""
        super().__init__()
        last = {index: number for number, of_view in enumerate(needed) for index in of_view}
        self._last: dict[int, list[int]] = {}
        for index, number in last.items():
            self._last.setdefault(number, []).append(index)

    def drop_after(self, number: int) -> None:
        """Forget what no view behind this one needs."""
        for index in self._last.get(number, ()):
            self.pop(index, None)
