"""Synthetic moving-shapes videos whose classes need appearance, motion or both (Feichtenhofer et al. 2016, 3.1)."""

import json
import multiprocessing
import os
import reprlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within
from twostream_ray.storage import json_files, local_files
from twostream_ray.storage.json_files import record

Group = Literal["appearance", "motion", "binding", "order"]

SETTINGS_NAME = "synthetic.json"
GENERATOR_VERSION = 2
"""Incremented whenever the same settings give different videos, so that an old directory is not reused."""

HUES = ("red", "lime", "teal", "violet")
"""Chroma directions 90 degrees apart, starting at the red of BT.601."""
DIRECTIONS = ("right", "down", "left", "up")
ORDERS = ("left_then_right", "right_then_left")
CLASSES: dict[Group, tuple[str, ...]] = {
    "appearance": HUES,
    "motion": DIRECTIONS,
    "binding": DIRECTIONS,
    "order": ORDERS,
}
SPLITS = ("train", "val", "test")

_STEPS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
"""(dy, dx) of each direction, image coordinates: y grows downward."""
_RED_ANGLE = np.deg2rad(108.0)
_CHROMA_RADIUS = 36.0
"""Distance from grey in the (Cb, Cr) plane, of at most 112: survives 4:2:0 and compression without clipping any luma in
`_LUMA_RANGE`."""
_LUMA_RANGE = (76.0, 176.0)
_NOISE_CELLS_PX = (2, 4, 8, 24)
_NOISE_LUMA_STD = 9.0
_NOISE_STD = 2.5
"""Standard deviation of independent per-frame noise, in grey levels."""
_FORMS = ("disc", "square", "diamond")
_CLIPS_WORTH_A_PROCESS = 40
"""Starting a process takes about as long as writing this many clips."""

