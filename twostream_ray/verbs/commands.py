"""Command table (command pattern): each verb's summary, settings class and function.

Help, completion and the command line are generated from it. Modules are named here and imported when needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, TypeVar

from twostream_ray.verbs.verb import Verb

Settings = TypeVar("Settings")

_SHARDS = {"data.shards": "[SHARDS]"}

VERBS: dict[str, Verb] = {
    "synthesize": Verb(
        summary="make a small labelled data set of moving shapes",
        function="data:synthesize",
        settings="data.sources.synthetic:SynthesizeConfig",
        positionals={"out": "OUT"},
        examples=("videos", "videos --clips.group order --clips.train_clips 200"),
        shown=("clips.group", *(f"clips.{split}_clips" for split in ("train", "val", "test")), "clips.size_px"),
    ),
    "ingest": Verb(
        summary="labelled raw videos -> shards with optical flow",
        function="data:ingest",
        settings="runs.settings:IngestConfig",
        positionals={"catalog.root": "[VIDEOS]"},
        examples=(
            "videos --out shards",
            "videos --out shards --config own_videos_cpu --catalog.split '[0.7, 0.15, 0.15]'",
            "UCF-101 --catalog.layout ucf101 --catalog.lists ucfTrainTestlist --out shards",
            "s3://bucket/videos --catalog.layout table --catalog.lists clips.csv --out s3://bucket/shards",
        ),
        shown=(
            *("out", "catalog.layout", "catalog.lists", "catalog.split", "catalog.name"),
            *("flow.short_side_px", "flow.algorithm", "max_bad_fraction", "replace"),
        ),
    ),
    "inspect": Verb(
        summary="what is in a shard set, with a picture; --verify checks every byte",
        function="data:inspect",
        settings="runs.settings:InspectConfig",
        positionals={"shards": "SHARDS"},
        examples=("shards", "shards --verify", "shards --clip train/jump/a.mp4 --out a.png"),
        shown=("out", "num_clips", "clip", "verify"),
    ),
    "train": Verb(
        summary="shards -> a trained, evaluated and registered network",
        function="models:train",
        settings="runs.experiment:ExperimentConfig",
        positionals=_SHARDS,
        examples=(
            "shards --config own_videos_cpu --name first",
            "shards --config own_videos_gpu --name first --training.epochs 9",
            "shards --config fusion_2016 --name split1 --data.train_split train1 --data.test_split test1",
        ),
        shown=(
            *("name", "data.train_split", "data.validation_split", "data.test_split", "data.validation_fraction"),
            *("model.architecture", "training.epochs", "training.global_batch", "training.learning_rate"),
            *("workers.num_workers", "storage", "tracking.uri"),
        ),
    ),
    "tune": Verb(
        summary="many trainings: a search over settings, the best registered",
        function="searches:tune",
        settings="runs.search.settings:TuneConfig",
        positionals=_SHARDS,
        examples=(
            "shards --config search_fusion --name which",
            "--resume which --search.trials 60",
        ),
        shown=(
            *("name", "data.validation_split", "search.space", "search.trials", "search.concurrent_trials"),
            *("search.searcher", "search.scheduler", "storage"),
        ),
        more={"--resume NAME": "Continue the search of that name, with its settings."},
    ),
    "evaluate": Verb(
        summary="a trained model on a split of shards",
        function="models:evaluate",
        settings="runs.score.settings:EvaluateConfig",
        positionals={"model": "MODEL", "shards": "SHARDS"},
        examples=(
            "models:/two-stream@champion shards",
            "models:/two-stream/3 shards --split val --out measured",
            "'models:/ucf101-{split}@champion' shards --splits test1,test2,test3",
        ),
        shown=("split", "splits", "protocol", "calibrate_on", "out", "record", "tracking.uri"),
    ),
    "predict": Verb(
        summary="classes of raw videos",
        function="models:predict",
        settings="runs.score.settings:PredictConfig",
        positionals={"videos": "VIDEO ..."},
        examples=(
            "clip.mp4",
            "clips/*.mp4 --model champion --format json",
            "s3://bucket/videos --out s3://bucket/predictions",
            "'videos/**/*.mp4' more.csv --out predictions",
            "match.mp4 --every_seconds 1 --window_seconds 3",
            "match.mp4 --video drawn.mp4",
        ),
        shown=(
            "model",
            "protocol",
            "out",
            "every_seconds",
            "window_seconds",
            "video",
            "replace",
            "num_actors",
            "head",
            "top_k",
            "format",
            "tracking.uri",
        ),
    ),
    "explain": Verb(
        summary="explain a prediction: Grad-CAM maps, contributions of the streams, important seconds",
        function="models:explain",
        settings="runs.score.explain:ExplainConfig",
        positionals={"video": "[VIDEO]"},
        examples=(
            "clip.mp4",
            "clip.mp4 --model models:/two-stream/3 --label jump --out why_not_jump.html",
            "clip.mp4 --layers '[fused]' --out where.mp4",
            "--worst 20 --scores evaluation --out mistakes.html",
        ),
        shown=(
            *("model", "out", "label", "layers", "moments", "worst", "scores", "shards", "split", "protocol"),
            "tracking.uri",
        ),
    ),
    "serve": Verb(
        summary="serve the champion over HTTP: classify and explain uploaded videos",
        function="models:serve",
        settings="serving.settings:ServeConfig",
        examples=(
            "",
            "--model models:/two-stream/3 --port 8080",
            "--model champion --host 0.0.0.0 --limits.body_bytes 50_000_000 --limits.seconds 60",
            "--uris '[s3://bucket/videos]'",
            "--replicas.number 4 --replicas.cpus 2",
        ),
        shown=(
            *("model", "host", "port", "device", "protocol", "wait", "uris"),
            *("limits.body_bytes", "limits.seconds", "limits.queue", "replicas.number", "tracking.uri"),
        ),
    ),
    "export": Verb(
        summary="export a model as one file for other programs: ONNX, or a torch program",
        function="models:export",
        settings="runs.score.export:ExportConfig",
        positionals={"model": "[MODEL]"},
        examples=(
            "models:/two-stream@champion --out model.onnx",
            "champion --format torch --out model.pt2 --videos '[clip.mp4, other.mp4]'",
        ),
        shown=("format", "out", "videos", "tracking.uri"),
    ),
    "pull": Verb(
        summary="download a registered model for use without MLflow",
        function="models:pull",
        settings="runs.score.settings:PullConfig",
        positionals={"out": "OUT"},
        examples=("champion", "third --model models:/two-stream/3"),
        shown=("model", "tracking.uri"),
    ),
    "weights fetch": Verb(
        summary="download and check pretrained weights, to a place that every node can read",
        function="models:fetch_weights",
        settings="runs.fetch_weights:FetchConfig",
        positionals={"backbone": "NAME"},
        examples=("vgg16 --to weights", "resnet50 --to s3://bucket/weights"),
        shown=("to",),
    ),
    "track replay": Verb(
        summary="deliver to MLflow what was logged while it could not be reached",
        function="models:track_replay",
        settings="runs.replay:ReplayConfig",
        positionals={"runs": "[RUN ...]"},
        examples=("", "runs/first"),
        shown=("tracking.uri",),
    ),
    "promote": Verb(
        summary="make a registered version champion if it beats the current one",
        function="models:promote",
        settings="runs.score.settings:PromoteConfig",
        positionals={"version": "[VERSION]"},
        examples=("", "7", "7 --split test"),
        shown=("split", "manifest", "tracking.model_name", "tracking.uri"),
    ),
    "rollback": Verb(
        summary="move the champion back to the previous version, or to another",
        function="models:rollback",
        settings="runs.score.settings:RollbackConfig",
        positionals={"to": "[VERSION]"},
        examples=("", '3 --because "wrong on night scenes"'),
        shown=("because", "tracking.model_name", "tracking.uri"),
    ),
    "tune-scores": Verb(
        summary="the best late fusion of two streams' scores, without a network",
        function="searches:tune_scores",
        settings="runs.score.settings:TuneScoresConfig",
        examples=(
            "--choose.spatial evaluation-spatial --choose.temporal evaluation-temporal",
            "--choose.both val.npz --quote.both test.npz --svm_penalties '[1, 10]'",
        ),
        shown=("choose.spatial", "choose.temporal", "quote.spatial", "quote.temporal", "svm_penalties", "out"),
    ),
    "compare": Verb(
        summary="compare two evaluations of the same clips: which model is better, how certainly, and where",
        function="models:compare",
        settings="runs.score.settings:CompareConfig",
        positionals={"first": "A", "second": "B"},
        examples=("evaluation-first evaluation-second", "first second --shards shards --out comparison"),
        shown=("shards", "num_clips", "out"),
    ),
    "describe": Verb(
        summary="parameters, FLOPs and memory of a network, without building it",
        function="models:describe",
        settings="runs.describe:DescribeConfig",
        examples=("--config fusion_2016", "--model.fusion.layers relu4_3 --json"),
        shown=("model.architecture", "model.fusion.method", "model.fusion.layers", "num_snippets", "size_px"),
        more={"--json": "One JSON object, for programs."},
    ),
    "doctor": Verb(
        summary="check whether a training can run on this cluster, how fast, and where its bottleneck is",
        function="doctor:diagnose",
        settings="runs.doctor.settings:DoctorConfig",
        positionals=_SHARDS,
        examples=(
            "",
            "shards --config own_videos_gpu --address 10.0.0.1:6379 --price 2.5",
            "s3://bucket/shards --config fusion_2016 --speed false --json",
        ),
        shown=("address", "speed", "price", "storage", "tracking.uri"),
        more={"--json": "One JSON object, for programs."},
    ),
    "recipes": Verb(
        summary="list the recipes of the package; with a NAME, print that recipe",
        function="recipes:list_recipes",
        positionals={"name": "[NAME]"},
        examples=("", "own_videos_cpu > mine.yaml"),
    ),
    "schema": Verb(
        summary="print the JSON Schema of a verb's recipe, for editors and programs",
        function="recipes:print_schema",
        positionals={"verb": "VERB"},
        examples=("train > train.schema.json", "benchmark loader"),
    ),
    "submit": Verb(
        summary="run another verb as a job on a Ray cluster; prints its log and returns its exit code",
        function="jobs:submit",
        settings="runs.submit.settings:SubmitConfig",
        positionals={"verb": "VERB"},
        examples=(
            "train s3://bucket/shards --config fusion_2016 --name first --storage s3://bucket/runs",
            "ingest s3://bucket/videos --out s3://bucket/shards --address http://head:8265",
            "evaluate models:/two-stream@champion s3://bucket/shards --out s3://bucket/measured --driver_gpus 1",
            "train s3://b/shards --name a --storage s3://b/runs --kuberay a.yaml --image registry/twostream-ray:0.1.0",
        ),
        shown=("address", "secrets", "working_dir", "exclude", "gpus", "price", "follow", "kuberay"),
    ),
    "jobs": Verb(
        summary="jobs of a Ray cluster: list, follow, stop, resume, and why one is pending",
        function="jobs:jobs",
        settings="runs.submit.settings:JobsConfig",
        positionals={"action": "[ACTION]", "job": "[JOB]"},
        examples=("", "logs train-first-20261127-120000", "resume train-first-20261127-120000"),
        shown=("address", "follow"),
    ),
    "demo": Verb(
        summary="the whole pipeline on synthetic videos, minutes on 2 cores",
        function="searches:demo",
        settings="runs.experiment:ExperimentConfig",
        examples=("", "--training.epochs 2 --storage somewhere/runs --data.shards somewhere/shards"),
        shown=("storage", "data.shards", "training.epochs", "tracking.uri"),
    ),
    "compare-streams": Verb(
        summary="ablation on your videos: each stream alone, late fusion and the recipe's network, in one table",
        function="searches:compare_streams",
        settings="runs.ablation.settings:AblationConfig",
        positionals=_SHARDS,
        examples=(
            "shards --config own_videos_cpu --name mine",
            "shards --config own_videos_cpu --name mine --clip3d true --model.clip3d.width 16",
        ),
        shown=("name", "clip3d", "training.epochs", "storage", "out", "tracking.uri"),
    ),
    "findings": Verb(
        summary="the papers' findings on synthetic videos, over several seeds",
        function="searches:findings",
        settings="runs.settings:FindingsConfig",
        examples=("", "--num_seeds 1 --out quick"),
        shown=("out", "num_seeds"),
    ),
    "benchmark loader": Verb(
        summary="samples per second of the loader, compared with other common ways of reading videos",
        function="benchmarks:measure_loader",
        settings="runs.benchmark.settings:BenchmarkLoaderConfig",
        positionals=_SHARDS,
        examples=("shards", "shards --videos videos --num_clips 64"),
        shown=("videos", "num_clips", "rounds", "workers", "out"),
    ),
    "benchmark ingest": Verb(
        summary="clips per second of ingest, compared with a single process",
        function="benchmarks:measure_ingest",
        settings="runs.benchmark.settings:BenchmarkIngestConfig",
        positionals={"catalog.root": "[VIDEOS]"},
        examples=("videos",),
        shown=("rounds",),
    ),
    "benchmark step": Verb(
        summary="a training step: eager, compiled, frozen, with memory and matrix rate",
        function="benchmarks:measure_step",
        settings="runs.benchmark.settings:BenchmarkStepConfig",
        examples=("", "--batch 8 --num_snippets 3"),
        shown=("batch", "num_snippets", "size_px", "steps", "profile"),
    ),
    "benchmark train": Verb(
        summary="samples per second of a training, compared with a bare loop over the same batches",
        function="benchmarks:measure_train",
        settings="runs.benchmark.settings:BenchmarkTrainConfig",
        positionals=_SHARDS,
        examples=("shards --config own_videos_cpu",),
        shown=("num_workers", "training.global_batch", "steps", "rounds"),
    ),
    "benchmark predict": Verb(
        summary="videos per second of batch prediction, compared with a single process",
        function="benchmarks:measure_predict",
        settings="runs.benchmark.settings:BenchmarkPredictConfig",
        positionals={"videos": "VIDEO ..."},
        examples=("videos --model champion",),
        shown=("model", "rounds", "cores", "tracking.uri"),
    ),
    "completion": Verb(
        summary="print a completion script of verbs and options for bash or zsh",
        function="completion:complete",
        positionals={"shell": "bash|zsh"},
        examples=("bash > ~/.local/share/bash-completion/completions/twostream", "zsh > ~/.twostream_completion.zsh"),
    ),
}
"""Verbs by name, in the order of the pipeline; a name of two words belongs to a group."""

GROUPS = {
    "weights": "pretrained weights for towers to start from",
    "track": "metrics and files logged for MLflow",
    "benchmark": "throughput on this machine: loader, ingest, training step, training run, prediction",
}
"""Groups: the first words of two-word names, with their summaries."""


def members(group: str) -> list[str]:
    """The second words of a group's verbs."""
    return [name.partition(" ")[2] for name in VERBS if name.startswith(f"{group} ")]


def load(path: str, *, package: str) -> Any:
    """Import "module:name" from a package."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"{package}.{module}"), name)


def settings_class(verb: str) -> type | None:
    """The settings class of a verb; None for a verb without settings."""
    path = VERBS[verb].settings
    return None if path is None else load(path, package="twostream_ray")


def all_settings() -> list[type]:
    """The settings classes of all verbs: a recipe may contain any of their fields."""
    paths = dict.fromkeys(verb.settings for verb in VERBS.values() if verb.settings is not None)
    return [load(path, package="twostream_ray") for path in paths]


def parse(verb: str, kind: type[Settings], arguments: Sequence[str]) -> Settings:
    """Settings of a verb from its command-line arguments.

    Raises:
        ConfigError: an unknown name, a bad value or a missing one.
    """
    from twostream_ray.settings.parser import from_arguments

    return from_arguments(
        kind,
        arguments,
        prog=f"twostream {verb}",
        positionals=tuple(VERBS[verb].positionals),
        elsewhere=all_settings,
    )
