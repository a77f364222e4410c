"""What `pull` takes from a registry, and what it leaves alone where it puts it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import CheckpointError, RegistryError, StorageError, TwoStreamError
from twostream_ray.model_source import local_model
from twostream_ray.runs.score.predict import pull as checked_pull
from twostream_ray.runs.score.settings import PullConfig
from twostream_ray.tracking import TrackingConfig, pull
from twostream_ray.tracking.connection import client_for

FILES = ("model.safetensors", "model.json")


class Entry:
    """A version of a registered model whose files anybody may have put there."""

    def __init__(self, config: TrackingConfig, folder: Path) -> None:
        self.config, self.folder, self.name = config, folder, folder.name
        self._client = client_for(config.resolved_uri())
        self._client.create_registered_model(self.name)

    def register(self, **contents: str | bytes) -> str:
        """A version with these files (`/` as `__`), as MLflow would have written them; gives its URI."""
        root = self.folder / str(len(list(self.folder.iterdir())))
        for path, content in contents.items():
            file = root / "artifacts" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        (root / "MLmodel").write_text(
            "flavors:\n  python_function:\n    artifacts:\n"
            "      weights: {path: artifacts/model.safetensors}\n      settings: {path: artifacts/model.json}\n"
        )
        version = self._client.create_model_version(self.name, source=root.as_uri(), run_id=None)
        self.root = root
        return f"models:/{self.name}/{version.version}"


@pytest.fixture
def entry(tracking: TrackingConfig, tmp_path_factory: pytest.TempPathFactory) -> Entry:
    return Entry(tracking, tmp_path_factory.mktemp("entry"))


def model(number: int) -> dict[str, str]:
    return {name: f"{name} of {number}" for name in FILES}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "pulled.json"}


def test_what_was_pulled_is_replaced_by_the_next_and_other_files_stay(entry: Entry, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for number in (1, 2, 1, 1):
        pull(entry.register(**model(number)), out, config=entry.config)
        assert contents(out) == model(number) | {"notes.txt": "mine"}


@pytest.mark.parametrize("there", ["a file", "a changed file", "a link", "a folder", "a link to nowhere"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_users_is_never_written_over(there: str, name: str, entry: Entry, tmp_path: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    precious.write_text("years")
    match there:
        case "a file":
            (out / name).write_text("mine")
        case "a changed file":
            pull(entry.register(**model(1)), out, config=entry.config)
            (out / name).write_text("mine")
        case "a link":
            (out / name).symlink_to(precious)
        case "a folder":
            (out / name).mkdir()
        case _:
            (out / name).symlink_to(tmp_path / "nowhere")
    before = {
        path: path.readlink() if path.is_symlink() else path.is_file() and path.read_text() for path in out.iterdir()
    }
    with pytest.raises(
        StorageError, match=rf"{name} was not written by `twostream pull`.*: name another directory, or move it away"
    ):
        pull(entry.register(**model(2)), out, config=entry.config)
    after = {
        path: path.readlink() if path.is_symlink() else path.is_file() and path.read_text() for path in out.iterdir()
    }
    assert after == before and precious.read_text() == "years" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("record", ["{", "[]", '{"model": "x", "files": {"../x": []}}', "link"])
def test_a_record_that_is_not_ours_is_refused(record: str, entry: Entry, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if record == "link":
        (tmp_path / "precious").write_text("years")
        (out / "pulled.json").symlink_to(tmp_path / "precious")
    else:
        (out / "pulled.json").write_text(record)
    with pytest.raises(StorageError, match=r"pulled\.json"):
        pull(entry.register(**model(1)), out, config=entry.config)
    assert [path.name for path in out.iterdir()] == ["pulled.json"]


def test_a_destination_that_is_a_file_is_refused(entry: Entry, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StorageError, match=r"a directory for .* was wanted"):
        pull(entry.register(**model(1)), tmp_path / "out", config=entry.config)


def _terabytes(root: Path) -> None:
    with (root / "model.json").open("wb") as file:
        file.truncate(1 << 40)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link out": lambda root: (root / "model.json").symlink_to("/etc/passwd"),
    "a device": lambda root: (root / "model.json").symlink_to("/dev/zero"),
    "a FIFO": lambda root: os.mkfifo(root / "model.json"),
    "a folder": lambda root: (root / "model.json").mkdir(),
    "terabytes": _terabytes,
    "nothing": lambda root: None,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_only_files_of_a_models_names_and_sizes_are_taken(what: str, entry: Entry, tmp_path: Path) -> None:
    uri = entry.register(**{"model.safetensors": "x"})
    HOSTILE[what](entry.root / "artifacts")
    out = tmp_path / "out"
    with pytest.raises(RegistryError, match=r"model\.json"):
        pull(uri, out, config=entry.config)
    assert not out.exists()


@pytest.mark.parametrize(
    "path", ["../../outside/authorized_keys", "/etc/passwd", "artifacts/.bashrc", "artifacts/../../../x", "payload.py"]
)
def test_names_that_an_entry_gives_never_become_paths(path: str, entry: Entry, tmp_path: Path) -> None:
    uri = entry.register(**model(1), **{"payload.py": "raise SystemExit", ".bashrc": "x"})
    (entry.root / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: payload\n    code: code\n    artifacts:\n"
        f"      weights: {{path: {path}}}\n      settings: {{path: {path}}}\n      more: {{path: {path}}}\n"
    )
    pull(uri, tmp_path / "out", config=entry.config)
    assert contents(tmp_path / "out") == model(1)
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_what_is_no_model_is_not_put_there_and_what_was_there_stays(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"model.safetensors": "good", "model.json": "good"}
    pull(entry.register(**good), tmp_path / "out", config=entry.config)
    for junk in ("{", "{}", json.dumps({"class_path": "payload.X"})):
        uri = entry.register(**{"model.safetensors": "x", "model.json": junk})
        with pytest.raises(CheckpointError, match=r"model\.json"):
            checked_pull(PullConfig(out="out", model=uri, tracking=entry.config))
        for verb in (["pull", "out"], ["predict", "video.mp4"]):
            assert main([*verb, "--model", uri, "--tracking.uri", entry.config.resolved_uri()]) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(tmp_path / "out") == good
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.json",
        "model.safetensors",
        "pulled.json",
    ]


def test_a_model_of_the_registry_is_used_from_a_temporary_copy(entry: Entry) -> None:
    with local_model(entry.register(**model(1)), config=entry.config) as folder:
        assert contents(folder) == model(1)
    assert not folder.exists()


def test_a_registry_that_is_not_there_makes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TwoStreamError, match="No such file"):
        pull("models:/two-stream@champion", tmp_path / "out", config=TrackingConfig())
    assert not list(tmp_path.iterdir())
