"""What this package uses of Ray Train and Ray Tune without being promised it; each is there in the installed Ray."""

import inspect
from types import SimpleNamespace

import pytest
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch import config as torch_config
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy as AnyScalingPolicy
from ray.train.v2._internal.execution.worker_group import ExecutionGroup
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.execution import class_cache

from twostream_ray.errors import ConfigError, MissingError, ShardError, StorageError, WeightsError
from twostream_ray.runs.cluster.session import _private_settings
from twostream_ray.runs.train.ray_private import FailurePolicy, ScalingPolicy, Trainer, only_ray_variables_in_trials


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


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
    for name in ("_create_default_callbacks", "_initialize_and_run_controller", "_register_sigint_handler"):
        assert name in vars(Trainer) and f"self.{name}(" in source, name
    assert parameters(TorchTrainer._register_sigint_handler) == ["self", "controller"]
    assert "failure_policy=create_failure_policy(" in source
    assert parameters(BackendSetupCallback.__init__) == ["self", "backend_config"]
    assert parameters(BackendSetupCallback.before_execution_group_shutdown) == ["self", "execution_group"]
    assert isinstance(DatasetsCallback, type)


@pytest.mark.parametrize(("dashboard_port", "asks"), [(None, False), (8265, True)])
def test_an_actor_asks_a_dashboard_for_the_controller_only_where_there_is_one(
    dashboard_port: int | None, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _private_settings(dashboard_port).items():
        monkeypatch.setenv(name, value)
    kinds = [type(each) for each in Trainer(lambda: None)._create_default_callbacks()]
    assert (PlacementGroupCleanerCallback in kinds) is asks
    assert DatasetsCallback not in kinds


def test_workers_of_a_private_cluster_are_started_without_asking_an_autoscaler() -> None:
    assert "scaling_policy=create_scaling_policy(" in inspect.getsource(inspect.getmodule(TorchTrainer.__mro__[1]))
    overridden = set(vars(ScalingPolicy)) - {"__module__", "__doc__", "__abstractmethods__", "_abc_impl"}
    assert overridden <= set(vars(AnyScalingPolicy)), "what Ray's policies have in common"
    # Each would assert a client of the autoscaler, which asks for a running Ray.
    policy = ScalingPolicy(ScalingConfig(num_workers=3, resources_per_worker={"CPU": 0.5}))
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(policy, FixedScalingPolicy) and isinstance(decision, ResizeDecision)
    assert (decision.num_workers, decision.resources_per_worker) == (3, {"CPU": 0.5})
    policy.after_controller_start(SimpleNamespace(run_id="run"))
    policy.before_controller_abort()


def test_tune_passes_no_keys_of_object_stores_to_its_trials() -> None:
    before = class_cache.ENV_VARS_TO_PROPAGATE
    assert {"AWS_SECRET_ACCESS_KEY"} <= before
    assert "ENV_VARS_TO_PROPAGATE" in inspect.getsource(class_cache._ActorClassCache)
    with only_ray_variables_in_trials():
        assert all(name.startswith("RAY_") for name in class_cache.ENV_VARS_TO_PROPAGATE)
    assert class_cache.ENV_VARS_TO_PROPAGATE is before


def test_what_starting_again_does_not_mend_is_not_taken_for_a_lost_node() -> None:
    assert "_is_retryable_error" in inspect.getsource(DefaultFailurePolicy.make_decision)
    for error in (ConfigError("lanes"), WeightsError("w"), ShardError("s"), MissingError("m")):
        policy = FailurePolicy(FailureConfig(max_failures=3))
        # The others have waited for it, and say so.
        failed = WorkerGroupError("failed", worker_failures={0: RuntimeError("connection closed by peer"), 1: error})
        assert policy.make_decision(failed) == FailureDecision.RAISE, error
    for passing in (StorageError("the store is away"), RuntimeError("CUDA"), OSError("died")):
        policy = FailurePolicy(FailureConfig(max_failures=1))
        lost = WorkerGroupError("failed", worker_failures={0: passing})
        assert policy.make_decision(lost) == FailureDecision.RETRY, passing
        assert policy.make_decision(lost) == FailureDecision.RAISE
