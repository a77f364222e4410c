"""ray_cluster.yaml: Ray's own validation, AWS's own parameters (botocore's models), and what both let through."""

from __future__ import annotations

import copy
import logging
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

from checks.documents import Document, Keys, Report, at
from checks.pins import Pins, check_image
from checks.pods import SILENT

INSTANCE_TYPES = {"m7i.2xlarge": (8, 0), "c7i.8xlarge": (32, 0), "g6e.12xlarge": (48, 4), "g6e.xlarge": (4, 1)}
INSTANCE_TYPES |= {"g6.12xlarge": (48, 4), "p5.48xlarge": (192, 8), "p4d.24xlarge": (96, 8), "c7i.16xlarge": (64, 0)}
"""vCPUs and GPUs of AWS's instance types, from EC2's own tables; a type that is not here is taken as declared."""

_PROVIDER = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"}
_PORTS = {"head": r"--port=(\d+)", "worker": r"--address=\$RAY_HEAD_IP:(\d+)"}
_NO_SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")


@cache
def ec2_model() -> Any:
    """EC2's operations and their parameters, as botocore carries them; needs no network."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2")


@cache
def _regions() -> list[str]:
    import botocore.session

    return list(botocore.session.get_session().get_available_regions("ec2"))


def check_launcher(document: Document, pins: Pins, report: Report) -> None:
    """The file of `ray up`."""
    values = document.values
    if not _ray_accepts(document, report):
        return
    _check_provider(document, values, report)
    types = at(values, "available_node_types", default={})
    for name, node in types.items():
        _check_node(document, ("available_node_types", name), node, report, is_head=name == values["head_node_type"])
    workers = [node for name, node in types.items() if name != values["head_node_type"]]
    least, most = (sum(node.get(name, 0) for node in workers) for name in ("min_workers", "max_workers"))
    if not least <= most <= values.get("max_workers", 0):
        text = f"wants at least the workers of all types together, {most}, got {values.get('max_workers')}"
        report.add(document, ("max_workers",), text)
    if at(values, "auth", "ssh_user") != "ubuntu":
        text = f"wants ubuntu, the user of AWS's Ubuntu images, got {at(values, 'auth', 'ssh_user')}"
        report.add(document, ("auth", "ssh_user"), text)
    wrong = check_image(str(at(values, "docker", "image")), pins)
    if wrong:
        report.add(document, ("docker", "image"), wrong)
    _check_environment(document, values, report)
    _check_start(document, values, report)


def _ray_accepts(document: Document, report: Report) -> bool:
    """Ray's schema, which `ray up` checks before it speaks to AWS; Ray offers no public way to it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    # It would say which defaults it has filled in.
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    try:
        validate_config(prepare_config(copy.deepcopy(document.values)))
    except Exception as error:  # noqa: BLE001  (whatever stops `ray up`)
        message = getattr(error, "message", None) or str(error)
        keys = tuple(getattr(error, "absolute_path", ()))
        report.add(document, keys, f"Ray refuses it: {' '.join(message.split()):.300}")
        return False
    return True


def _check_provider(document: Document, values: Any, report: Report) -> None:
    # Ray takes any key here, a misspelt one included.
    provider = values["provider"]
    keys: Keys = ("provider",)
    for name in sorted(provider.keys() - _PROVIDER):
        report.add(document, (*keys, name), f"an unknown key: there are {', '.join(sorted(_PROVIDER))}")
    if provider.get("type") != "aws":
        report.add(document, (*keys, "type"), f"wants aws here, got {provider.get('type')}")
        return
    region = str(provider.get("region"))
    if region not in _regions():
        report.add(document, (*keys, "region"), f"AWS has no region {region!r}")
    for zone in filter(None, str(provider.get("availability_zone", "")).split(",")):
        if not re.fullmatch(re.escape(region) + "[a-f]", zone.strip()):
            report.add(document, (*keys, "availability_zone"), f"{zone.strip()!r} is no zone of {region}")


