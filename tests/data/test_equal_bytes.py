import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract, encode_field, encode_levels, flow_function
from twostream_ray.data.shards.writer import ShardWriter, plan_shards
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.video import encoder
from twostream_ray.data.video.clips import ClipWriter
from twostream_ray.data.video.files import write_video
from twostream_ray.data.video.prepare import prepare_clip

SIZES = [(16, 18), (34, 50), (48, 48), (64, 86), (66, 66)]
"""Height and width in px, few of them multiples of what SIMD code takes at once."""
M_PERTURB = -6
LIBC = ctypes.CDLL(None)
OLD_PROCESSOR = {
    "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,SSE4.2,SSE4.1",
    "OPENCV_IPP": "disabled",
    "NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])),
    "ARROW_USER_SIMD_LEVEL": "NONE",
    "JSIMD_FORCESSE2": "1",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX2_Usable,-FMA,-FMA_Usable,-AVX",
}
FFMPEG_UP_TO_SSSE3 = 0xDF


def pictures(height: int, width: int, *, index: int) -> list[NDArray[np.uint8]]:
    planes = draw_clip(SyntheticConfig(size_px=96, num_frames=12), "train", index)
    rgb = [av.VideoFrame.from_ndarray(frame, format="yuv420p").to_ndarray(format="rgb24") for frame in planes]
    return [np.ascontiguousarray(frame[4 : 4 + height, 6 : 6 + width]) for frame in rgb]


def encoded_clip(frames: list[NDArray[np.uint8]]) -> bytes:
    height, width = frames[0].shape[:2]
    writer = ClipWriter(width=width, height=height, fps=Fraction(25))
    for frame in frames:
        writer.write(frame)
    return writer.finish()


def synthetic_file(size_px: int, index: int, container: str) -> bytes:
    frames = draw_clip(SyntheticConfig(size_px=size_px, num_frames=16), "train", index)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip")
        write_video(frames, path=path, container=container, fps=25)
        return path.read_bytes()


def flow_fields(frames: list[NDArray[np.uint8]], algorithm: str) -> bytes:
    contract = FlowContract(algorithm=algorithm)
    compute = flow_function(contract)
    grey = [np.ascontiguousarray(frame[:, :, 1]) for frame in frames]
    fields = [compute(frame, following) for frame, following in pairwise(grey)]
    return b"".join(field.tobytes() + encode_field(field, contract) for field in fields)


def prepared(size_px: int, index: int, container: str, short_side_px: int) -> bytes:
    """All of it: decoded, resized, flow, encoded."""
    raw = synthetic_file(size_px, index, container)
    clip = prepare_clip(raw, FlowContract(short_side_px=short_side_px), name="clip", first_frames=5)
    assert clip.video is not None and clip.flow is not None
    return b"".join([clip.video, *(clip.flow[index] for index in range(4))])


def noisy_field(height: int, width: int) -> bytes:
    x, y = np.random.default_rng(height).integers(0, 256, (2, height, width), dtype=np.uint8)
    return encode_levels(x, y, FlowContract())


def shard() -> bytes:
    frames = pictures(34, 50, index=0)
    video = encoded_clip(frames)
    fields = [noisy_field(34, 50)] * (len(frames) - 1)
    clips = [
        Clip(uri=f"/nowhere/{name}", clip_id=name, size_bytes=7, label=number % 2, class_name="ab"[number % 2],
             splits=("train",))
        for number, name in enumerate(("one", "two", "three"))
    ]  # fmt: skip
    (plan,) = plan_shards(clips, contract=FlowContract(), rows_per_shard=16)
    with tempfile.TemporaryDirectory() as out:
        writer = ShardWriter(plan, out=out, contract=FlowContract())
        for clip in plan.clips:
            kept = EncodedClip(video=video, flow=fields, num_frames=len(frames), height=34, width=50, fps=25.0)
            writer.add(clip, kept, source_sha256="0" * 64)
        part = writer.finish()
        return json.dumps(part, sort_keys=True).encode() + Path(out, "shards", part["shard"]).read_bytes()


