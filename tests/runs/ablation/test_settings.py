import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.runs.ablation.settings import AblationConfig
from twostream_ray.verbs.commands import parse


def parsed(*arguments: str) -> AblationConfig:
    return parse("compare-streams", AblationConfig, ["--config", "own_videos_cpu", "--name", "mine", *arguments])


def test_the_table_is_beside_the_runs_unless_a_folder_is_named() -> None:
    assert parsed("--storage", "s3://bucket/runs").folder == "s3://bucket/runs/mine-streams"
    assert parsed("--out", "elsewhere").folder == "elsewhere"
    assert not parsed().clip3d and parsed("--clip3d", "true").clip3d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.architecture", "late"), "wants a network that joins both streams, .* got late"),
        (("--model.architecture", "clip3d"), "wants a network that joins both streams, .* got clip3d"),
        (("--init", "models:/other/1"), "trains several, got models:/other/1: leave it out"),
        (("--dry_run", "true"), "`twostream tune` only: leave it out"),
    ],
)
def test_what_an_ablation_does_not_go_with_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(*arguments)
