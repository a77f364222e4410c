"""The versions that the repository pins, and the image's recipe held against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from checks.documents import Document, Report

DRIVERS = {"12": 525, "13": 580}
"""CUDA's major version -> the oldest NVIDIA driver (major) that runs all its minor versions (CUDA's release notes)."""


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What every file has to agree with."""

    package: str
    """Version of twostream_ray, which is the image's tag."""
    ray: str
    mlflow: str
    botocore: str
    pythons: tuple[str, ...]
    """Versions of Python as pyproject.toml's classifiers list them: "3.11"."""
    cuda: str
    """That of torch, by its runtime in constraints.txt: "13.2"."""

    @property
    def driver(self) -> int:
        """The oldest NVIDIA driver for this CUDA."""
        return DRIVERS[self.cuda.partition(".")[0]]


def read_pins(root: Path) -> Pins:
    """The versions in constraints.txt, pyproject.toml and the package."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (root / "constraints.txt").read_text(), flags=re.MULTILINE))
    project = (root / "pyproject.toml").read_text()
    package = re.search(r'^__version__ = "(.+)"$', (root / "twostream_ray/__init__.py").read_text(), re.MULTILINE)
    if package is None:
        raise ValueError(f"{root}/twostream_ray/__init__.py has no __version__")
    return Pins(
        package=package[1],
        ray=pinned["ray"],
        mlflow=pinned["mlflow"],
        botocore=pinned["botocore"],
        pythons=tuple(re.findall(r"Python :: (3\.\d+)\"", project)),
        cuda=".".join(pinned["nvidia-cuda-runtime"].split(".")[:2]),
    )


OURS = {"twostream-ray": "twostream_ray", "twostream-mlflow": "MLflow"}
"""Images that are built here -> whose version their tag is."""


IMAGE_NAME = re.compile(r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
"""REGISTRY/PATH:TAG, as Docker takes it."""


def image_of(name: str) -> str:
    """An image's name without registry and tag."""
    return name.rpartition("/")[2].partition(":")[0]


def check_image(name: str, pins: Pins) -> str | None:
    """What is wrong with the name of an image of ours; None if nothing is."""
    tag = name.rpartition("/")[2].partition(":")[2]
    what = OURS.get(image_of(name))
    if not IMAGE_NAME.fullmatch(name):
        return f"no name of an image, {name!r}: lower case, and no blanks"
    wanted = pins.mlflow if what == "MLflow" else pins.package
    if what is None:
        return f"wants one of the images that are built here, {' or '.join(OURS)}, got {name!r}"
    if not tag or tag == "latest":
        return f"an image without a version, {name!r}: nodes would differ; write :{wanted}"
    if tag != wanted:
        return f"the image is of version {tag}, {what} of {wanted}: build and name :{wanted}"
    return None


def check_dockerfile(root: Path, pins: Pins, report: Report) -> None:
    """cluster/Dockerfile: Python, packages by constraints.txt, CUDA's driver, settings that are secure and silent."""
    file = "cluster/Dockerfile"
    whole = Document(file=file, values=None)
    text = (root / file).read_text().replace("\\\n", " ")

    def wrong(what: str) -> None:
        report.add(whole, (), what)

    python = re.search(r"^FROM python:(3\.\d+)\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    if python is None or python[1] not in pins.pythons:
        wrong(f"FROM wants python:{' or '.join(pins.pythons)}.x-slim-DEBIAN: clients and nodes run one Python")
    installs = re.findall(r"pip install ([^&\n]+)", text)
    if len(installs) != 2 or "-c constraints.txt" not in installs[0] or "--no-deps" not in installs[-1]:
        wrong("wants two `pip install`: the dependencies with -c constraints.txt, then the package with --no-deps")
    if (root / "cluster/rayservice.yaml").exists() and not re.search(r'"\.\[(\w+,)*serve(,\w+)*\]"', installs[0]):
        wrong('wants ".[serve]" among the dependencies: rayservice.yaml serves from this image')
    if f"boto3=={pins.botocore}" not in text:
        wrong(f"wants boto3=={pins.botocore}, the version of botocore in constraints.txt: both are released together")
    settings = dict(re.findall(r"\b([A-Z][A-Z_]+)=(\"[^\"]*\"|\S+)", text))
    wanted = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name, value in wanted.items():
        if settings.get(name) != value:
            wrong(f"ENV wants {name}={value}, got {settings.get(name)}")
    cuda = pins.cuda.partition(".")[0] + ".0"
    if settings.get("NVIDIA_REQUIRE_CUDA", "").strip('"') != f"cuda>={cuda}":
        wrong(
            f'ENV wants NVIDIA_REQUIRE_CUDA="cuda>={cuda}", as torch brings CUDA {pins.cuda}: a node whose driver is '
            f"older than {pins.driver} then says so when the container starts"
        )
    if "video" not in settings.get("NVIDIA_DRIVER_CAPABILITIES", "").split(","):
        wrong("NVIDIA_DRIVER_CAPABILITIES lacks video: the GPU's JPEG decoder would be missing")
    if not text.rstrip().endswith("USER ray"):
        wrong("wants USER ray as its last line: containers are not to run as root")
    _check_what_is_copied(root, text, wrong)
    for image in re.findall(r"-t (\S+)", text):
        problem = check_image(image, pins)
        if problem:
            wrong(problem)


def check_server_dockerfile(root: Path, pins: Pins, report: Report) -> None:
    """cluster/mlflow.Dockerfile: the MLflow that the nodes speak to is the one that they were tested with."""
    file = "cluster/mlflow.Dockerfile"
    text = (root / file).read_text()
    whole = Document(file=file, values=None)
    if text.split("FROM ")[1].split()[0] != (root / "cluster/Dockerfile").read_text().split("FROM ")[1].split()[0]:
        report.add(whole, (), "FROM wants the Python image of cluster/Dockerfile")
    for package, version in {"mlflow[auth]": pins.mlflow, "boto3": pins.botocore}.items():
        if f"{package}=={version}" not in text:
            report.add(whole, (), f"wants {package}=={version}, as constraints.txt pins it")
    for image in re.findall(r"-t (\S+)", text):
        problem = check_image(image, pins)
        if problem:
            report.add(whole, (), problem)


def _check_what_is_copied(root: Path, text: str, wrong: object) -> None:
    ignored = (root / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {one for line in re.findall(r"^COPY (.+)", text, flags=re.MULTILINE) for one in line.split()[:-1]}
    missing = {one.partition("/")[0] for one in copied} ^ allowed
    if missing:
        wrong(f"COPY and Dockerfile.dockerignore differ in {', '.join(sorted(missing))}")  # type: ignore[operator]


def check_driver_in_words(root: Path, file: str, pins: Pins, report: Report) -> None:
    """A page or file that names a driver or CUDA names the pinned ones."""
    for number, line in enumerate((root / file).read_text().splitlines(), start=1):
        whole = Document(file=file, values=None, lines={(): number})
        for driver in re.findall(r"\bdriver (\d{3})\b", line):
            if int(driver) != pins.driver:
                report.add(whole, (), f"names driver {driver}, CUDA {pins.cuda} needs {pins.driver} or newer")
        for cuda in re.findall(r"\bCUDA (\d+)\b", line):
            if cuda != pins.cuda.partition(".")[0]:
                report.add(whole, (), f"names CUDA {cuda}, torch brings CUDA {pins.cuda}")
