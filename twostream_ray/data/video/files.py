"""Video writer: arrays to H.264 in MP4 or MPEG-4 part 2 in AVI, reproducibly for the same library versions."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.video import encoder


def write_video(frames: NDArray[np.uint8], *, path: Path, container: str, fps: int) -> None:
    """Write YUV 4:2:0 frames (F, 3 H / 2, W) uint8 as H.264 (container mp4) or MPEG-4 part 2 (container avi).

    Raises:
        OSError: the file cannot be written.
    """
    codec, options = {
        "mp4": ("libx264", {"crf": "18", "preset": "veryfast", "x264-params": encoder.X264_PARAMS}),
        "avi": ("mpeg4", {"b": "4000000", "qmin": "2", "qmax": "3"}),
    }[container]
    with av.open(str(path), mode="w", format=container, options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1] * 2 // 3, "yuv420p"
        # One thread each: the clips run in parallel, and the bytes do not depend on the machine.
        stream.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
        file.mux(stream.encode())
