import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytest import CaptureFixture

from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.protocols import PROTOCOLS
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.files import write_video
from twostream_ray.data.video.isolation import decoder_pool
from twostream_ray.data.video.limits import VideoLimits
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.views import evaluation_views
from twostream_ray.errors import ConfigError
from twostream_ray.evaluation.aggregate import aggregate
from twostream_ray.heads import softmax
from twostream_ray.inference import Classifier
from twostream_ray.model_package import ModelPackage, load_model, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.view_scorer import ViewScorer

CLASSES = ("shapes/run", "shapes/walk", "stored/run", "stored/sit", "stored/walk")


def stored_model(folder: Path, *, classes: tuple[str, ...] = CLASSES, architecture: str = "fused") -> Path:
    """An untrained network for two data sets, of 2 and 3 classes, as training leaves it."""
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(
            architecture=architecture,
            spatial=tower,
            temporal=tower,
            fusion=FusionConfig(layers=("relu4",), temporal="pool2d"),
            head_classes=(2, 3),
        ),
        classes=classes,
        contract=FlowContract(short_side_px=48),
        sampling=SamplingConfig(num_snippets=2, test_times=2),
        transforms=TransformConfig(crop_px=48),
    )
    save_model(folder, package.build(pretrained=False), package)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(draw_clip(SyntheticConfig(size_px=64), "test", 0), path=path, container="mp4", fps=25)
    return path


@pytest.mark.parametrize("architecture", ["fused", "late"])
def test_a_model_of_two_data_sets_answers_for_each_with_classes_beside_their_numbers(
    tmp_path: Path, video: Path, architecture: str
) -> None:
    classifier = Classifier.load(stored_model(tmp_path, architecture=architecture))
    (prediction,) = classifier.predict([video], top_k=2)
    assert [head.name for head in prediction.heads] == ["shapes", "stored"]
    assert [head.classes for head in prediction.heads] == [CLASSES[:2], CLASSES[2:]]
    for head in prediction.heads:
        assert sum(head.probabilities) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(softmax([head.logits])[0], head.probabilities, atol=1e-6)
        by_class = dict(zip(head.classes, head.probabilities, strict=True))
        assert len(head.top) == 2 and head.top[0] == max(by_class.items(), key=lambda item: item[1])
    (one,) = classifier.predict([video], head="stored")
    assert one.heads[0].logits == prediction.heads[1].logits and one.top[:2] == prediction.heads[1].top
    with pytest.raises(ConfigError, match="answer for each of shapes, stored: read `heads`, or predict with head=NAME"):
        _ = prediction.top
    with pytest.raises(ConfigError, match="data set of the model, got 'ucf101': it has shapes, stored"):
        classifier.predict([video], head="ucf101")


def test_a_model_whose_classes_name_no_data_set_numbers_its_answers(tmp_path: Path, video: Path) -> None:
    classifier = Classifier.load(stored_model(tmp_path, classes=("a", "b", "c", "d", "e")))
    (prediction,) = classifier.predict([video])
    assert [(head.name, head.classes) for head in prediction.heads] == [("1", ("a", "b")), ("2", ("c", "d", "e"))]


@pytest.mark.slow
def test_predict_prints_an_answer_for_each_data_set(tmp_path: Path, video: Path, capsys: CaptureFixture[str]) -> None:
    command = ["predict", str(video), "--model", str(stored_model(tmp_path))]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{video} (shapes): ") and second.startswith(f"{video} (stored): ")
    assert " run 0." in first and " walk 0." in first and " sit 0." in second and "/sit" not in second
    assert main([*command, "--head", "stored"]) == 0
    assert capsys.readouterr().out.splitlines() == [second]
    assert main([*command, "--format", "json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert set(answer) == {"video", "heads", "error"}
    assert [set(head) for head in answer["heads"]] == [{"name", "top", "classes", "probabilities", "logits"}] * 2
    assert [name for head in answer["heads"] for name in head["classes"]] == list(CLASSES)
    assert main([*command, "--head", "hmdb51"]) == 2
    assert "got 'hmdb51': it has shapes, stored" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "protocols"), [("fused", ["fast", "fusion_2016"]), ("late", ["paper_2014"])])
