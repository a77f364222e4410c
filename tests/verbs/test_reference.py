from pathlib import Path

from twostream_ray.settings.checks import names_of
from twostream_ray.verbs.commands import VERBS, settings_class
from twostream_ray.verbs.reference import page

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reference.md").read_text()


def test_the_page_is_what_the_settings_classes_say_now() -> None:
    assert page() == PAGE, "`make reference` writes it anew"


def test_every_verb_and_every_setting_is_on_it() -> None:
    for name in VERBS:
        assert f"\n### {name}\n" in PAGE
        kind = settings_class(name)
        for key in names_of(kind) if kind is not None else ():
            assert f"{key.rpartition('.')[2]}`" in PAGE or f"{key.rpartition('.')[2]}.*`" in PAGE, key


def test_a_row_has_four_cells_and_says_what_a_setting_means() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    for row in rows:
        assert row.replace("\\|", "").count("|") == 5, row
        assert row.rstrip("| ").rpartition("|")[2].strip() or row.endswith("|"), row
    assert [row for row in rows if row.endswith("|  |")] == []


def test_links_lead_to_headings() -> None:
    import re

    headings = {line[4:].lower().replace(" ", "-") for line in PAGE.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) <= headings
