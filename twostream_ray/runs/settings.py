"""Settings of ingest, inspect and findings.

Apart from what these do, which imports PyAV, Arrow, Matplotlib and torch: reading a command line needs none of them.
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
"""Which networks `findings` compares."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Labelled raw videos -> shards with optical flow."""

    catalog: CatalogConfig
    """Where the videos and their labels are."""

    out: str
    """Directory or s3:// prefix of the shard set."""

    replace: bool = False
    """Delete the finished shards at `out` once the new ones are there, though they are of another data set, or of
    folders of this one that hold nothing now; without it such an ingest is refused. Other files stay in any case."""

    more: list[CatalogConfig] = field(default_factory=list)
    """Further data sets for multi-task training, each with its name: a network gets a head for each."""

    flow: FlowContract = field(default_factory=FlowContract)
    """How optical flow is computed and coded."""

    max_bad_fraction: float = 0.05
    """Fail when more than this fraction of the videos had to be quarantined, in [0, 1]. Videos that a list or table
    names and that are not there are among them: of a data set of which only a part was downloaded, give 1."""

    max_frames: int = 10_000
    """Longer videos are quarantined: a clip is one row, and a task takes about 40 kB of memory for every frame."""

    rows_per_shard: int = 128
    """Clips per shard file at most; small sets get smaller shards, so that one that is killed has finished some."""

    def __post_init__(self) -> None:
        require_within(self, max_bad_fraction="[0, 1]", max_frames="[2, 1_000_000]", rows_per_shard="[1, 1_000_000]")
        if self.flow.coding == "signed127" and any(one.flow_images for one in (self.catalog, *self.more)):
            raise ConfigError(
                "flow.coding must be legacy255 where catalog.flow_images are taken in, as the usual tools write them, "
                "got signed127"
            )


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a shard set: counts, classes, flow contract, and a picture of frames over their flow."""

    shards: str = field(metadata={RECIPE_KEY: "data.shards"})
    """Directory or s3:// prefix that `ingest` wrote."""

    out: str = "inspect.png"
    """File of the picture, a PNG; one that is there is written over only if `inspect` drew it."""

    num_clips: int = 6
    """Clips to draw, spread over the set; a row each."""

    clip: str | None = None
    """One clip to draw instead, by its id: its path below the root that was ingested."""

    verify: bool = False
    """Read every byte and hold it against the checksums; where decord is installed, also compare frames of each clip
    that it fetches with ours."""

    def __post_init__(self) -> None:
        if not self.out.lower().endswith(".png"):
            raise ConfigError(f"out must name a file that ends in .png, got {self.out!r}")
        require_within(self, num_clips="[1, 200]")


@dataclass(frozen=True, kw_only=True)
class FindingsConfig:
    """Train every network of the papers' comparisons on synthetic videos: under an hour on 2 cores, resumable."""

    out: str = "findings"
    """Directory for videos, shards, results, table and picture."""

    towers: Towers = "papers"
    """papers: small VGG towers, every comparison; modern: a small ConvNeXt and a small vision transformer of timm, late
    against fused (wants `pip install 'twostream_ray[timm]'`)."""

    num_seeds: int = 3
    """Trainings of each network, with seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        require_within(self, num_seeds="[1, 1_000]")
        if self.towers not in get_args(Towers):
            raise ConfigError(f"towers must be one of {', '.join(get_args(Towers))}, got {self.towers!r}")
