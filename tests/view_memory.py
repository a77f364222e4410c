"""A process of its own that scores one clip and says what it took: python view_memory.py VIDEO BACKBONE PROTOCOL MB."""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.protocols import resolve_protocol
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.view_scorer import ViewScorer


def main(video: str, backbone: str, protocol: str, megabytes: str) -> None:
    """Two towers of random weights, met in their scores, on one video."""
    torch.set_num_threads(2)
    tower = TowerConfig(backbone=backbone, width=4 if backbone == "vgg_small" else None)
    package = ModelPackage(
        model=ModelConfig(architecture="late", spatial=tower, temporal=tower, num_classes=101),
        classes=tuple(map(str, range(101))),
        contract=FlowContract(),
        sampling=SamplingConfig(num_snippets=1),
        transforms=TransformConfig(crop_px=112 if backbone == "vgg_small" else 224),
    )
    clip = prepare_clip(Path(video).read_bytes(), package.contract, name=video)
    memory = None if megabytes == "default" else int(megabytes) << 20
    scorer = ViewScorer(
        package.build(pretrained=False), package, protocol=resolve_protocol(protocol), memory_bytes=memory
    )
    begun = time.perf_counter()
    views, towers, classes = scorer.score(clip).shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    found = {"shape": [views, towers, classes], "seconds": time.perf_counter() - begun, "peak_bytes": peak}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
