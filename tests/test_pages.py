"""All pages: what stands in a block of commands is run by a test or says why it is not, and takes its settings."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT, fenced_blocks

from twostream_ray.verbs import commands

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "cluster/README.md"]
RUN_BY = {
    "README.md": "test_readme.py",
    "docs/data_sets.md": "test_readme.py",
    "docs/modern_towers.md": "test_modern_towers_page.py",
    "docs/python.md": "test_python_page.py",
    "docs/search.md": "test_readme.py",
    "docs/stages.md": "test_pages.py",
    "docs/ucf101.md": "test_ucf101_page.py",
}
"""The test that runs a page's blocks, but for those that say why they are not."""
OF_SUBMIT = ("--address", "--secrets")


def commands_of(code: str) -> Iterator[list[str]]:
    """What stands behind `twostream` in the commands of a block."""
    for line in code.replace("\\\n", " ").replace("$n", "1").splitlines():
        if "twostream" not in line:
            continue
        lexer = shlex.shlex(line.strip(), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;<>"):
                if words[:1] == ["twostream"]:
                    yield words[1:]
                words = []
            else:
                words.append(word)


COMMANDS = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}:{block.line} {words[0]}")
    for page in PAGES
    for block in fenced_blocks(page.read_text())
    if block.language == "bash"
    for words in commands_of(block.code)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_is_run_by_a_test_or_says_why_not(page: Path) -> None:
    name, text = str(page.relative_to(ROOT)), page.read_text()
    bare = [block for block in fenced_blocks(text) if block.language in ("bash", "python") and block.reason is None]
    assert not bare or name in RUN_BY, [block.line for block in bare]
    without_language = re.findall(r"^```\n((?:(?!```).*\n)+)```$", text, flags=re.MULTILINE)
    assert not [code for code in without_language if re.match(r"(twostream|pip|make|python|git) ", code)]
    if bare:
        runner = (ROOT / "tests" / RUN_BY[name]).read_text()
        assert page.name in runner or "PAGE" in runner


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_a_page_takes_its_settings(words: list[str]) -> None:
    if words[0] == "submit":
        words = words[1:]
        for option in OF_SUBMIT:
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
    two = " ".join(words[:2])
    verb, settings = (two, words[2:]) if two in commands.VERBS else (words[0], words[1:])
    assert verb in commands.VERBS, words
    kind = commands.settings_class(verb)
    # The demo adds what its recipe leaves out, and a search that is resumed has its settings.
    if kind is not None and verb != "demo" and "--resume" not in settings:
        commands.parse(verb, kind, settings)


def test_the_figures_of_the_page_on_stages_are_those_that_its_code_prints() -> None:
    page = (ROOT / "docs/stages.md").read_text()
    (code,) = (block.code for block in fenced_blocks(page) if block.language == "python")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "docs/stages.md", "exec"), {"__name__": "__main__"})
    lines = printed.getvalue().splitlines()
    assert len(lines) == 4
    for line in lines:
        flops, total, parameters = re.fullmatch(r"([\d.]+) GFLOP, ([\d.]+) EFLOP, ([\d,]+) parameters", line).groups()
        assert f"| {flops} | {total} EFLOP | {parameters} |" in page, line
