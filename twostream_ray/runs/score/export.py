"""Model export to ONNX or torch.export, verified against torch on videos."""

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

_MAX_DIFFERENCE = 1e-4
_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Exports a trained model as one file that runs without this package."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for onnxruntime and other readers of ONNX; torch: a torch.export program, for torch only."""

    out: str = "model.onnx"
    """Path or URI of the file, .onnx or, for torch, .pt2. The exported network takes any number of views, as uint8."""

    videos: list[str] = field(default_factory=list)
    """Paths or URIs of typical videos on which the file is compared with torch before it is written; by default a
    synthetic one."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, for a model from its registry."""

    def __post_init__(self) -> None:
        if self.format not in get_args(Literal["onnx", "torch"]):
            raise ConfigError(f"format must be onnx or torch, got {brief(self.format)}")
        suffix = _SUFFIXES[self.format]
        if not self.out.lower().endswith(suffix):
            raise ConfigError(f"out must end in {suffix} for format {self.format}, got {redact(self.out)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An exported file and its deviation from the network."""

    out: str
    """Path or URI of the file."""
    num_bytes: int
    """Size of the file."""
    difference: float
    """Largest difference of its logits and scores from torch's; for logits above 1 relative to the largest."""
    num_views: int
    """Compared views."""
    num_videos: int
    """Videos of these views."""

    def sentence(self) -> str:
        """The result in a sentence."""
        videos = f"{self.num_videos} video{'s' * (self.num_videos != 1)}"
        return printable(
            f"{self.out}: {self.num_bytes:,} bytes; on {self.num_views} views of {videos} its outputs differ from "
            f"torch's by at most {self.difference:.1e} (allowed: {_MAX_DIFFERENCE:.0e})"
        )


def export(config: ExportConfig) -> Exported:
    """Export the model; the file is written only if its outputs agree with torch's.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be read, or the file cannot be written.
        CheckpointError: the file's outputs differ from the network's.
        VideoError: a video cannot be decoded completely.
        ConfigError: a package is not installed, the format does not support the network, or the file exists and was not
            written by this verb.
    """
    if missing := [name for name in _NEEDED[config.format] if find_spec(name) is None]:
        raise ConfigError(
            f"export to {config.format} wants {', '.join(missing)}: `pip install 'twostream_ray[export]'`, or choose "
            "--format torch"
        )
    location = storage.absolute(config.out)
    # Imported late: they import torch, which --help and refused settings do not need.
    from twostream_ray.model_package import MODEL_FILES, load_model
    from twostream_ray.runs.score import exported_network
    from twostream_ray.view_scorer import ViewScorer

    mark = exported_network.MARK[config.format]
    refuse_unmarked_file(config.out, mark=mark, verb="export", option="out")
    storage.require_writable(config.out)
    with local_model(config.model, config=config.tracking) as directory:
        network, package = load_model(directory)
        # Otherwise a torch program's weights would require gradients wherever it runs.
        network.requires_grad_(False)
        with (directory / MODEL_FILES[0]).open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
    towers = ViewScorer(network, package, protocol=VALIDATION).towers
    settings = exported_network.describe_file(network, package, towers=towers, weights_sha256=digest)
    # Before the export, which takes longer, as a video may be missing or damaged.
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
        if largest > _MAX_DIFFERENCE:
            raise CheckpointError(
                f"{redact(config.model)}: the {config.format} file's outputs differ from torch's by {largest:.1e}, at "
                f"most {_MAX_DIFFERENCE:.0e} is allowed: nothing was written; choose another --format"
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
