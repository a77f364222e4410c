"""ONNX and torch.export files of a network, and their parity with torch.

The exported network takes views as uint8, as they are stored in shards, and normalises them itself.

Axes: N views, T snippets, S towers, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import twostream_ray
from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decoded_clip import DecodedClip
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.protocols import VALIDATION
from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.video.files import write_video
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.views import protocol_views
from twostream_ray.errors import ConfigError
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.storage.temporary_folders import temporary_folder

Format = Literal["onnx", "torch"]
Frames = tuple[NDArray[np.uint8], ...]
"""RGB (N, T, 3, H, W) and flow (N, T, 2L, H, W), or only the one that a network needs."""
Run = Callable[[Frames], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Views -> logits (N, S, K) and scores (N, K)."""

SETTINGS = "twostream"
"""Key of the metadata in an ONNX file; in a torch program the file extra/twostream.json."""
MARK = {"onnx": "made by twostream_ray export", "torch": f"extra/{SETTINGS}.json"}
"""Text near the end of a file that `export` has written, by which it is recognised."""
OUTPUTS = ("logits", "scores")

_FORMAT = 1
_VIEWS = "views"
_TRACED_VIEWS = 2
"""torch.export would take a size of 1 for a constant."""
_COMPARED_VIEWS = 3
_ONNX_BYTES = (2 << 30) - (64 << 20)
"""Most bytes of weights: protobuf's limit is 2 GiB, and the graph needs some of it."""


class _WithNormalisation(nn.Module):
    """A network with normalisation in front: uint8 levels 0..255 -> towers' logits and the scores to average."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *frames: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (N, S, K) and scores (N, K)."""
        left = list(frames)
        rgb = normalise_rgb(left.pop(0)) if self.network.needs_rgb else None
        flow = normalise_flow(left.pop(0)) if self.network.needs_flow else None
        outputs = self.network(rgb, flow)
        return torch.stack(list(outputs.values()), dim=1), self.network.scores(outputs)


def describe_file(network: Network, package: ModelPackage, *, towers: Sequence[str], weights_sha256: str) -> str:
    """Metadata that a program needs to run the file, as JSON: classes, averaging, flow contract, sampling, crop."""
    shapes = _shapes(network, package)
    values = {
        "format": _FORMAT,
        "made_by": f"twostream_ray {twostream_ray.__version__}",
        "weights_sha256": weights_sha256,
        "architecture": package.model.architecture,
        "inputs": [
            {"name": name, "shape": [_VIEWS, *shape], "type": "uint8", "holds": _HOLDS[name]}
            for name, shape in shapes.items()
        ],
        "towers": list(towers),
        "averages": package.model.averages,
        "classes": list(package.classes),
        "heads": [{"name": head.name, "start": head.start, "stop": head.stop} for head in package.heads],
        "contract": package.contract.to_dict(),
        "sampling": asdict(package.sampling),
        "transforms": {name: getattr(package.transforms, name) for name in ("crop_px", "short_side_px")},
    }
    return json.dumps(values, sort_keys=True)


_HOLDS = {"rgb": "levels 0..255, R G B", "flow": "displacements coded by the contract, x1 y1 x2 y2 ..."}


def _shapes(network: Network, package: ModelPackage) -> dict[str, tuple[int, int, int, int]]:
    """Shapes of a view's inputs, by name."""
    sampling, size = package.sampling, package.transforms.crop_px
    channels = {"rgb": 3, "flow": 2 * sampling.flow_length}
    needed = {"rgb": network.needs_rgb, "flow": network.needs_flow}
    return {name: (sampling.num_snippets, channels[name], size, size) for name in channels if needed[name]}


def write_file(path: Path, network: Network, package: ModelPackage, *, kind: Format, settings: str) -> None:
    """Write a network in evaluation mode, for any number of views at a time.

    Args:
        path: the file; its folder exists.
        network: the package's network, on the CPU.
        package: its sampling and crop determine the shape of a view.
        kind: onnx or torch.
        settings: JSON metadata to store in the file.

    Raises:
        ConfigError: its weights are too large for an ONNX file.
        OSError: the file cannot be written.
    """
    num_bytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    if kind == "onnx" and num_bytes > _ONNX_BYTES:
        raise ConfigError(
            f"an ONNX file holds at most {_ONNX_BYTES:,} bytes of weights, this network has {num_bytes:,}: choose "
            "--format torch"
        )
    shapes = _shapes(network, package)
    views = tuple(torch.zeros(_TRACED_VIEWS, *shape, dtype=torch.uint8) for shape in shapes.values())
    axis = torch.export.Dim(_VIEWS, min=1)
    with torch.no_grad():
        program = torch.export.export(
            _WithNormalisation(network).eval(), views, dynamic_shapes=(tuple({0: axis} for _ in views),)
        )
    # Stack traces name files of this machine.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    if kind == "onnx":
        _write_onnx(path, program, inputs=list(shapes), settings=settings)
    else:
        # Otherwise the file would contain a pickle of them.
        program.example_inputs = None
        torch.export.save(program, path, extra_files={f"{SETTINGS}.json": settings})


