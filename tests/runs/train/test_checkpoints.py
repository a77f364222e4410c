import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import CheckpointError
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.train.checkpoints import SNAPSHOT, history_of, mend_snapshot, result_of
from twostream_ray.training.checkpoint import load_state, save_state
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig

TOWER = TowerConfig(backbone="vgg_small", width=4)
PACKAGE = ModelPackage(
    model=ModelConfig(architecture="late", spatial=TOWER, temporal=TOWER),
    classes=("left", "right"),
    contract=FlowContract(short_side_px=48),
    sampling=SamplingConfig(flow_length=2),
    transforms=TransformConfig(crop_px=32),
)
ACCURACIES = (0.25, 0.75, 0.5)
RESULT = {"losses": {"fused": 1.0}, "top1": 0.5, "samples": 8, "seconds": 1.0, "data_wait": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, killed within the fourth, as Ray Train leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    network = PACKAGE.build(pretrained=False)
    optimiser = build_optimiser(network, config=TrainingConfig())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimiser.step()
    history = [{"epoch": epoch, "val_top1": accuracy} for epoch, accuracy in enumerate(ACCURACIES)]
    states: dict[str, dict[str, Any]] = {
        f"epoch-{epoch:04d}": {"history": history[: epoch + 1], "step": 0} for epoch in range(3)
    }
    states["epoch-0003-step-000002"] = {"history": history, "step": 2, "result": RESULT}
    for name, state in states.items():
        save_model(folder / name, network, PACKAGE)
        save_state(folder / name, optimiser, state)
    entries = [
        {"checkpoint_dir_name": "epoch-0003-step-000002", "metrics": {"epoch": 2.5, "step": 2}},
        *({"checkpoint_dir_name": f"epoch-{one['epoch']:04d}", "metrics": one} for one in (history[2], history[1])),
    ]
    shutil.rmtree(folder / "epoch-0000")
    snapshot = _CheckpointManagerState(
        checkpoint_results=entries,
        checkpoint_report_indices=[3, 2, 1],
        latest_checkpoint_result=entries[0],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=4,
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    (folder / SNAPSHOT).write_text(snapshot.model_dump_json())
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our own lines."""
    return [line.getMessage() for line in caplog.records if line.name.startswith("twostream_ray")]


def last_and_best(folder: Path) -> tuple[str, str]:
    result = result_of(str(folder), watched="val_top1")
    assert result is not None and result.checkpoint is not None
    best = result.get_best_checkpoint("val_top1", "max")
    assert best is not None
    return Path(result.checkpoint.path).name, Path(best.path).name


def test_a_snapshot_that_is_whole_stays_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (folder / SNAPSHOT).read_bytes()
    assert last_and_best(folder) == ("epoch-0003-step-000002", "epoch-0001")
    assert (folder / SNAPSHOT).read_bytes() == before and not said(caplog)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        values = json.loads(content)
        change(values)
        return json.dumps(values).encode()

    return apply


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut at its last byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "not UTF-8": lambda content: b"\xff" + content,
    "a list": lambda content: b"[" + content + b"]",
    "nested": lambda content: b"[" * 100_000,
    "no last": changed(lambda values: values.pop("latest_checkpoint_result")),
    "last of another run": changed(
        lambda values: values["latest_checkpoint_result"].update(checkpoint_dir_name="epoch-0009")
    ),
    "a path": changed(lambda values: values["checkpoint_results"][0].update(checkpoint_dir_name="../../elsewhere")),
    "an index too few": changed(lambda values: values["checkpoint_report_indices"].pop()),
    "metrics of text": changed(lambda values: values["checkpoint_results"][1].update(metrics={"val_top1": "best"})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_whose_snapshot_is_damaged_goes_on_from_its_checkpoints_and_says_so_in_one_line(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / SNAPSHOT).write_bytes(DAMAGE[damage]((folder / SNAPSHOT).read_bytes()))
    assert last_and_best(folder) == ("epoch-0003-step-000002", "epoch-0001")
    (line,) = said(caplog)
    assert "the run resumes from checkpoint epoch-0003-step-000002, the last complete one" in line
    assert "\n" not in line and len(line) < 500
    caplog.clear()
    assert last_and_best(folder) == ("epoch-0003-step-000002", "epoch-0001")
    assert not said(caplog), "once is enough"


def test_mutated_snapshots_never_make_a_run_unresumable(run: Path, tmp_path: Path) -> None:
    content, generator = (run / SNAPSHOT).read_bytes(), random.Random(7)
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for _ in range(60):
        mutant = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(mutant))
            match generator.randrange(3):
                case 0:
                    del mutant[at : at + generator.randint(1, 40)]
                case 1:
                    mutant[at] ^= 1 << generator.randrange(8)
                case 2:
                    mutant[at:at] = generator.choice([b"null", b"-1", b'"', b"..", b"1e999", b"{"])
        (folder / SNAPSHOT).write_bytes(bytes(mutant))
        last, _ = last_and_best(folder)
        assert (folder / last / "state.json").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "optimiser.safetensors", "state.json", "model.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_last_checkpoint_that_is_not_whole_is_left_out(
    folder: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = folder / "epoch-0003-step-000002" / file
    if damage == "gone":
        damaged.unlink()
    elif file == "model.json":
        pytest.skip("what it holds is asked when the model is loaded")
    else:
        damaged.write_bytes(damaged.read_bytes()[:-1] if file != "state.json" else b"{")
    assert last_and_best(folder) == ("epoch-0002", "epoch-0001")
    assert "resumes from checkpoint epoch-0002" in said(caplog)[-1]


def test_without_a_whole_checkpoint_a_run_begins_at_its_start_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for state in folder.glob("*/state.json"):
        state.write_text("{")
    mend_snapshot(str(folder), watched="val_top1")
    assert "resumes from the start: no checkpoint is complete" in said(caplog)[-1]
    result = result_of(str(folder), watched="val_top1")
    assert result is not None and result.checkpoint is None


def test_what_is_no_checkpoint_of_ours_is_not_taken_for_one(folder: Path) -> None:
    shutil.copytree(folder / "epoch-0002", folder / "epoch-0009.backup")
    (folder / "epoch-0008").symlink_to(folder / "nowhere")
    (folder / SNAPSHOT).write_text("{")
    assert last_and_best(folder) == ("epoch-0003-step-000002", "epoch-0001")
    assert (folder / "epoch-0009.backup/state.json").exists()


STATES = ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "history": [], "step": -1}', "[" * 100_000]
STATES += ['{"format": 1, "history": [{"epoch": "x"}], "step": 0}', '{"format": 1, "history": [], "step": 3}']
STATES += ['{"format": 1, "history": [{}], "step": 0}', '{"format": 1, "history": 7, "step": 0}']


@pytest.mark.parametrize("content", STATES, ids=range(len(STATES)))
def test_a_damaged_state_is_named_in_one_line(folder: Path, content: str) -> None:
    (folder / "epoch-0002/state.json").write_text(content)
    network = PACKAGE.build(pretrained=False)
    optimiser = build_optimiser(network, config=TrainingConfig())
    for read in (
        lambda: history_of(str(folder / "epoch-0002")),
        lambda: load_state(folder / "epoch-0002", optimiser),
    ):
        with pytest.raises(
            CheckpointError, match=rf"state of a training was wanted at {folder}/epoch-0002/state\.json"
        ):
            read()


def test_a_loss_that_was_not_finite_is_no_damage(folder: Path) -> None:
    where = folder / "epoch-0002/state.json"
    state = json.loads(where.read_text())
    state["history"][-1]["val_loss"] = float("inf")
    where.write_text(json.dumps(state))
    assert history_of(str(where.parent))[-1]["val_loss"] == float("inf")


def test_momentum_of_another_network_is_refused(folder: Path) -> None:
    other = ModelConfig(architecture="late", streams="spatial", spatial=TowerConfig(backbone="vgg_small", width=8))
    optimiser = torch.optim.SGD(
        ModelPackage(
            model=other,
            classes=PACKAGE.classes,
            contract=PACKAGE.contract,
            sampling=PACKAGE.sampling,
            transforms=PACKAGE.transforms,
        )
        .build(pretrained=False)
        .parameters(),
        lr=0.1,
        momentum=0.9,
    )
    with pytest.raises(CheckpointError, match=r"optimiser\.safetensors (has|holds) .*: delete this checkpoint"):
        load_state(folder / "epoch-0002", optimiser)
