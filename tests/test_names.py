"""Whom a Host means, what a label is, and which address stands for a peer."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taaslib import names
from taaslib.names import Peer

SERVERS = "taas.example.com"
REGISTRAR = "registrar.taas.example.com"

ORDINARY = ["constructor", "tostring", "hasownproperty", "valueof", "null", "default", "0", "a-b", "xn--a"]

NO_HOSTS = [
    "",
    ":443",
    "a:65536",
    "a:999999",
    "a:x",
    "a:-1",
    "a:+1",
    "a:1:2",
    "a: 1",
    "a b",
    " a",
    "a,b",
    "a, b",
]
NO_HOSTS += [
    "me@a",
    "me:secret@a",
    "a/",
    "a?b",
    "a#b",
    "a%41",
    "a\\b",
    "a'b",
    '"a"',
    "<a>",
    "a\0",
    "a\n",
    "a\t",
]
NO_HOSTS += ["[::1", "::1", "[x]", "[::1]x", "[]", "mü.de", "a:\u0661", "\u212a"]

NO_LABELS = [
    "",
    "-",
    "-a",
    "a-",
    "x" * 64,
    "a.b",
    "a.",
    "a_b",
    "__proto__",
    "a b",
    " a",
    "a\n",
    "a\0",
    "a/b",
    "*",
]
NO_LABELS += [
    "a%2d",
    "mü",
    "\u0661",
    "\uff41",
    "\u212a",
]  # the Kelvin sign, whose lower case is an ordinary k


def label_of(authority: str) -> str | None:
    return names.label_of(names.host_of(authority), SERVERS)


# ---- hosts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("home.taas.example.com", "home.taas.example.com"),
        ("Home.TAAS.example.COM", "home.taas.example.com"),
        ("home.taas.example.com.", "home.taas.example.com"),
        ("home.taas.example.com:443", "home.taas.example.com"),
        ("home.taas.example.com.:8443", "home.taas.example.com"),
        ("a:", "a"),  # RFC 3986 3.2.3: the port may be empty
        ("a:0", "a"),
        ("a:65535", "a"),
        ("a_b", "a_b"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("[2001:DB8::1]:443", "[2001:db8::1]"),
        ("[::1]", "[::1]"),
    ],
)
def test_a_host_is_read_without_case_port_and_final_dot(authority: str, host: str) -> None:
    assert names.host_of(authority) == host


@pytest.mark.parametrize("authority", NO_HOSTS, ids=ascii)
def test_what_is_no_host_is_refused(authority: str) -> None:
    with pytest.raises(ValueError, match="host"):
        names.host_of(authority)


@pytest.mark.parametrize("label", [*ORDINARY, "a", "x" * 63, "registra", "registrarx"])
def test_a_label_below_the_servers_name_is_meant_whatever_it_is_called(label: str) -> None:
    for authority in (f"{label}.{SERVERS}", f"{label.upper()}.{SERVERS.upper()}.:8443"):
        assert label_of(authority) == label


@pytest.mark.parametrize(
    "authority",
    [
        SERVERS,
        f"a.b.{SERVERS}",
        f"-a.{SERVERS}",
        f"a-.{SERVERS}",
        f"a_b.{SERVERS}",
        f"__proto__.{SERVERS}",
        f"{'x' * 64}.{SERVERS}",
        f".{SERVERS}",
        f"..{SERVERS}",
        f"home.{SERVERS}..",
        f"home{SERVERS}",
        f"home.x{SERVERS}",
        f"home.{SERVERS}.evil.example",
        "example.com",
        "home",
        "home.",
        ".",
        "192.0.2.1",
        "[::1]:443",
    ],
)
def test_anybody_else_is_a_stranger(authority: str) -> None:
    assert label_of(authority) is None


# ---- labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*ORDINARY, "a", "1", "x" * 63, "A-1", "a--b", "toString", "CONSTRUCTOR"])
def test_a_label_is_folded_to_lower_case(text: str) -> None:
    assert names.label(text) == text.lower()


@pytest.mark.parametrize("text", NO_LABELS, ids=ascii)
def test_what_is_no_dns_label_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="label"):
        names.label(text)


@settings(deadline=None)
@given(st.text() | st.text("aZ09-.", max_size=66))
def test_any_text_is_a_label_or_a_value_error(text: str) -> None:
    try:
        label = names.label(text)
    except ValueError:
        return
    assert names.label(label) == label and set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 1 <= len(label) <= 63 and label[0] != "-" != label[-1]
    assert label_of(f"{label}.{SERVERS}:1") == label


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*"a.:[]1@-", "home", SERVERS, REGISTRAR, ":443"])).map("".join))
def test_any_authority_is_a_host_or_a_value_error(authority: str) -> None:
    try:
        host = names.host_of(authority)
    except ValueError:
        return
    assert host.isascii() and host == host.lower()
    assert names.host_of(f"{host}.") == host if not host.startswith("[") else host.endswith("]")
    label = label_of(authority)
    assert not label or host == f"{label}.{SERVERS}"


# ---- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_an_address_has_one_plain_form(address: str, plain: str) -> None:
    assert names.plain_address(address) == plain == names.plain_address(plain)


def test_one_peer_is_an_ipv4_address_or_an_ipv6_network_of_64_bits() -> None:
    assert names.network_of("192.0.2.1") == "192.0.2.1" != names.network_of("192.0.2.2")
    assert names.network_of("2001:db8:1:2::3") == names.network_of("2001:db8:1:2:f::") == "2001:db8:1:2::/64"
    assert names.network_of("2001:db8:1:3::3") != names.network_of("2001:db8:1:2::3")


@settings(deadline=None)
@given(st.ip_addresses(), st.integers(0, 65535))
def test_address_and_port_are_written_so_that_a_url_can_hold_them(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    written = names.host_port(str(address), port)
    assert written == (f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    assert names.host_of(written).strip("[]") == str(address)
    assert str(Peer(str(address), port, "192.0.2.1")) == written
    plain = ipaddress.ip_address(names.plain_address(str(address)))
    assert plain == address or plain == getattr(address, "ipv4_mapped", None)
