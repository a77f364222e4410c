import platform
from pathlib import Path

import pytest
from noise_shards import noise_shards

from twostream_ray.runs.doctor.facts import Questions, accelerator_facts, node_facts


def test_this_machine_is_described_without_a_store(tmp_path: Path) -> None:
    facts = node_facts(Questions(cache=str(tmp_path / "not" / "there"), resources={"CPU": 2.0}))
    assert facts.python == platform.python_version() and {"ray", "torch"} <= facts.versions.keys()
    assert facts.cpus >= 1 and facts.memory_bytes > 0 and facts.temporary_free_bytes > 0 and facts.cache_free_bytes
    assert (facts.store, facts.sees_storage, facts.ray_cpus) == (None, None, 2.0)
    assert list(tmp_path.iterdir()) == []


def test_the_way_to_the_shards_has_a_rate_and_a_first_byte(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=[4], num_fields=2)
    store = node_facts(Questions(shards=str(tmp_path), shard=shard_set.shard_names[0])).store
    assert store and store.fault is None and store.bytes_per_second and store.first_byte_s is not None
    assert 0 < store.bytes_per_second < 1e12


def test_shards_that_are_not_there_are_a_fault_in_words(tmp_path: Path) -> None:
    store = node_facts(Questions(shards=str(tmp_path / "nowhere"), shard="a.parquet")).store
    assert store and store.fault and store.bytes_per_second is None and "nowhere" in store.uri


@pytest.mark.parametrize("shared", [True, False])
def test_a_directory_that_the_asking_machine_marked_is_told_from_another_of_that_name(
    shared: bool, tmp_path: Path
) -> None:
    mark = tmp_path / "runs" / ".doctor-mark"
    if shared:
        mark.parent.mkdir()
        mark.touch()
    facts = node_facts(Questions(storage=str(mark.parent), mark=str(mark)))
    assert (facts.storage_fault, facts.sees_storage) == (None, shared)
    assert [path.name for path in mark.parent.iterdir()] == [".doctor-mark"] if shared else not mark.parent.exists()


def test_a_process_without_a_gpu_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert accelerator_facts() is None
