"""Settings of ingests that tests can wait for."""

from pathlib import Path

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.runs.settings import IngestConfig

SMALL = FlowContract(short_side_px=48)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config(videos: Path, out: Path, **change: object) -> IngestConfig:
    return IngestConfig(**{"catalog": CatalogConfig(root=str(videos)), "out": str(out), "flow": SMALL} | change)
