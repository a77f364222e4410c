import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.data.sources.synthetic import (
    CLASSES,
    HUES,
    SETTINGS_NAME,
    Group,
    Mover,
    SyntheticConfig,
    clip_name,
    draw_clip,
    draw_movers,
    hue_vector,
    order_path,
    synthesize,
)
from twostream_ray.errors import ConfigError, StorageError

BINDING = SyntheticConfig(train_clips=8, val_clips=4, test_clips=4)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def decode_rgb(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def grey(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    return rgb @ np.array([0.299, 0.587, 0.114])


def movers_of(group: Group, index: int, *, num_frames: int = 16) -> list[Mover]:
    config = SyntheticConfig(group=group, num_frames=num_frames)
    return draw_movers(config, index, rng=np.random.default_rng([0, 0, index]))


def direction_of(centres_px: NDArray[np.int64]) -> int:
    dy, dx = np.sign(centres_px[-1] - centres_px[0])
    return {(0, 1): 0, (1, 0): 1, (0, -1): 2, (-1, 0): 3}[int(dy), int(dx)]


@pytest.fixture(scope="module")
def binding_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "binding"
    synthesize(BINDING, root)
    return root


@pytest.mark.parametrize("group", CLASSES)
def test_every_split_is_exactly_balanced_over_classes_and_containers(group: Group, tmp_path: Path) -> None:
    config = SyntheticConfig(group=group, train_clips=16, val_clips=8, test_clips=8, num_frames=16, size_px=48)
    summary = synthesize(config, tmp_path / "set")
    found = Counter(
        (path.parts[-3], path.parts[-2], path.suffix) for path in summary.root.rglob("*.*") if path.suffix != ".json"
    )
    wanted = {
        (split, name, suffix): clips // len(config.classes) // 2
        for split, clips in (("train", 16), ("val", 8), ("test", 8))
        for name in config.classes
        for suffix in (".mp4", ".avi")
    }
    assert found == wanted
    assert summary.num_clips == summary.num_written == 32


def test_files_are_what_their_names_say_and_decode_to_every_frame(binding_root: Path) -> None:
    for name, codec in (("train/right/00000.mp4", "h264"), ("train/right/00004.avi", "mpeg4")):
        with av.open(str(binding_root / name)) as file:
            assert file.streams.video[0].codec_context.name == codec
            assert file.streams.video[0].average_rate == BINDING.fps
        assert decode_rgb(binding_root / name).shape == (16, 96, 96, 3)


def test_same_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path: Path) -> None:
    config = SyntheticConfig(train_clips=80, val_clips=4, test_clips=4, size_px=48, num_frames=11)
    synthesize(config, tmp_path / "one", workers=1)
    synthesize(config, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_seed_and_another_split_give_other_videos() -> None:
    first = draw_clip(BINDING, "train", 0)
    assert np.array_equal(first, draw_clip(BINDING, "train", 0))
    assert not np.array_equal(first, draw_clip(BINDING, "test", 0))
    assert not np.array_equal(first, draw_clip(SyntheticConfig(seed=1), "train", 0))


def test_second_run_writes_nothing_and_an_interrupted_one_only_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    synthesize(BINDING, root)
    before = files(root)
    assert synthesize(BINDING, root).num_written == 0
    (root / clip_name(BINDING, "val", 3)).unlink()
    calls: list[tuple[int, int]] = []
    summary = synthesize(BINDING, root, progress=lambda done, total: calls.append((done, total)))
    assert (summary.num_written, summary.num_clips, calls) == (1, 16, [(1, 1)])
    assert files(root) == before


def test_split_without_clips_has_no_directory(tmp_path: Path) -> None:
    config = SyntheticConfig(train_clips=4, val_clips=0, test_clips=4, size_px=48, num_frames=11)
    synthesize(config, tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [SETTINGS_NAME, "test", "train"]


def test_directory_of_other_settings_is_refused_naming_what_differs(binding_root: Path) -> None:
    other = SyntheticConfig(train_clips=8, val_clips=4, test_clips=4, seed=7)
    with pytest.raises(ConfigError, match=r"other settings \(seed 0, not 7\).*choose another directory"):
        synthesize(other, binding_root)


def test_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="new or empty directory"):
        synthesize(BINDING, tmp_path)
    assert not (tmp_path / SETTINGS_NAME).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": "colour"}, "group must be one of appearance, motion, binding, order, got 'colour'"),
        ({"train_clips": 10}, "train_clips must be a positive multiple of 4.*got 10"),
        ({"train_clips": 0}, "train_clips must be a positive multiple of 4.*got 0"),
        ({"val_clips": -4}, "val_clips must be at least 0, got -4"),
        ({"test_clips": 6}, "test_clips must be a multiple of 4.*got 6"),
        ({"size_px": 97}, "size_px must be even, got 97"),
        ({"num_frames": 10}, "num_frames must be at least 11.*got 10"),
        ({"group": "order", "num_frames": 33}, "num_frames must be even.*got 33"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused_with_the_value_and_the_way_out(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(**settings)


def test_appearance_class_is_the_hue_and_motion_class_the_direction() -> None:
    for index in range(40):
        (shape,) = movers_of("appearance", index)
        assert shape.hue == index % 4
        (shape,) = movers_of("motion", index)
        assert direction_of(shape.centres_px) == index % 4
    assert len({direction_of(movers_of("appearance", 4 * turn)[0].centres_px) for turn in range(20)}) == 4
    assert len({movers_of("motion", 4 * turn)[0].hue for turn in range(20)}) == 4


@pytest.mark.parametrize("num_clips", [200, 400, 1200])
def test_binding_knows_half_from_motion_and_nothing_from_hues(num_clips: int) -> None:
    by_directions: Counter[tuple[frozenset[int], int]] = Counter()
    by_hues: Counter[tuple[int, int]] = Counter()
    for index in range(num_clips):
        red, other = movers_of("binding", index)
        assert (red.hue, direction_of(red.centres_px)) == (0, index % 4)
        pair = frozenset({direction_of(red.centres_px), direction_of(other.centres_px)})
        assert len(pair) == 2
        by_directions[pair, index % 4] += 1
        by_hues[other.hue, index % 4] += 1
    for pair in {pair for pair, _ in by_directions}:
        first, second = (by_directions[pair, label] for label in pair)
        assert first == second
    for hue in (1, 2, 3):
        assert len({by_hues[hue, label] for label in range(4)}) == 1


def test_middle_frame_does_not_tell_the_direction_and_never_hides_a_shape() -> None:
    centres: dict[int, list[NDArray[np.int64]]] = {label: [] for label in range(4)}
    for index in range(2000):
        red, other = movers_of("binding", index)
        middle = len(red.centres_px) // 2
        gap = np.abs(red.centres_px[middle] - other.centres_px[middle]).max()
        assert gap >= red.radius_px + other.radius_px
        centres[index % 4].append(red.centres_px[middle])
    spread = np.std(centres[0], axis=0)
    means = np.array([np.mean(centres[label], axis=0) for label in range(4)])
    assert np.all(spread > 12)
    assert np.all(np.abs(means - means.mean(axis=0)) < 4 * spread / np.sqrt(500))


def test_order_classes_are_the_same_two_halves_in_the_other_order() -> None:
    left_first, right_first = (order_path(64, label=label, speed_px=2.0) for label in (0, 1))
    np.testing.assert_array_equal(left_first, np.roll(right_first, 32, axis=0))
    steps = np.diff(left_first[:, 1])
    assert np.all(steps[:32] <= 0)
    assert np.all(steps[32:] >= 0)
    assert steps.min() == pytest.approx(-2.0)
    stacks = np.lib.stride_tricks.sliding_window_view(steps, 10)
    assert stacks.shape == (54, 10)
    assert not np.any((stacks < 0).any(axis=1) & (stacks > 0).any(axis=1)), "one flow stack must not see both moves"


@pytest.mark.parametrize("start", range(16))
def test_order_classes_give_the_same_snippets_at_a_stride_of_a_quarter_clip(start: int) -> None:
    def snippets(label: int) -> list[tuple[float, ...]]:
        along_x = order_path(64, label=label, speed_px=2.0)[:, 1]
        steps = np.diff(along_x)
        stacks = [np.clip(time + np.arange(-5, 5), 0, 62) for time in range(start, 64, 16)]
        return [(along_x[start + 16 * index], *steps[stack]) for index, stack in enumerate(stacks)]

    assert sorted(snippets(0)) == sorted(snippets(1))
    assert snippets(0) != snippets(1)


def test_luma_knows_no_hue() -> None:
    config = SyntheticConfig(group="appearance", num_frames=11)
    lumas: dict[int, list[float]] = {}
    for index in range(240):
        (shape,) = movers_of("appearance", index, num_frames=11)
        y, x = shape.centres_px[5]
        frame = draw_clip(config, "train", index)[5, :96]
        lumas.setdefault(shape.hue, []).append(frame[y - 4 : y + 5, x - 4 : x + 5].mean())
    means = [np.mean(values) for _, values in sorted(lumas.items())]
    noise = np.std(np.concatenate(list(lumas.values()))) / np.sqrt(60)
    assert np.ptp(means) < 5 * noise


def test_hue_outlives_compression_and_subsampling(tmp_path: Path) -> None:
    config = SyntheticConfig(group="appearance", train_clips=32, val_clips=4, test_clips=4)
    root = synthesize(config, tmp_path / "set").root
    for index in range(32):
        (shape,) = movers_of("appearance", index)
        y, x = shape.centres_px[8]
        rgb = decode_rgb(root / clip_name(config, "train", index))[8]
        patch = rgb[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(axis=0)
        luma = patch @ np.array([0.299, 0.587, 0.114])
        chroma = np.array([(patch[2] - luma) / 1.772, (patch[0] - luma) / 1.402])
        angles = [float(chroma @ hue_vector(hue)) for hue in range(len(HUES))]
        assert int(np.argmax(angles)) == shape.hue
        assert max(angles) > 30


def test_decoded_colour_hides_nothing_in_the_grey_that_flow_sees(binding_root: Path) -> None:
    for name in ("train/right/00000.mp4", "train/right/00004.avi"):
        luma = draw_clip(BINDING, "train", int(Path(name).stem))[:, :96].astype(np.float64)
        seen = grey(decode_rgb(binding_root / name))
        error = seen - (luma - 16) * 255 / 219
        assert np.abs(error).mean() < 5
        assert np.corrcoef(seen.ravel(), luma.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"seed": NaN}',
        b'{"seed": 0, "seed": 1}',
        b'{"seed": {}}',
        b"{}",
    ],
)
def test_a_settings_file_that_is_not_ours_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SETTINGS_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=r"choose another directory, or delete this one") as refused:
        synthesize(BINDING, tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1500
    assert [path.name for path in tmp_path.iterdir()] == [SETTINGS_NAME]


def test_a_place_that_cannot_be_written_is_one_line_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "a disk that is not mounted")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / SETTINGS_NAME)
    for path in (Path("/proc/x"), tmp_path / "file" / "x", tmp_path / "dangling", tmp_path / "fifo"):
        with pytest.raises(StorageError, match=r"cannot (write|read) /"):
            synthesize(BINDING, path, progress=lambda *_: pytest.fail("a clip was written"))
    with pytest.raises(ConfigError, match="is not empty: choose another"):
        synthesize(BINDING, tmp_path)


def test_a_disk_that_is_full_ends_in_one_line_and_leaves_no_half_clip(tmp_path: Path) -> None:
    """Files of more than 4 kB fail as a full disk fails, by `ulimit -f`."""
    script = (
        "import resource; from twostream_ray.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "arguments = ['--clips.size_px', '64', '--clips.train_clips', '4', '--clips.num_frames', '30']\n"
        f"raise SystemExit(main(['synthesize', {str(tmp_path / 'out')!r}, *arguments]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"a disk is full or its quota used up \(File too large: .*\.(mp4|avi)", done.stderr)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [SETTINGS_NAME]
