"""Subcommands of searches and studies: `tune`, `tune-scores`, `demo`, ... Heavy modules are imported when needed."""

from __future__ import annotations

import shlex

from twostream_ray.verbs import announce, require_uri


def tune(arguments: list[str]) -> int:
    """Hyperparameter search; registers the best model."""
    from twostream_ray.console import SearchDisplay, console
    from twostream_ray.runs.search.settings import settings_from
    from twostream_ray.verbs.commands import VERBS, all_settings

    config = settings_from(arguments, positionals=tuple(VERBS["tune"].positionals), elsewhere=all_settings)
    require_uri(config.storage, setting="storage")
    config.tracking.require_usable()
    from twostream_ray.runs.run_folder import SearchFolder
    from twostream_ray.runs.train.preflight import require_ready

    # Before torch and Ray are imported, which takes seconds.
    folder = SearchFolder.of(config)
    console.print(f"reading the index of {config.data.shards}")
    shard_set = require_ready(config, splits=("train_split", "validation_split"), folder=folder)
    announce(config, shard_set, folder=folder, trials=config.search.trials)
    if config.dry_run:
        return 0
    from twostream_ray.runs.search.ray_tune import tune

    with SearchDisplay(config.name, trials=config.search.trials) as display:
        report = tune(config, progress=display.show)
    display.summary(report.records)
    for reason in dict.fromkeys(report.refused.values()):
        console.print(f"refused before a trial started: {reason}")
    best, spent = report.best, report.spent
    console.print(f"clips decoded: {report.decoded:,}; without sharing them between trials: {report.shown:,}")
    console.print(
        f"search {config.name} {'is finished already' if report.done_before else 'ended'}: {report.ended}; "
        f"{spent.epochs} epochs, {spent.hours:.2f} h, {spent.gpu_hours:.2f} GPU-hours"
    )
    chosen = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in best.settings.items()
    )
    console.sentence(f"best: {best.name}, top-1 {best.score:.1%} on {config.data.split_to_validate}: {chosen}")
    if report.published is not None:
        console.print(report.published.evaluation.report.to_text())
    if report.verdict:
        when = "" if report.published else " by an earlier call"
        console.sentence(f"registered{when} as {report.model_name}: {report.verdict}")
    console.print(f"table and pictures: {SearchFolder.of(config).uri}")
    if report.longer:
        console.print(f"train the best longer: {report.longer}")
    return 0


def tune_scores(arguments: list[str]) -> int:
    """Search the best late fusion of two streams' scores."""
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.score.settings import TuneScoresConfig
    from twostream_ray.verbs.commands import parse

    config = parse("tune-scores", TuneScoresConfig, arguments)
    require_uri(config.out, setting="out")
    from twostream_ray.runs.score.tune_scores import tune_scores

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
    console.print(f"{tuned.num_settings} settings tried in {tuned.seconds:.2f} s; chosen: {tuned.chosen.setting}")
    console.print(tuned.verdict())
    for head in tuned.heads:
        console.print(head.sentence(), markup=False)
    if tuned.heads:
        console.print(f"--head NAME chooses for one data set alone ({', '.join(one.name for one in tuned.heads)})")
    console.print(f"fusion.json and fusion.png are in {config.out}")
    return 0


def demo(arguments: list[str]) -> int:
    """The whole pipeline on synthetic videos."""
    from twostream_ray.console import Bar, TrainingDisplay, console, table
    from twostream_ray.data.sources.synthetic import SyntheticConfig
    from twostream_ray.runs.experiment import ExperimentConfig
    from twostream_ray.runs.score.settings import PredictConfig
    from twostream_ray.verbs.commands import parse

    named = any(argument.partition("=")[0] == "--config" for argument in arguments)
    arguments = arguments if named else ["--config", "demo", *arguments]
    config = parse("demo", ExperimentConfig, arguments)
    require_uri(config.storage, setting="storage")
    config.tracking.require_usable()
    from twostream_ray.runs import demo
    from twostream_ray.runs.cluster.session import ray_session
    from twostream_ray.runs.score.predict import predict

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
    name, uri = fused.published.name, config.tracking.resolved_uri()
    console.sentence(f"registered as {name}: {fused.published.verdict}")
    video = next(iter(sorted((videos / "test").rglob("*.avi"))))
    model_uri = f"models:/{name}@champion"
    for prediction in predict(PredictConfig(videos=[str(video)], model=model_uri, tracking=config.tracking)):
        best = ", ".join(f"{label} {score:.2f}" for label, score in prediction.top)
        console.print(f"predicted from raw video: {video.parent.name}/{video.name} -> {best}")
    console.print(f"pictures: {config.storage}/*/evaluation/*.png")
    console.print(f"MLflow page: mlflow ui --backend-store-uri {shlex.quote(uri)}")
    return 0


def compare_streams(arguments: list[str]) -> int:
    """Train each stream alone, late fusion, the recipe's network and optionally a 3D CNN on RGB."""
    from contextlib import ExitStack

    from twostream_ray.console import TrainingDisplay, console, table
    from twostream_ray.runs.ablation.settings import AblationConfig
    from twostream_ray.runs.experiment import ExperimentConfig
    from twostream_ray.verbs.commands import parse

    config = parse("compare-streams", AblationConfig, arguments)
    require_uri(config.storage, setting="storage")
    require_uri(config.folder, setting="out")
    config.tracking.require_usable()
    from twostream_ray.runs.ablation import report, study
    from twostream_ray.runs.cluster.session import ray_session, stop_on_sigterm
    from twostream_ray.runs.score.publish import FinishedRun, train_and_publish

    report.refuse_foreign(config)
    study.prepare(config)
    runs = study.trainings(config)
    console.print(f"{len(runs)} trainings: {', '.join(one.name for one in runs.values())}; then starting Ray")

    def train_one(one: ExperimentConfig) -> FinishedRun:
        with ExitStack() as showing:
            display = showing.enter_context(TrainingDisplay(one.name))
            stop = showing.enter_context(stop_on_sigterm())
            return train_and_publish(one, progress=display.event, stop=stop, when_trained=showing.close)

    with ray_session():
        trained = study.train_all(runs, train_one)
    found = study.table_of(config, {end: run.trained.parameters for end, run in trained.items()})
    # Before the table, which fails if the terminal has been closed meanwhile.
    out = report.write(config, found)
    table(report.title(config, found), list(report.COLUMNS), [report.cells(row) for row in found])
    for sentence in report.sentences(found):
        console.sentence(sentence)
    console.print(f"{', '.join(report.FILES)} are in {out}")
    return 0


def findings(arguments: list[str]) -> int:
    """Reproduce the papers' findings on synthetic videos."""
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.settings import FindingsConfig
    from twostream_ray.verbs.commands import parse

    config = parse("findings", FindingsConfig, arguments)
    require_uri(config.out, setting="out")
    from twostream_ray.runs import findings
    from twostream_ray.runs.cluster.session import ray_session
    from twostream_ray.runs.compared_networks import comparisons

    with ray_session():
        shards = {}
        for group, comparison in comparisons(config.towers).items():
            with Bar(f"{group}: videos to shards", unit="clips") as bar:
                shards[group] = findings.prepare(config, comparison, progress=bar.show)
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
