from twostream_ray.tracking.lineage import GIT_COMMIT, MANIFEST
from twostream_ray.tracking.measurement import Measurement
from twostream_ray.tracking.model_card import model_card


def test_a_card_says_scores_and_on_how_many_clips_protocol_flow_classes_and_lineage() -> None:
    card = model_card(
        "two-stream",
        summary="VGG-16 towers.",
        measurement=Measurement(
            manifest_hash="0a" * 32, split="test", num_evaluated=298, num_clips=300, metrics={"top1": 0.5}
        ),
        protocol="25 views",
        classes=[f"class{number}" for number in range(25)],
        flow_contract={"algorithm": "dis", "bound_px": 20},
        lineage={MANIFEST: "1b" * 32, GIT_COMMIT: "abc"},
    )
    assert card.startswith("VGG-16 towers.\n")
    assert "Split `test`, 298 of 300 clips: top1 50.00%." in card
    assert f"25 views; manifest `{'0a' * 32}`" in card and "algorithm dis, bound_px 20" in card
    assert "(25).** class0, " in card and "class19 … 25 in all" in card and "class20" not in card
    assert f"Trained on manifest `{'1b' * 32}`, code at git commit `abc`, Ray job `none`" in card
    assert 'load_model("models:/two-stream@champion")' in card
