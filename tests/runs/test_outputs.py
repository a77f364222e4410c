import io
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from whole_shards import write_shard

from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.shards.writer import plan_shards, write_manifest
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.errors import ConfigError, TwoStreamError
from twostream_ray.runs import findings as findings_module
from twostream_ray.runs.ingest import catalog_of
from twostream_ray.runs.inspect import inspect
from twostream_ray.runs.outputs import marked
from twostream_ray.runs.score.evaluate import evaluate
from twostream_ray.runs.score.settings import EvaluateConfig, StreamScoresConfig, TuneScoresConfig
from twostream_ray.runs.score.tune_scores import tune_scores
from twostream_ray.runs.settings import FindingsConfig, IngestConfig, InspectConfig


def scores(folder: Path) -> str:
    rng = np.random.default_rng(0)
    file = folder / "both.npz"
    labels = np.arange(20) % 2
    np.savez(file, spatial=rng.normal(size=(20, 2)), temporal=rng.normal(size=(20, 2)), labels=labels)
    return str(file)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A few synthetic clips, ingested in this process."""
    folder = tmp_path_factory.mktemp("data")
    synthesize(SyntheticConfig(train_clips=4, val_clips=0, test_clips=4, size_px=48), folder / "videos", workers=1)
    contract, out = FlowContract(short_side_px=48), str(folder / "shards")
    wanted = IngestConfig(catalog=CatalogConfig(root=str(folder / "videos")), out=out, flow=contract)
    catalog = catalog_of(wanted)
    plans = plan_shards(catalog.clips, contract=contract, rows_per_shard=16)
    parts = [write_shard(plan, out=out, contract=contract, max_frames=100) for plan in plans]
    write_manifest(out, parts=parts, classes=catalog.classes, contract=contract)
    return open_shards(out)


WRITERS: dict[str, tuple[list[str], Callable[[Path, Path, ShardSet], object]]] = {
    "evaluate": (
        ["report.json", "scores/table.json", "scores/part-00000.parquet", "scores.npz", "confusion.png"],
        lambda out, folder, shards: evaluate(EvaluateConfig(model="x", shards=shards.uri, out=str(out))),
    ),
    "tune-scores": (
        ["fusion.json", "fusion.png"],
        lambda out, folder, shards: tune_scores(
            TuneScoresConfig(
                choose=StreamScoresConfig(both=scores(folder)), weight_step=0.5, temperatures=[1.0], out=str(out)
            )
        ),
    ),
    "findings": (
        ["findings.md", "findings.png"],
        lambda out, folder, shards: findings_module.findings(FindingsConfig(out=str(out)), {}),
    ),
    "inspect": (
        ["inspect.png"],
        lambda out, folder, shards: inspect(
            InspectConfig(shards=shards.uri, num_clips=2, out=str(out / "inspect.png"))
        ),
    ),
}
CASES = [(verb, name) for verb, (names, _) in WRITERS.items() for name in names]


@pytest.mark.parametrize(("verb", "name"), CASES)
@pytest.mark.parametrize("content", [b"", b"mine", b'{"mine": 1}', b"\x89PNG\r\n\x1a\n mine"], ids=range(4))
def test_a_file_that_no_verb_wrote_is_not_written_over(
    shards: ShardSet, tmp_path: Path, verb: str, name: str, content: bytes
) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"{verb} wants to write {out}/{name}, where there is a file that it did not"
    ):
        WRITERS[verb][1](out, tmp_path, shards)
    assert [str(path.relative_to(out)) for path in out.rglob("*.*")] == [name]
    assert (out / name).read_bytes() == content


@pytest.mark.slow
def test_what_the_verb_wrote_itself_is_written_over(shards: ShardSet, tmp_path: Path) -> None:
    for verb in ("tune-scores", "inspect"):
        for _ in range(2):
            WRITERS[verb][1](tmp_path / "out", tmp_path, shards)
    assert json.loads((tmp_path / "out/fusion.json").read_text())["verdict"]
    with av.open(io.BytesIO((tmp_path / "out/inspect.png").read_bytes())) as picture:
        assert next(picture.decode(video=0)).width > 100


def test_a_link_is_not_written_through(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    for target in (tmp_path / "precious.png", tmp_path / "absent.png"):
        (tmp_path / "out/inspect.png").symlink_to(target)
        with pytest.raises(ConfigError, match="where there is a file that it did not write"):
            WRITERS["inspect"][1](tmp_path / "out", tmp_path, shards)
        (tmp_path / "out/inspect.png").unlink()
    assert (tmp_path / "precious.png").read_bytes() == b"mine" and not (tmp_path / "absent.png").exists()


def test_the_command_says_it_in_one_line(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "me.png").write_bytes(b"mine")
    assert main(["inspect", shards.uri, "--out", str(tmp_path / "me.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "move it away, or choose another --out" in line


def test_a_mark_leaves_a_picture_whole(tmp_path: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure()
    plain = io.BytesIO()
    figure.savefig(plain, format="png")
    before, after = (
        next(av.open(io.BytesIO(content)).decode(video=0)).to_ndarray()
        for content in (plain.getvalue(), marked(plain.getvalue()))
    )
    assert np.array_equal(before, after)


@pytest.mark.parametrize("content", ["{", "[]", '{"experiment": {}, "top1": 2, "clips": "", "parameters": 1}'])
def test_a_damaged_result_of_findings_is_named_with_the_way_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(TwoStreamError, match=rf"result of a training was wanted at {tmp_path}/x.json.*: delete it"):
        findings_module._kept(str(tmp_path / "x.json"))