def _check_node(document: Document, keys: Keys, node: Any, report: Report, *, is_head: bool) -> None:
    from botocore.validate import ParamValidator

    config = at(node, "node_config", default={})
    here = (*keys, "node_config")
    asked = config | {"MinCount": 1, "MaxCount": 1}
    errors = ParamValidator().validate(asked, ec2_model().operation_model("RunInstances").input_shape)
    for line in errors.generate_report().splitlines() if errors.has_errors() else ():
        # How AWS's client says it lists dozens of names.
        report.add(document, here, f"EC2 refuses it: {line.partition(', must be one of')[0]}")
    for place, value, known in _unknown_words(config, ec2_model().operation_model("RunInstances").input_shape):
        report.add(document, (*here, *place), f"EC2 knows no {value!r}: {', '.join(known[:6])}")
    kind = config.get("InstanceType")
    if kind not in ec2_model().shape_for("InstanceType").enum:
        report.add(document, (*here, "InstanceType"), f"AWS has no instance type {kind!r}")
    elif kind in INSTANCE_TYPES:
        cpus, gpus = INSTANCE_TYPES[kind]
        wanted = {"CPU": 0 if is_head else cpus} | ({"GPU": gpus} if gpus else {})
        if at(node, "resources") != wanted:
            text = f"{kind} has {cpus} vCPUs and {gpus} GPUs: wants {wanted}, got {at(node, 'resources')}"
            report.add(document, (*keys, "resources"), text + (" (a head runs no tasks)" if is_head else ""))
    if re.match(r"[a-z]+\d+g[a-z]*\.", str(kind)):
        report.add(document, (*here, "InstanceType"), f"{kind} is an ARM machine, image and packages are for x86_64")
    if "x86_64" not in str(config.get("ImageId")):
        report.add(document, (*here, "ImageId"), f"wants an image for x86_64, got {config.get('ImageId')}")
    if "nvidia-driver" not in str(config.get("ImageId")):
        text = f"wants AWS's image with the current NVIDIA driver, got {config.get('ImageId')}"
        report.add(document, (*here, "ImageId"), text)
    if is_head and "InstanceMarketOptions" in config:
        report.add(
            document, (*here, "InstanceMarketOptions"), "the head is not to be a spot instance: it is the cluster"
        )
    if at(config, "IamInstanceProfile", "Name") is None:
        text = "wants a profile with the least rights: Ray would make one with full access to EC2 and S3"
        report.add(document, (*here, "IamInstanceProfile"), text)
    if not is_head and not 0 <= node.get("min_workers", 0) <= node.get("max_workers", 0):
        text = f"wants 0 <= min_workers <= max_workers, got {node.get('min_workers')} and {node.get('max_workers')}"
        report.add(document, (*keys, "min_workers"), text)


def _unknown_words(value: Any, shape: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str, list[str]]]:
    """Values out of no enumeration of theirs, which AWS's client does not check; instance types are told apart."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name in value.keys() & shape.members.keys():
            yield from _unknown_words(value[name], shape.members[name], (*keys, name))
    elif shape.type_name == "list" and isinstance(value, list):
        for number, one in enumerate(value):
            yield from _unknown_words(one, shape.member, (*keys, number))
    elif (enum := getattr(shape, "enum", None)) and value not in enum and keys[-1:] != ("InstanceType",):
        yield keys, value, list(enum)


def _check_environment(document: Document, values: Any, report: Report) -> None:
    keys: Keys = ("docker", "run_options")
    words = [word for option in at(values, *keys, default=[]) for word in shlex.split(option)]
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    wanted = {"RAY_AUTH_MODE": "token", **SILENT, "AWS_DEFAULT_REGION": str(at(values, "provider", "region"))}
    for name, value in wanted.items():
        if settings.get(name) != value:
            report.add(document, keys, f"wants -e {name}={value}, got {settings.get(name)}")
    if not re.match("https?://", settings.get("MLFLOW_TRACKING_URI", "")):
        report.add(document, keys, "wants -e MLFLOW_TRACKING_URI=http(s)://...")
    for name in settings:
        if re.search("PASSWORD|SECRET|ACCESS_KEY", name):
            report.add(document, keys, f"{name} stands here in clear: nodes have a role of their own")


def _check_start(document: Document, values: Any, report: Report) -> None:
    if at(values, "file_mounts") != {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}:
        text = "wants the token alone, {/home/ray/.ray/auth_token: ~/.ray/auth_token}: jobs bring their own code"
        report.add(document, ("file_mounts",), text)
    for name in _NO_SETUP:
        if values.get(name) != []:
            report.add(document, (name,), "wants [], as the image is complete: left out, Ray installs a nightly of Ray")
    starts = {name: " ".join(values.get(f"{name}_start_ray_commands", [])).split() for name in ("head", "worker")}
    if "--dashboard-host=127.0.0.1" not in starts["head"]:
        text = "wants --dashboard-host=127.0.0.1: `ray dashboard` tunnels there"
        report.add(document, ("head_start_ray_commands",), text)
    ports = [re.search(pattern, " ".join(starts[name])) for name, pattern in _PORTS.items()]
    if None in ports or len({match[1] for match in ports if match}) > 1:
        text = "workers want --address=$RAY_HEAD_IP:PORT with the head's --port"
        report.add(document, ("worker_start_ray_commands",), text)
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in starts["head"]:
        text = "wants --autoscaling-config=~/ray_bootstrap_config.yaml, or the head starts no workers"
        report.add(document, ("head_start_ray_commands",), text)
