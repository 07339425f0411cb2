"""Where traces go: which variables count, and which are refused."""

import pytest

from serve.config import Settings
from serve.errors import ConfigError
from serve.telemetry import traces_endpoint

FULL = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SHORT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("setting", "environ", "endpoint"),
    [
        (None, {}, None),
        (None, {SHORT: "  "}, None),
        ("http://a:4318", {}, "http://a:4318/v1/traces"),
        ("http://a:4318/", {}, "http://a:4318/v1/traces"),
        ("http://a:4318/v1/traces", {}, "http://a:4318/v1/traces"),
        ("http://a:4318", {SHORT: "http://b:4318", FULL: "http://c/x"}, "http://a:4318/v1/traces"),
        (None, {SHORT: "http://b:4318/in"}, "http://b:4318/in/v1/traces"),
        (None, {SHORT: "http://b:4318", FULL: "https://c/x"}, "https://c/x"),
        (None, {SHORT: "http://b", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http://b/v1/traces"),
        ("http://a:4318", {"OTEL_SDK_DISABLED": "TRUE"}, None),
        (None, {SHORT: "http://b", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_which_endpoint_counts(
    setting: str | None,
    environ: dict[str, str],
    endpoint: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert traces_endpoint(setting, environ) == endpoint
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({SHORT: "collector:4317"}, "must look like"),
        ({FULL: "http://"}, "must look like"),
        ({FULL: "http://[secret"}, "must look like"),
        ({FULL: "http://a:secret"}, "must look like"),
        ({SHORT: "http://me:secret@a"}, "must hold no password"),
        ({SHORT: "http://a", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "not 'grpc'"),
        ({SHORT: "http://a", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "not 'http/json'"),
    ],
)
def test_what_cannot_be_done_is_one_warning_without_the_url(
    environ: dict[str, str], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert traces_endpoint(None, environ) is None
    (record,) = caplog.records
    assert problem in record.getMessage()
    assert "secret" not in caplog.text


@pytest.mark.parametrize("value", ["collector:4318", "http://", "http://me:secret@host", "http://h:secret"])
def test_our_own_setting_must_be_right(value: str) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint: must") as caught:
        Settings.read(otlp_endpoint=value)
    assert "secret" not in caught.value.message
