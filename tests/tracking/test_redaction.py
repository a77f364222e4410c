import pytest

from twostream_ray.tracking.redaction import HIDDEN, is_secret_name, redact


@pytest.mark.parametrize(
    "name",
    ["token", "s3.secret_key", "MLFLOW_TRACKING_PASSWORD", "apiKey", "aws.accesskey", "hub.auth", "credentials.user"],
)
def test_names_that_hold_secrets_are_recognised(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["model.keep_temporal_tower", "author", "keyframes", "seed", "data.key_column", "passes", "secretary"]
)
def test_ordinary_settings_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://ann:pa%2Fss@w@mlflow.example.org/a", f"http://{HIDDEN}@mlflow.example.org/a"),
        ("postgresql+psycopg2://u:p@db:5432/m", f"postgresql+psycopg2://{HIDDEN}@db:5432/m"),
        ("https://b.example.org/x?X-Amz-Signature=abc&v=1", f"https://b.example.org/x?X-Amz-Signature={HIDDEN}&v=1"),
        ("use AKIAIOSFODNN7EXAMPLE here", HIDDEN),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", HIDDEN),
        ("Authorization: Bearer xyz", HIDDEN),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", HIDDEN),
        ("s3://bucket/shards?version=3", "s3://bucket/shards?version=3"),
        ("mail ann@example.org", "mail ann@example.org"),
    ],
)
def test_secrets_in_values_are_hidden_and_the_rest_is_kept(value: str, shown: str) -> None:
    assert redact(value) == shown
