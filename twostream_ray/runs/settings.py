"""Settings of ingest, inspect and findings.

In a module of their own, so that parsing a command line does not import PyAV, Arrow, Matplotlib and torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.errors import ConfigError
from twostream_ray.settings.arguments import RECIPE_KEY
from twostream_ray.settings.bounds import require_within

Towers = Literal["papers", "modern"]
"""Kinds of towers that `findings` compares."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Turns labelled raw videos into shards with optical flow."""

    catalog: CatalogConfig
    """Where the videos and their labels are."""

    out: str
    """Directory or s3:// prefix of the shard set."""

    replace: bool = False
    """Delete the finished shards at `out` once the new ones are written, even if they are of another data set, or of
    folders of this one that are empty now; without it such an ingest is refused. Other files are kept in any case."""

    more: list[CatalogConfig] = field(default_factory=list)
    """Further data sets for multi-task training, each with its name; a network gets a head for each."""

    flow: FlowContract = field(default_factory=FlowContract)
    """How optical flow is computed and coded."""

    max_bad_fraction: float = 0.05
    """Fail if more than this fraction of the videos was quarantined, in [0, 1]. Missing videos that a list or table
    names count too: for a data set that was downloaded only in part, give 1."""

    max_frames: int = 10_000
    """Longer videos are quarantined: a clip is one row, and a task needs about 40 kB of memory per frame."""

    rows_per_shard: int = 128
    """Most clips per shard file; small sets get smaller shards, so that a killed ingest has finished some."""

    def __post_init__(self) -> None:
        require_within(self, max_bad_fraction="[0, 1]", max_frames="[2, 1_000_000]", rows_per_shard="[1, 1_000_000]")
        if self.flow.coding == "signed127" and any(one.flow_images for one in (self.catalog, *self.more)):
            raise ConfigError(
                "flow.coding must be legacy255 with catalog.flow_images, as common tools write them, got signed127"
            )


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Shows a shard set: counts, classes, flow contract, and a picture of frames with their flow."""

    shards: str = field(metadata={RECIPE_KEY: "data.shards"})
    """Directory or s3:// prefix that `ingest` wrote."""

    out: str = "inspect.png"
    """PNG file of the picture; an existing file is overwritten only if `inspect` drew it."""

    num_clips: int = 6
    """Clips to draw, spread over the set, one row each."""

    clip: str | None = None
    """Id of one clip to draw instead: its path below the ingested root."""

    verify: bool = False
    """Read every byte and verify the checksums; if decord is installed, also compare frames of each clip that it
    decodes with those of this package."""

    def __post_init__(self) -> None:
        if not self.out.lower().endswith(".png"):
            raise ConfigError(f"out must name a file that ends in .png, got {self.out!r}")
        require_within(self, num_clips="[1, 200]")


@dataclass(frozen=True, kw_only=True)
class FindingsConfig:
    """Trains every network of the papers' comparisons on synthetic videos: under an hour on 2 cores, resumable."""

    out: str = "findings"
    """Directory for videos, shards, results, table and plot."""

    towers: Towers = "papers"
    """papers: small VGG towers, every comparison; modern: a small ConvNeXt and a small vision transformer of timm, late
    against fused (needs `pip install 'twostream_ray[timm]'`)."""

    num_seeds: int = 3
    """Number of trainings of each network, with seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        require_within(self, num_seeds="[1, 1_000]")
        if self.towers not in get_args(Towers):
            raise ConfigError(f"towers must be one of {', '.join(get_args(Towers))}, got {self.towers!r}")
