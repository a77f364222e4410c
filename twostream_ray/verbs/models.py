"""Subcommands of models, from `train` to `export`. Heavy modules are imported when needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twostream_ray.redaction import printable
from twostream_ray.verbs import announce, complain, require_uri

if TYPE_CHECKING:
    from twostream_ray.inference import HeadPrediction
    from twostream_ray.runs.score.prediction_table import PredictionRow
    from twostream_ray.runs.score.settings import EvaluateConfig, PredictConfig


def train(arguments: list[str]) -> int:
    """Train, evaluate and register a network."""
    from contextlib import ExitStack

    from twostream_ray.console import TrainingDisplay, console
    from twostream_ray.runs.experiment import ExperimentConfig
    from twostream_ray.verbs.commands import parse

    config = parse("train", ExperimentConfig, arguments)
    require_uri(config.storage, setting="storage")
    config.tracking.require_usable()
    from twostream_ray.runs.run_folder import RunFolder
    from twostream_ray.runs.train.preflight import SPLITS, require_ready

    # Before torch and MLflow are imported and a cluster is started, which takes seconds.
    folder = RunFolder.of(config)
    console.print(f"reading the index of {config.data.shards}")
    shard_set = require_ready(config, splits=SPLITS, folder=folder)
    announce(config, shard_set, folder=folder)
    if config.dry_run:
        return 0
    from twostream_ray.runs.cluster.session import ray_session, stop_on_sigterm
    from twostream_ray.runs.score.next_commands import summary
    from twostream_ray.runs.score.publish import FinishedRun, prepare_run, train_and_publish
    from twostream_ray.runs.score.staged import train_stages

    prepare_run(config, shard_set)
    with ray_session():

        def train_one(one: ExperimentConfig) -> FinishedRun:
            with ExitStack() as showing:
                display = showing.enter_context(TrainingDisplay(one.name))
                stop = showing.enter_context(stop_on_sigterm())
                return train_and_publish(one, progress=display.event, stop=stop, when_trained=showing.close)

        run = train_stages(config, train_one) if config.stages.enabled else train_one(config)
    trained, published = run.trained, run.published
    if published is None:
        console.print(f"run {config.name} is finished already: {trained.checkpoint}")
        return 0
    console.print(published.evaluation.report.to_text())
    if published.version is not None:
        console.sentence(f"registered as {published.name}: {published.verdict}")
    for line in summary(config, trained, published):
        console.print(line)
    return 0


def evaluate(arguments: list[str]) -> int:
    """Evaluate a model on a split of shards."""
    from twostream_ray.console import Bar, console
    from twostream_ray.runs.score.settings import EvaluateConfig
    from twostream_ray.verbs.commands import parse

    config = parse("evaluate", EvaluateConfig, arguments)
    require_uri(config.out, setting="out")
    if config.splits:
        return _evaluate_splits(config)
    from twostream_ray.runs.score.evaluate import evaluate

    with Bar("evaluate", unit="clips") as bar:
        evaluation = evaluate(config, progress=lambda done, total: bar.show(done, total))
    console.print(f"protocol {evaluation.protocol.describe()}")
    console.print(evaluation.report.to_text())
    if evaluation.fitted is not None:
        console.print(evaluation.fitted.sentence())
    console.print(
        f"results.html, report.json, confusion.png and the scores of every view (scores/) are in {config.out}"
    )
    if config.is_recorded():
        console.print(f"recorded split {evaluation.split} in the registry for {config.model}", markup=False)
    return 0


def compare(arguments: list[str]) -> int:
    """Compare two evaluations of the same clips."""
    from twostream_ray.console import console
    from twostream_ray.runs.score.settings import CompareConfig
    from twostream_ray.verbs.commands import parse

    config = parse("compare", CompareConfig, arguments)
    require_uri(config.out, setting="out")
    from twostream_ray.runs.score.compare import COMPARISON, PAGE, compare

    console.print(compare(config).to_text())
    console.print(f"{PAGE} and {COMPARISON} are in {config.out}")
    return 0


def _evaluate_splits(config: EvaluateConfig) -> int:
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.score.evaluate_splits import SPLITS, evaluate_splits

    with Bar("evaluate", unit="clips") as bar:
        report = evaluate_splits(config, progress=lambda split, done, total: bar.show(done, total, note=split))
    console.print(f"protocol {report.splits[0].protocol.describe()}")
    columns = ["split", "top-1", "mean class", "top-5", "clips", "model"]
    table("mean ± standard deviation over splits", columns, report.rows())
    console.print(f"{SPLITS} is in {config.out}, a folder with scores and report of each split beside it")
    return 0


def predict(arguments: list[str]) -> int:
    """Classify raw videos."""
    import json
    from dataclasses import asdict

    from twostream_ray.runs.score.settings import PredictConfig
    from twostream_ray.verbs.commands import parse

    config = parse("predict", PredictConfig, arguments)
    if config.out is not None:
        return _predict_many(config)
    from twostream_ray.runs.score.predict import predict

    if config.windows is not None:
        return _predict_windows(config)
    failed = False
    for prediction in predict(config):
        failed |= prediction.error is not None
        if config.format == "json":
            print(json.dumps(asdict(prediction), allow_nan=False), flush=True)  # noqa: T201
        elif prediction.error is None:
            _print_heads(prediction.video, prediction.heads)
        if prediction.error is not None:
            complain(prediction.error, verb="predict")
    return 2 if failed else 0


def _print_heads(named: str, heads: Sequence[HeadPrediction]) -> None:
    """Print a line for each classification head."""
    for head in heads:
        whose = f" ({head.name})" if head.name else ""
        prefix = f"{head.name}/" if head.name else ""
        best = ", ".join(f"{name.removeprefix(prefix)} {share:.3f}" for name, share in head.top)
        print(printable(f"{named}{whose}: {best}"), flush=True)  # noqa: T201


def _predict_windows(config: PredictConfig) -> int:
    import json
    from dataclasses import asdict

    from twostream_ray.runs.score.predict import draw, predict_windows, require_annotatable

    rows: list[PredictionRow] = []
    if config.video is not None:
        require_annotatable(config)
    failed = False
    for row in predict_windows(config):
        failed |= row.error is not None
        if config.video is not None:
            rows.append(row)
        if config.format == "json":
            print(json.dumps(asdict(row), allow_nan=False), flush=True)  # noqa: T201
        elif row.error is None:
            _print_heads(f"{row.uri} {row.start_seconds:.2f} s to {row.end_seconds:.2f} s", row.heads)
        if row.error is not None:
            complain(row.error, verb="predict")
    if config.video is not None and not failed:
        num_frames = draw(config, rows)
        print(printable(f"{num_frames} frames with their classes are in {config.video}"))  # noqa: T201
    return 2 if failed else 0


def _predict_many(config: PredictConfig) -> int:
    from twostream_ray.console import Bar, console

    assert config.out is not None  # noqa: S101  (the caller has looked)
    require_uri(config.out, setting="out")
    from twostream_ray.runs.score.predict_many import predict_many

    with Bar("predict", unit="videos") as bar:
        report = predict_many(config, progress=lambda done, total: bar.show(done, total), announce=bar.line)
    console.print(report.sentence(), markup=False, soft_wrap=True)
    for line in report.next_commands():
        console.print(line, markup=False, soft_wrap=True)
    return 0


def explain(arguments: list[str]) -> int:
    """Explain predictions."""
    from twostream_ray.console import Bar, console
    from twostream_ray.runs.score.explain import ExplainConfig
    from twostream_ray.verbs.commands import parse

    config = parse("explain", ExplainConfig, arguments)
    from twostream_ray.runs.score.explain import explain

    if config.worst is None:
        said = explain(config)
    else:
        with Bar("explain", unit="clips") as bar:
            said = explain(config, progress=lambda done, total: bar.show(done, total))
    console.print(said, markup=False, soft_wrap=True)
    console.print(f"the explanation is in {config.out}", markup=False, soft_wrap=True)
    return 0


def serve(arguments: list[str]) -> int:
    """Serve over HTTP until SIGINT or SIGTERM."""
    from twostream_ray.console import console
    from twostream_ray.serving.settings import ServeConfig
    from twostream_ray.verbs.commands import parse

    config = parse("serve", ServeConfig, arguments)
    if config.replicas.number:
        from twostream_ray.runs.serve_replicas import serve_replicas as run
    else:
        from twostream_ray.runs.serve import serve as run

    return run(config, announce=lambda line: console.print(line, markup=False, soft_wrap=True))


def export(arguments: list[str]) -> int:
    """Export a model as one file."""
    from twostream_ray.console import console
    from twostream_ray.runs.score.export import ExportConfig
    from twostream_ray.verbs.commands import parse

    config = parse("export", ExportConfig, arguments)
    from twostream_ray.runs.score.export import export

    console.print(export(config).sentence(), markup=False, soft_wrap=True)
    return 0


def pull(arguments: list[str]) -> int:
    """Download a registered model."""
    from twostream_ray.console import console
    from twostream_ray.runs.score.settings import PullConfig
    from twostream_ray.verbs.commands import parse

    config = parse("pull", PullConfig, arguments)
    from twostream_ray.model_package import MODEL_FILES
    from twostream_ray.runs.score.predict import pull
    from twostream_ray.tracking.download import RECORD

    folder = pull(config)
    console.print(f"model.safetensors and model.json are in {folder}")
    others = sorted({path.name for path in folder.iterdir()} - {*MODEL_FILES, RECORD})
    if others:
        shown = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
        console.print(f"note: {len(others)} other files in {folder} were left as they are: {shown}", markup=False)
    return 0


def fetch_weights(arguments: list[str]) -> int:
    """Download and check pretrained weights."""
    from twostream_ray.console import Bar, console
    from twostream_ray.runs.fetch_weights import FetchConfig
    from twostream_ray.verbs.commands import parse

    config = parse("weights fetch", FetchConfig, arguments)
    require_uri(config.to, setting="to")
    from twostream_ray.runs.fetch_weights import fetch_weights

    with Bar(config.backbone, unit="MB") as bar:
        fetched = fetch_weights(config, progress=lambda done, total: bar.show(done >> 20, total >> 20))
    there = "were there already" if fetched.was_there else "are there"
    console.print(
        f"{config.backbone}'s weights {there}, {fetched.num_bytes:,} bytes with the published sha256:", markup=False
    )
    for part in config.parts():
        console.print(f"  --model.{part}.weights {fetched.uri}", markup=False, soft_wrap=True)
    return 0


def promote(arguments: list[str]) -> int:
    """Promote a registered version if it beats the champion."""
    from twostream_ray.console import console
    from twostream_ray.runs.score.settings import PromoteConfig
    from twostream_ray.verbs.commands import parse

    config = parse("promote", PromoteConfig, arguments)
    from twostream_ray.runs.score.promotion import promote

    console.print(promote(config), markup=False, soft_wrap=True)
    return 0


def rollback(arguments: list[str]) -> int:
    """Move the champion alias back to an earlier version."""
    from twostream_ray import tracking
    from twostream_ray.console import console
    from twostream_ray.runs.score.settings import RollbackConfig
    from twostream_ray.verbs.commands import parse

    config = parse("rollback", RollbackConfig, arguments)
    name = config.tracking.registered_name()
    moved = tracking.rollback(name, config=config.tracking, to=config.to, because=config.because)
    console.print(moved.reason)
    return 0


def track_replay(arguments: list[str]) -> int:
    """Deliver to MLflow what was logged while it could not be reached."""
    from twostream_ray.console import console
    from twostream_ray.runs.replay import ReplayConfig
    from twostream_ray.verbs.commands import parse

    config = parse("track replay", ReplayConfig, arguments)
    from twostream_ray.runs.replay import replay

    for delivery in replay(config):
        console.print(delivery.sentence(), soft_wrap=True)
    return 0


def describe(arguments: list[str]) -> int:
    """Print parameters, output shapes and FLOPs of a network."""
    import json

    from twostream_ray.console import console, table
    from twostream_ray.runs.describe import DescribeConfig
    from twostream_ray.verbs.commands import parse

    spelt_out = ["--format=json" if argument == "--json" else argument for argument in arguments]
    config = parse("describe", DescribeConfig, spelt_out)
    from twostream_ray.runs.describe import describe

    description = describe(config)
    if config.format == "json":
        print(json.dumps(description, allow_nan=False))  # noqa: T201
        return 0
    parts = description["parts"]
    sized = {name: (part["parameters"], part["weight_layers"]) for name, part in parts.items()}
    sized["all"] = (description["parameters"], description["weight_layers"])
    table(
        "parts",
        ["part", "parameters", "weight layers"],
        [[name, f"{parameters:,}", str(layers)] for name, (parameters, layers) in sized.items()],
    )
    table(
        "output shapes of a sample",
        ["layer", "shape, snippets first"],
        [
            [name if name == part else f"{part}.{name}", " x ".join(map(str, shape))]
            for part in parts
            for name, shape in parts[part]["layers"].items()
        ],
    )
    table(
        f"parameter groups of {config.optimiser}",
        ["group", "parameters", "learning rate", "weight decay"],
        [
            [one["name"], f"{one['parameters']:,}", f"x {one['rate']:.3g}", "yes" if one["decays"] else "no"]
            for one in description["parameter_groups"]
        ],
    )
    console.print(
        f"a sample of {config.num_snippets} snippets of {config.size_px} px takes "
        f"{description['gflops_forward']:,.2f} GFLOPs forward (a multiply and an add are two) and keeps "
        f"{description['activation_bytes']:,} bytes of activations for backward; "
        f"gradients are {description['gradient_bytes']:,} bytes",
        soft_wrap=True,
    )
    return 0
