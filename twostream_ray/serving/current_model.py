"""Hot model reload: the served model version follows its registry alias and is swapped between requests."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twostream_ray import tracking
from twostream_ray.data.video.isolation import Pool
from twostream_ray.errors import TwoStreamError
from twostream_ray.inference import Classifier
from twostream_ray.model_source import local_model
from twostream_ray.serving.settings import ServeConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model version in memory; a request uses the same one from start to end."""

    uri: str
    """As configured; "local" for a directory, whose path is not disclosed to clients."""
    name: str
    """Of the registered model; "local" for a directory."""
    version: str
    """In the registry; otherwise the first 12 digits of the weights' SHA-256."""
    sha256: str
    """Of model.safetensors."""
    card: str | None
    """The model card, its description in the registry, as Markdown."""
    classifier: Classifier
    """Network, classes and flow contract."""
    network_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the network runs: one forward pass uses all CPU cores or the GPU."""

    def identity(self) -> dict[str, str]:
        """The `model` field of every response."""
        return {"uri": self.uri, "name": self.name, "version": self.version, "sha256": self.sha256}


class CurrentModel:
    """Holds the served model and polls the registry for its alias in a background thread."""

    def __init__(self, config: ServeConfig, *, pool: Pool) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            config: the model's URI, device, protocol and limits.
            pool: decoder processes, shared by all versions.
        """
        self._config, self._pool = config, pool
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._loading = threading.Lock()
        self.loaded: LoadedModel | None = None
        """The served model; None until the first one is loaded."""
        self.fault: str | None = None
        """Error of the last poll or load; None if it succeeded."""
        self.swaps = 0
        """Number of times that another version was swapped in."""

    def load(self) -> LoadedModel:
        """Load the model version that the URI names now, unless it is already served.

        Raises:
            RegistryError, StorageError, CheckpointError: the model cannot be loaded.
            ConfigError: it does not support the protocol.
        """
        with self._loading:
            uri, config = self._config.model, self._config.tracking
            found = tracking.find_version(uri, config=config) if tracking.names_version(uri) else None
            before = self.loaded
            if before is not None and (found is None or (before.name, before.version) == (found[0], str(found[1]))):
                return before
            card = None if found is None else tracking.version_card(*found, config=config)
            # Download by version number: the alias may move during the download.
            source = uri if found is None else f"models:/{found[0]}/{found[1]}"
            with local_model(source, config=config) as directory:
                loaded = self._loaded_from(directory, found=found, card=card)
            self.loaded = loaded
            if before is not None:
                self.swaps += 1
                _log.warning(
                    "version %s of %s is now served instead of %s", loaded.version, loaded.name, before.version
                )
            return loaded

    def _loaded_from(self, directory: Path, *, found: tuple[str, int] | None, card: str | None) -> LoadedModel:
        with (directory / tracking.PACKAGE_FILES[0]).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        classifier = Classifier.load(
            directory,
            device=resolved_device(self._config.device),
            protocol=self._config.views_protocol,
            limits=self._config.limits.video,
            pool=self._pool,
        )
        uri = self._config.model if self._config.model.startswith(("models:/", "runs:/")) else "local"
        name, version = (uri, sha256[:12]) if found is None else (found[0], str(found[1]))
        return LoadedModel(uri=uri, name=name, version=version, sha256=sha256, card=card, classifier=classifier)

    def follow(self) -> None:
        """Start the polling thread: until a first model is loaded, then for every move of its alias."""
        moves = tracking.names_version(self._config.model) and "@" in self._config.model
        if self.loaded is None or moves:
            self._thread = threading.Thread(target=self._follow, args=(moves,), name="follow-model", daemon=True)
            self._thread.start()

    def _follow(self, moves: bool) -> None:
        wait = 0.0 if self.loaded is None else self._config.follow_seconds
        while not self._stopped.wait(wait):
            wait = self._config.follow_seconds
            try:
                self.load()
                if self.fault is not None:
                    _log.warning("the model can be loaded again")
                self.fault = None
                if not moves:
                    return
            except Exception as error:  # noqa: BLE001  after any error the loaded model keeps serving
                said = str(error) if isinstance(error, TwoStreamError) else repr(error)
                if said != self.fault:
                    _log.warning("the model cannot be loaded now, trying again: %s", said)
                self.fault = said

    def stop(self) -> None:
        """Stop polling."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def describe(self, model: LoadedModel) -> dict[str, Any]:
        """The body of `GET /model`."""
        package, limits = model.classifier.package, self._config.limits
        return {
            "model": model.identity(),
            "heads": [{"name": head.name, "classes": list(head.classes_of(package.classes))} for head in package.heads],
            "contract": asdict(package.contract),
            "protocol": {"name": model.classifier.protocol.name, "description": model.classifier.protocol.describe()},
            "card": model.card,
            "limits": asdict(limits),
            "device": model.classifier.device,
        }


def resolved_device(device: str) -> str:
    """The device, with `auto` resolved to a GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
