import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from noise_shards import noise_shards

from twostream_ray.cli import main
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import open_shards
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import WeightsError
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.preflight import require_weights
from twostream_ray.runs.train.run import build_on_meta_device, require_fitting_weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preflight") / "shards"
    noise_shards(str(out), rows=(4, 4), num_fields=3, splits=("train", "val", "test"))
    return out


def arguments(verb: str, shards: Path, folder: Path) -> list[str]:
    """A command line of a verb that trains, with settings that would do."""
    return [
        *(verb, "--name", "early", "--storage", str(folder / "runs"), "--data.shards", str(shards)),
        *("--data.validation_split", "val", "--tracking.uri", f"sqlite:///{folder}/mlflow.db"),
        *("--model.architecture", "late", "--model.spatial.backbone", "vgg_small"),
        *("--model.temporal.backbone", "vgg_small", "--training.global_batch", "8"),
        *(("--search", "{space: {seed: [0, 1]}, trials: 2}") if verb == "tune" else ()),
    ]


def weights_file(folder: Path) -> None:
    (folder / "notes.safetensors").write_text("these are no weights at all")
    whole = safetensors.torch.save({"conv1.weight": torch.ones(2, 3)})
    (folder / "cut.safetensors").write_bytes(whole[:-1])


WRONG: dict[str, tuple[list[str], str]] = {
    "split": (["--data.train_split", "tarin"], "has no split 'tarin'"),
    "shards": (["--data.shards", "nowhere"], "no shards at nowhere"),
    "no weights": (
        ["--model.spatial.weights", "far/away/vgg.safetensors"],
        "away/vgg.safetensors, which does not exist",
    ),
    "other file": (["--model.spatial.weights", "notes.safetensors"], "is truncated or no weights file"),
    "cut weights": (["--model.temporal.weights", "cut.safetensors"], "model.temporal.weights names"),
    "folder": (["--model.temporal.weights", "."], "model.temporal.weights"),
    "none of timm": (
        ["--model.spatial.backbone", "timm:regnetz_005", "--model.spatial.weights", "timm"],
        "timm:regnetz_005: timm",
    ),
    "address": ([], "RAY_ADDRESS names the Ray cluster 127.0.0.1:1, which does not answer"),
}


@pytest.mark.parametrize("verb", ["train", "tune"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_workers_would_stumble_over_is_one_line_before_anything_starts(
    verb: str,
    wrong: str,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    weights_file(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1" if wrong == "address" else "local")
    given, said = WRONG[wrong]
    assert main([*arguments(verb, shards, tmp_path), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"twostream {verb}: error: ") and said in line
    assert not (tmp_path / "runs/early").exists()


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_a_shard_that_is_gone_or_cut_is_named_before_anything_starts(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise_shards(str(tmp_path / "shards"), rows=(4, 4), num_fields=3, splits=("train", "val", "test"))
    first, second = sorted((tmp_path / "shards/shards").iterdir())
    second.write_bytes(second.read_bytes()[:-1])
    assert main(arguments(verb, tmp_path / "shards", tmp_path)) == 2
    assert f"{second.name}, it has {second.stat().st_size:,}: ingest again" in capsys.readouterr().err
    first.unlink()
    assert main(arguments(verb, tmp_path / "shards", tmp_path)) == 2
    assert f"{first.name}, it is missing (so are 2 of 2 shards)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "tune"])
def test_a_wrong_setting_is_refused_without_loading_torch_ray_or_mlflow(
    verb: str, shards: Path, tmp_path: Path
) -> None:
    given = [*arguments(verb, shards, tmp_path), "--data.train_split", "tarin"]
    heavy = ["ray", "torch", "mlflow", "av", "cv2", "matplotlib", "optuna"]
    code = (
        "import sys; from twostream_ray.cli import main; "
        f"print(main({given}), [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 []"


def test_files_of_weights_are_taken_by_what_they_hold(tmp_path: Path) -> None:
    safetensors.torch.save_file({"conv1.weight": torch.ones(2, 3)}, tmp_path / "w.safetensors")
    torch.save({"conv1.weight": torch.ones(2, 3)}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        tower = TowerConfig(backbone="vgg_small", weights=str(tmp_path / name))
        require_weights(ModelConfig(architecture="late", spatial=tower))
    gone = TowerConfig(backbone="vgg_small", weights=str(tmp_path / "gone"))
    with pytest.raises(
        WeightsError, match=r"model.temporal.weights names .*/gone, which does not exist: check the path"
    ):
        require_weights(ModelConfig(architecture="late", temporal=gone))
    # A tower that is not built has no use for them.
    require_weights(ModelConfig(architecture="late", streams="spatial", temporal=gone))


def test_of_a_file_that_claims_a_header_of_its_whole_length_nothing_is_read_into_memory(tmp_path: Path) -> None:
    size = 256 << 20
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", size - 8))
        file.truncate(size)
    tower = TowerConfig(backbone="vgg_small", weights=str(tmp_path / "w.safetensors"))
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="truncated or no weights file"):
            require_weights(ModelConfig(architecture="late", spatial=tower))
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()


def test_weights_of_another_width_are_refused_in_the_driver(shards: Path, tmp_path: Path) -> None:
    def experiment(width: int, weights: Path | None) -> ExperimentConfig:
        tower = TowerConfig(backbone="vgg_small", width=width, weights=None if weights is None else str(weights))
        return ExperimentConfig(
            name="a",
            data=DataConfig(
                shards=str(shards), sampling=SamplingConfig(flow_length=2), transforms=TransformConfig(crop_px=16)
            ),
            model=ModelConfig(architecture="late", spatial=tower, temporal=TowerConfig(backbone="vgg_small")),
        )

    shard_set = open_shards(str(shards))
    package, _ = build_on_meta_device(experiment(4, None), shard_set)
    state = {
        name.removeprefix("spatial."): value for name, value in package.build(pretrained=False).state_dict().items()
    }
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in state.items() if not name.startswith("temporal.")},
        tmp_path / "w.safetensors",
    )
    for width in (4, 8):
        package, _ = build_on_meta_device(experiment(width, tmp_path / "w.safetensors"), shard_set)
        if width == 4:
            require_fitting_weights(package)
        else:
            with pytest.raises(WeightsError, match="name weights of the same backbone and width"):
                require_fitting_weights(package)
