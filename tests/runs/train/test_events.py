import pickle

from twostream_ray.runs.train.events import (
    DecodingChosen,
    DeviceSettingsChosen,
    EpochEnded,
    EpochRecorded,
    StepEnded,
    TrainingFailed,
    WorkersLost,
)


def test_events_survive_the_way_from_a_worker_to_the_driver() -> None:
    events = [
        DecodingChosen(at="device", reason="cuda:0 decodes the flow fields of a batch in lists"),
        DeviceSettingsChosen(device="NVIDIA H100", precision="bfloat16", channels_last=True, compile=True),
        StepEnded(epoch=0, num_epochs=2, step=1, num_steps=3, loss=0.5),
        EpochEnded(epoch=0, num_epochs=2, metrics={"epoch": 0, "train_loss": 0.5}),
        WorkersLost(reason="worker 1 died"),
        EpochRecorded(),
        TrainingFailed(message="a finite loss was wanted"),
    ]
    assert pickle.loads(pickle.dumps(events)) == events
