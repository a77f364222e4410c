import os
import pickle
import random
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

import pytest

from twostream_ray.errors import ConfigError, own_error
from twostream_ray.redaction import (
    HIDDEN,
    brief,
    has_credentials,
    is_secret_name,
    one_line,
    printable,
    redact,
    shortened,
    with_quoted_credentials,
)


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
        ("use AKIAIOSFODNN7EXAMPLE here", f"use {HIDDEN} here"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", HIDDEN),
        ("Authorization: Bearer xyz", f"Authorization: {HIDDEN}"),
        ("Authorization: Basic YW5uOnB3", f"Authorization: {HIDDEN}"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", HIDDEN),
        ("s3://bucket/shards?version=3", "s3://bucket/shards?version=3"),
        ("mail ann@example.org", "mail ann@example.org"),
    ],
)
def test_secrets_in_values_are_hidden_and_the_rest_is_kept(value: str, shown: str) -> None:
    assert redact(value) == shown


NO_SECRETS = [
    "s3://bucket/clips@50fps/walk.mp4",
    "s3://bucket/a:b/c@d",
    "http://127.0.0.1:5000/api/2.0/mlflow/runs/get?run_id=1",
    "file:///home/ann@work/a.mp4",
    "sqlite:////home/ann@work/mlflow.db",
    "sqlite+pysqlite:////home/a%3Fb@c/mlflow.db",
    "models:/two-stream@champion",
    "a model was wanted at s3://bucket/x, see models:/two-stream@champion",
    "C://",
    "://@",
]


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_holds_no_secret_stays_readable(text: str) -> None:
    assert redact(text) == text


AWKWARD = [
    "pa/ss-word",
    "p@ss/w:rd%41#x?y",
    "/leading",
    "trailing/",
    "@@//::",
    "50%/of#it",
    "a?b=c&d",
    "pa\\ss",
    "ünï/cödé",
    "x" * 300 + "/@y",
    "quote\"'<>/",
]


def texts_with(uri: str) -> list[str]:
    return [
        uri,
        f"promoting m failed at MLflow {uri} (API request to {uri}/api/2.0 failed): check tracking.uri",
        f"[{uri!r}]",
        f"first {uri}\nsecond {uri}",
        f"--tracking.uri={uri}",
    ]


@pytest.mark.parametrize("password", AWKWARD)
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql+psycopg2", "mysql", "s3"])
def test_a_password_is_hidden_in_a_uri_whatever_characters_it_has(scheme: str, password: str) -> None:
    for shown in (password, quote(password, safe="")):
        for text in texts_with(f"{scheme}://ann:{shown}@host.example.org/db"):
            redacted = redact(text)
            assert shown not in redacted and HIDDEN in redacted and "host.example.org" in redacted
            assert redact(redacted) == redacted


def test_random_passwords_are_hidden_and_survive_being_quoted() -> None:
    draw = random.Random(5)
    for _ in range(300):
        password = "".join(draw.choices("/@:%#?&;=+$!ab7Z~.-_*()[]", k=draw.randint(6, 24)))
        uri = f"http://ann:{password}@host.example.org:5000/prefix"
        assert password not in redact(f"wanted {uri}, it is away")
        quoted = with_quoted_credentials(uri)
        parts = urlsplit(quoted)
        assert (parts.hostname, parts.port, parts.path) == ("host.example.org", 5000, "/prefix")
        assert unquote(parts.password) == unquote(password)
        assert with_quoted_credentials(quoted) == quoted
        assert redact(quoted) == f"http://{HIDDEN}@host.example.org:5000/prefix"


def test_quoting_leaves_uris_without_credentials_alone() -> None:
    for uri in (*NO_SECRETS, "https://host/path@v2", "http://host:5000", "databricks"):
        assert with_quoted_credentials(uri) == uri


def test_blanks_in_a_password_are_hidden_with_it() -> None:
    for text in ("http://ann:pa ss word@host/x", "it is http://ann:pa ss word@host/x that was wanted"):
        assert "ss" not in redact(text).replace("(hidden)", "") and "host/x" in redact(text)


