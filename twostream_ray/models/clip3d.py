"""3D CNN and transformer baselines on RGB clips (torchvision): R(2+1)D, R3D, MC3 (Tran et al. 2018), MViTv2 (Li 2022).

Baselines for two-stream networks: they take the snippets' RGB frames as one volume, and no optical flow.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from twostream_ray.errors import ConfigError
from twostream_ray.models.layers import RGB_CHANNELS
from twostream_ray.models.networks import Network
from twostream_ray.models.pretrained import copy_state, read_state
from twostream_ray.models.settings import Clip3dConfig
from twostream_ray.models.towers import ReadBytes, Renormalise

MVIT_SAMPLE = (16, 224)
"""T and the height and width in px of the frames that mvit_v2_s takes: its position encoding has this size."""

_FULL_WIDTH = 64
_RESNET_NORMALISATION = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
_MVIT_NORMALISATION = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class Clip3dNetwork(Network):
    """A network over space and time of RGB frames: `video` gives features, `classifier` the scores.

    `forward(rgb, flow)` takes RGB (N, T, 3, H, W), leaves flow alone, and returns logits (N, K) under `spatial`.
    """

    needs_flow = False

    def __init__(self, config: Clip3dConfig, *, num_classes: int) -> None:
        super().__init__()
        import torchvision  # only here: a registered model of towers runs without it

        self.config = config
        model: Any = getattr(torchvision.models.video, config.network)(num_classes=num_classes)
        if config.network == "mvit_v2_s":
            mean, std = _MVIT_NORMALISATION
            dropout, self.classifier = model.head
            model.head = dropout
            self.video: nn.Module = model
            self.undecayed = frozenset(name for name, _ in self.named_parameters() if ".rel_pos_" in name)
        else:
            mean, std = _RESNET_NORMALISATION
            if config.width is not None:
                _scale_width(model, config.width / _FULL_WIDTH)
            self.classifier = model.fc
            self.video = nn.Sequential(OrderedDict((name, model.get_submodule(name)) for name in _STAGES))
        self.normalise = Renormalise(mean=mean, std=std)

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002  (it is left alone)
        """Logits (N, K) of the whole clip.

        Raises:
            ConfigError: rgb is None, or of a shape that mvit_v2_s does not take.
        """
        if rgb is None:
            raise ConfigError("this network needs rgb, got None: load RGB frames")
        self._refuse_other_samples(rgb)
        features = self.video(self.normalise(rgb.transpose(1, 2)))
        if features.dim() == 5:
            features = features.mean(dim=(2, 3, 4))
        return {"spatial": self.classifier(features)}

    def layer_chains(self) -> list[list[nn.Module]]:
        """Stem, stages or blocks, and classifier."""
        video: Any = self.video
        is_resnet = isinstance(video, nn.Sequential)
        layers = list(video) if is_resnet else [video.conv_proj, video.pos_encoding, *video.blocks, video.norm]
        return [[*layers, self.classifier]]

    @property
    def maps_name(self) -> str | None:
        """The module whose maps over time and space are the last; None where tokens are."""
        return None if self.config.network == "mvit_v2_s" else f"video.{_STAGES[-1]}"

    def checkpoint_activations(self) -> Network:
        """Not supported: there are no towers whose activations could be recomputed.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"activation checkpointing is not supported by {self.config.network}: set "
            "training.activation_checkpointing=false, or use training.micro_batches"
        )

    def _refuse_other_samples(self, rgb: Tensor) -> None:
        if self.config.network != "mvit_v2_s":
            return
        (snippets, size), (_, got, _, height, width) = MVIT_SAMPLE, rgb.shape
        if (got, height, width) != (snippets, size, size):
            raise ConfigError(
                f"mvit_v2_s needs samples of {snippets} snippets of {size}x{size} px, got {got} of {height}x{width}: "
                f"set data.sampling.num_snippets={snippets} and data.transforms.crop_px={size}, or choose r2plus1d_18"
            )


def load_video_weights(network: Clip3dNetwork, *, config: Clip3dConfig, read_bytes: ReadBytes | None) -> None:
    """Copy the weights that `config` names into a network, if it names any; a classifier of other classes stays random.

    Names are this package's or torchvision's.

    Raises:
        WeightsError: no weights can be read, one is missing, has another shape or has values that are not finite.
    """
    if config.weights is None:
        return
    read = read_state(config.weights, backbone=config.network, read_bytes=read_bytes)
    source = {_own_name(name): values for name, values in read.items()}
    copy_state(network, source, read=read, weights=config.weights, backbone=config.network, head="classifier")


def _own_name(name: str) -> str:
    """Map a weight's name by torchvision, or by this package, to this package's."""
    if name.startswith(("video.", "classifier.")):
        return name
    for head in ("fc.", "head.1."):
        if name.startswith(head):
            return f"classifier.{name.removeprefix(head)}"
    return f"video.{name}"


def _scale_width(network: nn.Module, factor: float) -> None:
    """Replace every layer of a residual network by one with `factor` times its maps, initialised as in torchvision."""

    def scaled(maps: int) -> int:
        return max(1, round(maps * factor))

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv3d):
                setattr(parent, name, _scaled_conv(layer, scaled))
            elif isinstance(layer, nn.BatchNorm3d):
                setattr(parent, name, nn.BatchNorm3d(scaled(layer.num_features)))
            elif isinstance(layer, nn.Linear):
                classifier = nn.Linear(scaled(layer.in_features), layer.out_features)
                nn.init.normal_(classifier.weight, std=0.01)
                nn.init.zeros_(classifier.bias)
                setattr(parent, name, classifier)


def _scaled_conv(layer: nn.Conv3d, scaled: Callable[[int], int]) -> nn.Conv3d:
    conv = nn.Conv3d(
        layer.in_channels if layer.in_channels == RGB_CHANNELS else scaled(layer.in_channels),
        scaled(layer.out_channels),
        cast(tuple[int, int, int], layer.kernel_size),
        cast(tuple[int, int, int], layer.stride),
        cast(tuple[int, int, int], layer.padding),
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
