from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, read_catalog, read_catalogs
from twostream_ray.data.sources.splits import group_of_name, splits_of_groups
from twostream_ray.errors import CatalogError, ConfigError
from twostream_ray.runs.settings import IngestConfig
from twostream_ray.settings.parser import from_arguments

THREE = (0.7, 0.15, 0.15)
NAMES = ("train", "val", "test")


def split_of_clips(paths: Iterable[str], *, shares: tuple[float, ...] = THREE, seed: int = 0) -> dict[str, str]:
    return {clip.clip_id: clip.splits[0] for clip in folder(paths, shares=shares, seed=seed).clips}


def folder(paths: Iterable[str], *, shares: tuple[float, ...] = THREE, seed: int = 0) -> Catalog:
    config = CatalogConfig(root="videos", split=shares, split_seed=seed)
    return read_catalog(config, list_files=lambda _: [(path, 9) for path in paths], read_bytes=lambda _: b"")


def table(text: str, *, shares: tuple[float, ...] = THREE) -> Catalog:
    paths = [line.split(",")[0] for line in text.splitlines()[1:]]
    config = CatalogConfig(layout="table", root="videos", lists="clips.csv", split=shares)
    return read_catalog(config, list_files=lambda _: [(path, 9) for path in paths], read_bytes=lambda _: text.encode())


