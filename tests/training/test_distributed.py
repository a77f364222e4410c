import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_networks import built, fused_model

from twostream_ray.data.loading.device import DeviceBatch
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.training.distributed import distributed, no_compiler, prepared, resolved, unwrapped
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import Precision, TrainingConfig
from twostream_ray.training.step import TrainingStep

CPU = torch.device("cpu")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network() -> Network:
    tower = TowerConfig(backbone="vgg_small", width=4)
    return build_network(
        ModelConfig(architecture="late", streams="spatial", spatial=tower), num_classes=2, flow_length=2
    )


def test_a_single_worker_needs_no_wrapper_with_or_without_a_process_group(process_group: None) -> None:
    alone = network()
    assert distributed(alone, config=TrainingConfig(), device=CPU) is alone
    assert unwrapped(alone) is alone


def test_the_network_inside_distributed_data_parallel_is_found(process_group: None) -> None:
    inside = network()
    assert unwrapped(torch.nn.parallel.DistributedDataParallel(inside)) is inside


def test_on_a_cpu_auto_is_32_bits_neither_laid_out_otherwise_nor_compiled() -> None:
    chosen = resolved(TrainingConfig(), CPU)
    assert (chosen.precision, chosen.channels_last, chosen.compile) == ("float32", False, False)
    assert resolved(chosen, CPU) == chosen


def test_on_a_gpu_auto_is_bfloat16_channels_last_and_compiled_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("twostream_ray.training.distributed.Path.is_file", lambda _: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    gpu = torch.device("cuda", 0)
    chosen = resolved(TrainingConfig(), gpu)
    assert (chosen.precision, chosen.channels_last, chosen.compile) == ("bfloat16", True, True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert resolved(TrainingConfig(), gpu).compile is False
    assert no_compiler(gpu) == "there is no C compiler (gcc, clang or $CC)"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert resolved(TrainingConfig(), gpu).precision == "float32"


def test_what_the_settings_say_is_chosen_on_any_device() -> None:
    wanted = TrainingConfig(precision="bfloat16", channels_last=True, compile=True)
    assert resolved(wanted, CPU) == wanted
    plain = TrainingConfig(precision="float32", channels_last=False, compile=False)
    assert resolved(plain, torch.device("cuda", 0)) == plain


@pytest.mark.slow
def test_layout_and_compilation_leave_names_and_shapes_as_checkpoints_have_them() -> None:
    plain, changed = network(), network()
    prepared(changed, config=TrainingConfig(channels_last=True, compile=True), device=CPU)
    before, after = ({name: value.shape for name, value in one.state_dict().items()} for one in (plain, changed))
    assert before == after


def random_batch(device: torch.device, *, size: int) -> DeviceBatch:
    """Four samples of five snippets of noise."""
    numbers = torch.Generator().manual_seed(0)
    rgb, flow = (
        torch.randint(0, 256, (4, 5, channels, size, size), dtype=torch.uint8, generator=numbers).to(device)
        for channels in (3, 4)
    )
    labels = torch.randint(0, 5, (4,), generator=numbers).to(device)
    weights = torch.ones(4, device=device)
    return DeviceBatch(rgb=rgb, flow=flow, labels=labels, weights=weights, clips=np.arange(4), total=4.0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize(
    ("device", "precision"),
    # In 16 bits on a CPU: tests/models/test_temporal.py, of the one layer that differed.
    # Minutes of a compiler where the machine is busy, and training compiles on GPUs alone.
    [
        pytest.param("cpu", "float32", marks=pytest.mark.soak),
        *((("cuda", "float32"), ("cuda", "bfloat16")) if torch.cuda.is_available() else ()),
    ],
)
def test_compiled_a_network_has_the_logits_gradients_and_losses_of_the_eager_one(device: str, precision: str) -> None:
    """Over 20 steps, without dropout, which draws other numbers when it is compiled."""
    on = torch.device(device)
    batch = random_batch(on, size=16)
    seen = []
    for compiles in (False, True):
        # Both towers, 3D convolution and 3D pooling.
        network = built(fused_model(layers=("relu2",), temporal="conv3d"))
        config = TrainingConfig(precision=cast(Precision, precision), channels_last=True, compile=compiles)
        prepared(network, config=config, device=on).train()
        optimiser = build_optimiser(network, config=config)
        step = TrainingStep(network, optimiser, config=config, seed=0, device=on)
        outcomes = [step(batch, epoch=0, step=0, num_steps=20)]
        gradient = torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
        outcomes += [step(batch, epoch=0, step=number, num_steps=20) for number in range(1, 20)]
        seen.append((outcomes[0].scores, gradient, torch.stack([outcome.loss for outcome in outcomes])))
    (scores, gradient, losses), (compiled_scores, compiled_gradient, compiled_losses) = seen
    assert losses[-1] < losses[0] - 0.1
    near = {"rtol": 1e-4, "atol": 1e-6} if (device, precision) == ("cpu", "float32") else {"rtol": 0.02, "atol": 0.01}
    torch.testing.assert_close(compiled_scores, scores, **near)
    assert (compiled_gradient - gradient).norm() <= near["rtol"] * gradient.norm()
    torch.testing.assert_close(compiled_losses, losses, **near)
