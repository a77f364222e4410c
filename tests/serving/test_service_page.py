"""docs/service.md says what the service does: statuses, limits, routes."""

import re
from dataclasses import fields

from pages import ROOT, fenced_blocks

from twostream_ray.serving.application import create_application
from twostream_ray.serving.refusals import KINDS
from twostream_ray.serving.settings import LimitsConfig, ServeConfig

PAGE = (ROOT / "docs/service.md").read_text()
ROWS = re.findall(r"^\| ((?:\d{3}(?:, )?)+) \| ([^|]+) \| [^|]* \|([^|]*)\|$", PAGE, flags=re.MULTILINE)


def test_every_refusal_is_in_the_table_with_its_status() -> None:
    found: dict[str, int] = {}
    for statuses, kinds, _ in ROWS:
        names = re.findall(r"`(\w+)`", kinds)
        numbers = [int(each) for each in statuses.split(", ")]
        found |= dict(zip(names, numbers if len(numbers) > 1 else numbers * len(names), strict=True))
    assert found == KINDS


def test_the_limits_in_the_table_are_the_defaults() -> None:
    limits = LimitsConfig()
    said = {
        name: text
        for _, _, settings in ROWS
        for name, text in re.findall(r"`limits\.(\w+)` ([\d ]*\d(?: MB)?)", settings)
    }
    for name, text in said.items():
        number = int(text.replace("MB", "").replace(" ", "")) * (1_000_000 if "MB" in text else 1)
        assert getattr(limits, name) == number, name
    assert said.keys() | {"connections"} >= {field.name for field in fields(LimitsConfig)}
    assert f"`limits.connections` ({limits.connections})" in PAGE


def test_every_route_is_on_the_page() -> None:
    application = create_application(ServeConfig(wait=True))
    try:
        routes = application.openapi()["paths"].keys()
        assert "/predict" in routes
        assert {path for path in routes if path not in PAGE and not path.startswith("/samples")} == set()
    finally:
        application.state.service.stop()


def test_commands_that_are_not_pasted_say_why() -> None:
    blocks = fenced_blocks(PAGE)
    assert blocks and all(len(block.reason or "") > 10 for block in blocks)
