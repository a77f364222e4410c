import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.verbs import complain, require_uri

SPACE = ("--search.space", '{"training.epochs": [1]}')
WRITES = {
    "synthesize": ["synthesize", "OUT"],
    "ingest": ["ingest", "--catalog.root", "videos", "--out", "OUT"],
    "inspect": ["inspect", "shards", "--out", "OUT/inspect.png"],
    "train": ["train", "--name", "a", "--data.shards", "shards", "--storage", "OUT"],
    "tune": ["tune", "--name", "a", "--data", "{shards: s, validation_split: v}", "--storage", "OUT", *SPACE],
    "evaluate": ["evaluate", "--model", "model", "--shards", "shards", "--out", "OUT"],
    "tune-scores": ["tune-scores", "--choose.both", "a.npz", "--out", "OUT"],
    "pull": ["pull", "OUT"],
    "weights": ["weights", "fetch", "vgg16", "--to", "OUT"],
    "demo": ["demo", "--name", "a", "--data.shards", "shards", "--storage", "OUT"],
    "findings": ["findings", "--out", "OUT"],
    "compare-streams": ["compare-streams", "shards", "--name", "a", "--out", "OUT"],
    "benchmark loader": ["benchmark", "loader", "--data.shards", "shards", "--out", "OUT"],
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refusal prints."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("twostream") and ": error: " in line and captured.out == ""
    return line


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("the user's")
    return tmp_path


@pytest.mark.parametrize("verb", WRITES)
def test_a_file_in_the_way_of_the_output_is_one_line_and_stays(
    verb: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(here / "fifo")
    for out in ("file", "file/below/it", "fifo"):
        said = refused([argument.replace("OUT", out) for argument in WRITES[verb]], capsys)
        assert out.split("/")[0] in said
    assert (here / "file").read_text() == "the user's"
    assert sorted(path.name for path in here.iterdir()) == ["fifo", "file"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["synthesize"],
        ["predict"],
        ["predict", "--model", "m"],
        ["inspect"],
        ["pull"],
        ["ingest"],
        ["train"],
        ["tune"],
        ["evaluate"],
        ["tune-scores"],
        ["weights"],
        ["weights", "fetch", "vgg_m_2048", "--to", "out"],
        ["track"],
        ["track", "play"],
        ["benchmark"],
        ["benchmark", "coffee"],
        ["benchmark", "loader"],
        ["train", "--config", "file"],
        ["train", "--config", "."],
        ["train", "--config", "nowhere.yaml"],
        ["train", "--config"],
        ["synthesize", "a", "b"],
        ["describe", "--size_px", "nan"],
        ["describe", "--size_px", str(2**64)],
        ["describe", "--model", "antigravity"],
        ["rollback", "--to", "0"],
        ["promote"],
        ["promote", "0"],
        ["promote", "newest"],
        ["evaluate", "--model", "somewhere", "--shards", "s", "--record", "true"],
        ["predict", "a.avi", "--top_k", "0", "--model", "m"],
        ["", "a"],
        ["\x1b[31mtrain"],
    ],
    ids=" ".join,
)
def test_what_a_verb_cannot_mean_is_one_line(
    arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\x1b" not in refused(arguments, capsys)
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_place_is_looked_at_before_the_work_begins(here: Path) -> None:
    require_uri("new/and/deep", setting="out")
    require_uri("s3://bucket/prefix", setting="out")
    (here / "link").symlink_to("nowhere")
    for name in ("file", "file/deep", "link", "link/deep"):
        with pytest.raises(ConfigError, match="out must be a directory or be in one"):
            require_uri(name, setting="out")
    with pytest.raises(ConfigError, match="is not writable"):
        require_uri("/sys/kernel/x" if os.geteuid() else "/proc/sys/x", setting="out")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: Path("file/x").mkdir(), "cannot use file/x: expected a directory"),
        (lambda: Path("n" * 300).mkdir(), "the name is too long"),
        (lambda: Path("nowhere/x").mkdir(), "cannot use nowhere/x: No such file"),
        (lambda: Path().write_text(""), "expected a file, found a directory"),
        (lambda: fail(OSError(errno.EMFILE, "Too many open files")), "too many files are open; raise `ulimit -n`"),
        (lambda: bytearray(1 << 62), "out of memory"),
    ],
)
def test_faults_of_files_and_memory_are_one_line(
    fault: Callable[[], object],
    message: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from twostream_ray.verbs import data

    monkeypatch.setattr(data, "inspect", lambda _: fault())
    assert message in refused(["inspect", "shards"], capsys)


def test_faults_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from twostream_ray.verbs import data

    monkeypatch.setattr(data, "inspect", lambda _: fail(OSError("of no file")))
    with pytest.raises(OSError, match="of no file"):
        main(["inspect"])


def test_a_refusal_is_one_line_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    complain("a\nb\x1b[2J\rc [/d] \udcff", verb="x y")
    assert capsys.readouterr().err == "twostream x y: error: a b\\x1b[2J c [/d] \\xff\n"
