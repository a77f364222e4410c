"""Model export: a trained network as an ONNX file or a program of torch.export, held against torch on videos."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from twostream_ray import storage
from twostream_ray.data.protocols import VALIDATION
from twostream_ray.errors import CheckpointError, ConfigError
from twostream_ray.model_source import local_model
from twostream_ray.redaction import brief, printable, redact
from twostream_ray.runs.outputs import refuse_unmarked_file
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking import TrackingConfig

_MOST_DIFFERENT = 1e-4
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A trained model as one file that runs without this package."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for onnxruntime and what else reads ONNX; torch: a program of torch.export, for torch alone."""

    out: str = "model.onnx"
    """Path or URI of the file, .onnx or, for torch, .pt2. It takes any number of views, as uint8."""

    videos: list[str] = field(default_factory=list)
    """Paths or URIs of videos on which the file is compared with torch before it is written, as those that it is for;
    by default a synthetic one."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""

    def __post_init__(self) -> None:
        if self.format not in get_args(Literal["onnx", "torch"]):
            raise ConfigError(f"format must be onnx or torch, got {brief(self.format)}")
        suffix = _SUFFIXES[self.format]
        if not self.out.lower().endswith(suffix):
            raise ConfigError(f"out must end in {suffix} for format {self.format}, got {redact(self.out)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file and how exactly it answers as the network does."""

    out: str
    """Where it is."""
    num_bytes: int
    """Its size."""
    difference: float
    """Largest difference of its logits and scores from torch's, of large logits as a share of the largest."""
    num_views: int
    """Views that were compared."""
    num_videos: int
    """Videos that these are of."""

    def sentence(self) -> str:
        """All of it in a sentence."""
        videos = f"{self.num_videos} video{'s' * (self.num_videos != 1)}"
        return printable(
            f"{self.out}: {self.num_bytes:,} bytes; on {self.num_views} views of {videos} its answers differ from "
            f"torch's by at most {self.difference:.1e} (allowed: {_MOST_DIFFERENT:.0e})"
        )


def export(config: ExportConfig) -> Exported:
    """Write the file, which is there only if it answers as the network does.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be had, or the file not be written.
        CheckpointError: the file's answers are not the network's.
        VideoError: a video cannot be decoded whole.
        ConfigError: a package is not installed, the network does not go into the format, or the file is somebody
            else's.
    """
    if missing := [name for name in _NEEDED[config.format] if find_spec(name) is None]:
        raise ConfigError(
            f"export to {config.format} wants {', '.join(missing)}: `pip install 'twostream_ray[export]'`, or choose "
            "--format torch"
        )
    location = storage.absolute(config.out)
    # They load torch, which refused settings and --help do without.
    from twostream_ray.model_package import MODEL_FILES, load_model
    from twostream_ray.runs.score import exported_network
    from twostream_ray.view_scorer import ViewScorer

    mark = exported_network.MARK[config.format]
    refuse_unmarked_file(config.out, mark=mark, verb="export", option="out")
    storage.require_writable(config.out)
    with local_model(config.model, config=config.tracking) as directory:
        network, package = load_model(directory)
        # Else a torch program's weights ask for gradients wherever it runs.
        network.requires_grad_(False)
        with (directory / MODEL_FILES[0]).open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
    towers = ViewScorer(network, package, protocol=VALIDATION).towers
    settings = exported_network.describe_file(network, package, towers=towers, weights_sha256=digest)
    # Before the export, which takes longer: a video may be missing or damaged.
    clips = list(exported_network.clips_of(config.videos, package.contract))
    with temporary_folder() as name:
        path = Path(name) / f"model{_SUFFIXES[config.format]}"
        exported_network.write_file(path, network, package, kind=config.format, settings=settings)
        run = exported_network.open_file(path, kind=config.format)
        compared = [
            exported_network.largest_difference(run, network, exported_network.views_of(clip, network, package))
            for clip in clips
        ]
        largest = max(difference for difference, _ in compared)
        if largest > _MOST_DIFFERENT:
            raise CheckpointError(
                f"{redact(config.model)}: the {config.format} file's answers differ from torch's by {largest:.1e}, at "
                f"most {_MOST_DIFFERENT:.0e} is allowed: nothing was written; choose another --format"
            )
        storage.write_file(location, path)
        num_bytes = path.stat().st_size
    return Exported(
        out=config.out,
        num_bytes=num_bytes,
        difference=largest,
        num_views=sum(count for _, count in compared),
        num_videos=len(compared),
    )
