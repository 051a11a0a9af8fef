"""The text of taas.ini: what it may say, what it means where it says nothing, one line when it is wrong."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taaslib.config import Config, ConfigError, Log, load, parse
from taaslib.limits import Limits

INI = Path("/etc/taas/taas.ini")
REQUIRED = {"public": "192.0.2.1", "registrar": "registrar.example.com", "servers": "taas.example.com"}


def ini(limits: str = "", log: str = "", **taas: str) -> str:
    """taas.ini with the required keys, and these; an empty value leaves its key out."""
    keys = [f"{key} = {value}" for key, value in {**REQUIRED, **taas}.items() if value]
    return "\n".join(["[taas]", *keys, "[limits]", limits, "[log]", log, ""])


def read(limits: str = "", log: str = "", **taas: str) -> Config:
    return parse(ini(limits, log, **taas), INI)


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, INI)
    message = str(caught.value)
    assert message.startswith(f"{INI}: ") and message.isprintable(), message
    return message.removeprefix(f"{INI}: ")


# ---- what it says ----------------------------------------------------------------------------------------


def test_three_keys_are_enough() -> None:
    text = "\n".join(["[taas]", *(f"{key} = {value}" for key, value in REQUIRED.items())])
    assert parse(text, INI) == Config(
        path=INI,
        public=("192.0.2.1",),
        registrar="registrar.example.com",
        servers="taas.example.com",
        address=("0.0.0.0",),
        port=443,
        certificate=INI.parent / "registrar.crt",
        key=INI.parent / "registrar.key",
        database=INI.parent / "taas.db",
        socket=INI.parent / "taas.sock",
        ports=(range(61000, 65536),),
        location="label",
        claim="address",
        pump="auto",
        user="",
        limits=Limits(),
        log=Log(file=None, format="text", level="info"),
    )


def test_what_the_protocol_counts_and_times_is_the_default() -> None:
    assert Limits() == Limits(
        head=16384,
        exchanges=1000,
        exchanges_per_address=400,
        handshake=10,
        request=10,
        linger=5,
        linger_bytes=1048576,
        reuse=1000,
        unclaimed=30,
        unclaimed_per_id=100,
        responders=20_000,
        responders_per_id=20,
        responders_per_label=200,
        early_bytes=16384,
        first_bytes=1,
        parked=10,
        parked_per_label=32,
        visits=20_000,
        visits_per_label=10_000,
        visits_per_address=5000,
        unpaired_per_address=100,
        pairs_per_id=10_000,
        failures_per_address=100,
        failures_per_id=10,
        failures_remembered=10_000,
        drain=30,
        refill=30,
        q_linger=600,
        keepalive_idle=25,
        keepalive_interval=5,
        keepalive_probes=3,
        user_timeout=40,
        dead_after=60,
        idle=0,
        pairings=100,
    )


def test_the_metrics_port_is_none_of_the_service_s() -> None:
    said = complaint(ini(port="9100") + "[admin]\nmetrics = 127.0.0.1:9100\n")
    assert said.startswith("[admin] metrics: its port is the service's own")


def test_every_key_of_taas_and_log_is_heard() -> None:
    config = read(
        log="file = server.log\nformat = json\nlevel = debug\n[admin]\nsocket = s\nmetrics = 127.0.0.1:9100",
        public="192.0.2.1, 2001:DB8::1",
        registrar="Registrar.Example.com.",
        servers="TAAS.example.com",
        address="0.0.0.0, ::",
        port="8443",
        certificate="tls/taas.crt",
        key="/etc/ssl/taas.key",
        database="../taas.db",
        ports="62000-62099, 443,\n   61000 - 61001",
        location="domain",
        claim="any",
        pump="ring",
        user="taas",
    )
    assert config == Config(
        path=INI,
        public=("192.0.2.1", "2001:db8::1"),
        registrar="registrar.example.com",
        servers="taas.example.com",
        address=("0.0.0.0", "::"),
        port=8443,
        certificate=Path("/etc/taas/tls/taas.crt"),
        key=Path("/etc/ssl/taas.key"),
        database=Path("/etc/taas/../taas.db"),
        socket=Path("/etc/taas/s"),
        metrics=("127.0.0.1", 9100),
        ports=(range(62000, 62100), range(443, 444), range(61000, 61002)),
        location="domain",
        claim="any",
        pump="ring",
        user="taas",
        log=Log(Path("/etc/taas/server.log"), "json", "debug"),
    )


@pytest.mark.parametrize("limit", dataclasses.fields(Limits), ids=lambda limit: limit.name)
def test_every_limit_is_a_key_with_its_unit_in_the_value(limit: dataclasses.Field[float]) -> None:
    text, value = {"time": ("7s", 7.0), "size": ("7KiB", 7168), "count": ("7", 7)}[limit.metadata["unit"]]
    key = limit.name.replace("_", "-")
    limits = dataclasses.asdict(read(f"{key} = {text}").limits)
    assert limits == {**dataclasses.asdict(Limits()), limit.name: value}
    assert type(limits[limit.name]) is type(value)
    for other in ("", "7x", "-7s", "-7", "+7", "7.5s", "0x7", "7 7", "٧", "9999999999s", "9999999999"):
        assert complaint(ini(f"{key} = {other}")).startswith(f"[limits] {key}: ")
    zero = text.replace("7", "0")
    if limit.metadata.get("zero"):  # 0s: no limit, or none to wait
        assert getattr(read(f"{key} = {zero}").limits, limit.name) == 0
    else:
        assert complaint(ini(f"{key} = {zero}")).startswith(f"[limits] {key}: ")


@pytest.mark.parametrize(
    ("text", "seconds"), [("1ms", 0.001), ("500ms", 0.5), ("90s", 90), ("10 min", 600), ("2h", 7200)]
)
def test_a_time_has_its_unit(text: str, seconds: float) -> None:
    assert read(f"idle = {text}").limits.idle == seconds


@pytest.mark.parametrize(("text", "octets"), [("1B", 1), ("512 B", 512), ("16KiB", 16384), ("1MiB", 1048576)])
def test_a_size_has_its_unit(text: str, octets: int) -> None:
    assert read(f"head = {text}").limits.head == octets


@pytest.mark.parametrize(
    ("public", "address"),
    [
        ("192.0.2.1", ("0.0.0.0",)),
        ("2001:db8::1", ("::",)),
        ("192.0.2.1, 2001:db8::1", ("0.0.0.0", "::")),
        ("2001:db8::1,192.0.2.1", ("::", "0.0.0.0")),
    ],
)
def test_each_family_of_a_public_address_is_listened_on(public: str, address: tuple[str, ...]) -> None:
    assert read(public=public).address == address


def test_the_family_is_not_told_by_a_dot() -> None:
    config = read(public="::ffff:192.0.2.1")  # whose canonical text keeps its dots from Python 3.13 on
    families = [{ipaddress.ip_address(a).version for a in these} for these in (config.public, config.address)]
    assert families[0] == families[1]


def test_a_family_without_a_public_address_has_none() -> None:
    both, one = read(public="2001:db8::1, 192.0.2.1"), read()
    assert [both.public_address(4), both.public_address(6)] == ["192.0.2.1", "2001:db8::1"]
    assert [one.public_address(4), one.public_address(6)] == ["192.0.2.1", None]


@pytest.mark.parametrize(
    ("registrar", "label"),
    [
        ("registrar.taas.example.com", "registrar"),
        ("Constructor.TAAS.example.com.", "constructor"),
        ("taas.example.com", None),
        ("a.b.taas.example.com", None),
        ("registrar.example.com", None),
    ],
)
def test_a_registrar_below_the_servers_name_reserves_its_label(registrar: str, label: str | None) -> None:
    assert read(registrar=registrar).reserved_label == label


def test_comments_percent_signs_colons_and_the_case_of_keys_do_no_harm() -> None:
    config = parse("; a\n# b\n" + ini("# c", "file = 100%(x)s:y.log", PORT="8443"), INI)
    assert (config.port, config.log.file) == (8443, Path("/etc/taas/100%(x)s:y.log"))


# ---- what is wrong with it -------------------------------------------------------------------------------

WRONG = [
    ("address", ["0.0.0.0 ::", "localhost", "1.2.3", "0.0.0.0,", "::, ::0", "1.2.3.4/24"]),
    ("public", ["0.0.0.0", "::", "example.com", "192.0.2.1, 192.0.2.2", "192.0.2.1:443", "[::1]"]),
    ("port", ["0", "65536", "-1", "https", "443 ; tls", "4 43", "443.0", "999999", "٤"]),
    ("ports", ["0", "1-65536", "2-1", "1-", "-2", "1-2-3", "1,,2", "1-5,5-9", "7,7", "1..2", "1 2"]),
    ("registrar", ["a b", "-a.example.com", "a..b", ".", "*.example.com", "a_b", "a:443", "mü.de"]),
    ("servers", ["*.taas.example.com", "x" * 64, ".".join(["x" * 60] * 5), "a\n b"]),
    ("location", ["Label", "labels", "label, domain", "a\n b"]),
    ("claim", ["ANY", "none", "addresses"]),
    ("pump", ["Splice", "none", "splice,ring"]),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG for value in values])
def test_a_bad_value_is_named_with_its_section_and_key(key: str, value: str) -> None:
    assert complaint(ini(**{key: value})).startswith(f"[taas] {key}: ")


NEVER_EMPTY = ["address", "port", "public", "registrar", "servers", "certificate", "key", "database", "ports"]


@pytest.mark.parametrize("key", NEVER_EMPTY)
def test_an_empty_value_is_refused_where_it_means_nothing(key: str) -> None:
    text = ini(**{key: ""}).replace("[limits]", f"{key} =\n[limits]")
    assert complaint(text).startswith(f"[taas] {key}: ")


@pytest.mark.parametrize(
    ("line", "key"), [("format = xml", "format"), ("level = loud", "level"), ("level =", "level")]
)
def test_a_bad_value_of_the_log_is_named(line: str, key: str) -> None:
    assert complaint(ini(log=line)).startswith(f"[log] {key}: ")


@pytest.mark.parametrize(
    ("key", "most", "too_much"),
    [
        ("keepalive-idle", "32767s", "32768s"),  # linux/tcp.h: MAX_TCP_KEEPIDLE, _KEEPINTVL, _KEEPCNT
        ("keepalive-interval", "32767s", "32768s"),
        ("keepalive-probes", "127", "128"),
        ("user-timeout", "2147483s", "2147484s"),  # a C int of milliseconds
    ],
)
def test_what_the_kernel_would_refuse_at_each_connection_is_refused_here(
    key: str, most: str, too_much: str
) -> None:
    assert read(f"{key} = {most}")
    assert complaint(ini(f"{key} = {too_much}")).startswith(f"[limits] {key}: ")


@pytest.mark.parametrize("key", REQUIRED)
def test_a_required_key_that_is_missing_is_named(key: str) -> None:
    assert complaint(ini(**{key: ""})).startswith(f"[taas] {key}: ")
    assert complaint("").startswith("[taas] public: ")


UNKNOWN = [
    (ini() + "[server]\nport = 1\n", "[server]"),
    (ini() + "[DEFAULT]\nport = 1\n", "[DEFAULT]"),
    ("[DEFAULT]\n" + ini(), "[DEFAULT]"),
    (ini().replace("[taas]", "[TAAS]"), "[TAAS]"),
    (ini().replace("[log]", "[constructor]"), "[constructor]"),
    (ini(prot="1"), "[taas] prot:"),
    (ini(tostring="1"), "[taas] tostring:"),
    (ini(file="server.log"), "[taas] file:"),
    (ini("linger_bytes = 1MiB"), "[limits] linger_bytes:"),
    (ini(log="port = 1"), "[log] port:"),
]
DOUBLED_OR_NO_INI = [
    (ini(port="1").replace("[limits]", "port = 2\n[limits]"), "'port' in section 'taas'"),
    (ini(port="1").replace("[limits]", "Port = 1\n[limits]"), "'port' in section 'taas'"),
    (ini() + "[log]\n", "section 'log'"),
    ("port = 1\n" + ini(), "line: 1 'port = 1"),
    (ini(log="just words"), "'just words"),
    (ini(log="file: server.log"), "'file: server.log"),
    (ini(log="= x"), "'= x"),
    ("[taas\n", "'[taas"),
]


@pytest.mark.parametrize(("text", "where"), UNKNOWN + DOUBLED_OR_NO_INI)
def test_what_is_unknown_doubled_or_no_ini_at_all_is_named(text: str, where: str) -> None:
    assert where in complaint(text)


LINES = ["[taas]", "[limits]", "[log]", "[DEFAULT]", "public = 192.0.2.1", "registrar = a", "servers = b"]
LINES += ["port = 1", "ports = 1-2", "format = json", "idle = 0s", "level", " b", "= x", "[", "]", "", "%("]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(LINES) | st.text(max_size=5), max_size=12).map("\n".join), st.booleans())
def test_any_text_is_a_config_or_one_line(text: str, complete: bool) -> None:
    try:
        config = parse(ini() + text if complete else text, INI)
    except ConfigError as error:
        assert str(error).startswith(f"{INI}: ") and "\n" not in str(error)
    else:
        assert isinstance(config, Config)


# ---- files -----------------------------------------------------------------------------------------------


def test_a_file_is_read_though_the_files_that_it_names_do_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "taas.ini"
    path.write_text(ini(certificate="none.crt"))
    assert load(path) == parse(ini(certificate="none.crt"), path)
    assert load(path).certificate == tmp_path / "none.crt"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin1.ini").write_bytes(ini(user="j\xf6rg").encode("latin-1"))
    for name, cause in (("missing.ini", "No such file"), (".", "directory"), ("latin1.ini", "UTF-8")):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: ") and cause in message and "\n" not in message


def test_a_config_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().port = 1  # type: ignore[misc]


def test_an_own_domain_may_have_a_certificate() -> None:
    config = parse(ini() + "[tls Home.Example.org.]\ncertificate = a.crt\nkey = /b.key\n", INI)
    assert config.tls == {"home.example.org": (INI.parent / "a.crt", Path("/b.key"))}


@pytest.mark.parametrize(
    "section, where",
    [
        ("[tls home.example.org]\ncertificate = a.crt\n", "[tls home.example.org] key: missing"),
        ("[tls home.example.org]\nkey = a\n", "[tls home.example.org] certificate: missing"),
        (
            "[tls home.example.org]\nkey = a\ncertificate = b\nport = 1\n",
            "[tls home.example.org] port: unknown",
        ),
        ("[tls 192.0.2.1]\nkey = a\ncertificate = b\n", "[tls 192.0.2.1]: it is no DNS name"),
        ("[tls]\nkey = a\n", "[tls]: unknown section"),
    ],
)
def test_a_bad_certificate_section_is_named(section: str, where: str) -> None:
    assert complaint(ini() + section).startswith(where)