def everything() -> dict[str, Callable[[], bytes]]:
    """All that promises equal bytes, at small sizes."""
    made: dict[str, Callable[[], bytes]] = {"shard": shard}
    for height, width in SIZES:
        size = f"{height}x{width}"
        frames = pictures(height, width, index=height)
        made[f"clip {size}"] = partial(encoded_clip, frames)
        made[f"flow JPEG {size}"] = partial(noisy_field, height, width)
        if min(height, width) >= 34:
            made[f"dis {size}"] = partial(flow_fields, frames[:4], "dis")
    made["dis+tvl1 34x50"] = partial(flow_fields, pictures(34, 50, index=1)[:2], "dis+tvl1")
    made["tvl1 34x50"] = partial(flow_fields, pictures(34, 50, index=2)[:2], "tvl1")
    for size_px, short_side_px, container in ((50, 34, "mp4"), (50, 66, "avi"), (66, 50, "mp4"), (66, 34, "avi")):
        name = f"{container} of {size_px} px prepared at {short_side_px} px"
        made[name] = partial(prepared, size_px, size_px, container, short_side_px)
    for size_px in (48, 50, 66):
        for index in range(6):
            made[f"synthetic H.264 {size_px} {index}"] = partial(synthetic_file, size_px, index, "mp4")
        made[f"synthetic MPEG-4 {size_px}"] = partial(synthetic_file, size_px, 4, "avi")
    return made


def hashes(made: dict[str, Callable[[], bytes]]) -> dict[str, str]:
    return {name: hashlib.sha256(make()).hexdigest() for name, make in made.items()}


@pytest.fixture
def other_memory() -> Iterator[Callable[[np.random.Generator], None]]:
    """A function after which what is allocated is where something else was, and is filled with some byte."""
    perturb = getattr(LIBC, "mallopt", None)
    LIBC.malloc.restype, LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    LIBC.free.argtypes = [ctypes.c_void_p]

    def leave_garbage(rng: np.random.Generator) -> None:
        if perturb is not None:
            perturb(M_PERTURB, int(rng.integers(256)) * int(rng.integers(2)))
        sizes = (2 ** rng.uniform(6, 18, size=100)).astype(int).tolist()
        blocks = [LIBC.malloc(size) for size in sizes]
        for block, size in zip(blocks, sizes, strict=True):
            ctypes.memmove(block, rng.bytes(size), size)
        for block in rng.permutation(np.array(blocks, np.uint64)).tolist():
            LIBC.free(block)

    yield leave_garbage
    if perturb is not None:
        perturb(M_PERTURB, 0)


@pytest.mark.slow
def test_bytes_do_not_depend_on_order_or_on_what_lay_in_memory(
    other_memory: Callable[[np.random.Generator], None],
) -> None:
    made = everything()
    found: dict[str, set[str]] = {name: set() for name in made}
    rng = np.random.default_rng(0)
    for _ in range(3):
        for name in rng.permutation(list(made)).tolist():
            other_memory(rng)
            found[name].add(hashlib.sha256(made[name]()).hexdigest())
    assert [name for name, variants in found.items() if len(variants) > 1] == []


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="promised for x86, tried on Linux"
)
def test_bytes_do_not_depend_on_processor_or_number_of_cores() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__],
        env={**os.environ, **OLD_PROCESSOR},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    here, there = hashes(everything()), json.loads(run.stdout)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def be_an_old_processor() -> None:
    """Of one core, without anything newer than SSSE3 (2006); what no variable sets is set here."""
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libavutil" in line}
    (avutil,) = [path for path in loaded if "opencv" not in path]  # which brings one of its own
    ctypes.CDLL(avutil).av_force_cpu_flags(FFMPEG_UP_TO_SSSE3)
    encoder.versions()  # asked before, for it names the parameters
    encoder.X264_PARAMS += ":asm=ssse3"


if __name__ == "__main__":
    be_an_old_processor()
    sys.stdout.write(json.dumps(hashes(everything())))
