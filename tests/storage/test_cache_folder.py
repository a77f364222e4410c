from pathlib import Path

import pytest

from twostream_ray.errors import StorageError
from twostream_ray.storage.cache_folder import TAG, claim


def test_a_directory_is_claimed_once_and_known_again_whatever_lies_in_it_then(tmp_path: Path) -> None:
    claim(tmp_path / "a" / "cache", setting="data.cache")
    (tmp_path / "a/cache/entry").write_text("x")
    claim(tmp_path / "a" / "cache", setting="data.sample_cache")
    assert (tmp_path / "a/cache" / TAG).read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")


@pytest.mark.parametrize("name", ["thesis.tex", "0" * 64, "size", ".hidden", TAG])
def test_a_directory_of_others_is_never_taken_for_a_cache(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# a cache of somebody else's")
    with pytest.raises(StorageError, match=rf"data.cache needs a directory of its own, .* has other files, as {name}"):
        claim(tmp_path, setting="data.cache")


def test_a_link_in_the_place_of_the_tag_is_not_followed(tmp_path: Path) -> None:
    claim(tmp_path / "real", setting="data.cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / TAG).symlink_to(tmp_path / "real" / TAG)
    with pytest.raises(StorageError, match=r"data.cache must be a writable directory"):
        claim(tmp_path / "cache", setting="data.cache")
    with pytest.raises(StorageError, match=r"data.cache must be a writable directory, got /proc/x"):
        claim(Path("/proc/x"), setting="data.cache")
