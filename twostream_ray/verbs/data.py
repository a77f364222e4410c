"""The subcommands `synthesize`, `ingest` and `inspect`. Heavy modules are imported when needed."""

from __future__ import annotations

from twostream_ray.verbs import require_uri


def synthesize(arguments: list[str]) -> int:
    """Generate a small synthetic data set."""
    from pathlib import Path

    from twostream_ray.console import Bar, console
    from twostream_ray.data.sources.synthetic import SynthesizeConfig, synthesize
    from twostream_ray.verbs.commands import parse

    config = parse("synthesize", SynthesizeConfig, arguments)
    require_uri(config.out, setting="out")
    with Bar("synthesize", unit="clips") as bar:
        made = synthesize(config.clips, Path(config.out), progress=lambda done, total: bar.show(done, total))
    console.print(f"{made.num_clips} clips of {len(made.classes)} classes are in {made.root}, {made.num_written} new")
    return 0


def ingest(arguments: list[str]) -> int:
    """Convert labelled raw videos to shards."""
    from twostream_ray.console import Bar, console
    from twostream_ray.runs.settings import IngestConfig
    from twostream_ray.verbs.commands import parse

    config = parse("ingest", IngestConfig, arguments)
    require_uri(config.out, setting="out")
    from twostream_ray.runs.ingest import ingest

    with Bar("ingest", unit="clips") as bar:
        report = ingest(
            config,
            progress=lambda done, bad, total: bar.show(done, total, note=f"{bad} bad" if bad else ""),
            announce=bar.line,
        )
    for note in report.notes:
        console.sentence(f"note: {note}")
    for reason, count in report.reasons.items():
        console.print(f"quarantined: {count} x {reason}, see {config.out}/quarantine.csv")
    console.print(report.sentence())
    return 0


def inspect(arguments: list[str]) -> int:
    """Print the contents of a shard set."""
    from pathlib import Path

    from twostream_ray.console import Bar, console, table
    from twostream_ray.runs.settings import InspectConfig
    from twostream_ray.verbs.commands import parse

    config = parse("inspect", InspectConfig, arguments)
    require_uri(str(Path(config.out).parent), setting="the folder of out")
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
        console.print(f"every byte is what its checksum says; {found.second_opinion}")
    console.print(f"drawn in {found.picture}: {', '.join(found.pictured)}")
    return 0