@pytest.mark.parametrize(
    ("variable", "value", "secret"),
    [
        ("MLFLOW_TRACKING_PASSWORD", "pl@n/ted:1%#", "pl@n/ted:1%#"),
        ("MLFLOW_TRACKING_TOKEN", "tok/en@planted", "tok/en@planted"),
        ("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI%#", "wJalr/XUtn+FEMI%#"),
        ("AWS_SESSION_TOKEN", "session//planted==", "session//planted=="),
        ("AWS_ENDPOINT_URL", "http://ann:en/d@p#oint@127.0.0.1:9", "en/d@p#oint"),
        ("HTTPS_PROXY", "http://ann:pr%2Foxy-planted@127.0.0.1:9", "pr/oxy-planted"),
        ("MLFLOW_TRACKING_URI", "http://ann:tr/ack@ing@127.0.0.1:9", "tr/ack@ing"),
    ],
)
def test_secrets_of_the_environment_are_hidden_wherever_they_stand(
    variable: str, value: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for form in (secret, quote(secret, safe=""), quote(secret)):
        redacted = redact(f"the server said: {form} is not what it was")
        assert form not in redacted and redacted.startswith("the server said: ")
        assert form not in str(ConfigError(f"no such host: {form}"))


def test_ordinary_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert redact("a test of /var/run/token, disabled") == "a test of /var/run/token, disabled"


def test_errors_of_the_package_hide_secrets_as_soon_as_they_are_made_and_on_their_way() -> None:
    error = ConfigError("wanted http://ann:pa/ss@host, got none: name one")
    for one in (error, pickle.loads(pickle.dumps(error)), own_error(error)):
        assert str(one) == f"wanted http://{HIDDEN}@host, got none: name one"


def test_signed_addresses_of_an_object_store_keep_their_place_and_lose_their_signature() -> None:
    signed = (
        "https://b.s3.amazonaws.com/k.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F1"
        "&X-Amz-Security-Token=IQoJb3/planted&X-Amz-Signature=0123planted"
    )
    redacted = redact(f"cannot read {signed}: 403")
    assert redacted.startswith("cannot read https://b.s3.amazonaws.com/k.mp4?") and redacted.endswith(" 403")
    assert "planted" not in redacted and "AKIA" not in redacted


def test_uris_with_credentials_are_distinguished_from_others() -> None:
    assert not any(has_credentials(uri) for uri in NO_SECRETS)
    assert has_credentials("s3://key:se/cret@bucket/x") and has_credentials("s3://key@bucket")


def test_letters_of_every_script_stay() -> None:
    for text in ("naïve façade", "走る", "می‌خواهم", "👩‍🚀", "a\u00a0b", "$x$ [y]"):
        assert printable(text) == text
    assert printable("a\nb\tc", lines=True) == "a\nb\tc" and printable("a\nb\tc") == r"a\nb\tc"


def test_control_characters_and_bytes_that_are_no_text_become_their_escapes() -> None:
    assert printable("a\x1b[2J\u202eb\udcff") == r"a\x1b[2J\u202eb\xff"


def test_an_error_is_one_line_that_says_something() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(OSError(28, "No space left", "/a/file")) == "No space left"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert one_line("x" * 300, longest=80) == "x" * 80
    assert one_line("") == ""


def test_a_long_value_is_cut_and_one_that_python_does_not_write_is_named() -> None:
    assert brief("a\nb") == r"'a\nb'"
    assert brief([0] * 1000) == f"{[0] * 1000!r}"[:80] + "..."
    assert brief(10**10_000) == "an integer of thousands of digits"


def test_a_text_is_shortened_at_a_blank_and_no_path_loses_its_end() -> None:
    path = "/a/long/path/to/weights/" + "x" * 100 + ".safetensors"
    assert shortened(f"cannot read {path}: it does not exist", longest=60) == "cannot read ..."
    assert shortened(path, longest=60) == path
    assert shortened(f"{path} is gone", longest=60) == f"{path} ..."
    assert shortened("short", longest=60) == "short"


def test_variables_that_another_thread_takes_away_meanwhile_fail_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Vanishing(Mapping[str, str]):
        """An environment whose variable is gone as soon as its name has been listed."""

        def __iter__(self) -> Iterator[str]:
            return iter(["GONE"])

        def __len__(self) -> int:
            return 1

        def __getitem__(self, name: str) -> str:
            raise KeyError(name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", Vanishing())
        hidden = redact("a line")
    assert hidden == "a line"
