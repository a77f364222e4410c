"""Settings of the HTTP service: the model, the address, the limits of requests."""

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
    """Limits of a video, of a client and of all requests together, each with its HTTP status."""

    body_bytes: int = 200_000_000
    """Bytes of a request's body, or of the file at a URI; more are 413, as soon as that is known."""

    seconds: float = 300.0
    """Duration of a video; a longer one is 422."""

    frames: int = 10_000
    """Frames of a video; one with more is 422."""

    queue: int = 16
    """Videos that may wait in the queue; one more is 429, with Retry-After."""

    receiving: int = 32
    """Bodies received at the same time; one more is 429."""

    answer_seconds: float = 120.0
    """From the end of a body to its response, waiting included; what takes longer is 504."""

    receive_seconds: float = 120.0
    """For the whole body to arrive; a slower client is 408."""

    silence_seconds: float = 10.0
    """Between two parts of a body, and for a request's headers to arrive; a slower client is 408."""

    connections: int = 512
    """Open connections; more are closed at once."""

    def __post_init__(self) -> None:
        require_within(self, "limits.", body_bytes="[1, 1_000_000_000_000]", seconds="(0, 1_000_000]")
        require_within(self, "limits.", frames="[2, 10_000_000]", queue="[0, 100_000]", receiving="[1, 100_000]")
        require_within(self, "limits.", answer_seconds="(0, 86_400]", receive_seconds="(0, 86_400]")
        require_within(self, "limits.", silence_seconds="(0, 86_400]", connections="[1, 1_000_000]")

    @property
    def video(self) -> VideoLimits:
        """The limits of the video itself."""
        return VideoLimits(max_bytes=self.body_bytes, max_seconds=self.seconds, max_frames=self.frames)


@dataclass(frozen=True, kw_only=True)
class ReplicasConfig:
    """The service as replicas on a Ray cluster, behind the proxies of Ray Serve."""

    number: int = 0
    """Replicas, each a complete service; 0: the service is this process, without Ray."""

    cpus: float = 1.0
    """CPU cores of each replica: the number of videos decoded at a time, and of threads of its network."""

    gpus: float = 0.0
    """GPUs of each replica for its network; a fraction lets replicas share one."""

    def __post_init__(self) -> None:
        require_within(self, "replicas.", number="[0, 10_000]", cpus="(0, 1_000]", gpus="[0, 64]")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A trained model as an HTTP service that classifies raw videos and explains its predictions."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, whose alias is followed, models:/NAME/VERSION, runs:/ID/model, or a directory with
    model.safetensors."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all interfaces. There is no login: put a proxy in front of it."""

    port: int = 8000
    """Port to listen on; 0 takes a free one, which is printed."""

    device: str = "auto"
    """Device of the network: cpu, cuda, or auto: a GPU if there is one."""

    protocol: str = "validation"
    """Which views of a video are scored, one of the protocols of `predict`."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Changes to the protocol."""

    decoders: int | None = None
    """Decoder processes, and videos processed at a time; by default one per CPU core."""

    follow_seconds: float = 10.0
    """Interval of polling the registry for a move of @champion."""

    wait: bool = False
    """Start without a model if there is none yet or the registry cannot be reached: 503 until one is loaded."""

    uris: list[str] = field(default_factory=list)
    """Prefixes of the URIs or paths that {"uri": ...} may name, such as s3://bucket/videos; by default none."""

    samples: str | None = None
    """Folder whose first 12 videos the page offers as samples; by default synthetic moving shapes."""

    clip_cache_bytes: int = 64_000_000
    """Memory of the cache of decoded videos, so that a video is not decoded again to be explained."""

    clip_cache_seconds: float = 300.0
    """How long a decoded video stays cached after its last use."""

    shutdown_seconds: float = 30.0
    """After Ctrl-C or SIGTERM: how long requests under way may take to finish."""

    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """Limits of requests."""

    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    """Replicas on a Ray cluster instead of this process."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, if the model comes from its registry."""

    def __post_init__(self) -> None:
        require_within(self, port="[0, 65_535]", decoders="[1, 1_000]", follow_seconds="[0.05, 86_400]")
        require_within(self, clip_cache_bytes="[0, 1_000_000_000_000]", clip_cache_seconds="[0, 86_400]")
        require_within(self, shutdown_seconds="[0, 86_400]")
        if not self.host.strip() or not self.host.isprintable():
            raise ConfigError(f"host must be an address or a name of this machine, got {brief(self.host)}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {brief(self.device)}")
        if not all(uri.strip() for uri in self.uris):
            raise ConfigError("uris must be prefixes of URIs, got an empty one, which would allow all")
        _ = self.views_protocol

    @property
    def views_protocol(self) -> Protocol:
        """The views that are scored."""
        return resolve_protocol(self.protocol, self.views)