def _write_onnx(path: Path, program: Any, *, inputs: list[str], settings: str) -> None:
    import onnx

    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=inputs,
        output_names=list(OUTPUTS),
        external_data=False,
        verbose=False,
    )
    model = exported.model_proto  # type: ignore[union-attr]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    # Inner shapes follow from the inputs'.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = _VIEWS
        del value.metadata_props[:]
    model.producer_name, model.producer_version = "twostream_ray", twostream_ray.__version__
    onnx.helper.set_model_props(model, {SETTINGS: settings, "mark": MARK["onnx"]})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def open_file(path: Path, *, kind: Format) -> Run:
    """Load the file as other programs do: with onnxruntime on the CPU, or with torch without this package."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs = [value.name for value in session.get_inputs()]

        def run_onnx(frames: Frames) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            logits, scores = session.run(list(OUTPUTS), dict(zip(inputs, frames, strict=True)))
            return logits, scores

        return run_onnx
    return _run_of(torch.export.load(path).module())


def _run_of(module: nn.Module) -> Run:
    def run(frames: Frames) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.no_grad():
            logits, scores = module(*map(torch.from_numpy, frames))
        return logits.numpy(), scores.numpy()

    return run


def views_of(clip: EncodedClip, network: Network, package: ModelPackage) -> Iterator[Frames]:
    """A clip's views of the validation protocol: first one, then batches of up to three, at least three in all.

    Raises:
        DecodeError: the clip is damaged.
    """
    views = protocol_views(
        VALIDATION,
        clip.num_frames,
        clip.height,
        clip.width,
        sampling_config=package.sampling,
        transform_config=package.transforms,
    )
    samples = DecodedClip(
        clip,
        views,
        config=package.sampling,
        contract=package.contract,
        want_rgb=network.needs_rgb,
        want_flow=network.needs_flow,
    )
    first = tuple(stream for stream in samples.next_samples(1) if stream is not None)
    yield first
    if len(views) == 1:
        yield tuple(np.repeat(stream, _COMPARED_VIEWS, axis=0) for stream in first)
    for start in range(1, len(views), _COMPARED_VIEWS):
        count = min(_COMPARED_VIEWS, len(views) - start)
        yield tuple(stream for stream in samples.next_samples(count) if stream is not None)


def largest_difference(run: Run, network: Network, views: Iterator[Frames]) -> tuple[float, int]:
    """Largest difference between a file's outputs and the network's in torch, and the number of views.

    Over all logits and scores; relative to the largest if that is above 1, as rounding errors grow with it. Infinite if
    an output is not finite.
    """
    wanted_of = _run_of(_WithNormalisation(network).eval())
    largest, count = 0.0, 0
    for frames in views:
        count += len(frames[0])
        for found, wanted in zip(run(frames), wanted_of(frames), strict=True):
            if found.shape != wanted.shape or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
                return float("inf"), count
            scale = max(1.0, float(np.abs(wanted).max()))
            largest = max(largest, float(np.abs(found - wanted).max()) / scale)
    return largest, count


def clips_of(videos: Sequence[str], contract: FlowContract) -> Iterator[EncodedClip]:
    """Encoded clips of the videos; of a synthetic one if none is named.

    Raises:
        StorageError: one cannot be read.
        VideoError: one cannot be decoded completely.
    """
    for video in videos:
        content = storage.read_bytes(storage.absolute(video))
        yield prepare_in_subprocess(content, contract, name=video)
    if not videos:
        drawn = SyntheticConfig()
        with temporary_folder() as name:
            path = Path(name) / "clip.mp4"
            write_video(draw_clip(drawn, "test", 0), path=path, container="mp4", fps=drawn.fps)
            yield prepare_in_subprocess(path.read_bytes(), contract, name="a synthetic video")
