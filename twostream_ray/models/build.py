"""Model factory: builds the network that a `ModelConfig` describes."""

from dataclasses import replace
from functools import partial

from twostream_ray.errors import ConfigError
from twostream_ray.models.clip3d import Clip3dNetwork, load_video_weights
from twostream_ray.models.fused_network import FusedNetwork
from twostream_ray.models.layers import RGB_CHANNELS
from twostream_ray.models.networks import LateNetwork, MakeTower, Network, Stfn, StResNet
from twostream_ray.models.settings import ModelConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.towers import ReadBytes

__all__ = ["Network", "build_network"]


def build_network(
    config: ModelConfig,
    *,
    num_classes: int,
    flow_length: int,
    read_bytes: ReadBytes | None = None,
    pretrained: bool = True,
) -> Network:
    """The network that `config` describes, initialised from torch's global random numbers.

    Args:
        config: the model's settings.
        num_classes: K, over all data sets.
        flow_length: L, the flow fields of a snippet.
        read_bytes: reads the files that the settings' weights name.
        pretrained: False leaves out pretrained weights, for a network whose state is loaded next.

    Raises:
        ConfigError: the settings have another number of classes than num_classes.
        WeightsError: pretrained weights are unavailable or do not fit.
    """
    wanted = sum(config.head_classes) or config.num_classes
    if wanted not in (None, num_classes):
        raise ConfigError(
            f"model.{'head_classes' if config.head_classes else 'num_classes'} is {wanted}, but the data has "
            f"{num_classes} classes: leave it out, or choose other data"
        )
    spatial, temporal = (
        tower if pretrained else replace(tower, weights=None) for tower in (config.spatial, config.temporal)
    )
    make = partial(build_tower, num_classes=num_classes, read_bytes=read_bytes)
    towers: dict[str, MakeTower] = {
        "spatial_tower": partial(make, spatial, in_channels=RGB_CHANNELS),
        "temporal_tower": partial(make, temporal, in_channels=2 * flow_length),
    }
    network: Network
    match config.architecture:
        case "late":
            network = LateNetwork(config, **towers)
        case "fused":
            network = FusedNetwork(config, num_classes=num_classes, **towers)
        case "st_resnet":
            network = StResNet(config, **towers)
        case "stfn":
            network = Stfn(config, num_classes=num_classes, **towers)
        case "clip3d":
            network = Clip3dNetwork(config.clip3d, num_classes=num_classes)
            if pretrained:
                load_video_weights(network, config=config.clip3d, read_bytes=read_bytes)
    network.head_classes = config.head_classes or (num_classes,)
    return network
