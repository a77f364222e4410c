"""200 mutated files of every kind that is read back: one line each or accepted, no import, nothing outside, no end."""

import contextlib
import hashlib
import json
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from mutations import mutated_header, mutated_json, mutated_parquet

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.records import survey
from twostream_ray.data.shards.shards import open_shards, read_clips
from twostream_ray.data.shards.writer import ShardWriter, plan_shards, write_manifest
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video import prepare
from twostream_ray.errors import TwoStreamError
from twostream_ray.model_package import ModelPackage, load_model, save_model
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.inspect import inspect
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.search.records import TrialRecord, TrialStore, as_csv, as_list, best_of
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig, settings_from, store_settings
from twostream_ray.runs.settings import InspectConfig
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking.outbox import Identity, Outbox
from twostream_ray.training.checkpoint import load_state, save_state
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig

_SECONDS = 60
MUTANTS = 200
_FEW = {"forged shard": 6, "recipe": 16, "settings": 12, "weights": 12}
"""Of kinds that take longer to read."""
TOWER = TowerConfig(backbone="vgg_small", width=4)
PACKAGE = ModelPackage(
    model=ModelConfig(architecture="late", spatial=TOWER, temporal=TOWER),
    classes=("left", "right"),
    contract=FlowContract(short_side_px=48),
    sampling=SamplingConfig(flow_length=2, num_snippets=1, test_times=1),
    transforms=TransformConfig(crop_px=32),
)
SEARCH = TuneConfig(
    name="search",
    data=DataConfig(shards="shards", validation_split="val"),
    search=SearchConfig(space={"training.epochs": [1, 2], "seed": {"low": 0, "high": 9}}, trials=4),
)


@dataclass(frozen=True)
class Target:
    """Files of one kind, and who reads them."""

    files: tuple[str, ...]
    """Patterns below the folder."""
    read: Callable[[Path], object]
    """Opens what is in the folder."""
    settle: Callable[[Path], object] = lambda folder: None
    """Makes the other files agree with a mutated one, as a forger would."""


def make_shards(folder: Path) -> None:
    synthesize(
        SyntheticConfig(group="motion", train_clips=4, val_clips=0, test_clips=0, size_px=48), folder / "v", workers=1
    )
    videos = sorted(path for path in (folder / "v").rglob("*") if path.is_file() and path.suffix in (".mp4", ".avi"))
    clips = [
        Clip(uri=str(path), clip_id=path.name, class_name="c", label=0, splits=("train",), size_bytes=1)
        for path in videos
    ]
    contract = FlowContract(short_side_px=48)
    (plan,) = plan_shards(clips, contract=contract, rows_per_shard=8)
    writer = ShardWriter(plan, out=str(folder), contract=contract)
    for clip in plan.clips:
        encoded = prepare.prepare_clip(Path(clip.uri).read_bytes(), contract, name=clip.clip_id)
        writer.add(clip, encoded, source_sha256="0" * 64)
    write_manifest(str(folder), parts=[writer.finish()], classes=["c"], contract=contract)
    shutil.rmtree(folder / "v")


def read_shards(folder: Path) -> None:
    shard_set = open_shards(str(folder))
    for _ in read_clips(shard_set, list(range(len(shard_set.index))), want_rgb=True, want_flow=True):
        pass


def verify_shards(folder: Path) -> None:
    inspect(InspectConfig(shards=str(folder), out=str(folder / "picture.png"), num_clips=1, verify=True))


def forge_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["index_sha256"] = hashlib.sha256((folder / "index.parquet").read_bytes()).hexdigest()
    for shard in manifest["shards"]:
        content = (folder / "shards" / shard["name"]).read_bytes()
        shard |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_training(folder: Path) -> None:
    torch.manual_seed(0)
    network = PACKAGE.build(pretrained=False)
    save_model(folder, network, PACKAGE)
    optimiser = build_optimiser(network, config=TrainingConfig())
    sum(
        logits.sum() for logits in network(torch.randn(1, 1, 3, 32, 32), torch.randn(1, 1, 4, 32, 32)).values()
    ).backward()
    optimiser.step()
    save_state(folder, optimiser, {"history": [{"epoch": 0, "train_loss": 1.5}], "step": 0})


def make_recipe(folder: Path) -> None:
    config = ExperimentConfig(name="r", data=DataConfig(shards="s", validation_split="v"))
    (folder / "recipe.yaml").write_text(json.dumps(asdict(config), indent=1))


def make_search(folder: Path) -> None:
    store_settings(SEARCH, folder_uri=str(folder / "search"))
    journal = TrialStore(SEARCH, folder=SearchFolder(uri=str(folder / "search"), what="search"))
    for number in range(2):
        history = [{"epoch": 0, "val_top1": 0.5, "train_loss": 1.0}]
        settings = {"training.epochs": 1, "seed": 3}
        journal.put(
            TrialRecord(number=number, name=f"search-{number:04d}", settings=settings, parameters=7, history=history)
        )
    journal.store_seconds(3.0)


def read_search(folder: Path) -> None:
    journal = TrialStore(SEARCH, folder=SearchFolder(uri=str(folder / "search"), what="search"))
    records = list(journal.records.values())
    journal.spent(gpus_per_trial=1.0)
    best_of(records), as_csv(records), as_list(records)


def make_outbox(folder: Path) -> None:
    outbox = Outbox(run_uri=str(folder))
    outbox.begin(
        Identity(key="0" * 32, run_name="r", experiment="e", start_ms=1, parameters={"lr": "1"}, tags={"git": "abc"})
    )
    outbox.write_ids(experiment_id="1", run_id="0" * 32)
    outbox.append("metrics", {"rows": [["loss", 0, 1.5], ["loss", 1, float("nan")]]})
    outbox.append("tags", {"tags": {"a": "b"}})
    (folder / "a.csv").write_text("a,b\\n")
    outbox.append("files", {"folder": "tables"}, files={"a.csv": folder / "a.csv"})
    outbox.append("status", {"status": "FINISHED"})


