"""The `benchmark` subcommands: throughput on this machine. Heavy modules are imported when needed."""

from __future__ import annotations

from twostream_ray.verbs import require_uri


def measure_loader(arguments: list[str]) -> int:
    """Data loader throughput, samples/s."""
    from twostream_ray.console import Bar, table
    from twostream_ray.runs.benchmark.settings import BenchmarkLoaderConfig
    from twostream_ray.verbs.commands import parse

    config = parse("benchmark loader", BenchmarkLoaderConfig, arguments)
    require_uri(config.out, setting="out")
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


def _show_rates(rates: list[tuple[str, float, int]], *, unit: str, rounds: int) -> None:
    """Print a table of (path, rate, cores); the first row is the single-process loop."""
    from twostream_ray.console import table

    bare = rates[0][1]
    table(
        f"median of {rounds} rounds",
        ["path", f"{unit}/s", "a core", "of cores x bare"],
        [[name, f"{rate:.2f}", f"{rate / cores:.2f}", f"{rate / cores / bare:.2f}"] for name, rate, cores in rates],
    )


def measure_ingest(arguments: list[str]) -> int:
    """Ingest throughput, clips/s."""
    from twostream_ray.console import Bar
    from twostream_ray.runs.benchmark.settings import BenchmarkIngestConfig
    from twostream_ray.verbs.commands import parse

    config = parse("benchmark ingest", BenchmarkIngestConfig, arguments)
    from twostream_ray.runs.benchmark.ingest import benchmark_ingest

    with Bar("benchmark ingest", unit="runs") as bar:
        speeds = benchmark_ingest(config, progress=bar.show)
    _show_rates(
        [(speed.name, speed.clips_per_second, speed.cores) for speed in speeds], unit="clips", rounds=config.rounds
    )
    return 0


def measure_predict(arguments: list[str]) -> int:
    """Batch prediction throughput, videos/s."""
    from twostream_ray.console import Bar
    from twostream_ray.runs.benchmark.settings import BenchmarkPredictConfig
    from twostream_ray.verbs.commands import parse

    config = parse("benchmark predict", BenchmarkPredictConfig, arguments)
    from twostream_ray.runs.benchmark.predict import benchmark_predict

    with Bar("benchmark predict", unit="runs") as bar:
        speeds = benchmark_predict(config, progress=bar.show)
    _show_rates(
        [(speed.name, speed.videos_per_second, speed.cores) for speed in speeds], unit="videos", rounds=config.rounds
    )
    return 0


def measure_step(arguments: list[str]) -> int:
    """Speed and memory of a training step."""
    from twostream_ray.console import console
    from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig
    from twostream_ray.verbs.commands import parse

    config = parse("benchmark step", BenchmarkStepConfig, arguments)
    from twostream_ray.runs.benchmark.step import StepFailure, benchmark_step

    columns = "{:<14} {:>10} {:>10} {:>9} {:>16} {:>8} {:>8}"
    for number, speed in enumerate(benchmark_step(config)):
        if isinstance(speed, StepFailure):
            console.print(f"{speed.way:<14} {speed.reason}")
            continue
        if number == 0:
            console.print(
                f"training steps of {config.batch} samples of {config.num_snippets} snippets of {config.size_px} px, "
                f"{speed.precision}, on {speed.device}"
            )
            console.print(
                columns.format("way", "ms a step", "samples/s", "TFLOP/s", "of matrix rate", "peak GB", "loss")
            )
        console.print(
            columns.format(
                speed.way,
                f"{1000 * speed.seconds:.1f}",
                f"{speed.samples_per_second:.4g}",
                f"{speed.teraflops_per_second:.3g}",
                f"{speed.matrix_rate_share:.0%}",
                f"{speed.peak_gigabytes:.2f}",
                f"{speed.loss:.3f}",
            )
        )
        if speed.kernels:
            console.print(speed.kernels)
    return 0


def measure_train(arguments: list[str]) -> int:
    """Training throughput, samples/s."""
    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.benchmark.settings import BenchmarkTrainConfig
    from twostream_ray.verbs.commands import parse

    config = parse("benchmark train", BenchmarkTrainConfig, arguments)
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
    if made.left_out is not None:
        console.print(f"note: {made.left_out}")
    return 0
