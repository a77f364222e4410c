import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_service import Answer, register_version, running_service, stored_model

from twostream_ray.errors import RegistryError
from twostream_ray.inference import Classifier
from twostream_ray.serving.settings import ServeConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for

NAME = "served here"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackingConfig, dict[str, Path]]:
    """Two versions of a model of other weights, and none that is champion."""
    folder = tmp_path_factory.mktemp("registry")
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    folders = {}
    for seed in (1, 2):
        stored = stored_model(folder / f"model {seed}", seed=seed)
        folders[str(register_version(stored, name=NAME, config=config))] = stored
    return config, folders


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_the_champion_is_followed_and_every_answer_is_of_the_version_that_it_names(
    registry: tuple[TrackingConfig, dict[str, Path]], video: bytes
) -> None:
    config, folders = registry
    client = client_for(config.resolved_uri())
    wanted = {
        version: Classifier.load(folder).predict([video])[0].heads[0].logits for version, folder in folders.items()
    }
    settings = ServeConfig(
        model=f"models:/{NAME}@champion", tracking=config, follow_seconds=0.05, wait=True, decoders=2
    )
    with running_service(settings) as running:
        early = running.post("/predict", video)
        assert (early.status, early.kind, early.headers["retry-after"]) == (503, "no_model", "5")
        assert running.get("/readyz").json == {"ready": False, "model": None} and running.get("/model").status == 503
        assert running.get("/healthz").status == 200

        client.set_registered_model_alias(NAME, "champion", "1")
        until(lambda: running.get("/readyz").status == 200)
        model = running.get("/model").json
        assert (model["model"]["uri"], model["model"]["version"]) == (f"models:/{NAME}@champion", "1")
        assert "a small network of the tests" in model["card"]

        answers: list[Answer] = []
        stopped = threading.Event()

        def ask() -> None:
            while not stopped.is_set():
                answers.append(running.post("/predict", video))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for swaps, version in enumerate(("2", "1"), start=1):
            client.set_registered_model_alias(NAME, "champion", version)
            until(lambda swaps=swaps: running.service.current.swaps == swaps)  # type: ignore[misc]
            seen = len(answers)
            until(lambda seen=seen: len(answers) > seen + 2)  # type: ignore[misc]
        stopped.set()
        for thread in threads:
            thread.join()
        assert [answer.status for answer in answers] == [200] * len(answers)
        assert {answer.json["model"]["version"] for answer in answers} == {"1", "2"}
        for answer in answers:
            logits = [score["logit"] for score in answer.json["heads"][0]["scores"]]
            np.testing.assert_allclose(logits, wanted[answer.json["model"]["version"]], atol=1e-6)
        hashes = {answer.json["model"]["sha256"] for answer in answers}
        assert len(hashes) == 2

        client.delete_registered_model_alias(NAME, "champion")
        until(lambda: running.service.current.fault)
        after = running.post("/predict", video)
        assert (after.status, after.json["model"]["version"]) == (200, "1")
        assert "twostream_model_fault 1.0" in running.get("/metrics").content.decode()


def test_a_version_that_is_named_by_its_number_stays(registry: tuple[TrackingConfig, dict[str, Path]]) -> None:
    config, _ = registry
    with running_service(ServeConfig(model=f"models:/{NAME}/2", tracking=config, follow_seconds=0.05)) as running:
        assert running.get("/model").json["model"]["version"] == "2"
        assert running.service.current._thread is None


def test_a_model_that_is_not_there_is_refused_before_anything_is_served(
    registry: tuple[TrackingConfig, dict[str, Path]],
) -> None:
    config, _ = registry
    with (
        pytest.raises(RegistryError, match=r"models:/none@champion failed at MLflow .* check tracking\.uri"),
        running_service(ServeConfig(model="models:/none@champion", tracking=config)),
    ):
        pass