_Window = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Content, number and seed of the moving-shapes videos."""

    group: Group = "binding"
    """What decides the class: the hue of one shape (appearance), its direction (motion), the direction of the red one
    of two shapes (binding), or whether a shape goes left before right (order)."""

    train_clips: int = 1200
    """Training clips; a multiple of the number of classes, which are exactly balanced."""

    val_clips: int = 200
    """Validation clips; a multiple of the number of classes, 0 for none."""

    test_clips: int = 400
    """Test clips; a multiple of the number of classes, 0 for none."""

    size_px: int = 96
    """Height and width of a frame; even, at least 48. Shapes and speeds grow with it."""

    num_frames: int | None = None
    """Frames per clip, at least 11 (a stack of 10 flow fields); by default 16, and 64 in the group "order"."""

    fps: int = 25
    """Frames per second written into the files."""

    seed: int = 0
    """Every clip's own seed is (seed, split, index), so no two clips, and no two splits, share a draw."""

    def __post_init__(self) -> None:
        if self.group not in CLASSES:
            raise ConfigError(f"synthetic.group must be one of {', '.join(CLASSES)}, got {self.group!r}")
        require_within(
            self,
            "synthetic.",
            train_clips="[0, 10_000_000]",
            val_clips="[0, 10_000_000]",
            test_clips="[0, 10_000_000]",
            size_px="[48, 4_096]",
            num_frames="[11, 100_000]",
            fps="[1, 1_000]",
            seed="[0, 9_223_372_036_854_775_807]",
        )
        for split in SPLITS:
            clips = self.clips_in(split)
            if clips < (1 if split == "train" else 0) or clips % len(self.classes):
                raise ConfigError(
                    f"synthetic.{split}_clips must be a {'positive ' if split == 'train' else ''}multiple of "
                    f"{len(self.classes)}, the number of classes of {self.group!r}, got {clips}"
                )
        if self.size_px % 2:
            raise ConfigError(f"synthetic.size_px must be even, got {self.size_px}")
        if self.group == "order" and self.frames_per_clip % 2:
            raise ConfigError(f"synthetic.num_frames must be even in the group order, got {self.num_frames}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the group; a label is an index into them."""
        return CLASSES[self.group]

    @property
    def frames_per_clip(self) -> int:
        """Frames per clip, as set or by default."""
        if self.num_frames is not None:
            return self.num_frames
        return 64 if self.group == "order" else 16

    def clips_in(self, split: str) -> int:
        """Number of clips in a split (train, val, test)."""
        return {"train": self.train_clips, "val": self.val_clips, "test": self.test_clips}[split]


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Generate a small labelled data set of moving shapes, as real mp4 and avi files."""

    out: str
    """Output directory; videos are written to split/class/video below it."""

    clips: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Content and number of the videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSummary:
    """Result of `synthesize`."""

    root: Path
    """The directory of split/class/video."""
    classes: tuple[str, ...]
    """Class names in label order."""
    num_clips: int
    """Clips in the directory."""
    num_written: int
    """Clips written by this call; 0 if all existed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mover:
    """A moving shape: its hue, size and position in every frame."""

    hue: int
    """Index into HUES."""
    radius_px: int
    """The bounding box is 2 radius + 1 pixels wide."""
    centres_px: NDArray[np.int64]
    """(F, 2) rows of (y, x): the box's centre in whole pixels; may be outside the frame."""


def synthesize(
    config: SyntheticConfig,
    out_dir: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary:
    """Write the missing clips to out_dir/split/class/index.mp4 or .avi, and the settings as JSON.

    H.264 in MP4 and MPEG-4 in AVI alternate within each class. Files are byte-identical for the same settings and
    library versions, regardless of the number of `workers`.

    Args:
        config: content, number and seed of the clips.
        out_dir: a new or empty directory, or one of the same settings.
        workers: processes, by default one per core; they are spawned, so a calling script needs its
            `if __name__ == "__main__":` guard.
        progress: called with (clips written, clips to write).

    Raises:
        ConfigError: out_dir has clips of other settings, or something else.
        StorageError: out_dir cannot be written, or the disk is full.
    """
    clips = [(split, index) for split in SPLITS for index in range(config.clips_in(split))]
    with local_files.writing(out_dir):
        _claim(out_dir, config=config)
        for directory in {(out_dir / clip_name(config, *clip)).parent for clip in clips}:
            directory.mkdir(parents=True, exist_ok=True)
    missing = [clip for clip in clips if not (out_dir / clip_name(config, *clip)).exists()]
    write = partial(_write_clip, config, out_dir)
    num_workers = min(workers or os.cpu_count() or 1, 1 + len(missing) // _CLIPS_WORTH_A_PROCESS)
    with ExitStack() as stack:
        written: Iterator[None] = map(write, missing)
        if num_workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, mp_context=context))
            written = pool.map(write, missing, chunksize=4)
        for num_done, _ in enumerate(written, start=1):
            if progress is not None:
                progress(num_done, len(missing))
    return SyntheticSummary(root=out_dir, classes=config.classes, num_clips=len(clips), num_written=len(missing))


def clip_name(config: SyntheticConfig, split: str, index: int) -> Path:
    """Relative path of clip `index` of a split; label = index mod K, and the container format is independent of it."""
    label, turn = index % len(config.classes), index // len(config.classes)
    return Path(split, config.classes[label], f"{index:05d}.{('mp4', 'avi')[turn % 2]}")


def draw_clip(config: SyntheticConfig, split: str, index: int) -> NDArray[np.uint8]:
    """Frames of one clip as YUV 4:2:0, (F, 3 H / 2, W) uint8: the luma plane, then Cb, then Cr.

    Luma is grey texture with the same statistics for shapes and background; hue is in the chroma planes only. So flow,
    which is computed on luma, has no information on hue, and a single frame has none on motion.
    """
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    movers = draw_movers(config, index, rng=rng)
    size, num_frames = config.size_px, config.frames_per_clip
    largest = 2 * max(mover.radius_px for mover in movers) + 1
    # Shapes are cut from the same texture as the background: a single grey frame shows only their edges.
    sheet = grey_texture(size, size + largest, rng=rng)
    luma = np.repeat(sheet[None, :, :size], num_frames, axis=0)
    chroma = np.zeros((num_frames, 2, size, size), np.float32)
    # Which shape is in front must be independent of the hues.
    for path in rng.permutation(len(movers)):
        mover = movers[path]
        side = 2 * mover.radius_px + 1
        mask = form_mask(_FORMS[rng.integers(len(_FORMS))], radius_px=mover.radius_px)
        surface = sheet[path * largest :, size:][:side, :side]
        hue = _CHROMA_RADIUS * hue_vector(mover.hue)[:, None, None]
        for frame, (top, left) in enumerate((mover.centres_px - mover.radius_px).tolist()):
            inside, part = _overlap(top, left, side=side, size=size)
            cover = mask[part]
            luma[frame][inside] += cover * (surface[part] - luma[frame][inside])
            chroma[frame][:, *inside] += cover * (hue - chroma[frame][:, *inside])
    luma += _NOISE_STD * rng.standard_normal(luma.shape, dtype=np.float32)
    rows = chroma[:, :, ::2] + chroma[:, :, 1::2]
    subsampled = 128 + (rows[..., ::2] + rows[..., 1::2]) / 4
    planes = np.concatenate([luma.reshape(num_frames, -1), subsampled.reshape(num_frames, -1)], axis=1)
    return np.rint(planes).astype(np.uint8).reshape(num_frames, 3 * size // 2, size)


def draw_movers(config: SyntheticConfig, index: int, *, rng: np.random.Generator) -> list[Mover]:
    """The shapes of clip `index`: one, or in the group "binding" two, the red one first.

    In "binding" the other shape's direction is the class XOR 1, 2 or 3 in turn: each pair of directions {a, b} occurs
    equally often with the red shape moving a and moving b, so motion alone gives at most 50 % accuracy.
    """
    label, turn = index % len(config.classes), index // len(config.classes)
    any_hue, any_direction = (int(draw) for draw in rng.integers(4, size=2))
    match config.group:
        case "appearance":
            looks = [(label, any_direction)]
        case "motion":
            looks = [(any_hue, label)]
        case "binding":
            looks = [(0, label), (1 + turn // 3 % 3, label ^ (1 + turn % 3))]
        case "order":
            looks = [(any_hue, label)]
    size = config.size_px
    radii = rng.integers(round(0.11 * size), round(0.15 * size), size=len(looks), endpoint=True)
    speeds = rng.uniform(0.75, 1.25, size=len(looks)) * size / 48
    paths = [
        order_path(config.frames_per_clip, label=move, speed_px=speed)
        if config.group == "order"
        else straight_path(config.frames_per_clip, direction=move, speed_px=speed)
        for (_, move), speed in zip(looks, speeds, strict=True)
    ]
    centres = _draw_centres(radii, size=size, rng=rng)
    return [
        Mover(hue=hue, radius_px=int(radius), centres_px=np.rint(centre + path).astype(np.int64))
        for (hue, _), radius, path, centre in zip(looks, radii, paths, centres, strict=True)
    ]


def straight_path(num_frames: int, *, direction: int, speed_px: float) -> NDArray[np.float64]:
    """Offsets (y, x) from the position at the middle frame, shape (F, 2), at `speed_px` per frame.

    The position at the middle frame is random, so the frame that the spatial stream sees is independent of the class.
    """
    return (np.arange(num_frames) - num_frames // 2)[:, None] * (speed_px * _STEPS[direction])


def order_path(num_frames: int, *, label: int, speed_px: float) -> NDArray[np.float64]:
    """Offsets (y, x) of a shape that moves left, then right (label 0), or right, then left (label 1), shape (F, 2).

    Both classes have the same two halves of a clip, in opposite order. In each half the shape rests, moves and rests
    for an eighth, a quarter and an eighth of the clip, so that no short stack of flow fields covers both moves.
    Snippets at a stride of a quarter of the clip are the same four in both classes; only their order differs.
    """
    half = num_frames // 2
    rest = half // 4
    travel = speed_px * (half - 2 * rest)
    leftward = travel * (0.5 - np.clip((np.arange(half) - rest) / (half - 2 * rest), 0, 1))
    along_x = np.concatenate([leftward, -leftward] if label == 0 else [-leftward, leftward])
    return np.stack([np.zeros(num_frames), along_x], axis=1)


def grey_texture(height_px: int, width_px: int, *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random grey texture: noise of four scales plus rectangles of random brightness; (H, W) float32 luma."""
    texture = np.full((height_px, width_px), sum(_LUMA_RANGE) / 2, np.float32)
    for cell_px in _NOISE_CELLS_PX:
        grid = rng.standard_normal((height_px // cell_px + 2, width_px // cell_px + 2), dtype=np.float32)
        texture += _NOISE_LUMA_STD * _enlarge(grid, height_px, width_px, cell_px=cell_px)
    for _ in range(10):
        top, left = rng.integers(-height_px // 8, height_px), rng.integers(-width_px // 8, width_px)
        height, width = rng.integers(height_px // 12, height_px // 4, size=2)
        texture[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] += rng.normal(0, 14)
    return np.clip(texture, *_LUMA_RANGE)


def form_mask(form: str, *, radius_px: int) -> NDArray[np.float32]:
    """Anti-aliased coverage mask of a disc, square or diamond, (2 radius + 1, 2 radius + 1) values in [0, 1]."""
    y, x = np.abs(np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1])
    distance = {"disc": np.hypot(y, x), "square": np.maximum(y, x) * 1.15, "diamond": (y + x) * 0.9}[form]
    return np.clip(radius_px + 0.5 - distance, 0, 1).astype(np.float32)


def hue_vector(hue: int) -> NDArray[np.float32]:
    """Unit vector (Cb, Cr) of a hue, shape (2,); consecutive hues are 90 degrees apart."""
    angle = _RED_ANGLE + hue * np.pi / 2
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


def _write_clip(config: SyntheticConfig, out_dir: Path, clip: tuple[str, int]) -> None:
    """Draw and encode one (split, index); the file is written atomically, so an interrupted run can resume."""
    from twostream_ray.data.video.files import write_video

    path = out_dir / clip_name(config, *clip)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    with local_files.writing(path):
        try:
            write_video(draw_clip(config, *clip), path=part, container=path.suffix[1:], fps=config.fps)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _draw_centres(radii_px: NDArray[np.int64], *, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random centres (y, x) at the middle frame, one row per shape, without overlap."""
    margin = radii_px[:, None] + size / 16
    while True:
        centres = rng.uniform(margin, size - margin, size=(len(radii_px), 2))
        if len(radii_px) == 1 or np.abs(centres[0] - centres[1]).max() > radii_px.sum():
            return centres


def _enlarge(grid: NDArray[np.float32], height_px: int, width_px: int, *, cell_px: int) -> NDArray[np.float32]:
    """Bilinear upsampling of a grid by a factor of `cell_px`; (H, W)."""
    y, y_share = np.divmod(np.arange(height_px), cell_px)
    x, x_share = np.divmod(np.arange(width_px), cell_px)
    rows = grid[y] + (y_share[:, None] / np.float32(cell_px)) * (grid[y + 1] - grid[y])
    rows = np.ascontiguousarray(rows.T)
    return (rows[x] + (x_share[:, None] / np.float32(cell_px)) * (rows[x + 1] - rows[x])).T


def _overlap(top: int, left: int, *, side: int, size: int) -> tuple[_Window, _Window]:
    """Intersection of a box with the frame, in frame and in box coordinates; both empty if it is outside."""
    y, y_end = min(max(top, 0), size), min(max(top + side, 0), size)
    x, x_end = min(max(left, 0), size), min(max(left + side, 0), size)
    return (slice(y, y_end), slice(x, x_end)), (slice(y - top, y_end - top), slice(x - left, x_end - left))


def _claim(out_dir: Path, *, config: SyntheticConfig) -> None:
    """Write the settings into out_dir, or check that its clips were made with the same settings."""
    settings = {"generator_version": GENERATOR_VERSION, "classes": list(config.classes), **asdict(config)}
    path = out_dir / SETTINGS_NAME
    if path.exists():
        found = json_files.read_json(
            str(path),
            record({}, others=True),
            what="the settings of synthetic videos",
            way_out="choose another directory, or delete this one",
            error=ConfigError,
        )
        others = [
            f"{key} {reprlib.repr(found.get(key))}, not {value!r}"
            for key, value in settings.items()
            if found.get(key) != value
        ]
        if others:
            raise ConfigError(
                f"{out_dir} has synthetic videos of other settings ({'; '.join(others)}): "
                "choose another directory, or delete this one"
            )
        return
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(f"synthetic videos need a new or empty directory, {out_dir} is not empty: choose another")
    out_dir.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(str(path), (json.dumps(settings, indent=2) + "\n").encode())