def test_a_protocol_is_chosen_apart_from_what_the_model_was_trained_with(
    tmp_path: Path, video: Path, architecture: str, protocols: list[str]
) -> None:
    folder = stored_model(tmp_path, architecture=architecture)
    content = video.read_bytes()
    classifier = Classifier.load(folder)
    plain = classifier.score(content)
    np.testing.assert_array_equal(classifier.score(content, protocol="validation").logits, plain.logits)
    assert Classifier.load(folder, protocol="paper_2014").protocol == PROTOCOLS["paper_2014"]
    clip = prepare_clip(content, classifier.package.contract, name="clip")
    for name in protocols:
        network, package = load_model(folder)
        scorer = ViewScorer(network, package, protocol=PROTOCOLS[name])
        wanted = aggregate(scorer.score(clip)[None], average=scorer.average, heads=package.heads)
        found = classifier.score(content, protocol=name)
        np.testing.assert_array_equal(found.logits, wanted.logits[0])
        assert [found.probabilities[:2].sum(), found.probabilities[2:].sum()] == pytest.approx([1, 1])
        # All of so short a clip is one sample: `fast` shows what `validation` shows.
        assert name == "fast" or np.abs(found.logits - plain.logits).max() > 1e-6
    with pytest.raises(ConfigError, match=r"protocol must be one of validation, .* got 'paper_2041'"):
        classifier.predict([video], protocol="paper_2041")


@pytest.mark.slow
def test_validation_is_the_mean_over_views_that_the_network_makes_in_training(tmp_path: Path, video: Path) -> None:
    for architecture in ("fused", "late"):
        folder = stored_model(tmp_path / architecture, architecture=architecture)
        network, package = load_model(folder)
        clip = prepare_clip(video.read_bytes(), package.contract, name="clip")
        views = evaluation_views(
            clip.num_frames,
            clip.height,
            clip.width,
            sampling_config=package.sampling,
            transform_config=package.transforms,
        )
        samples = [decode_sample(clip, view, config=package.sampling, contract=package.contract) for view in views]
        rgb, flow = (torch.from_numpy(np.stack(stream)) for stream in zip(*samples, strict=True))
        with torch.no_grad():
            averaged = network.scores(network(normalise_rgb(rgb), normalise_flow(flow))).mean(dim=0, keepdim=True)
        found = Classifier.load(folder).score(video.read_bytes())
        for one, other in zip(found, package.class_scores(averaged.numpy()), strict=True):
            np.testing.assert_allclose(one, other[0], atol=1e-6)


@pytest.mark.slow
def test_predict_takes_a_protocol_and_changes_of_it(tmp_path: Path, video: Path, capsys: CaptureFixture[str]) -> None:
    command = ["predict", str(video), "--model", str(stored_model(tmp_path)), "--format", "json"]

    def logits(*more: str) -> list[float]:
        assert main([*command, *more]) == 0
        return json.loads(capsys.readouterr().out)["heads"][0]["logits"]

    assert logits() == logits("--protocol", "validation") == logits("--protocol", "custom")
    assert logits("--protocol", "paper_2014", "--views.times", "2") != logits()
    assert logits("--views.times", "1") == logits("--protocol", "fast")
    assert main([*command, "--protocol", "paper_2041"]) == 2
    refused = capsys.readouterr().err
    assert all(name in refused for name in ("paper_2041", *PROTOCOLS))


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_the_registered_model_answers_for_each_data_set(tmp_path: Path, video: Path) -> None:
    from twostream_ray.served import ServedClassifier

    served = ServedClassifier()
    served.classifier = Classifier.load(stored_model(tmp_path))
    table = pd.DataFrame({"video": [str(video), str(tmp_path / "missing.mp4")]})
    good, bad = served.predict(table, {"top_k": 2, "head": ""})
    assert [head["name"] for head in good["heads"]] == ["shapes", "stored"]
    for head in good["heads"]:
        assert len(head["classes"]) == len(head["probabilities"]) == len(head["logits"]) == 2
    (by_fast, _) = served.predict(table, {"protocol": "fast"})
    (fast,) = served.classifier.predict([str(video)], protocol="fast")
    assert by_fast["heads"][0]["logits"] == sorted(fast.heads[0].logits, reverse=True)
    (asked, _) = served.predict(table, {"head": "stored"})
    assert [(head["name"], len(head["classes"])) for head in asked["heads"]] == [("stored", 3)]
    assert bad["heads"] == [] and "missing.mp4" in bad["error"]


