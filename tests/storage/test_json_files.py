from pathlib import Path

import pytest

from twostream_ray.errors import CheckpointError, StorageError
from twostream_ray.storage import json_files

SCHEMA = json_files.record(
    {
        "name": json_files.FILE_NAME,
        "sha256": json_files.SHA256,
        "rows": {"type": "integer", "minimum": 1, "maximum": 128},
    },
    {"notes": json_files.list_of(json_files.WORD)},
)
GOOD = '{"name": "a.parquet", "sha256": "' + "0" * 64 + '", "rows": 3}'


def parse(text: str | bytes) -> object:
    return json_files.parse_json(
        text, SCHEMA, where="there.json", what="a record", way_out="make it again", error=CheckpointError
    )


def test_what_the_schema_says_is_read() -> None:
    assert parse(GOOD) == {"name": "a.parquet", "sha256": "0" * 64, "rows": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "wants type 'object'"),
        (GOOD.replace('"rows": 3', '"rows": NaN'), "NaN is not a number"),
        (GOOD.replace('"rows": 3', '"rows": 1e999'), "too large"),
        (GOOD.replace('"rows": 3', '"rows": 3, "rows": 4'), "duplicate key 'rows'"),
        (GOOD.replace('"rows": 3', '"rows": 129'), "its rows wants at most 128, has 129"),
        (GOOD.replace('"rows": 3', '"rows": "3"'), "its rows wants type 'integer', has '3'"),
        (GOOD.replace('"rows": 3', '"rows": 3, "else": 1'), "unknown key 'else'"),
        (GOOD.replace(', "rows": 3', ""), "lacks rows"),
        (GOOD.replace("a.parquet", "../a.parquet"), "its name wants"),
        (GOOD.replace("a.parquet", "/etc/passwd"), "its name wants"),
        (GOOD.replace("a.parquet", ".hidden"), "its name wants"),
        (GOOD.replace("0" * 64, "/home/me/precious.txt"), "its sha256 wants"),
        (GOOD.replace("0" * 64, "0" * 64 + "\\n"), "its sha256 wants"),
        (GOOD.replace('"rows": 3', '"rows": 3, "notes": [""]'), "its notes.0 wants"),
    ],
)
def test_anything_else_is_one_line_that_names_the_file_and_the_way_out(text: str | bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"a record was wanted at there\.json") as raised:
        parse(text)
    assert message in str(raised.value)
    assert str(raised.value).endswith(": make it again")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_document_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match="bytes"):
        json_files.read_json(str(path), SCHEMA, what="a record", way_out="make it again", error=CheckpointError)
