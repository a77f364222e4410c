"""Pods of our image: what Kubernetes takes and Ray or a run would stumble over."""

from __future__ import annotations

import re
from typing import Any

from checks.documents import Document, Keys, Report, at
from checks.pins import IMAGE_NAME, OURS, Pins, check_image, image_of

SHARED_MEMORY = "/dev/shm"  # noqa: S108  (where Ray keeps its objects)
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FACTORS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
GPU = "nvidia.com/gpu"
_RESOURCE = re.compile(
    r"cpu|memory|ephemeral-storage|hugepages-\w+|nvidia\.com/(gpu|mig-[\w.-]+)|vpc\.amazonaws\.com/efa"
)
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|PRIVATE|ACCESS_KEY|CREDENTIAL")
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""What a pod that runs our image says to Ray and MLflow."""


def amount(quantity: Any) -> float:
    """A quantity of Kubernetes as a number: "2Gi" is 2147483648; NaN where it is none."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    return float(found[1]) * _FACTORS[found[2]] if found and found[2] in _FACTORS else float("nan")


def check_pod(document: Document, keys: Keys, template: Any, pins: Pins, report: Report) -> None:
    """What holds for every pod: no secrets in clear, versions of images, requests within limits, its volumes."""
    spec = at(template, "spec", default={})
    keys = (*keys, "spec")
    volumes = {at(one, "name") for one in at(spec, "volumes", default=[])}
    claims = at(document.values, "spec", "volumeClaimTemplates", default=[])
    volumes |= {at(one, "metadata", "name") for one in claims}
    for part in ("initContainers", "containers"):
        for number, container in enumerate(at(spec, part, default=[])):
            here = (*keys, part, number)
            _check_container(document, here, container, pins, report)
            for index, mount in enumerate(at(container, "volumeMounts", default=[])):
                if at(mount, "name") not in volumes:
                    text = f"no volume of the pod has the name {at(mount, 'name')!r}"
                    report.add(document, (*here, "volumeMounts", index), text)


def _check_container(document: Document, keys: Keys, container: Any, pins: Pins, report: Report) -> None:
    image = str(at(container, "image", default=""))
    if image_of(image) in OURS:
        wrong = check_image(image, pins)
        if wrong:
            report.add(document, (*keys, "image"), wrong)
    elif not IMAGE_NAME.fullmatch(image):
        report.add(document, (*keys, "image"), f"no name of an image, {image!r}: lower case, and no blanks")
    elif not re.search(r":[\w.-]*\d[\w.-]*$|@sha256:", image):
        report.add(document, (*keys, "image"), f"an image without a version, {image!r}: write one")
    seen = set()
    for index, entry in enumerate(at(container, "env", default=[])):
        name = str(at(entry, "name"))
        if name in seen:
            report.add(document, (*keys, "env", index), f"{name} is given twice: the last one would count")
        seen.add(name)
        value = str(at(entry, "value", default=""))
        # In a URI, what $(NAME) takes from another variable is not in clear.
        if (_SECRET.search(name) and value) or re.search(r"://[^/:@]+:(?!\$\()[^/@]+@", value):
            text = f"{name} stands here in clear: take it from a secret by valueFrom.secretKeyRef"
            report.add(document, (*keys, "env", index), text)
    requests, limits = (
        at(container, "resources", "requests", default={}),
        at(container, "resources", "limits", default={}),
    )
    for name, quantity in requests.items():
        if name in limits and amount(quantity) > amount(limits[name]):
            text = f"asks for more {name} ({quantity}) than its limit ({limits[name]})"
            report.add(document, (*keys, "resources", "requests", name), text)
    for name in sorted({*requests, *limits}):
        if not _RESOURCE.fullmatch(name):
            text = f"no resource that a node of these clusters has: there are cpu, memory, {GPU} and ephemeral-storage"
            report.add(document, (*keys, "resources"), f"{name}: {text}")
    gpus = requests.get(GPU), limits.get(GPU)
    if gpus[0] != gpus[1]:
        text = f"wants as many nvidia.com/gpu in requests as in limits, got {gpus[0]} and {gpus[1]}"
        report.add(document, (*keys, "resources"), text)


def check_ray_pod(document: Document, keys: Keys, template: Any, report: Report) -> None:
    """What holds for a pod in which Ray runs: shared memory for its objects, memory that is kept for it, silence."""
    spec = at(template, "spec", default={})
    container = at(spec, "containers", 0, default={})
    here = (*keys, "spec", "containers", 0)
    mounts = {at(one, "mountPath"): at(one, "name") for one in at(container, "volumeMounts", default=[])}
    volume = next(
        (one for one in at(spec, "volumes", default=[]) if one.get("name") == mounts.get(SHARED_MEMORY)), None
    )
    memory = at(container, "resources", "limits", "memory")
    if at(volume, "emptyDir", "medium") != "Memory":
        text = "has no emptyDir of medium Memory at /dev/shm: a pod's own has 64 MB, and Ray's objects would go to disk"
        report.add(document, (*here, "volumeMounts"), text)
    elif not 0 < amount(at(volume, "emptyDir", "sizeLimit")) < 0.5 * amount(memory):
        text = (
            f"{SHARED_MEMORY} wants a sizeLimit below half of the pod's limit of memory ({memory}), got "
            f"{at(volume, 'emptyDir', 'sizeLimit')}: what is in it counts as the pod's memory"
        )
        report.add(document, (*keys, "spec", "volumes"), text)
    for name in ("cpu", "memory"):
        asked, limit = at(container, "resources", "requests", name), at(container, "resources", "limits", name)
        if limit is None or asked != limit:
            text = f"wants the same {name} in requests and limits, got {asked} and {limit}: Ray counts on its limit"
            report.add(document, (*here, "resources"), text)
    borne = [at(one, "key") for one in at(spec, "tolerations", default=[])]
    if at(container, "resources", "limits", GPU) and not {GPU, None} & set(borne):
        text = f"wants a toleration of {GPU}: nodes with GPUs are kept for pods that have one"
        report.add(document, (*keys, "spec", "tolerations"), text)
    settings = {at(one, "name"): at(one, "value") for one in at(container, "env", default=[])}
    for name, value in SILENT.items():
        if settings.get(name) != value:
            report.add(document, (*here, "env"), f"wants {name}={value}, got {settings.get(name)}")
    uri = settings.get("MLFLOW_TRACKING_URI", "")
    if not str(uri).startswith(("http://", "https://")):
        report.add(document, (*here, "env"), f"wants MLFLOW_TRACKING_URI to be a server's http(s)://, got {uri!r}")
    if settings.get("RAY_AUTH_MODE", "token") != "token":
        text = "RAY_AUTH_MODE is the operator's to set, to token: leave it out"
        report.add(document, (*here, "env"), text)
