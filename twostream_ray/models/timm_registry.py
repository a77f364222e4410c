"""Registry of timm's networks: their names and tags of weights, and the networks made by name (Wightman 2019)."""

from difflib import get_close_matches
from typing import Any

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.models.layers import TIMM

_PUBLISHED_CLASSES = 1000
"""What a network is made for before it gets a classifier of ours; some have none of their own."""
_SHOWN_NAMES = 8


def known_name(backbone: str) -> str:
    """Timm's name in `timm:NAME` or `timm:NAME.TAG`, whose tag names published weights.

    Raises:
        ConfigError: timm is not installed, or knows no such network or no such tag of it.
    """
    timm = require_timm()
    name = backbone.removeprefix(TIMM)
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture.strip().lower(), timm.list_models(), n=_SHOWN_NAMES, cutoff=0.5)
        raise ConfigError(
            f"backbone {backbone}: timm {timm.__version__} knows no network {name!r}"
            + (f"; near it are {', '.join(near)}" if near else "")
            + "; timm.list_models() names all"
        )
    if dot and tag not in (tags := _tags(architecture)):
        raise ConfigError(
            f"backbone {backbone}: timm {timm.__version__} knows no weights {tag!r} of {architecture}: leave .{tag} out"
            + (f", or take one of {', '.join(tags)}" if tags else "")
        )
    return name


def _tags(architecture: str) -> list[str]:
    """What may stand behind a network's name and a dot."""
    names = require_timm().list_models(f"{architecture}.*", include_tags=True)
    return [str(name).partition(".")[2] for name in names]


def create_network(backbone: str, *, in_channels: int, drop_path: float, pretrained: bool = False) -> Any:
    """Timm's module, initialised by timm from torch's global random numbers, or from its published weights.

    Raises:
        ConfigError: timm is not installed, does not know the network, or it has no stochastic depth.
        WeightsError: it has no published weights, or they can be had neither from the cache nor from the network.
    """
    name, timm = known_name(backbone), require_timm()
    if pretrained:
        require_published(backbone)
    settings: dict[str, Any] = {"in_chans": in_channels, "pretrained": pretrained, "num_classes": _PUBLISHED_CLASSES}
    if drop_path:
        settings["drop_path_rate"] = drop_path
    try:
        try:
            # Vision transformers take frames of any size with it: their position embedding is resampled.
            return timm.create_model(name, dynamic_img_size=True, **settings)
        except TypeError:
            return timm.create_model(name, **settings)
    except TypeError as error:
        if not drop_path:
            raise
        raise ConfigError(f"backbone {backbone} takes no drop_path ({error}): leave drop_path at 0") from error
    except Exception as error:  # the hub's client raises errors of four libraries
        if not pretrained:
            raise
        raise WeightsError(
            f"weights=timm of {backbone} could be had neither from the cache nor from the network "
            f"({' '.join(str(error).split())[:200]}): fetch them where there is a network by "
            f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` and bring the cache's folder "
            "(HF_HOME), or save that network's state_dict() to a file and give its path or URI as weights"
        ) from error


def require_published(backbone: str) -> None:
    """Refuse a network whose weights timm does not publish; asks no server.

    Raises:
        ConfigError: as `known_name`.
        WeightsError: it has none.
    """
    name, timm = known_name(backbone), require_timm()
    config = timm.get_pretrained_cfg(name)
    if config is not None and not config.has_weights:
        known = [f"{TIMM}{one}" for one in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        raise WeightsError(
            f"weights=timm of {backbone}: timm {timm.__version__} publishes none: leave weights out, name a file of "
            f"yours, or take {'one of ' + ', '.join(known) if known else 'another network'}"
        )


def require_timm() -> Any:
    """The package timm.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "a backbone timm:... wants the package timm, which is not installed: pip install 'twostream_ray[timm]'"
        ) from error
    return timm
