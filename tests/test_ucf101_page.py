"""docs/ucf101.md: commands take their settings, arithmetic is right, and the last block is pasted on real clips."""

import shlex
import subprocess
from pathlib import Path

import pytest
from pages import ROOT, fenced_blocks, pasted
from test_readme import clone_into, surroundings

from twostream_ray.verbs import commands

TEXT = (ROOT / "docs/ucf101.md").read_text()
BLOCKS = fenced_blocks(TEXT)
CLASSES = ("Biking", "Diving", "JavelinThrow", "PizzaTossing")
"""Those of the clips at hand that every list has."""


def lists_of_clips(official: Path, clips: list[str], out: Path) -> None:
    """UCF101's lists of these clips alone, which number their classes anew."""
    out.mkdir()
    (out / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(CLASSES, start=1)))
    for path in official.glob("*list*.txt"):
        named = [line.split()[0] for line in path.read_text().splitlines() if line.split()[0] in clips]
        numbers = {clip: CLASSES.index(clip.partition("/")[0]) + 1 for clip in named}
        lines = [f"{clip} {numbers[clip]}" if path.name.startswith("train") else clip for clip in named]
        (out / path.name).write_text("".join(f"{line}\r\n" for line in lines))


def test_every_command_takes_its_settings() -> None:
    lines = [line for block in BLOCKS for line in block.code.replace("\\\n", " ").replace("$n", "1").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    ours = [line[1:] for line in words if line[:1] == ["twostream"]]
    assert {line[0] for line in ours} == {"ingest", "inspect", "weights", "train", "evaluate"}
    for verb, *settings in ours:
        if verb == "weights":
            verb, settings = "weights fetch", settings[1:]
        kind = commands.settings_class(verb)
        assert kind is not None, verb
        commands.parse(verb, kind, settings)


def test_a_block_that_is_not_pasted_says_why() -> None:
    *before, last = BLOCKS
    assert all(len(block.reason or "") > 10 for block in before) and last.reason is None


def test_the_counts_of_clips_and_frames_are_those_of_the_official_lists(real: Path) -> None:
    lists = real / "lists/ucf101_official_crlf"
    for number in (1, 2, 3):
        counts = [len((lists / f"{kind}list0{number}.txt").read_text().splitlines()) for kind in ("train", "test")]
        assert f"| {number} | {counts[0]:,} | {counts[1]:,} | `train{number}`, `test{number}` |" in TEXT
    fields = [int(line.split(",")[1]) for line in (real / "lists/ucf101_frame_count.csv").read_text().splitlines()[1:]]
    assert f"{len(fields):,} x 0.491 MB of frames + {sum(fields):,} fields x 4.03 kB" in TEXT
    gigabytes = len(fields) * 0.491e-3, sum(fields) * 4.03e-6
    assert f"{gigabytes[0]:.1f} + {gigabytes[1]:.1f} = {sum(gigabytes):.1f} GB" in TEXT
    assert f"{sum(fields) + len(fields):,} frames / 1.3 frames/s" in TEXT


def test_rates_and_sizes_are_those_that_were_measured() -> None:
    measured = (ROOT / "docs/benchmarks.md").read_text() + (ROOT / "docs/stages.md").read_text()
    measured += (ROOT / "docs/storage.md").read_text() + (ROOT / "docs/choosing_settings.md").read_text()
    for figure in ("0.41", "54.6", "306", "1013.6", "4.03 kB", "0.491 MB", "1.3 frames/s", "1.44 EFLOP", "0.08 EFLOP"):
        assert figure in measured and figure in TEXT.replace("1,013.6", "1013.6"), figure


@pytest.mark.soak
@pytest.mark.real
@pytest.mark.own_cluster
@pytest.mark.timeout(1200)
def test_the_last_block_goes_from_videos_to_the_mean_over_three_splits(tmp_path: Path, real: Path) -> None:
    clone = clone_into(tmp_path / "clone")
    found = [path for name in CLASSES for path in sorted((real / "ucf101" / name).glob("*.avi"))]
    clips = [f"{path.parent.name}/{path.name}" for path in found]
    for name, path in zip(clips, found, strict=True):
        (clone / "UCF-101" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "UCF-101" / name).symlink_to(path)
    lists_of_clips(real / "lists/ucf101_official_crlf", clips, clone / "ucfTrainTestlist")
    script = "\n".join(pasted(BLOCKS[-1:]))
    done = subprocess.run(
        ["bash", "-c", script], cwd=clone, env=surroundings(clone), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert f"on {len(clips)} of UCF101's clips of four classes" in TEXT
    print(done.stdout[-1500:], flush=True)  # noqa: T201  (recorded in docs/soak.md)
    assert (clone / "rehearsal-evaluation/splits.json").is_file()