def clips(class_name: str, count: int) -> list[str]:
    return [f"{class_name}/{number}.mp4" for number in range(count)]


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(clip, split before, split after) of the clips that are in another one now."""
    return [(clip, before[clip], after[clip]) for clip in before if before[clip] != after[clip]]


def test_every_class_is_cut_at_the_shares() -> None:
    splits = split_of_clips(clips("few", 20) + clips("many", 200))
    counts = Counter((clip.split("/")[0], split) for clip, split in splits.items())
    assert counts == {
        ("few", "train"): 14,
        ("few", "val"): 3,
        ("few", "test"): 3,
        ("many", "train"): 140,
        ("many", "val"): 30,
        ("many", "test"): 30,
    }


def test_two_shares_are_train_and_test() -> None:
    assert Counter(split_of_clips(clips("a", 10), shares=(0.8, 0.2)).values()) == {"train": 8, "test": 2}


def test_the_splits_depend_on_names_and_seed_alone() -> None:
    paths = clips("a", 40) + clips("b", 40)
    assert split_of_clips(paths) == split_of_clips(reversed(paths))
    assert split_of_clips(paths) != split_of_clips(paths, seed=1)
    # Stored shards hold these: another hash would move clips from train to test.
    tested = [clip for clip, split in split_of_clips(clips("a", 12)).items() if split == "test"]
    assert tested == ["a/7.mp4", "a/8.mp4"]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    shares=st.sampled_from([THREE, (0.5, 0.5), (0.9, 0.1), (0.34, 0.33, 0.33), (0.05, 0.05, 0.9)]),
)
def test_a_clip_that_is_added_moves_at_most_one_of_its_class_across_each_cut_and_none_of_another_class(
    sizes: list[int], seed: int, shares: tuple[float, ...]
) -> None:
    paths = [path for number, size in enumerate(sizes) for path in clips(f"c{number}", size)]
    before = split_of_clips(paths, shares=shares, seed=seed)
    after = split_of_clips([*paths, "c0/new.mp4"], shares=shares, seed=seed)
    across = moved(before, after)
    assert all(clip.startswith("c0/") for clip, _, _ in across)
    names = NAMES if len(shares) == 3 else ("train", "test")
    if sizes[0] >= len(shares):
        cuts = [frozenset((old, new)) for _, old, new in across]
        assert len(set(cuts)) == len(cuts)
        assert all(abs(names.index(old) - names.index(new)) == 1 for _, old, new in across)


@given(seed=st.integers(0, 99), groups=st.integers(3, 12))
def test_a_clip_that_is_added_to_a_known_group_moves_none(seed: int, groups: int) -> None:
    paths = [f"Dive/v_Dive_g{group:02}_c{clip:02}.avi" for group in range(groups) for clip in (1, 2)]
    after = split_of_clips([*paths, "Dive/v_Dive_g00_c07.avi"], seed=seed)
    assert not moved(split_of_clips(paths, seed=seed), after)
    assert after["Dive/v_Dive_g00_c07.avi"] == after["Dive/v_Dive_g00_c01.avi"]


@given(counts=st.lists(st.integers(3, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_class_with_as_many_groups_as_there_are_splits_is_in_every_split(counts: list[int], seed: int) -> None:
    class_groups = {f"c{number}": {f"c{number}/{at}" for at in range(count)} for number, count in enumerate(counts)}
    split_of = splits_of_groups(class_groups, shares=(0.98, 0.01, 0.01), names=NAMES, seed=seed)
    assert all({split_of[group] for group in groups} == set(NAMES) for groups in class_groups.values())


def test_a_class_of_fewer_groups_is_trained_on_first_then_tested_and_the_notes_say_what_lacks() -> None:
    catalog = folder(clips("one", 1) + clips("two", 2) + clips("ten", 10))
    assert {clip.splits for clip in catalog.clips if clip.class_name == "one"} == {("train",)}
    assert {clip.splits for clip in catalog.clips if clip.class_name == "two"} == {("train",), ("test",)}
    assert catalog.notes == (
        "13 clips in 13 groups are split with seed 0: train 9, val 1, test 3",
        "2 of 3 classes have too few groups of clips to have one in split val: one, two",
        "1 of 3 classes have too few groups of clips to have one in split test: one",
    )


@pytest.mark.parametrize(
    ("clip", "group"),
    [
        ("Dive/v_Dive_g08_c01.avi", "Dive/g08"),
        ("Dive/v_Dive_g08_c02", "Dive/g08"),
        ("wave/April_09_wave_u_nm_np1_fr_goo_3.avi", "April_09_wave"),
        ("run/metacafe_coolsoccer_run_f_cm_np10_le_bad_2.avi", "metacafe_coolsoccer_run"),
        ("any/0wR5jVB-WPk_000417_000427.mp4", "0wR5jVB-WPk"),
        ("a/big_g.mp4", "a/big_g.mp4"),
        ("a/holiday.mp4", "a/holiday.mp4"),
    ],
)
def test_names_say_which_source_a_clip_was_cut_from(clip: str, group: str) -> None:
    assert group_of_name(clip) == group


@pytest.mark.real
def test_every_name_of_hmdb51_says_its_group_and_the_official_splits_keep_groups_together(real: Path) -> None:
    lists = sorted((real / "lists/hmdb51_splits").rglob("*_test_split1.txt"))
    assert len(lists) == 51
    splits_of: dict[str, set[str]] = {}
    for path in lists:
        for line in path.read_text().splitlines():
            name, code = line.split()
            clip = f"{path.name.removesuffix('_test_split1.txt')}/{name}"
            assert group_of_name(clip) != clip
            splits_of.setdefault(group_of_name(clip), set()).add(code)
    assert not [group for group, codes in splits_of.items() if {"1", "2"} <= codes]


def test_clips_of_one_source_are_never_in_two_splits() -> None:
    paths = [f"Dive/v_Dive_g{group:02}_c{clip:02}.avi" for group in range(1, 26) for clip in range(1, 6)]
    by_group: dict[str, set[str]] = {}
    for clip, split in split_of_clips(paths).items():
        by_group.setdefault(group_of_name(clip), set()).add(split)
    assert len(by_group) == 25 and all(len(splits) == 1 for splits in by_group.values())


def test_a_tables_column_group_keeps_clips_of_several_classes_together() -> None:
    rows = [f"{number}.mp4,{'ab'[number % 2]},film{number // 4}" for number in range(80)]
    catalog = table("\n".join(["uri,label,Group", *rows]))
    by_group: dict[str, set[tuple[str, ...]]] = {}
    for clip in catalog.clips:
        by_group.setdefault(clip.group, set()).add(clip.splits)
    assert len(by_group) == 20 and all(len(splits) == 1 for splits in by_group.values())
    for class_name in "ab":
        counts = Counter(clip.splits[0] for clip in catalog.clips if clip.class_name == class_name)
        assert counts == {"train": 28, "val": 6, "test": 6}


def test_groups_of_several_data_sets_are_apart() -> None:
    configs = [CatalogConfig(root=name, split=THREE, name=name) for name in ("one", "two")]
    catalog = read_catalogs(
        configs, list_files=lambda _: [(path, 9) for path in clips("a", 5)], read_bytes=lambda _: b""
    )
    assert len({clip.group for clip in catalog.clips}) == 10


def test_where_nothing_says_the_splits_the_note_names_the_option() -> None:
    for catalog in (folder(clips("a", 3), shares=()), table("uri,label\n0.mp4,a", shares=())):
        assert "give --catalog.split '[0.7, 0.15, 0.15]'" in catalog.notes[0]
        assert all(clip.splits == ("all",) for clip in catalog.clips)


def test_splits_that_are_said_are_not_made() -> None:
    with pytest.raises(CatalogError, match=r"videos already defines the splits test, train: leave catalog\.split out"):
        folder(["train/a/0.mp4", "test/a/1.mp4"])
    with pytest.raises(CatalogError, match=r"clips\.csv already defines the splits train: leave catalog\.split out"):
        table("uri,label,split\n0.mp4,a,train")
    for layout, lists in (("ucf101", "lists"), ("hmdb51", "lists"), ("kinetics", "k.csv"), ("folder", "splits.txt")):
        with pytest.raises(ConfigError, match=r"the lists define the splits: leave catalog\.split out"):
            CatalogConfig(layout=layout, root="videos", lists=lists, split=THREE)


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1), (0.5,), (0.25,) * 4, (0.6, 0.6)])
def test_shares_that_do_not_add_up_are_refused_with_the_forms_there_are(shares: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"as \[0\.7, 0\.15, 0\.15\], or of train and test, as \[0\.8, 0\.2\], got"):
        CatalogConfig(root="videos", split=shares)


def test_the_command_line_takes_shares_as_a_list() -> None:
    text = ["--catalog.root", "videos", "--out", "shards", "--catalog.split", "[0.7, 0.15, 0.15]"]
    assert from_arguments(IngestConfig, text).catalog.split == THREE
