"""Hot swap: the model that answers now, replaced between requests when the registry's alias moves to another one."""

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
    """A model in memory; a request keeps the one that it began with."""

    uri: str
    """As it was asked for; "local" for a directory, whose path is nobody's business."""
    name: str
    """Of the registered model; that of a directory is "local"."""
    version: str
    """In the registry; elsewhere the beginning of the weights' hash."""
    sha256: str
    """Of model.safetensors."""
    card: str | None
    """Its description in the registry, Markdown."""
    classifier: Classifier
    """The network, classes and flow contract."""
    network_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by who computes: one at a time, as each takes all processors or the GPU."""

    def identity(self) -> dict[str, str]:
        """What every answer names it by."""
        return {"uri": self.uri, "name": self.name, "version": self.version, "sha256": self.sha256}


class CurrentModel:
    """Holds the model that answers, and follows its alias in a thread of its own."""

    def __init__(self, config: ServeConfig, *, pool: Pool) -> None:
        """Load nothing yet.

        Args:
            config: the model's URI, device, protocol and limits.
            pool: children that decode for every version.
        """
        self._config, self._pool = config, pool
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._loading = threading.Lock()
        self.loaded: LoadedModel | None = None
        """What answers now; None before the first one is there."""
        self.fault: str | None = None
        """Why the last look at the registry, or the last load, failed."""
        self.swaps = 0
        """How often another version has taken over."""

    def load(self) -> LoadedModel:
        """Load the model, or the version that its alias names now, unless it is the one that answers already.

        Raises:
            RegistryError, StorageError, CheckpointError, ConfigError: it cannot be had, or cannot score the protocol.
        """
        with self._loading:
            uri, config = self._config.model, self._config.tracking
            found = tracking.find_version(uri, config=config) if tracking.names_version(uri) else None
            before = self.loaded
            if before is not None and (found is None or (before.name, before.version) == (found[0], str(found[1]))):
                return before
            card = None if found is None else tracking.version_card(*found, config=config)
            # By its number: the alias may move while its files come.
            source = uri if found is None else f"models:/{found[0]}/{found[1]}"
            with local_model(source, config=config) as directory:
                loaded = self._loaded_from(directory, found=found, card=card)
            self.loaded = loaded
            if before is not None:
                self.swaps += 1
                _log.warning("version %s of %s answers in place of %s", loaded.version, loaded.name, before.version)
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
        """Begin to look, in a thread, for a first model and then for every move of its alias."""
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
                    _log.warning("the model can be had again")
                self.fault = None
                if not moves:
                    return
            except Exception as error:  # noqa: BLE001  whatever it is, the model that is there goes on answering
                said = str(error) if isinstance(error, TwoStreamError) else repr(error)
                if said != self.fault:
                    _log.warning("no other model can be had now, it is tried again: %s", said)
                self.fault = said

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def describe(self, model: LoadedModel) -> dict[str, Any]:
        """What `GET /model` says of one."""
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
    """`auto` looked up: a GPU where there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