def test_predict_draws_its_classes_into_one_video_and_overwrites_its_own_files_alone(
    tmp_path: Path, video: Path, capsys: CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn.mp4"
    command = ["predict", str(video), "--model", str(stored_model(tmp_path / "model")), "--video", str(drawn)]
    assert main(command) == 2
    assert "one data set's classes can be drawn, got 2: give --head NAME" in capsys.readouterr().err
    for _ in range(2):
        assert main([*command, "--head", "stored", "--every_seconds", "0.3", "--window_seconds", "0.3"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"16 frames with their classes are in {drawn}"
    drawn.write_bytes(b"theirs")
    assert main([*command, "--head", "stored"]) == 2
    assert "where there is a file that it did not write" in capsys.readouterr().err
    assert drawn.read_bytes() == b"theirs"
    assert main([*command[:-1], str(video)]) == 2
    assert "video must be another file than the one to read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_video_beyond_the_limits_is_refused_with_the_way_out_and_spoils_no_other(tmp_path: Path, video: Path) -> None:
    folder, content = stored_model(tmp_path), video.read_bytes()
    bounds = {
        "at most 10 frames, this has": VideoLimits(max_frames=10),
        "at most 0.5 s, this takes": VideoLimits(max_seconds=0.5),
        "at most 1000 bytes, this has": VideoLimits(max_bytes=1000),
    }
    for said, limits in bounds.items():
        by_bytes, missing = Classifier.load(folder, limits=limits).predict([content, "missing.mp4"])
        assert by_bytes.error is not None and said in by_bytes.error and by_bytes.heads == ()
        assert missing.error is not None and "missing.mp4" in missing.error
        assert "bytes" in said or "`twostream predict --every_seconds` answers for parts" in by_bytes.error
    (by_path,) = Classifier.load(folder, limits=VideoLimits(max_bytes=1000)).predict([video])
    assert by_path.error is not None and "1000 bytes" in by_path.error


@pytest.mark.slow
def test_many_videos_are_answered_in_their_order_and_decoded_side_by_side(tmp_path: Path, video: Path) -> None:
    pool = decoder_pool(2)
    classifier = Classifier.load(stored_model(tmp_path), pool=pool)
    bad = b"no video"
    answers = classifier.predict([video, bad, *[video.read_bytes()] * 7])
    assert [answer.video for answer in answers] == [str(video), *(f"video {number}" for number in range(1, 9))]
    assert [answer.error is None for answer in answers] == [True, False, *[True] * 7]
    assert len({answer.heads for answer in answers}) == 2 and len(pool.ids) == 2
    pool.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
def test_the_registered_model_takes_limits_and_versions_from_before_them_load(tmp_path: Path, video: Path) -> None:
    from mlflow.pyfunc import PythonModelContext

    from twostream_ray.served import ServedClassifier

    artifacts = {"settings": str(stored_model(tmp_path) / "model.json")}
    table = pd.DataFrame({"video": [str(video)]})
    for options, is_refused in (({}, False), ({"max_seconds": 0.5}, True), ({"max_frames": 16}, False)):
        served = ServedClassifier()
        served.load_context(PythonModelContext(artifacts, {"device": "cpu", **options}))
        (answer,) = served.predict(table)
        assert bool(answer["error"]) == is_refused
    with pytest.raises(ConfigError, match="max_frames must be at least 2"):
        ServedClassifier().load_context(PythonModelContext(artifacts, {"device": "cpu", "max_frames": 1}))


def test_scores_over_time_average_to_the_clips_and_follow_the_views_times(tmp_path: Path, video: Path) -> None:
    classifier = Classifier.load(stored_model(tmp_path, architecture="late"), protocol="paper_2014")
    clip = prepare_clip(video.read_bytes(), classifier.package.contract, name="clip")
    whole, spans = classifier.score_over_time(clip)
    assert len(spans) == 25
    mean = np.mean([span.scores.probabilities for span in spans], axis=0)
    np.testing.assert_allclose(mean, whole.probabilities, atol=1e-9)
    np.testing.assert_array_equal(whole.logits, classifier.score_clip(clip).logits)
    assert 0 <= spans[0].start_seconds < spans[-1].start_seconds
    assert spans[-1].end_seconds <= clip.num_frames / clip.fps

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier.score_over_time(clip, on_batch=stop)
