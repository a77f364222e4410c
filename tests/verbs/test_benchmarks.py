import pytest

from twostream_ray.cli import main


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "everything"]) == 2
    assert "benchmark wants loader, ingest, step, train, predict, got everything" in capsys.readouterr().err
