"""The `twostream` command: parse, call one run, print. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from twostream_ray import __version__
from twostream_ray.errors import ConfigError, TwoStreamError

USAGE = """\
usage: twostream VERB [--config RECIPE.yaml] [--SETTING VALUE ...]

Fused appearance and motion networks for action recognition in video: from raw videos to a registered model.

  synthesize OUT      make a small labelled data set of moving shapes
  ingest              labelled raw videos -> shards with optical flow
  inspect SHARDS      what is in a shard set, with a picture; --verify true checks every byte
  train               shards -> a trained, evaluated and registered network
  tune                many trainings: a search over settings, the best registered
  evaluate            a trained model on a split of shards
  predict VIDEO ...   classes of raw videos
  pull OUT            download a registered model for use without MLflow
  track replay        deliver to MLflow what was logged while it was away
  rollback            put the champion back to the version before, or to another
  tune-scores         the best late fusion of two streams' scores, without a network
  describe            parts, sizes and costs of a network; --json for programs
  demo                the whole journey on synthetic videos
  findings            the papers' findings on synthetic videos, over several seeds
  benchmark WHAT      speed on this machine: of the loader, of ingest, of a training step, or of a training run

twostream VERB --help lists the settings of a verb with units and defaults; --version prints the version.
Exit codes: 0 done, 2 something was refused (one line says what and the way out), 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit code."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Off unless the user switched them on; before anything imports Ray or MLflow.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        match verb:
            case "-h" | "--help" | "help":
                print(USAGE, end="")  # noqa: T201
                return 0
            case "--version":
                print(f"twostream_ray {__version__}")  # noqa: T201
                return 0
            case "synthesize":
                return _synthesize(rest)
            case "ingest":
                return _ingest(rest)
            case "inspect":
                return _inspect(rest)
            case "train":
                return _train(rest)
            case "tune":
                return _tune(rest)
            case "evaluate":
                return _evaluate(rest)
            case "predict":
                return _predict(rest)
            case "pull":
                return _pull(rest)
            case "track":
                return _track(rest)
            case "rollback":
                return _rollback(rest)
            case "tune-scores":
                return _tune_scores(rest)
            case "describe":
                return _describe(rest)
            case "demo":
                return _demo(rest)
            case "findings":
                return _findings(rest)
            case "benchmark":
                return _benchmark(rest)
        _complain(f"unknown verb {verb!r}: `twostream --help` lists them")
        return 2
    except TwoStreamError as error:
        _complain(" ".join(str(error).split()), verb=verb)
        return 2
    except KeyboardInterrupt:
        _complain("interrupted; what was finished is kept, run the same command again to go on", verb=verb)
        return 130


def _complain(text: str, *, verb: str = "") -> None:
    print(f"twostream {verb}".rstrip() + f": error: {text}", file=sys.stderr)  # noqa: T201


def _synthesize(arguments: list[str]) -> int:
    from pathlib import Path

    from twostream_ray.console import Bar, console
    from twostream_ray.data.synthetic import synthesize
    from twostream_ray.runs.config import SynthesizeConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(SynthesizeConfig, arguments, prog="twostream synthesize", positional="out")
    with Bar("synthesize", unit="clips") as bar:
        made = synthesize(config.clips, Path(config.out), progress=lambda done, total: bar.show(done, total))
    console.print(f"{made.num_clips} clips of {len(made.classes)} classes are in {made.root}, {made.num_written} new")
    return 0


