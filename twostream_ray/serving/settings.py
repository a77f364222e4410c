"""Settings of the service: the model that it answers with, where it listens, and what it takes from whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from twostream_ray.data.protocols import Protocol, ViewsConfig, resolve_protocol
from twostream_ray.data.video.limits import VideoLimits
from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief
from twostream_ray.settings.bounds import require_within
from twostream_ray.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What one video, one sender, and all of them together may take; each has its HTTP status."""

    body_bytes: int = 200_000_000
    """Bytes of a request's body, or of the file that a URI names; more are 413, as soon as that is known."""

    seconds: float = 300.0
    """Time that a video may take to play; a longer one is 422."""

    frames: int = 10_000
    """Frames of a video; one with more is 422."""

    queue: int = 16
    """Videos that may wait while others are answered; one more is 429, with Retry-After."""

    receiving: int = 32
    """Bodies that may be on their way at a time; one more is 429."""

    answer_seconds: float = 120.0
    """From the end of a body to its answer, waiting included; what takes longer is 504."""

    receive_seconds: float = 120.0
    """For the whole of a body to arrive; a slower sender is 408."""

    silence_seconds: float = 10.0
    """Between two parts of a body, and for a request's head to arrive; a slower sender is 408."""

    connections: int = 512
    """Open connections; more are closed at once."""

    def __post_init__(self) -> None:
        require_within(self, "limits.", body_bytes="[1, 1_000_000_000_000]", seconds="(0, 1_000_000]")
        require_within(self, "limits.", frames="[2, 10_000_000]", queue="[0, 100_000]", receiving="[1, 100_000]")
        require_within(self, "limits.", answer_seconds="(0, 86_400]", receive_seconds="(0, 86_400]")
        require_within(self, "limits.", silence_seconds="(0, 86_400]", connections="[1, 1_000_000]")

    @property
    def video(self) -> VideoLimits:
        """Of the video itself."""
        return VideoLimits(max_bytes=self.body_bytes, max_seconds=self.seconds, max_frames=self.frames)


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """The service in several processes on a Ray cluster, behind the proxies of Ray Serve."""

    number: int = 0
    """Replicas, each with the whole service; 0: the service is this process, and Ray is not started."""

    cpus: float = 1.0
    """Processors of each: so many videos it decodes at a time, so many threads its network has."""

    gpus: float = 0.0
    """GPUs of each, on which its network computes; replicas may share one."""

    def __post_init__(self) -> None:
        require_within(self, "replicas.", number="[0, 10_000]", cpus="(0, 1_000]", gpus="[0, 64]")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A trained model as a service: raw videos over HTTP in, classes and the reasons for them out."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, which is followed when it moves, models:/NAME/VERSION, runs:/ID/model, or a directory with
    model.safetensors."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine. There is no login: put a proxy before it."""

    port: int = 8000
    """Port to listen at; 0 takes a free one, which is printed."""

    device: str = "auto"
    """Where the network computes: cpu, cuda, or auto: a GPU where there is one."""

    protocol: str = "validation"
    """Which views of a video are scored, one of those of `predict`."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """What is changed of the protocol."""

    decoders: int | None = None
    """Processes that decode, and videos that are worked on at a time; by default one for each processor."""

    follow_seconds: float = 10.0
    """Between two looks at the registry, whether @champion has moved."""

    wait: bool = False
    """Start without a model where there is none yet, or the registry is away: 503 until there is one."""

    uris: list[str] = field(default_factory=list)
    """Beginnings of URIs or paths that {"uri": ...} may name, such as s3://bucket/videos; by default none may."""

    samples: str | None = None
    """Folder whose first 12 videos the page offers as samples; by default it offers moving shapes."""

    clip_cache_bytes: int = 64_000_000
    """Memory for videos that were decoded last, so that the same one need not be decoded again to be explained."""

    clip_cache_seconds: float = 300.0
    """How long such a video is kept."""

    shutdown_seconds: float = 30.0
    """After Ctrl-C or SIGTERM: how long what has begun may take to be answered."""

    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What is refused."""

    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    """Where it runs: in this process, or on a Ray cluster."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""

    def __post_init__(self) -> None:
        require_within(self, port="[0, 65_535]", decoders="[1, 1_000]", follow_seconds="[0.05, 86_400]")
        require_within(self, clip_cache_bytes="[0, 1_000_000_000_000]", clip_cache_seconds="[0, 86_400]")
        require_within(self, shutdown_seconds="[0, 86_400]")
        if not self.host.strip() or not self.host.isprintable():
            raise ConfigError(f"host must be an address or a name of this machine, got {brief(self.host)}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {brief(self.device)}")
        if not all(uri.strip() for uri in self.uris):
            raise ConfigError("uris must be beginnings of URIs, got an empty one, which would be all of them")
        _ = self.views_protocol

    @property
    def views_protocol(self) -> Protocol:
        """Which views are scored."""
        return resolve_protocol(self.protocol, self.views)
