import pytest

from twostream_ray.storage import cache_folder


@pytest.fixture(autouse=True)
def caches_fill_any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What caches do must not depend on how full the disk of a machine happens to be."""
    monkeypatch.setattr(cache_folder, "LEFT_FREE", 0.0)