def _ingest(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, console
    from twostream_ray.runs.config import IngestConfig
    from twostream_ray.runs.ingest import ingest
    from twostream_ray.settings import from_arguments

    config = from_arguments(IngestConfig, arguments, prog="twostream ingest")
    with Bar("ingest", unit="clips") as bar:
        report = ingest(
            config,
            progress=lambda done, bad, total: bar.show(done, total, note=f"{bad} bad" if bad else ""),
            announce=bar.line,
        )
    for note in report.notes:
        console.print(f"note: {note}")
    for reason, count in report.reasons.items():
        console.print(f"quarantined: {count} x {reason}, see {config.out}/quarantine.csv")
    console.print(report.sentence())
    return 0


def _inspect(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.config import InspectConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(InspectConfig, arguments, prog="twostream inspect", positional="shards")
    from twostream_ray.runs.inspect import inspect

    with Bar("verify", unit="shards") as bar:
        found = inspect(config, progress=bar.show)
    table("splits", ["split", "clips"], [[name, str(count)] for name, count in found.clips_by_split.items()])
    ordered = sorted(found.clips_by_class.items(), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= 20 else [*ordered[:5], ("...", 0), *ordered[-5:]]
    table(
        f"{len(ordered)} classes",
        ["class", "clips"],
        [[name, str(count) if name != "..." else ""] for name, count in shown],
    )
    contract = found.contract.to_dict()
    console.print("flow: " + ", ".join(f"{name} {value}" for name, value in contract.items()))
    bad = sum(found.shard_set.quarantined.values())
    console.print(
        f"{len(found.shard_set.index)} clips, {found.frames} frames in {len(found.shard_set.shard_names)} shards; "
        f"quarantined in all splits: {bad}; manifest {found.shard_set.hash[:12]}, contract {found.contract.hash}"
    )
    if config.verify:
        console.print("every byte is what its checksum says")
    console.print(f"drawn in {found.picture}: {', '.join(found.pictured)}")
    return 0


def _train(arguments: list[str]) -> int:
    from twostream_ray.console import TrainingDisplay, console
    from twostream_ray.runs.config import ExperimentConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(ExperimentConfig, arguments, prog="twostream train")
    from twostream_ray.runs.evaluate import evaluate_run, published_before
    from twostream_ray.runs.session import ray_session, stop_on_sigterm
    from twostream_ray.runs.train import run_place, train

    with ray_session():
        with TrainingDisplay(config.name) as display, stop_on_sigterm() as stop:
            trained = train(config, progress=display.event, stop=stop)
        if trained.done_before and published_before(config):
            console.print(f"run {config.name} is finished already: {trained.checkpoint}")
            return 0
        published = evaluate_run(config, trained)
    console.print(published.evaluation.report.to_text())
    console.print(f"checkpoint: {trained.checkpoint}")
    console.print(f"pictures and scores: {run_place(config)}/evaluation")
    if published.version is not None:
        console.print(f"registered {config.tracking.model_name} version {published.version}: {published.verdict}")
    return 0


def _tune(arguments: list[str]) -> int:
    from twostream_ray.console import SearchDisplay, console
    from twostream_ray.runs.search_settings import TuneConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(TuneConfig, arguments, prog="twostream tune")
    from twostream_ray.runs.train import run_place
    from twostream_ray.runs.tune import tune

    with SearchDisplay(config.name, trials=config.search.trials) as display:
        report = tune(config, progress=display.show)
    display.summary(report.records)
    for reason in dict.fromkeys(report.refused.values()):
        console.print(f"refused before a trial started: {reason}")
    best, spent = report.best, report.spent
    console.print(
        f"search {config.name} {'is finished already' if report.done_before else 'ended'}: {report.ended}; "
        f"{spent.epochs} epochs, {spent.hours:.2f} h, {spent.gpu_hours:.2f} GPU-hours"
    )
    console.print(f"best: {best.name}, top-1 {best.score:.1%} on {config.data.validation_split}, {best.settings}")
    if report.published is not None:
        console.print(report.published.evaluation.report.to_text())
    if report.verdict:
        console.print(f"registered {config.tracking.model_name}: {report.verdict}")
    console.print(f"table and pictures: {run_place(config)}")
    return 0


def _evaluate(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, console
    from twostream_ray.runs.config import EvaluateConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(EvaluateConfig, arguments, prog="twostream evaluate")
    from twostream_ray.runs.evaluate import evaluate

    with Bar("evaluate", unit="clips") as bar:
        evaluation = evaluate(config, progress=lambda done, total: bar.show(done, total))
    console.print(evaluation.report.to_text())
    console.print(f"report.json, scores.npz and confusion.png are in {config.out}")
    return 0


def _predict(arguments: list[str]) -> int:
    import json
    from dataclasses import asdict

    from twostream_ray.runs.config import PredictConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(PredictConfig, arguments, prog="twostream predict", positional="videos")
    from twostream_ray.runs.predict import predict

    failed = False
    for prediction in predict(config):
        failed |= prediction.error is not None
        if config.format == "json":
            print(json.dumps(asdict(prediction)), flush=True)  # noqa: T201
        elif prediction.error is None:
            best = ", ".join(f"{name} {score:.3f}" for name, score in prediction.top)
            print(f"{prediction.video}: {best}", flush=True)  # noqa: T201
        if prediction.error is not None:
            _complain(" ".join(prediction.error.split()), verb="predict")
    return 2 if failed else 0


def _pull(arguments: list[str]) -> int:
    from twostream_ray.console import console
    from twostream_ray.runs.config import PullConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(PullConfig, arguments, prog="twostream pull", positional="out")
    from twostream_ray.runs.predict import pull

    console.print(f"model.safetensors and model.json are in {pull(config)}")
    return 0


def _track(arguments: list[str]) -> int:
    from twostream_ray.console import console
    from twostream_ray.runs.config import ReplayConfig
    from twostream_ray.settings import from_arguments

    what, *rest = arguments or [""]
    if what != "replay":
        raise ConfigError(f"track wants replay, got {what or 'nothing'}: `twostream track replay --help`")
    config = from_arguments(ReplayConfig, rest, prog="twostream track replay", positional="runs")
    from twostream_ray.runs.replay import replay

    for delivery in replay(config):
        console.print(delivery.sentence(), soft_wrap=True)
    return 0


def _rollback(arguments: list[str]) -> int:
    from twostream_ray import tracking
    from twostream_ray.console import console
    from twostream_ray.runs.config import RollbackConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(RollbackConfig, arguments, prog="twostream rollback")
    moved = tracking.rollback(config.tracking.model_name, config=config.tracking, to=config.to, because=config.because)
    console.print(moved.reason)
    return 0


def _tune_scores(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.config import TuneScoresConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(TuneScoresConfig, arguments, prog="twostream tune-scores")
    from twostream_ray.runs.tune_scores import tune_scores

    with Bar("tune-scores", unit="settings") as bar:
        tuned = tune_scores(config, progress=bar.show)
    quoted_on = tuned.quoted_on
    table(
        f"top-1 on {tuned.chosen_on}" + (f", and on {quoted_on}" if quoted_on else ""),
        ["", "setting", "right", "top-1", *(["right, to quote", "top-1, to quote"] if quoted_on else [])],
        [
            [
                ("> " if one is tuned.chosen else "  ") + one.name,
                str(one.setting),
                str(one.num_right),
                f"{one.num_right / tuned.chosen_on.num_clips:.2%}",
                *(
                    [str(one.num_right_quoted), f"{(one.num_right_quoted or 0) / quoted_on.num_clips:.2%}"]
                    if quoted_on
                    else []
                ),
            ]
            for one in tuned.tried
        ],
    )
    for note in tuned.notes:
        console.print(f"note: {note}")
    console.print(f"{tuned.num_settings} settings in {tuned.seconds:.2f} s; chosen: {tuned.chosen.setting}")
    console.print(tuned.verdict())
    console.print(f"fusion.json and fusion.png are in {config.out}")
    return 0


def _describe(arguments: list[str]) -> int:
    import json

    from twostream_ray.console import console, table
    from twostream_ray.runs.config import DescribeConfig
    from twostream_ray.settings import from_arguments

    spelt_out = ["--format=json" if argument == "--json" else argument for argument in arguments]
    config = from_arguments(DescribeConfig, spelt_out, prog="twostream describe")
    from twostream_ray.runs.describe import describe

    description = describe(config)
    if config.format == "json":
        print(json.dumps(description))  # noqa: T201
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
    console.print(
        f"a sample of {config.num_snippets} snippets of {config.size_px} px takes "
        f"{description['gflops_forward']:,.2f} GFLOPs forward (a multiply and an add are two) and keeps "
        f"{description['activation_bytes']:,} bytes of activations for backward; "
        f"gradients are {description['gradient_bytes']:,} bytes",
        soft_wrap=True,
    )
    return 0


def _demo(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, TrainingDisplay, console, table
    from twostream_ray.data.synthetic import SyntheticConfig
    from twostream_ray.runs.config import ExperimentConfig, PredictConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(ExperimentConfig, arguments, prog="twostream demo")
    from twostream_ray.runs import demo
    from twostream_ray.runs.predict import predict
    from twostream_ray.runs.session import ray_session

    rows = []
    with ray_session():
        with Bar("videos to shards", unit="clips") as bar:
            videos, ingested = demo.prepare(
                SyntheticConfig(group="binding", val_clips=0, seed=config.seed),
                shards=config.data.shards,
                progress=lambda done, _, total: bar.show(done, total),
            )
        console.print(ingested.sentence())
        for network, model in demo.variants(config.model).items():
            with TrainingDisplay(network) as display:
                rows.append(demo.run_variant(config, network=network, model=model, progress=display.event))
    table(
        "binding: two shapes move, the class is the direction of the red one",
        ["network", "top-1 on test", "clips", "parameters", "training s"],
        [
            [
                row.network,
                f"{row.published.evaluation.report.top1:.1%}",
                row.published.evaluation.report.coverage,
                f"{row.trained.parameters:,}",
                f"{row.trained.seconds:.0f}",
            ]
            for row in rows
        ],
    )
    fused = rows[-1]
    name, uri = config.tracking.model_name, config.tracking.resolved_uri()
    console.print(f"registered {name} version {fused.published.version}: {fused.published.verdict}")
    video = next(iter(sorted((videos / "test").rglob("*.avi"))))
    model_uri = f"models:/{name}@champion"
    for prediction in predict(PredictConfig(videos=[str(video)], model=model_uri, tracking=config.tracking)):
        best = ", ".join(f"{label} {score:.2f}" for label, score in prediction.top)
        console.print(f"predicted from raw video: {video.parent.name}/{video.name} -> {best}")
    console.print(f"pictures: {config.storage}/*/evaluation/*.png")
    console.print(f"MLflow page: mlflow ui --backend-store-uri {uri}")
    return 0


def _findings(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.config import FindingsConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(FindingsConfig, arguments, prog="twostream findings")
    from twostream_ray.runs import findings
    from twostream_ray.runs.session import ray_session

    with ray_session():
        shards = {}
        for group, contest in findings.contests().items():
            with Bar(f"{group}: videos to shards", unit="clips") as bar:
                shards[group] = findings.prepare(config, contest, progress=bar.show)
        with Bar("networks", unit="trainings") as bar:
            found = findings.findings(config, shards, progress=lambda done, total: bar.show(done, total))
    for group in shards:
        table(
            f"{group}: top-1 on test, {config.num_seeds} seeds",
            ["network", "mean ± spread", "clips", "parameters"],
            [[row.network, row.sentence(), row.clips, f"{row.parameters:,}"] for row in found if row.group == group],
        )
    console.print(f"the tables in Markdown and the picture: {findings.write(config, found)}")
    return 0


def _benchmark(arguments: list[str]) -> int:
    what, *rest = arguments or [""]
    match what:
        case "loader":
            return _benchmark_loader(rest)
        case "ingest":
            return _benchmark_ingest(rest)
        case "step":
            return _benchmark_step(rest)
        case "train":
            return _benchmark_train(rest)
    raise ConfigError(
        f"benchmark wants loader, ingest, step or train, got {what or 'nothing'}: `twostream benchmark loader --help`"
    )


def _benchmark_loader(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, table
    from twostream_ray.runs.benchmark.config import BenchmarkLoaderConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(BenchmarkLoaderConfig, arguments, prog="twostream benchmark loader")
    from twostream_ray.runs.benchmark.loader import benchmark_loader

    with Bar("benchmark loader", unit="runs") as bar:
        speeds = benchmark_loader(config, progress=bar.show)
    bare = speeds[0].samples_per_second
    table(
        f"samples of {config.data.sampling.num_snippets} snippets, median of {config.rounds} rounds",
        ["path", "samples/s", "a core", "of cores x bare", "MB/s", "MB a sample", "opens a sample", "next pass s"],
        [
            [
                speed.name,
                f"{speed.samples_per_second:.1f}",
                f"{speed.samples_per_second / speed.cores:.1f}",
                f"{speed.samples_per_second / speed.cores / bare:.2f}",
                f"{speed.megabytes_per_second:.1f}",
                f"{speed.megabytes_per_sample:.2f}",
                f"{speed.opens_per_sample:.2f}",
                "" if speed.first_batch_s is None else f"{speed.first_batch_s:.2f}",
            ]
            for speed in speeds
        ],
    )
    return 0


def _benchmark_ingest(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, table
    from twostream_ray.runs.benchmark.config import BenchmarkIngestConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(BenchmarkIngestConfig, arguments, prog="twostream benchmark ingest")
    from twostream_ray.runs.benchmark.ingest import benchmark_ingest

    with Bar("benchmark ingest", unit="runs") as bar:
        speeds = benchmark_ingest(config, progress=bar.show)
    bare = speeds[0].clips_per_second
    table(
        f"median of {config.rounds} rounds",
        ["path", "clips/s", "a core", "of cores x bare"],
        [
            [
                speed.name,
                f"{speed.clips_per_second:.2f}",
                f"{speed.clips_per_second / speed.cores:.2f}",
                f"{speed.clips_per_second / speed.cores / bare:.2f}",
            ]
            for speed in speeds
        ],
    )
    return 0


def _benchmark_step(arguments: list[str]) -> int:
    from twostream_ray.console import table
    from twostream_ray.runs.benchmark.config import BenchmarkStepConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(BenchmarkStepConfig, arguments, prog="twostream benchmark step")
    from twostream_ray.runs.benchmark.step import benchmark_step

    speed = benchmark_step(config)
    table(
        f"training steps of {config.batch} samples of {config.num_snippets} snippets of {config.size_px} px",
        ["device", "s a step", "samples/s", "TFLOP/s", "peak GB"],
        [
            [
                speed.device,
                f"{speed.seconds:.3f}",
                f"{speed.samples_per_second:.3f}",
                f"{speed.teraflops_per_second:.3f}",
                f"{speed.peak_gigabytes:.2f}",
            ]
        ],
    )
    return 0


def _benchmark_train(arguments: list[str]) -> int:
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.benchmark.config import BenchmarkTrainConfig
    from twostream_ray.settings import from_arguments

    config = from_arguments(BenchmarkTrainConfig, arguments, prog="twostream benchmark train")
    from twostream_ray.runs.benchmark.training import benchmark_train

    with Bar("benchmark train", unit="runs") as bar:
        made = benchmark_train(config, progress=bar.show)
    bare = made.speeds[0].samples_per_second
    table(
        f"steps of {config.training.global_batch} samples, median of {config.rounds} rounds",
        ["way", "samples/s", "of bare", "s a step", "data wait", "forward", "backward", "all-reduce", "update"],
        [
            [
                speed.name,
                f"{speed.samples_per_second:.2f}",
                f"{speed.samples_per_second / bare:.3f}",
                *(
                    f"{seconds:.3f}"
                    for seconds in (
                        speed.step_s,
                        speed.data_wait_s,
                        speed.forward_s,
                        speed.backward_s,
                        speed.all_reduce_s,
                        speed.update_s,
                    )
                ),
            ]
            for speed in made.speeds
        ],
    )
    console.print(
        f"{made.device}: {made.teraflops_per_second:.3g} TFLOP/s a worker in the bare loop, "
        f"{made.teraflops_per_second / made.limit_teraflops_per_second:.0%} of what large matrix products reach"
    )
    return 0
