import pytest

from twostream_ray.data.protocols import PROTOCOLS, Protocol, ViewsConfig, resolve_protocol
from twostream_ray.errors import ConfigError


def test_an_unknown_protocol_is_refused_and_all_known_ones_are_named() -> None:
    with pytest.raises(ConfigError) as refused:
        resolve_protocol("paper_2041")
    assert all(name in str(refused.value) for name in PROTOCOLS) and "paper_2041" in str(refused.value)


def test_settings_change_what_a_named_protocol_says_and_its_name() -> None:
    changed = resolve_protocol("paper_2014", ViewsConfig(times=3, mirrored=False))
    assert changed == Protocol(
        name="paper_2014 (changed)", times=3, snippets=1, crops="corners", mirrored=False, average="softmax"
    )
    assert resolve_protocol("paper_2014", ViewsConfig(times=25)) == PROTOCOLS["paper_2014"]
    assert resolve_protocol("custom", ViewsConfig(times=3)) == Protocol(name="custom", times=3)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_says_in_one_line_what_it_scores(name: str) -> None:
    line = PROTOCOLS[name].describe()
    assert line.startswith(f"{name}: ") and "\n" not in line