def read_outbox(folder: Path) -> None:
    outbox = Outbox(run_uri=str(folder))
    events, _ = outbox.pending()
    for event in events:
        if event.kind == "files":
            (folder / "fetched").mkdir(exist_ok=True)
            outbox.fetch_files(event, folder / "fetched")
        outbox.remove(event)
    outbox.identity(), outbox.ids()


TARGETS = {
    "shards": (
        make_shards,
        {
            "manifest": Target(("manifest.json",), read_shards),
            "index": Target(("index.parquet",), read_shards),
            "forged index": Target(("index.parquet",), read_shards, forge_manifest),
            "shard": Target(("shards/*.parquet",), read_shards),
            "forged shard": Target(("shards/*.parquet",), verify_shards, forge_manifest),
            "record": Target(
                ("parts/*.json",), lambda folder: survey(str(folder), clips=[], contract=FlowContract(short_side_px=48))
            ),
        },
    ),
    "training": (
        make_training,
        {
            "model.json": Target(("model.json",), load_model),
            "weights": Target(("model.safetensors",), load_model),
            "state": Target(("state.json", "optimiser.safetensors"), lambda folder: read_state(folder)),
        },
    ),
    "recipe": (
        make_recipe,
        {
            "recipe": Target(
                ("recipe.yaml",),
                lambda folder: from_arguments(ExperimentConfig, ["--config", str(folder / "recipe.yaml")]),
            )
        },
    ),
    "search": (
        make_search,
        {
            "settings": Target(
                ("search/settings.json",),
                lambda folder: settings_from(["--resume", "search", "--storage", str(folder)]),
            ),
            "records": Target(("search/trials/*.json", "search/search.json", "search/state.json"), read_search),
        },
    ),
    "journal": (
        make_outbox,
        {"journal": Target(("tracking-journal/*.json", "tracking-journal/events/*.json"), read_outbox)},
    ),
}
KINDS = [(made, name) for made, (_, targets) in TARGETS.items() for name in targets]


def read_state(folder: Path) -> None:
    optimiser = build_optimiser(PACKAGE.build(pretrained=False), config=TrainingConfig())
    load_state(folder, optimiser)


def mutate(path: Path, rng: random.Random, *, sentinel: str) -> None:
    content = path.read_bytes()
    match path.suffix:
        case ".parquet":
            path.write_bytes(mutated_parquet(content, rng))
        case ".safetensors":
            path.write_bytes(mutated_header(content, rng, sentinel=sentinel))
        case _:
            path.write_bytes(mutated_json(content, rng, sentinel=sentinel))


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeoutError(f"read for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of whole files for each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for name, (make, _) in TARGETS.items():
        (folder / name).mkdir()
        make(folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("made", "name"), KINDS)
def test_whole_files_are_read(made: str, name: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / made, tmp_path / "a")
    target = TARGETS[made][1][name]
    target.settle(tmp_path / "a")
    target.read(tmp_path / "a")


def hunt(made: str, name: str, *, whole: Path, root: Path, seed: int, mutants: int) -> int:
    """Read mutants of one kind; gives the number of refused ones."""
    (root / "sentinel").mkdir()
    (root / "sentinel/precious.txt").write_text("precious")
    (root / "code").mkdir()
    (root / "code/planted_payload.py").write_text(
        f"import pathlib\npathlib.Path({str(root / 'sentinel/imported')!r}).touch()\nclass Payload: pass\n"
    )
    target = TARGETS[made][1][name]
    refused = 0
    sys.path.insert(0, str(root / "code"))
    try:
        for number in range(mutants):
            rng = random.Random(f"{seed}/{made}/{name}/{number}")
            folder = root / "here"
            shutil.copytree(whole / made, folder)
            victims = sorted(path for pattern in target.files for path in folder.glob(pattern))
            mutate(rng.choice(victims), rng, sentinel=str(root / "sentinel"))
            with contextlib.suppress(Exception):  # what cannot be forged further is read as it is
                target.settle(folder)
            said = None
            try:
                with no_longer_than(_SECONDS):
                    target.read(folder)
            except TwoStreamError as error:
                said, refused = str(error), refused + 1
            except BaseException as error:
                raise AssertionError(
                    f"mutant {number} of seed {seed}: {type(error).__name__}: {str(error)[:300]}"
                ) from error
            message = f"mutant {number} of seed {seed}: {said}"
            assert said is None or ("\n" not in said and len(said) < 2000), message
            assert "planted_payload" not in sys.modules, message
            assert everything_below(root / "sentinel") == {"precious.txt": b"precious"}, message
            assert {path.name for path in root.iterdir()} == {"sentinel", "code", "here"}, message
            shutil.rmtree(folder)
    finally:
        sys.path.remove(str(root / "code"))
    return refused


@pytest.mark.slow
@pytest.mark.parametrize(("made", "name"), KINDS)
def test_mutants_are_one_line_each_or_accepted(made: str, name: str, whole: Path, tmp_path: Path) -> None:
    few = _FEW.get(name, 24)
    refused = hunt(made, name, whole=whole, root=tmp_path, seed=1, mutants=few)
    assert refused >= few // 6


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
@pytest.mark.parametrize(("made", "name"), KINDS)
def test_many_mutants_are_one_line_each_or_accepted(
    made: str, name: str, seed: int, whole: Path, tmp_path: Path
) -> None:
    hunt(made, name, whole=whole, root=tmp_path, seed=seed, mutants=MUTANTS)
