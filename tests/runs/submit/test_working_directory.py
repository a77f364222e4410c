import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.runs.submit.working_directory import Package, pack

LIMIT = 50_000_000


def names(package: Package) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
        return set(archive.namelist())


def test_the_package_travels_with_a_folder_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    found = names(pack(tmp_path, limit_bytes=LIMIT))
    assert {"mine.yaml", "twostream_ray/__main__.py", "twostream_ray/recipes/demo.yaml"} <= found
    assert not any("__pycache__" in name for name in found)


def test_a_checkout_travels_as_git_sees_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in (".gitignore", "tracked.csv", "new.yaml", "clip.avi", "sub/deep.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("*.avi\n" if name == ".gitignore" else "x")
    subprocess.run(["git", "-C", tmp_path, "add", "tracked.csv"], check=True)
    assert names(pack(tmp_path, limit_bytes=LIMIT)) >= {".gitignore", "tracked.csv", "new.yaml", "sub/deep.txt"}
    assert "clip.avi" not in names(pack(tmp_path, limit_bytes=LIMIT))
    left = names(pack(tmp_path, exclude=["sub/", "*.csv"], limit_bytes=LIMIT))
    assert not left & {"sub/deep.txt", "tracked.csv"} and "new.yaml" in left


def test_secrets_results_and_links_out_of_the_folder_stay_here(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for name in (".env", "server.pem", "runs/first/report.json", "mlflow.db", "kept.csv", ".hidden"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (tmp_path / "outside").write_text("x")
    (folder / "link").symlink_to(tmp_path / "outside")
    package = pack(folder, limit_bytes=LIMIT)
    assert {name for name in names(package) if not name.startswith("twostream_ray/")} == {"kept.csv"}
    secrets, links = package.notes
    assert "2 of the files, secrets by their names, are left out: .env, server.pem" in secrets and "link" in links


def test_the_same_files_are_the_same_package(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = pack(tmp_path, limit_bytes=LIMIT)
    (tmp_path / "a").touch()
    assert pack(tmp_path, limit_bytes=LIMIT) == first
    (tmp_path / "a").write_text("y")
    assert pack(tmp_path, limit_bytes=LIMIT).name != first.name


def test_a_folder_that_is_too_large_is_refused_by_its_largest_files(tmp_path: Path) -> None:
    import secrets

    (tmp_path / "data").mkdir()
    (tmp_path / "data/noise.bin").write_bytes(secrets.token_bytes(3_000_000))
    with pytest.raises(ConfigError, match=r"MB packed, .* 2\.0 MB \(upload_mb\); the largest are data 3\.0"):
        pack(tmp_path, limit_bytes=2_000_000)
    (tmp_path / "data/sparse.bin").touch()
    with (tmp_path / "data/sparse.bin").open("r+b") as file:
        file.truncate(10**11)
    with pytest.raises(ConfigError, match=r"are 100003\.\d MB, .* data belong in a bucket"):
        pack(tmp_path, limit_bytes=2_000_000)
    with pytest.raises(ConfigError, match="working_dir wants a folder"):
        pack(tmp_path / "nowhere", limit_bytes=LIMIT)
