import unicodedata
from collections.abc import Iterable

import pytest

from twostream_ray.data.sources.catalog import Catalog, CatalogConfig, in_text_order, read_catalog
from twostream_ray.data.sources.classes import in_order, merge_equivalent_names


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["-1", "0.5", "+2", "10"], ["-1", "0.5", "+2", "10"]),
        (["002", "10", "1"], ["1", "002", "10"]),
        (["10", "2", "walk"], ["10", "2", "walk"]),
        (["1e3", "2"], ["1e3", "2"]),
        (["\u0661", "10", "2"], ["10", "2", "\u0661"]),
    ],
)
def test_labels_that_are_all_numbers_are_in_the_order_of_numbers(names: list[str], ordered: list[str]) -> None:
    assert in_order(names) == ordered


def catalog_of(paths: Iterable[str], *, layout: str = "folder", **texts: str) -> Catalog:
    config = CatalogConfig(layout=layout, root="videos", lists="lists" if texts else None)
    return read_catalog(
        config,
        list_files=lambda uri: [
            (path, 1) for path in (paths if uri == "videos" else [f"{name}.txt" for name in texts])
        ],
        read_bytes=lambda uri: texts[uri.removeprefix("lists/").removesuffix(".txt")].encode(),
    )


def test_folders_named_by_numbers_are_labelled_in_their_order() -> None:
    paths = [f"{name}/x.mp4" for name in ("1", "10", "2")]
    catalog = catalog_of(paths)
    assert catalog.classes == ("1", "2", "10")
    assert {clip.class_name: clip.label for clip in catalog.clips} == {"1": 0, "2": 1, "10": 2}
    earlier = in_text_order(catalog, [CatalogConfig(root="videos")])
    assert earlier.classes == ("1", "10", "2")
    assert {clip.class_name: clip.label for clip in earlier.clips} == {"1": 0, "10": 1, "2": 2}


def test_a_class_index_says_itself_how_its_classes_are_numbered() -> None:
    names = ("10", "2", "1")
    paths = [f"{name}/{role}.avi" for name in names for role in ("train", "test")]
    catalog = catalog_of(
        paths,
        layout="ucf101",
        classInd="1 10\n2 2\n3 1\n",
        trainlist01="".join(f"{name}/train.avi {number}\n" for number, name in enumerate(names, start=1)),
        testlist01="".join(f"{name}/test.avi\n" for name in names),
    )
    assert catalog.classes == names
    assert in_text_order(catalog, [CatalogConfig(layout="ucf101", root="v", lists="l")]).classes == names


def test_a_class_that_is_written_in_two_forms_of_unicode_is_one() -> None:
    apart, together = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    catalog = catalog_of([f"train/{apart}/x.mp4", f"test/{together}/y.mp4", "train/walk/z.mp4"])
    assert catalog.classes == (together, "walk")
    assert f"class {together} is spelt in 2 ways that look the same" in catalog.notes[0]
    assert catalog_of([f"train/{apart}/x.mp4"]).classes == (apart,), "nothing changes where there is one form"


def test_classes_that_nearly_look_the_same_are_spoken_of() -> None:
    renamed, notes = merge_equivalent_names(["Walk", "walk", "run_fast", "run fast", "01", "1", "sit"])
    assert renamed == {}
    assert [note.partition(" differ")[0] for note in notes] == [
        "classes '01' and '1'",
        "classes 'Walk' and 'walk'",
        "classes 'run fast' and 'run_fast'",
    ]
