import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.data import flow
from twostream_ray.data.flow import FlowContract
from twostream_ray.errors import ConfigError, ContractMismatchError


def textured(height: int = 96, width: int = 128, *, shift: int = 0) -> NDArray[np.uint8]:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (height, width + 32), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    wide = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    return np.ascontiguousarray(wide[:, 16 - shift : 16 - shift + width])


@pytest.mark.parametrize("algorithm", ["dis", "dis+tvl1"])
def test_a_shift_to_the_right_is_positive_x_and_no_y(algorithm: str) -> None:
    field = flow.flow_function(FlowContract(algorithm=algorithm))(textured(), textured(shift=3))
    inner = field[16:-16, 16:-16]
    assert np.median(inner[..., 0]) == pytest.approx(3, abs=0.2)
    assert np.median(inner[..., 1]) == pytest.approx(0, abs=0.2)


def test_identical_frames_give_exactly_no_motion() -> None:
    field = flow.flow_function(FlowContract())(textured(), textured())
    assert np.abs(field).max() == 0
    assert (flow.quantise(field, FlowContract()) == 128).all()


def test_the_coding_is_exact_at_zero_and_within_half_a_level_elsewhere() -> None:
    contract = FlowContract(bound_px=20)
    values = np.linspace(-20, 20, 1001, dtype=np.float32)
    back = flow.dequantise(flow.quantise(values, contract), contract)
    assert np.abs(back - values).max() <= 20 / 127 / 2 + 1e-5
    assert flow.dequantise(np.array([128], np.uint8), contract)[0] == 0


def test_motion_beyond_the_bound_is_clipped_to_it() -> None:
    contract = FlowContract(bound_px=5)
    levels = flow.quantise(np.array([-50, 50], np.float32), contract)
    assert levels.tolist() == [1, 255]
    assert flow.dequantise(levels, contract).tolist() == [-5, 5]


def test_legacy_coding_reads_the_papers_linear_images() -> None:
    contract = FlowContract(coding="legacy255")
    assert flow.dequantise(np.array([0, 255], np.uint8), contract).tolist() == pytest.approx([-20, 20])


@pytest.mark.parametrize("coding", ["signed127", "legacy255"])
def test_negation_is_exact(coding: str) -> None:
    contract = FlowContract(coding=coding)
    levels = np.arange(1 if coding == "signed127" else 0, 256, dtype=np.uint8)
    back = flow.dequantise(flow.negated(levels, contract), contract)
    np.testing.assert_allclose(back, -flow.dequantise(levels, contract), atol=1e-5)


def test_jpeg_keeps_x_over_y_and_adds_little_error() -> None:
    contract = FlowContract()
    field = np.stack([np.full((64, 96), 3.0), np.full((64, 96), -2.0)], axis=-1).astype(np.float32)
    field[20:40, 30:60] = (-6.0, 8.0)
    x, y = flow.decode_field(flow.encode_field(field, contract))
    assert np.abs(flow.dequantise(x, contract) - field[..., 0]).mean() < 0.1
    assert np.abs(flow.dequantise(y, contract) - field[..., 1]).mean() < 0.1


def test_a_field_less_its_mean_vector_keeps_what_moves_against_the_camera() -> None:
    field = np.broadcast_to(np.array([3.0, -2.0], np.float32)[:, None, None], (2, 8, 10)).copy()
    assert not (field - flow.mean_vectors(field)).any()
    field[0, :, :5] = 1
    x, y = field - flow.mean_vectors(field)
    assert (x[:, :5] == -1).all() and (x[:, 5:] == 1).all() and not y.any()


def test_along_a_uniform_translation_every_field_is_the_same_everywhere() -> None:
    fields = np.broadcast_to(np.array([2.5, -1.25], np.float32)[:, None, None], (4, 2, 12, 16))
    np.testing.assert_array_equal(flow.along_trajectories(fields), fields)


def test_a_trajectory_reads_each_field_where_the_fields_before_have_led() -> None:
    height, width = 16, 20
    row, column = np.mgrid[:height, :width].astype(np.float32)
    fields = np.zeros((3, 2, height, width), np.float32)
    fields[0, 0], fields[0, 1] = 2, 1  # everything moves 2 right and 1 down
    fields[1, 0], fields[1, 1] = row / 2, 0  # then each row to the right by half of its number
    fields[2, 0], fields[2, 1] = column, row  # says where it is read
    first, second, third = flow.along_trajectories(fields)
    np.testing.assert_array_equal(first, fields[0])
    inner = np.s_[2:8, 3:9]
    np.testing.assert_array_equal(second[0][inner], (row[inner] + 1) / 2)
    np.testing.assert_array_equal(third[0][inner], column[inner] + 2 + (row[inner] + 1) / 2)
    np.testing.assert_array_equal(third[1][inner], row[inner] + 1)


def test_a_trajectory_that_leaves_the_frame_reads_its_edge() -> None:
    fields = np.zeros((2, 2, 4, 6), np.float32)
    fields[0, 0] = 50
    fields[1, 0] = np.arange(6)
    assert (flow.along_trajectories(fields)[1, 0] == 5).all()


