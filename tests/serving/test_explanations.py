import base64
import itertools
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from running_service import CLASSES, RunningService, running_service, stored_model

from twostream_ray.data.protocols import PROTOCOLS
from twostream_ray.model_package import read_package
from twostream_ray.serving.explanations import ExplanationAnswer, explained_protocol
from twostream_ray.serving.settings import LimitsConfig, ServeConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(uri: str) -> np.ndarray:
    kind, content = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels


def test_reasons_come_with_the_answer_as_shares_seconds_and_pictures_of_both_streams(
    service: RunningService, video: bytes
) -> None:
    found = service.post("/explain?moments=3", video)
    assert found.status == 200, found.content
    ExplanationAnswer.model_validate(found.json)
    answer = service.post("/predict", video).json
    assert found.json["heads"] == answer["heads"] and found.json["over_time"] == answer["over_time"]
    # The clip is still there from the first of the two.
    assert answer["timings"]["decode_seconds"] == 0
    reasons = found.json["reasons"]
    assert reasons["label"] == answer["heads"][0]["top"][0]["class"] and reasons["clip"] is None
    assert reasons["streams"]["appearance"] + reasons["streams"]["motion"] == pytest.approx(1)
    assert reasons["seconds"][0]["start_seconds"] == 0 and reasons["seconds"][-1]["end_seconds"] == 16 / 25
    for part, following in itertools.pairwise(reasons["seconds"]):
        assert part["start_seconds"] < part["end_seconds"] == following["start_seconds"]
    assert len(reasons["moments"]) == min(3, len(reasons["seconds"])) > 1
    for moment in reasons["moments"]:
        assert moment["overlays"].keys() == {"spatial", "temporal", "fused"}
        for uri in (moment["rgb"], moment["flow"], *moment["overlays"].values()):
            assert picture(uri).shape == (48, 48, 3)
        # Lit over the frame: nowhere brighter than it is, but for what coding and the line add.
        assert picture(moment["overlays"]["spatial"]).mean() < picture(moment["rgb"]).mean()


def test_another_class_is_explained_where_it_is_asked_for(service: RunningService, video: bytes) -> None:
    for label in CLASSES:
        assert service.post(f"/explain?label={label}&moments=1", video).json["reasons"]["label"] == label


@pytest.mark.parametrize("query", ["label=fly", "moments=0", "moments=33", "clips=true", "label=%00"])
def test_what_cannot_be_explained_is_refused_in_words(service: RunningService, video: bytes, query: str) -> None:
    answer = service.post(f"/explain?{query}", video)
    assert (answer.status, answer.kind) == (400, "bad_parameter")
    assert query.partition("=")[0] in answer.message


def test_the_prepared_clip_is_an_mp4_where_it_is_asked_for(service: RunningService, video: bytes) -> None:
    uri = service.post("/explain?clip=true&moments=1", video).json["reasons"]["clip"]
    assert uri.startswith("data:video/mp4;base64,") and base64.b64decode(uri.partition(",")[2])[4:8] == b"ftyp"


@pytest.mark.slow
def test_overlays_that_a_network_lacks_are_said_in_words(tmp_path: Path, video: bytes) -> None:
    with running_service(ServeConfig(model=str(stored_model(tmp_path, architecture="late")))) as running:
        reasons = running.post("/explain?moments=1", video).json["reasons"]
    assert reasons["missing"] == {"fused": "its streams meet only in their scores"}
    assert reasons["moments"][0]["overlays"].keys() == {"spatial", "temporal"}
    assert reasons["streams"]["method"] == "exact"


def test_a_protocol_of_many_views_is_explained_by_few(model_folder: Path) -> None:
    package = read_package(model_folder)
    for protocol in PROTOCOLS.values():
        chosen = explained_protocol(protocol, package)
        assert 1 <= (chosen.times or 0) <= 4 and not chosen.mirrored and chosen.crops in ("centre", "full")
        assert chosen.snippets == protocol.snippets and chosen.average == protocol.average


@pytest.mark.slow
def test_others_are_answered_between_the_passes_of_an_explanation(
    service: RunningService, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = service.service.current.loaded
    assert loaded is not None
    forward = type(loaded.classifier.network).forward
    answered: list[float] = []

    def slow_forward(self: object, *streams: object) -> object:
        time.sleep(0.1)
        return forward(self, *streams)

    monkeypatch.setattr(type(loaded.classifier.network), "forward", slow_forward)

    def explain() -> None:
        assert service.post("/explain?moments=1", video).status == 200
        answered.append(time.monotonic())

    thread = threading.Thread(target=explain)
    thread.start()
    time.sleep(1)
    assert service.post("/predict", video).status == 200
    predicted = time.monotonic()
    thread.join()
    assert predicted < answered[0]


@pytest.mark.slow
def test_an_explanation_that_takes_too_long_is_504_and_ends(
    service: RunningService, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.post("/predict", video).status == 200
    loaded, queue = service.service.current.loaded, service.service.queue
    assert loaded is not None
    forward = type(loaded.classifier.network).forward
    passes: list[float] = []

    def slow_forward(self: object, *streams: object) -> object:
        passes.append(time.monotonic())
        time.sleep(0.5)
        return forward(self, *streams)

    monkeypatch.setattr(type(loaded.classifier.network), "forward", slow_forward)
    monkeypatch.setattr(queue, "_limits", LimitsConfig(answer_seconds=2))
    answer = service.post("/explain", video)
    assert (answer.status, answer.kind) == (504, "took_too_long")
    ended = time.monotonic()
    while queue.running and time.monotonic() < ended + 20:
        time.sleep(0.05)
    assert queue.running == 0
    assert passes[-1] < ended + 2
