"""What the service can be told, and what it says where that is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from synap.cluster.options import EngineOptions
from synap.errors import SynapError
from synap.server.settings import OPTIONS, ServerConfig, load


def refusal(overrides: dict[str, Any] | None = None, **options: Any) -> SynapError:
    with pytest.raises(SynapError) as refused:
        load(overrides, **{"environ": {}, **options})
    assert refused.value.code == "INVALID_REQUEST"
    return refused.value


def test_the_command_line_goes_before_the_environment_before_the_file_before_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    file.write_text('port = 1\nfsync = "no"\nroom_events = 7\n')
    config = load({"port": 3, "fsync": None}, config=file, environ={"SYNAP_PORT": "2", "SYNAP_FSYNC": "everysec"})
    assert (config.port, config.fsync, config.room_events, config.host) == (3, "everysec", 7, "127.0.0.1")


def test_the_environment_names_the_file_where_the_command_line_does_not(tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    file.write_text("port = 1\n")
    assert load(environ={"SYNAP_CONFIG": str(file)}).port == 1


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if not o.name.startswith(("tls", "engine_"))], ids=lambda option: option.name
)
def test_every_option_can_be_said_in_every_way(option: Any, tmp_path: Path) -> None:
    text, toml = {
        "text": ("127.0.0.2", '"127.0.0.2"'),
        "path": ("given", '"given"'),
        "flag": ("yes", "true"),
        "int": ("77", "77"),
        "rate": ("77/s", "77"),
        "size": ("77 MiB", str(77 * 1024**2)),
        "seconds": ("77s", "77"),
        "keys": ("a,b", '["a", "b"]'),
        "choice": (option.choices[-1] if option.choices else "", f'"{option.choices[-1] if option.choices else ""}"'),
    }[option.kind]
    if option.name == "max_body":
        text, toml = "77 KiB", str(77 * 1024)
    file = tmp_path / "synap.toml"
    file.write_text(f"{option.name} = {toml}\n")
    written = getattr(load(config=file, environ={}), option.name)
    assert written == getattr(load(environ={option.in_environment: text}), option.name)
    assert written == getattr(
        load({option.name: text.split(",") if option.kind == "keys" else text}, environ={}), option.name
    )
    assert written != option.default


def test_a_typo_in_the_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    file.write_text("prot = 1\n")
    message = refusal(config=file).message
    assert "'prot'" in message
    assert "'port'" in message
    assert str(file) in message


def test_a_typo_in_the_environment_is_refused_with_the_nearest_name() -> None:
    message = refusal(environ={"SYNAP_MEMORY_LIMT": "1GB"}).message
    assert "'SYNAP_MEMORY_LIMT'" in message
    assert "'SYNAP_MEMORY_LIMIT'" in message


def test_a_typo_among_the_overrides_is_refused() -> None:
    assert "'fsync'" in refusal({"fsink": "no"}).message


@pytest.mark.parametrize(
    "environ",
    [
        {"SYNAP_URL": "http://x", "SYNAP_TEST_SERVER_PYTHON": "/usr/bin/python", "PATH": "/bin"},
        {"SYNAP_PORT": "tcp://10.0.0.7:15500", "SYNAP_SERVICE_HOST": "10.0.0.7", "SYNAP_PORT_15500_TCP_PORT": "15500"},
        {"SYNAP_HOST": ""},
    ],
)
def test_variables_that_are_not_meant_for_the_service_are_left_alone(environ: dict[str, str]) -> None:
    assert load(environ=environ) == load(environ={})


@pytest.mark.parametrize(
    ("option", "wrong", "rule"),
    [
        ("port", 65536, "0..65,535"),
        ("port", "http", "a whole number"),
        ("port", True, "a number"),
        ("port", 1.5, "a whole number"),
        ("fsync", "sometimes", "'always' or 'everysec' or 'no'"),
        ("memory", "perhaps", "true or false"),
        ("rate_limit", 0, "more than 0"),
        ("rate_limit", "5/m", "requests a second"),
        ("memory_limit", "lots", "64KiB"),
        ("max_body", "11MiB", "1,024..10,485,760"),
        ("room_age", "1 fortnight", "15m"),
        ("room_age", float("inf"), "finite"),
        ("host", "", "a text"),
        ("port", "--5", "a whole number"),
        ("port", "\u0663", "a whole number"),
        ("port", "9" * 5000, "a whole number"),
        ("memory_limit", "9" * 400, "finite"),
        ("memory_limit", 10**400, "finite"),
        ("room_age", 10**400, "finite"),
        ("room_age", "\u0663s", "15m"),
        ("data", "a\0b", "NUL"),
        ("keys_file", "a\0b", "NUL"),
        ("engine", "file://", "file:///DIR"),
        ("tls_cert", "cert.pem", "tls_key must be given with tls_cert"),
        ("tls_client_ca", "ca.pem", "given with tls_cert"),
        ("tls_ciphers", "ECDHE", "given with tls_cert"),
        ("allowed_hosts", ["http://synap.example.com/"], "in full"),
        ("allowed_hosts", ["synap.example.com", "*.example.com"], "in full"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_what_would_be_right(option: str, wrong: Any, rule: str) -> None:
    message = refusal({option: wrong}).message
    assert option in message
    assert rule in message


def test_a_value_that_cannot_be_used_is_refused_with_where_it_was_said(tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    file.write_text('port = "many"\n')
    rule = "port must be a whole number, got"
    assert refusal(config=file).message == f"{file}: {rule} 'many'"
    assert refusal(environ={"SYNAP_CONFIG": str(file)}).message == f"{file}: {rule} 'many'"
    assert refusal(config=file, environ={"SYNAP_PORT": "more"}).message == f"SYNAP_PORT: {rule} 'more'"
    assert refusal({"port": "x"}, config=file, environ={"SYNAP_PORT": "more"}).message == f"{rule} 'x'"
    assert refusal(environ={"SYNAP_API_KEY": "\n"}).message.startswith("SYNAP_API_KEY: api_keys must be printable")
    assert refusal(environ={"SYNAP_HOST": "0.0.0.0"}).message.startswith("SYNAP_HOST: host '0.0.0.0' can be reached")


@pytest.mark.parametrize("text", ["port = " + "9" * 5000, "port = " + "[" * 5000, "port = 1\nport = 2"])
def test_a_file_that_is_no_toml_is_refused_whatever_its_parser_raises(text: str, tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    file.write_text(text)
    assert "is not TOML" in refusal(config=file).message


def test_engines_of_this_machine_are_said_in_two_ways() -> None:
    named = load({"engine": "file:///var/lib/synap"}, environ={"SYNAP_DATA": "/elsewhere"})
    assert named == load({"data": "/var/lib/synap"}, environ={})
    assert load({"engine": "memory://"}, environ={}) == load({"memory": True}, environ={})


@pytest.mark.parametrize("key", ["", " spaced ", "umläut", "line\nbreak"])
def test_a_key_that_no_header_could_carry_is_refused_unshown(key: str) -> None:
    message = refusal({"api_keys": [key]}).message
    assert "printable ASCII" in message
    assert key == "" or key not in message


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refusal({"tls_cert": str(tmp_path / "no.pem"), "tls_key": str(tmp_path / "no.key")}).message
    assert "tls_cert must be a file" in message


@pytest.mark.parametrize("config", ["not toml =", None])
def test_a_file_that_cannot_be_read_is_refused(config: str | None, tmp_path: Path) -> None:
    file = tmp_path / "synap.toml"
    if config is not None:
        file.write_text(config)
    assert str(file) in refusal(config=file).message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "db.internal"])
def test_an_address_that_others_can_reach_needs_a_key_or_courage(host: str) -> None:
    assert "--api-key" in refusal({"host": host}).message
    assert ServerConfig(host=host, api_keys=["k"]).keys_on
    assert not ServerConfig(host=host, insecure_no_auth=True).keys_on


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_an_address_of_this_machine_needs_none(host: str) -> None:
    assert ServerConfig(host=host).loopback


def test_what_is_shown_has_no_secrets() -> None:
    config = ServerConfig(api_keys=["secret-1"], admin_keys=["secret-2", "secret-3"])
    assert (config.shown()["api_keys"], config.shown()["admin_keys"]) == (1, 2)
    assert "secret" not in repr(config)
    assert "secret" not in str(config.shown())


def test_an_empty_key_is_no_key() -> None:
    config = load(environ={"SYNAP_API_KEY": "", "SYNAP_ADMIN_KEY": "", "SYNAP_KEYS_FILE": ""})
    assert not config.keys_on
    for keys in ("a-key,", ",", "a-key,,b-key"):
        with pytest.raises(SynapError, match="not empty"):
            load(environ={"SYNAP_API_KEY": keys})


@pytest.mark.parametrize("url", ["valkey://user:hush@host:1", "valkey://user:hu@hush@host:1", "valkey://:hush@host:1"])
def test_no_password_of_the_engine_is_shown(url: str) -> None:
    config = ServerConfig(engine=url)
    assert config.shown()["engine"] == "valkey://***@host:1"
    assert "hush" not in repr(config)


def test_a_gateway_takes_the_options_that_a_client_of_a_cluster_takes() -> None:
    settings = {option.name: option for option in OPTIONS if option.engine}
    for one in dataclasses.fields(EngineOptions):
        option = settings.get(one.name)
        if option is None:
            continue
        assert option.default == one.default, one.name
        for bound in (option.least, option.most) if option.kind in ("int", "seconds") else option.choices:
            given: dict[str, Any] = {one.name: bound}
            EngineOptions((), **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": "x"}, "replicas must be a whole number, got 'x'"),
        ({"replicas": True}, "replicas must be a whole number, got True"),
        ({"patience": "1"}, "patience must be a number, got '1'"),
        ({"space": 5}, "space must be text, got 5"),
        ({"unchecked": "no"}, "unchecked must be true or false, got 'no'"),
        ({"durability": ["none"]}, r"durability must be text, got \['none'\]"),
        ({"engine_user": 5}, "engine_user must be text, got 5"),
        ({"engine_password_file": 5}, "engine_password_file=5 can't be read"),
        ({"engine_cafile": "x"}, "made of .*engine_ca, .*got 'engine_cafile'"),
    ],
    ids=str,
)
def test_an_option_of_an_engine_that_is_none_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SynapError, match=said) as caught:
        EngineOptions.read("valkey://host:1", given, {})
    assert caught.value.code == "INVALID_REQUEST"


def test_what_a_variable_says_of_an_engine_is_read_as_a_setting_is() -> None:
    for text, wanted in (("1", True), ("true", True), ("0", False), ("off", False)):
        assert load(environ={"SYNAP_UNCHECKED": text}).unchecked is wanted
        assert EngineOptions.read("valkey://host:1", {}, {"SYNAP_UNCHECKED": text}).unchecked is wanted
    with pytest.raises(SynapError, match="SYNAP_UNCHECKED must be true or false, got 'maybe'"):
        EngineOptions.read("valkey://host:1", {}, {"SYNAP_UNCHECKED": "maybe"})
    with pytest.raises(SynapError, match="SYNAP_REPLICAS must be a whole number, got 'two'"):
        EngineOptions.read("valkey://host:1", {}, {"SYNAP_REPLICAS": "two"})