def test_the_hash_follows_every_setting() -> None:
    contract = FlowContract()
    others = [
        replace(contract, algorithm="tvl1"),
        replace(contract, bound_px=15),
        replace(contract, coding="legacy255"),
        replace(contract, short_side_px=128),
        replace(contract, jpeg_quality=95),
    ]
    assert len({contract.hash, *(other.hash for other in others)}) == 6
    assert FlowContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_a_mismatch_names_both_sides_and_the_way_out() -> None:
    with pytest.raises(
        ContractMismatchError, match=r"model m wants flow bound_px 20.0; shards s has bound_px 15: ingest again"
    ):
        flow.require_same_contract(FlowContract(), FlowContract(bound_px=15), wanted_by="model m", found_in="shards s")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"flow.bound_px must be at least 0.001, got 1e-300"):
        FlowContract(bound_px=1e-300)  # float32 overflows
    with pytest.raises(ConfigError, match="must be even"):
        FlowContract(short_side_px=97)


ABSURD: dict[str, list[object]] = {
    "bound_px": [float("inf"), -1, 0, "20", None, True, 1e9],
    "short_side_px": [10**8, 48.5, 14, "48", -48, True],
    "jpeg_quality": [0, 101, 89.5, "89"],
    "algorithm": ["farneback", None, ["dis"]],
    "coding": ["", 3],
    "channel_order": ["y1 x1"],
    "unknown": [1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
def test_a_contract_from_a_file_has_every_key_in_its_type_and_bounds(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"a flow contract was wanted at .*{name}"):
        FlowContract.from_dict(FlowContract().to_dict() | {name: value})
    if name != "unknown":
        less = {key: kept for key, kept in FlowContract().to_dict().items() if key != "bound_px"}
        with pytest.raises(ConfigError, match="it lacks bound_px"):
            FlowContract.from_dict(less)


def test_settings_are_bounded_as_files_are() -> None:
    for value, message in {
        float("nan"): "a finite number",
        float("inf"): "a finite number",
        1e9: "at most 10,000",
    }.items():
        with pytest.raises(ConfigError, match=rf"flow.bound_px must be {message}, got"):
            FlowContract(bound_px=value)
    for size, message in {10**8: "at most 8,192", 14: "at least 16", 49: "even"}.items():
        with pytest.raises(ConfigError, match=rf"flow.short_side_px must be {message}, got"):
            FlowContract(short_side_px=size)


def rubberwhale(real: Path) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32], NDArray[np.bool_]]:
    """Middlebury's pair of grey frames, its true flow (H, W, 2), and where that is known."""
    import cv2
    from matplotlib.image import imread

    colours = [(imread(real / f"flow/rubberwhale/frame0{n}.png")[..., :3] * 255).astype(np.uint8) for n in (4, 5)]
    content = (real / "flow/rubberwhale/flow_gt.flo").read_bytes()
    width, height = np.frombuffer(content, np.int32, count=2, offset=4)
    truth = np.frombuffer(content, np.float32, offset=12).reshape(height, width, 2)
    frames = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in colours]
    return frames, truth, np.abs(truth).max(axis=-1) < 1e9


def coded(field: NDArray[np.float32]) -> NDArray[np.float32]:
    levels = flow.decode_field(flow.encode_field(field, FlowContract()))
    return flow.dequantise(levels, FlowContract()).transpose(1, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "expected"), [("dis", "dis_medium"), ("tvl1", "tvl1_opencv5_default")])
def test_error_on_middlebury_is_the_published_one(real: Path, algorithm: str, expected: str) -> None:
    frames, truth, known = rubberwhale(real)
    field = flow.flow_function(FlowContract(algorithm=algorithm))(*frames)
    error = np.linalg.norm(field - truth, axis=-1)[known].mean()
    table = json.loads((real / "expected/flow_expected.json").read_text())
    (figures,) = table.values()
    assert error == pytest.approx(figures["rubberwhale"][expected][0], rel=0.05)


def test_the_coding_costs_nothing_on_no_motion_and_a_twentieth_of_a_pixel_on_small_motion() -> None:
    assert not coded(np.zeros((256, 342, 2), np.float32)).any()
    y, x = np.mgrid[:256, :342].astype(np.float32)
    for largest_px in (0.05, 0.2, 0.5, 1, 2):
        waves = np.stack([np.sin(x / 40) * np.cos(y / 30), np.cos(x / 35 + 1) * np.sin(y / 50)], axis=-1)
        field = (largest_px * waves).astype(np.float32)
        assert np.abs(coded(field) - field).mean() < 0.05


def test_the_coding_adds_less_than_a_twentieth_of_a_pixel_to_the_error_on_middlebury(real: Path) -> None:
    frames, truth, known = rubberwhale(real)

    def error(field: NDArray[np.float32]) -> float:
        return float(np.linalg.norm(field - truth, axis=-1)[known].mean())

    field = flow.flow_function(FlowContract())(*frames)
    assert error(coded(field)) - error(field) < 0.05  # .018 seen, on .225
    # Of the truth itself, whose edges are sharp: steps of .157 px alone make .061 px, JPEG the rest of .081.
    known_truth = np.where(known[..., None], truth, 0)
    levels = flow.quantise(known_truth, FlowContract())
    assert error(flow.dequantise(levels, FlowContract())) == pytest.approx(0.0603, rel=0.05)
    assert error(coded(known_truth)) < 0.085
