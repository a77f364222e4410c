import json
from pathlib import Path

import numpy as np
import pytest
from running_service import CLASSES, RunningService, running_service, stored_model

from twostream_ray.inference import Classifier
from twostream_ray.serving.answers import EXAMPLE, ErrorAnswer, ModelAnswer, PredictionAnswer, ReadyAnswer
from twostream_ray.serving.settings import ServeConfig


@pytest.mark.slow
def test_an_answer_is_what_the_classifier_says_of_the_video_and_names_its_version(
    service: RunningService, model_folder: Path, video: bytes
) -> None:
    answer = service.post("/predict?top_k=2", video)
    assert answer.status == 200, answer.content
    PredictionAnswer.model_validate(answer.json)
    wanted = Classifier.load(model_folder).predict([video])[0].heads[0]
    (head,) = answer.json["heads"]
    assert [score["class"] for score in head["scores"]] == list(CLASSES)
    np.testing.assert_allclose([score["logit"] for score in head["scores"]], wanted.logits, atol=1e-6)
    np.testing.assert_allclose([score["probability"] for score in head["scores"]], wanted.probabilities, atol=1e-6)
    assert [(best["class"]) for best in head["top"]] == [name for name, _ in wanted.top[:2]]
    assert answer.json["protocol"] == "validation" and answer.json["streams"] is None
    loaded = service.service.current.loaded
    assert loaded is not None
    assert answer.json["model"] == loaded.identity() == service.get("/model").json["model"]
    facts = answer.json["video"]
    assert (facts["frames"], facts["fps"], facts["seconds"]) == (16, 25.0, 16 / 25)
    timings = answer.json["timings"]
    assert all(value >= 0 for value in timings.values())
    assert timings["total_seconds"] >= timings["network_seconds"] > 0


def test_scores_over_time_are_of_parts_of_the_video_in_order(service: RunningService, video: bytes) -> None:
    spans = service.post("/predict", video).json["over_time"]
    assert len(spans) == 3
    assert [span["start_seconds"] for span in spans] == sorted(span["start_seconds"] for span in spans)
    for span in spans:
        assert 0 <= span["start_seconds"] < span["end_seconds"] <= 16 / 25
        (head,) = span["heads"]
        assert len(head["probabilities"]) == len(CLASSES) and sum(head["probabilities"]) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fused", "late"])
def test_shares_of_the_streams_add_up_to_one(tmp_path: Path, video: bytes, architecture: str) -> None:
    folder = stored_model(tmp_path, architecture=architecture)
    with running_service(ServeConfig(model=str(folder))) as running:
        shares = running.post("/predict?streams=true", video).json["streams"]
    assert shares["appearance"] + shares["motion"] == pytest.approx(1) and 0 < shares["motion"] < 1
    assert architecture == "fused" or shares["method"] == "exact"


@pytest.mark.slow
def test_a_model_of_several_data_sets_answers_for_each_or_the_one_asked_for(tmp_path: Path, video: bytes) -> None:
    with running_service(ServeConfig(model=str(stored_model(tmp_path, head_classes=(1, 2))))) as running:
        heads = running.post("/predict", video).json["heads"]
        assert [(head["name"], len(head["scores"])) for head in heads] == [("1", 1), ("2", 2)]
        answer = running.post("/predict?head=2", video).json
        assert [head["name"] for head in answer["heads"]] == ["2"]
        assert [head["name"] for head in answer["over_time"][0]["heads"]] == ["2"]
        refused = running.post("/predict?head=9", video)
        assert (refused.status, refused.kind) == (400, "bad_parameter") and "it has 1, 2" in refused.message


@pytest.mark.parametrize(
    "query", ["top_k=0", "top_k=x", "top_k=-1", "streams=maybe", "topk=3", "top_k=99999999999999999999"]
)
def test_a_bad_parameter_is_400_and_says_which(service: RunningService, video: bytes, query: str) -> None:
    answer = service.post(f"/predict?{query}", video)
    assert (answer.status, answer.kind) == (400, "bad_parameter")
    assert query.partition("=")[0] in answer.message
    ErrorAnswer.model_validate(answer.json)


def test_what_is_not_there_is_404_and_another_method_405_in_the_same_form(service: RunningService) -> None:
    answer = service.get("/nothing")
    assert (answer.status, answer.kind) == (404, "not_found")
    answer = service.get("/predict")
    assert (answer.status, answer.kind, answer.headers["allow"]) == (405, "wrong_method", "POST")


def test_health_readiness_and_the_model_are_said(service: RunningService) -> None:
    assert service.get("/healthz").status == 200
    ready = service.get("/readyz")
    assert ready.status == 200 and ready.json["ready"] is True
    ReadyAnswer.model_validate(ready.json)
    model = service.get("/model").json
    ModelAnswer.model_validate(model)
    assert model["heads"] == [{"name": "", "classes": list(CLASSES)}]
    assert model["contract"]["short_side_px"] == 48
    assert model["limits"]["body_bytes"] == 200_000_000
    assert model["model"]["uri"] == "local" and model["model"]["version"] == model["model"]["sha256"][:12]


def test_openapi_describes_the_routes_with_examples_and_statuses(service: RunningService) -> None:
    document = service.get("/openapi.json").json
    assert {"/predict", "/healthz", "/readyz", "/model", "/metrics"} <= document["paths"].keys()
    predict = document["paths"]["/predict"]["post"]
    assert set(predict["responses"]) == {"200", *map(str, (400, 408, 413, 415, 422, 429, 500, 503, 504))}
    assert predict["responses"]["200"]["content"]["application/json"]["example"] == EXAMPLE
    PredictionAnswer.model_validate(EXAMPLE)
    assert "multipart/form-data" in predict["requestBody"]["content"]
    assert service.get("/docs").status == service.get("/redoc").status == 404


def test_metrics_count_answers_by_route_and_status_and_not_by_what_clients_make_up(
    service: RunningService, video: bytes
) -> None:
    def value(line: str) -> float:
        lines = service.get("/metrics").content.decode().splitlines()
        return next((float(found.rpartition(" ")[2]) for found in lines if found.startswith(line)), 0.0)

    counted = 'twostream_requests_total{route="/predict",status="200"}'
    before = value(counted), value('twostream_stage_seconds_count{stage="decode"}')
    assert service.post("/predict", video).status == 200
    service.get("/made-up-by-a-client")
    assert (value(counted), value('twostream_stage_seconds_count{stage="decode"}')) == (before[0] + 1, before[1] + 1)
    text = service.get("/metrics").content.decode()
    assert "made-up" not in text and 'route="other",status="404"' in text
    assert value("twostream_ready") == 1 and "twostream_model_info" in text


def test_nothing_of_the_file_system_is_in_any_answer(service: RunningService, model_folder: Path, video: bytes) -> None:
    answers = [
        *(service.get(path) for path in ("/model", "/readyz", "/metrics", "/openapi.json", "/nothing")),
        service.post("/predict", video),
        service.post("/predict", b"#EXTM3U\n/etc/passwd"),
        service.post("/predict", json.dumps({"uri": str(model_folder)}), media="application/json"),
    ]
    for answer in answers:
        text = answer.content.decode()
        assert str(model_folder) not in text and "/tmp" not in text and "root:" not in text and "upload-" not in text
