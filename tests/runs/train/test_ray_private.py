"""What this package uses of Ray Train and Ray Tune without being promised it; each is there in the installed Ray."""

import inspect

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch import config as torch_config
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.execution.worker_group import ExecutionGroup
from ray.tune.execution import class_cache

from twostream_ray.runs.train.ray_private import Trainer, only_ray_variables_in_trials


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_a_process_group_can_be_made_from_a_file() -> None:
    assert parameters(torch_config._TorchBackend.on_start)[:3] == ["self", "worker_group", "backend_config"]
    assert isinstance(inspect.getattr_static(TorchConfig, "backend_cls"), property)
    assert parameters(torch_config._set_torch_distributed_env_vars) == []
    wanted = {"backend", "world_rank", "world_size", "init_method", "timeout_s"}
    assert wanted <= set(parameters(torch_config._setup_torch_process_group))
    for name in ("execute", "execute_single_async", "get_resources_per_worker", "__len__"):
        assert hasattr(ExecutionGroup, name), name


def test_the_trainer_overrides_methods_that_ray_calls() -> None:
    source = inspect.getsource(inspect.getmodule(TorchTrainer.__mro__[1]))  # DataParallelTrainer
    for name in ("_create_default_callbacks", "_register_sigint_handler"):
        assert name in vars(Trainer) and f"self.{name}(" in source, name
    assert parameters(TorchTrainer._register_sigint_handler) == ["self", "controller"]
    assert parameters(BackendSetupCallback.__init__) == ["self", "backend_config"]
    assert parameters(BackendSetupCallback.before_execution_group_shutdown) == ["self", "execution_group"]
    assert isinstance(DatasetsCallback, type)


def test_tune_passes_no_keys_of_object_stores_to_its_trials() -> None:
    before = class_cache.ENV_VARS_TO_PROPAGATE
    assert {"AWS_SECRET_ACCESS_KEY"} <= before
    assert "ENV_VARS_TO_PROPAGATE" in inspect.getsource(class_cache._ActorClassCache)
    with only_ray_variables_in_trials():
        assert all(name.startswith("RAY_") for name in class_cache.ENV_VARS_TO_PROPAGATE)
    assert class_cache.ENV_VARS_TO_PROPAGATE is before
