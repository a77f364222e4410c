from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from twostream_ray.models.build import ModelConfig, Network, build_network
from twostream_ray.models.streams import TowerConfig
from twostream_ray.training.distributed import distributed, prepared, unwrapped
from twostream_ray.training.recipe import TrainingConfig

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


def test_layout_and_compilation_leave_names_and_shapes_as_checkpoints_have_them() -> None:
    plain, changed = network(), network()
    prepared(changed, config=TrainingConfig(channels_last=True, compile=True), device=CPU)
    before, after = ({name: value.shape for name, value in one.state_dict().items()} for one in (plain, changed))
    assert before == after
