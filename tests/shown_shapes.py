"""Moving shapes as samples of one snippet, without files, and small networks that learn from them in this process."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from twostream_ray.data import sampling
from twostream_ray.data.flow import FlowContract, flow_function, quantise
from twostream_ray.data.loading.device import DeviceBatch, normalise_flow, normalise_rgb
from twostream_ray.data.sources.synthetic import SPLITS, SyntheticConfig, draw_clip, draw_movers
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.compared_networks import comparisons
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.training.step import TrainingStep

ONE_FRAME = comparisons()["binding"].sampling


class Shapes(NamedTuple):
    """Clips of a split; axis N."""

    rgb: Tensor
    """(N, 1, 3, H, W) uint8."""
    flow: Tensor
    """(N, 1, 2L, H, W) uint8."""
    labels: Tensor
    """(N,)."""
    red: np.ndarray
    """(N, 3): y, x and radius in px of the first shape in the frame, which is the red one in `binding`."""

    def streams(self, index: int) -> tuple[Tensor, Tensor]:
        """Both streams of one clip as a network takes them, (1, 1, C, H, W)."""
        return normalise_rgb(self.rgb[index : index + 1]), normalise_flow(self.flow[index : index + 1])


def draw_shapes(config: SyntheticConfig, split: str) -> Shapes:
    contract = FlowContract(short_side_px=config.size_px)
    calculate = flow_function(contract)
    (time,) = sampling.evaluation_times(config.frames_per_clip, config=ONE_FRAME)[0].tolist()
    window = sampling.field_indices(time, config=ONE_FRAME, num_frames=config.frames_per_clip).tolist()
    rgb, flow, labels, red = [], [], [], []
    for index in range(config.clips_in(split)):
        planes = draw_clip(config, split, index)
        frame = cv2.cvtColor(planes[time], cv2.COLOR_YUV2RGB_I420)
        grey = planes[:, : config.size_px]
        fields = [quantise(calculate(grey[k], grey[k + 1]), contract).transpose(2, 0, 1) for k in window]
        # The same draws as those that `draw_clip` begins with.
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
        mover = draw_movers(config, index, rng=rng)[0]
        rgb.append(frame.transpose(2, 0, 1)[None])
        flow.append(np.concatenate(fields)[None])
        labels.append(index % len(config.classes))
        red.append((*mover.centres_px[time], mover.radius_px))
    return Shapes(
        torch.from_numpy(np.stack(rgb)), torch.from_numpy(np.stack(flow)), torch.tensor(labels), np.array(red)
    )


def trained(model: ModelConfig, shapes: Shapes, config: TrainingConfig, *, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network = build_network(model, num_classes=4, flow_length=ONE_FRAME.flow_length)
    step = TrainingStep(
        network, build_optimiser(network, config=config), config=config, seed=seed, device=torch.device("cpu")
    )
    network.train()
    size = config.global_batch
    num_steps = len(shapes.labels) // size
    for epoch in range(config.epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(shapes.labels)))
        for number in range(num_steps):
            chosen = order[number * size : (number + 1) * size]
            batch = DeviceBatch(
                rgb=shapes.rgb[chosen],
                flow=shapes.flow[chosen],
                labels=shapes.labels[chosen],
                weights=torch.ones(size),
                clips=chosen.numpy(),
                total=float(size),
            )
            step(batch, epoch=epoch, step=number, num_steps=num_steps)
    return network.eval()


def accuracy(network: Network, shapes: Shapes) -> float:
    with torch.no_grad():
        right = [
            int(network.scores(network(*shapes.streams(index))).argmax()) == int(label)
            for index, label in enumerate(shapes.labels)
        ]
    return float(np.mean(right))
