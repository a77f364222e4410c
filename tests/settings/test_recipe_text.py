import codecs
import os
import time
from pathlib import Path

import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.settings.recipe_text import parse_recipe, read_recipe, write_recipe


def refused(content: bytes | str, tmp_path: Path, name: str = "recipe.yaml") -> str:
    """The one line that reading a file of this content ends with, without the file's folder."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as met:
        read_recipe(str(path))
    said = str(met.value)
    assert "\n" not in said and len(said) < 400 + len(str(tmp_path)), said
    return said.replace(str(path), name)


def test_plain_yaml_and_json_are_read(tmp_path: Path) -> None:
    text = "a: {b: 1e-3, c: [1, 2.5, yes]}\nd: 2026-11-26\ne: null\nf: -.5\n"
    assert parse_recipe(text, where="x").values == {
        "a": {"b": 1e-3, "c": [1, 2.5, True]},
        "d": "2026-11-26",
        "e": None,
        "f": -0.5,
    }
    path = tmp_path / "r.json"
    path.write_bytes(codecs.BOM_UTF8 + b'{\n\t"a": "\\ud83d\\ude00 \\/",\n\t"b": [1E-3, true]\n}')
    assert read_recipe(str(path)).values == {"a": "\U0001f600 /", "b": [1e-3, True]}


def test_lines_of_values_are_known() -> None:
    recipe = parse_recipe("a:\n  b: 1\n  c:\n  - {d: 2}\n", where="r.yaml")
    assert recipe.line_of("a.b") == "r.yaml, line 2: "
    assert recipe.line_of("a.c[0].d") == "r.yaml, line 4: "
    assert recipe.line_of("else") == "r.yaml: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epochs: 1}\nseed: 1\ntraining: {epochs: 3}\n", "line 3: training is repeated, first in line 1"),
        ("a:\n  b:\n    c: 1\n    d: 2\n    c: 1\n", "line 5: a.b.c is repeated, first in line 3"),
        ("a:\n- {b: 1}\n- {b: 1, c: 2,\n   b: 3}\n", "line 4: a[1].b is repeated, first in line 3"),
        ('{"a": 1,\n "b": {"c": 1,\n  "c": 1}}', "line 3: b.c is repeated, first in line 2"),
        ('{\n\t"a": 1,\n\t"\\u0061": 2\n}', "line 3: a is repeated, first in line 2"),
        ("'a': 1\na: 2\n", "line 2: a is repeated, first in line 1"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x\n", "line 4: c.<< is repeated, first in line 3"),
    ],
)
def test_a_name_that_comes_twice_is_refused_at_any_depth_with_both_lines(
    text: str, message: str, tmp_path: Path
) -> None:
    assert message in refused(text, tmp_path)


@pytest.mark.real
def test_the_recipe_with_a_block_twice_is_refused(real: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 18: training is repeated, first in line 14"):
        read_recipe(str(real / "bugs/recipe_training_block_twice.yaml"))


def test_the_same_names_in_different_blocks_and_overridden_defaults_are_fine() -> None:
    text = "base: &b {width: 4, dropout: 0.5}\nspatial: {<<: *b, width: 8}\ntemporal: *b\n"
    values = parse_recipe(text, where="x").values
    assert values["spatial"] == {"width": 8, "dropout": 0.5} and values["temporal"]["width"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\n".encode("utf-16"), "line 1: expected a recipe in UTF-8, found UTF-16"),
        ("a: 1\nb: Bogen schie\xdfen\n".encode("latin-1"), "line 2: expected a recipe in UTF-8, byte 0xdf is invalid"),
        (b"a: 1\nb: \x00\n", "line 2: character 0x00 is not allowed"),
        (b"\x1f\x8b\x08 gzip", "line 1: expected a recipe in UTF-8, found gzip"),
        (bytes(range(128, 256)) * 40, "line 1: expected a recipe in UTF-8, byte 0x80 is invalid"),
        ("", "holds settings as `name: value`, got nothing"),
        ("# nothing yet\n", "got nothing"),
        ("- a: 1\n", "got a list"),
        ("[]", "got a list"),
        ("just words\n", "got a str"),
        ("42", "got a int"),
        ("a:\n\tb: 1\n", "line 2: not valid YAML: while scanning for the next token found character '\\t'"),
        ("a: [1, 2\nb: 3\n", "line 2: not valid YAML"),
        ("a: 1\n--- \na: 2\n", "line 2: not valid YAML: expected a single document"),
        ("a: *nowhere\n", "line 1: not valid YAML: found undefined alias"),
        ("a: &x [*x]\n", "nested more than 40 levels deep"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 40 levels deep"),
        ("a: " + "[" * 20_000, "nested more than 40 levels deep"),
        ('{"a": ' * 20_000, "nested more than 40 levels deep"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed",
        ),
        ("a: 1\nb: !!binary aGk=\n", "line 2: the tag tag:yaml.org,2002:binary is not allowed"),
        ("a: !own {b: 1}\n", "the tag !own is not allowed"),
        ("a: 1\nb: {c: .nan}\n", "line 2: b.c must be a finite number, got .nan"),
        ("a: [1, -.INF]\n", "line 1: a[1] must be a finite number, got -.INF"),
        ("a: 1e999\n", "line 1: a must be a finite number, got 1e999"),
        ('{"a": NaN}', "expected a finite number, got NaN"),
        ('{"a": 1e999}', "must be a finite number"),
        ("a: " + "9" * 5000, "a number is too large"),
        ("a: 1\nb: {c: 010}\n", "line 2: b.c wants an integer without leading zeros and colons, got 010"),
        ("a: [1:30]\n", "line 1: a[0] wants an integer without leading zeros and colons, got 1:30"),
        ("a: -0_7\n", "which YAML 1.1 reads as octal or base 60"),
        ("a: !!bool maybe\n", "a value is not what its tag says ('maybe')"),
        ("a: !!int x\n", "a value is not what its tag says"),
        ("a: 0x_\n", "a value is not what its tag says"),
        ("1: a\n", "line 1: expected the name of a setting, got 1"),
        ("a: 1\n? [b, c]\n: 1\n", "line 2: expected the name of a setting, got a list or block"),
        ("a: 1\nyes: 1\n", "line 2: expected the name of a setting, got yes"),
    ],
)
def test_what_is_no_recipe_is_one_line_that_names_the_line(content: bytes | str, message: str, tmp_path: Path) -> None:
    said = refused(content, tmp_path)
    assert said.startswith("recipe.yaml") and message in said, said


def test_a_few_lines_of_aliases_do_not_become_millions_of_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.monotonic()
    assert "more than 100,000 values, aliases counted in full" in refused("\n".join(lines), tmp_path)
    assert time.monotonic() - started < 5


def test_a_bare_name_is_a_recipe_of_the_package_and_anything_else_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe("fusion_2016").values["name"] == "fusion_2016"
    (tmp_path / "fusion_2016").write_text("name: mine\n")
    assert read_recipe("./fusion_2016").values == {"name": "mine"}
    for missing in ("fusion_206", "jobs/recipes/fusion_2016.yaml", "fusion_2016.yaml"):
        with pytest.raises(ConfigError, match=r"it does not exist.*did you mean `--config fusion_2016`"):
            read_recipe(missing)
    with pytest.raises(ConfigError, match=r"zzz: it does not exist.*; `twostream recipes` lists those"):
        read_recipe("zzz")


def test_only_regular_files_of_a_recipes_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1 << 40)
    for name, message in {
        "fifo.yaml": "found a FIFO",
        "endless.yaml": "found a FIFO, socket or device",
        "large.yaml": "at most 4194304 bytes",
        ".": "found a directory",
        "missing.yaml": "it does not exist; check the path",
    }.items():
        with pytest.raises(ConfigError, match=r"(no such recipe|the recipe cannot be read): cannot read") as met:
            read_recipe(str(tmp_path / name))
        assert message in str(met.value)


@pytest.mark.parametrize(
    "value",
    [
        *("1e3", "2014-01-01", "010", "1:30", ".5", "yes", "~", "=", "x: y", "# no comment", "é\nzwei", ""),
        *(1e-5, 3e22, True, None, -7, [], {}, [[1, 2], ["1"]], {"a": {"b": [0.25]}}),
    ],
)
def test_what_is_written_as_a_recipe_is_read_back_the_same(value: object, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe({"name": value}), encoding="utf-8")
    assert read_recipe(str(path)).values == {"name": value}
