import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.runs.submit.job_environment import JobEnvironment, job_environment


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MLFLOW_TRACKING_URI",
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TWOSTREAM_GIT_COMMIT", "abc")


def environment(
    *, variables: tuple[str, ...] = (), secrets: tuple[str, ...] = (), here: bool = False
) -> JobEnvironment:
    return job_environment(variables=variables, secrets=secrets, is_here=here)


def test_addresses_regions_and_the_commit_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com:5000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    found = environment().variables
    assert found.pop("RAY_JOB_STOP_WAIT_TIME_S")
    assert found == {
        "MLFLOW_TRACKING_URI": "http://mlflow.example.com:5000",
        "AWS_DEFAULT_REGION": "us-west-2",
        "TWOSTREAM_GIT_COMMIT": "abc",
    }


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:5000", "http://127.0.0.2:5000", "sqlite:////home/me/mlflow.db", "http://localhost:5000"],
)
def test_what_means_this_machine_travels_only_to_this_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert environment(here=True).variables["MLFLOW_TRACKING_URI"] == address
    elsewhere = environment()
    assert "MLFLOW_TRACKING_URI" not in elsewhere.variables and "means this machine" in elsewhere.notes[0]
    assert environment(variables=("MLFLOW_TRACKING_URI",)).variables["MLFLOW_TRACKING_URI"] == address


def test_a_secret_travels_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    left = environment()
    assert "AWS_SECRET_ACCESS_KEY" not in left.variables and "is not sent, the nodes use their own" in left.notes[0]
    sent = environment(secrets=("AWS_SECRET_ACCESS_KEY",))
    assert sent.variables["AWS_SECRET_ACCESS_KEY"] == "hush" and sent.secrets == ("AWS_SECRET_ACCESS_KEY",)
    with pytest.raises(ConfigError, match="variables names AWS_SECRET_ACCESS_KEY, which is a secret"):
        environment(variables=("AWS_SECRET_ACCESS_KEY",))


def test_a_secret_that_is_not_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="secrets names AWS_SECRET_ACCESS_KEY, a secret that is not set: export"):
        environment(secrets=("AWS_SECRET_ACCESS_KEY",))


def test_an_address_with_a_password_is_refused_unless_it_is_called_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hush-hush@mlflow.example.com")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI holds a password") as refused:
        environment()
    assert "hush" not in str(refused.value)
    assert environment(secrets=("MLFLOW_TRACKING_URI",)).secrets == ("MLFLOW_TRACKING_URI",)


@pytest.mark.parametrize("name", ["PATH", "HOME", "PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "AWS_PROFILE"])
def test_what_belongs_to_this_machine_never_travels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/here")
    with pytest.raises(ConfigError, match=f"{name} is specific to this machine"):
        environment(variables=(name,))
