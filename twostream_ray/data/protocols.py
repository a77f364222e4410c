"""Test-time evaluation protocols of the papers, by name: which views of a clip are scored and how they are averaged.

Free of NumPy, so that the command line can import it cheaply; `views` generates the views.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief
from twostream_ray.settings.bounds import require_within

Crops = Literal["centre", "corners", "full"]
Average = Literal["softmax", "logits", "network"]


def _require_known(settings: Any, **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = getattr(settings, name)
        if value not in get_args(kind) and value is not None:
            raise ConfigError(f"views.{name} must be one of {', '.join(get_args(kind))}, got {brief(value)}")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Evaluation protocol: which views of a clip are scored, and how view scores are averaged into clip scores."""

    name: str
    """Name of the protocol; "NAME (changed)" when settings override a named one."""

    times: int | None = None
    """Samples per clip, with evenly spaced starts; None: the model's test_times."""

    snippets: int | None = None
    """T: snippets per sample; None: as the model was trained."""

    spread: bool = False
    """Whether a sample's snippets are spread evenly over the whole clip instead of max_stride_frames apart."""

    crops: Crops = "centre"
    """centre: the centre crop; corners: the four corners and the centre; full: the whole frame (fully convolutional
    testing)."""

    mirrored: bool = False
    """Whether each crop is also scored mirrored."""

    average: Average = "network"
    """What is averaged over views and towers: softmax, logits, or network: whichever the network averages in training.
    """

    def __post_init__(self) -> None:
        require_within(self, "views.", times="[1, 1_000]", snippets="[1, 1_000]")
        _require_known(self, crops=Crops, average=Average)

    def describe(self) -> str:
        """The protocol in words, one line."""
        samples = "samples as the model's test_times says" if self.times is None else f"{self.times} samples of a clip"
        many = f"{self.snippets} snippet{'s' * (self.snippets != 1)}"
        length = "as many snippets as in training" if self.snippets is None else many
        how = ", spread over the clip" if self.spread else ""
        crops = {
            "centre": "the centre crop",
            "corners": "the four corners and the centre",
            "full": "the full frame (fully convolutional)",
        }[self.crops]
        mean = {"softmax": "softmax scores", "logits": "logits", "network": "what the network averages"}[self.average]
        mirrors = ", and their mirror images" if self.mirrored else ""
        return f"{self.name}: {samples}, each of {length}{how}; {crops}{mirrors}; mean of {mean}"


VALIDATION = Protocol(name="validation")
"""The protocol of validation during training, and the default of evaluation and prediction."""

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        VALIDATION,
        Protocol(name="fast", times=1),
        # Simonyan and Zisserman 2014, sec. 5.
        Protocol(name="paper_2014", times=25, snippets=1, crops="corners", mirrored=True, average="softmax"),
        # Feichtenhofer et al. 2016, sec. 4, and its official code.
        Protocol(name="fusion_2016", times=20, crops="full", mirrored=True, average="logits"),
        # Feichtenhofer et al. 2016b, its official code: convolutional in space and time.
        Protocol(
            name="st_resnet_2016", times=1, snippets=25, spread=True, crops="full", mirrored=True, average="logits"
        ),
        # Wang et al. 2016: 25 segments, 10 crops.
        Protocol(name="tsn", times=25, snippets=1, crops="corners", mirrored=True, average="logits"),
        Protocol(name="custom"),
    )
}
"""The named protocols; `custom` equals `validation` and is meant to be overridden by settings."""


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Overrides of a named protocol; by default none."""

    times: int | None = None
    """Samples per clip, with evenly spaced starts; by default the protocol's."""

    snippets: int | None = None
    """T: snippets per sample, each one RGB frame and its flow stack; by default the protocol's."""

    crops: Crops | None = None
    """centre; corners: the four corners and the centre; full: the whole frame (fully convolutional testing). By default
    the protocol's."""

    mirrored: bool | None = None
    """Also score each crop mirrored; by default the protocol's."""

    average: Average | None = None
    """What is averaged over views and towers: softmax, logits, or network: whichever the network averages in training.
    By default the protocol's."""

    def __post_init__(self) -> None:
        require_within(self, "views.", times="[1, 1_000]", snippets="[1, 1_000]")
        _require_known(self, crops=Crops, average=Average)


def resolve_protocol(name: str, changes: ViewsConfig | None = None) -> Protocol:
    """Look up a protocol by name and apply overrides.

    Raises:
        ConfigError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {brief(name)}")
    named = PROTOCOLS[name]
    given = {field.name: getattr(changes, field.name) for field in fields(ViewsConfig)} if changes else {}
    changed = replace(named, **{key: value for key, value in given.items() if value is not None})
    return named if changed == named else replace(changed, name=name if name == "custom" else f"{name} (changed)")
