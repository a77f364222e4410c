import base64
from pathlib import Path

import pytest
from html_pages import parsed, shown

from twostream_ray.runs.score.html_page import (
    bars,
    element,
    html_page,
    items,
    number_cards,
    paragraph,
    picture,
    pictures,
    table,
)

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table><h1>other",
    "a & b < c 'd'",
    "\x1b[31mred‮gnp",
    "\udcff",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup_wherever_it_stands(text: str) -> None:
    plain, page = (
        html_page(
            one,
            paragraph(one),
            items([one]),
            number_cards([(one, one, one)]),
            table((one, "n"), [(one, (one, 1.0))], sortable=True),
            element("p", one, title=one),
            bars([(one, 1.0, one), (one, -2.0, one)]),
            pictures([(b"png", one)]),
        )
        for one in ("plain", text)
    )
    assert parsed(page).tags == parsed(plain).tags
    assert b"\x1b" not in page
    if text.isprintable():
        assert " ".join(text.split()) in shown(page)


def test_secrets_are_hidden() -> None:
    assert "hunter2" not in shown(html_page("a", paragraph("s3://user:hunter2@bucket/x")))


def test_a_picture_is_within_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    page = html_page("a", picture(tmp_path / "a.png", shows='a "dog" & <b>'))
    (source,) = parsed(page).sources
    assert base64.b64decode(source.partition(",")[2]) == b"\x89PNG"


def test_numbers_carry_what_they_are_sorted_by_and_only_sortable_tables_have_buttons() -> None:
    rows = [("a", ("50.0%", 0.5))]
    page = html_page("t", table(("class", "accuracy"), rows, sortable=True), table(("class", "accuracy"), rows))
    assert page.count(b'data-value="0.5"') == 2 and parsed(page).tags.count("button") == 2
    assert page.count(b'<table class="sortable">') == 1
