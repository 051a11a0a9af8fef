"""The registrar's rows of docs/protocol.md, each through a real TLS connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

import pyotp
import pytest
from house import ID, OTHER_ID, REGISTRAR, SECRETS, House

from taaslib.store import Credential


def request(line: str, *fields: str, host: str = REGISTRAR) -> bytes:
    return "\r\n".join([line, f"Host: {host}", *fields, "", ""]).encode()


def totp(id: str = ID, code: str = "000000") -> str:
    return f'Authorization: TOTP username="{id}", response="{code}"'


def test_a_registration_answers_with_address_and_port_and_nothing_else(house: House) -> None:
    reply = house.put()
    assert reply.status == 200
    assert reply.fields["content-type"] == "text/plain"
    assert reply.body == b"127.0.0.1:%d" % reply.port  # C3: no newline, no text
    assert reply.port in range(20000, 20400)


def test_without_authorization_everything_is_a_challenge(house: House) -> None:
    for line in ("PUT /register/home", "GET /register/home", "GET /", "DELETE /pairings/x"):
        reply = house.ask(request(f"{line} HTTP/1.1"))
        assert (reply.status, reply.fields["www-authenticate"]) == (401, 'TOTP realm="taas"')


def test_another_scheme_is_a_challenge(house: House) -> None:
    for value in ("Basic dXNlcjpwYXNz", "Bearer x", "TOTPX username=a, response=b", ""):
        reply = house.ask(request("PUT /register/home HTTP/1.1", f"Authorization: {value}"))
        assert (reply.status, reply.fields["www-authenticate"]) == (401, 'TOTP realm="taas"')


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        f'username="{ID}"',
        'response="123456"',
        f"username={ID}, username={ID}, response=1",
        'username="',
        "a",
    ],
)
def test_malformed_missing_or_doubled_parameters_are_400(house: House, parameters: str) -> None:
    reply = house.ask(request("PUT /register/home HTTP/1.1", f"Authorization: TOTP {parameters}"))
    assert reply.status == 400


def test_unknown_wrong_and_disabled_look_the_same(house: House) -> None:
    wrong = house.ask(request("PUT /register/home HTTP/1.1", totp(code="000000")))
    unknown = house.ask(request("PUT /register/home HTTP/1.1", totp("33333333-3333-4333-8333-333333333333")))
    with house.admin() as store:
        store.set_enabled(ID, False)
    disabled = house.put()
    for reply in (wrong, unknown, disabled):
        assert reply.status == 401
        assert reply.fields["www-authenticate"] == 'TOTP realm="taas"'
        assert reply.raw == wrong.raw


@pytest.mark.parametrize("pause, hmacs", [(0, 3), (5, 3 + 321)])
def test_unknown_wrong_and_disabled_cost_the_same_hmacs(
    house: House, monkeypatch: pytest.MonkeyPatch, pause: float, hmacs: int
) -> None:
    """Also where a wrong code is looked for at other times, which is done every 5 s at most."""
    computed: list[int] = []
    generate = pyotp.TOTP.generate_otp
    house.put(code="000000")
    monkeypatch.setattr(
        pyotp.TOTP, "generate_otp", lambda self, step: (computed.append(step), generate(self, step))[1]
    )

    def cost(id: str, code: str) -> int:
        house.pass_time(pause)
        computed.clear()
        assert house.ask(request("PUT /register/home HTTP/1.1", totp(id, code))).status == 401
        return len(computed)

    wrong = cost(ID, "000000")
    unknown = cost("33333333-3333-4333-8333-333333333333", "000000")
    good = house.code()
    with house.admin() as store:
        store.set_enabled(ID, False)
    assert wrong == unknown == cost(ID, good) == hmacs


def test_a_code_of_nobody_s_secret_opens_nothing(house: House) -> None:
    from taaslib.authorization import NOBODY

    code = pyotp.TOTP(NOBODY.base32).generate_otp(int(house.wall.now) // 30)
    assert house.ask(request("PUT /register/home HTTP/1.1", totp(OTHER_ID[::-1], code))).status == 401


def test_a_label_that_is_not_granted_is_403(house: House) -> None:
    assert house.put("cam", ID).status == 403
    assert house.put("cam", OTHER_ID).status == 200


@pytest.mark.parametrize("label", ["-a", "a-", "a_b", "a.b", "%41", "a" * 64, "h%6fme", "a."])
def test_what_is_no_dns_label_is_400(house: House, label: str) -> None:
    assert house.put(label).status == 400


def test_a_label_is_folded_to_lower_case(house: House) -> None:
    assert house.put("HoMe").status == 200


@pytest.mark.parametrize(
    "path", ["/", "/register", "/register/", "/Register/home", "/register/home/", "/x/home"]
)
def test_other_paths_are_404(house: House, path: str) -> None:
    assert house.ask(request(f"PUT {path} HTTP/1.1", totp(code=house.code()))).status == 404


def test_the_query_of_the_path_is_ignored(house: House) -> None:
    assert house.ask(request("PUT /register/home?x=/y HTTP/1.1", totp(code=house.code()))).status == 200


def test_other_methods_are_405_and_name_the_right_one(house: House) -> None:
    for method, path, allow in (
        ("GET", "/register/home", "PUT"),
        ("POST", "/register/home", "PUT"),
        ("PUT", "/pairings/home", "GET"),
    ):
        reply = house.ask(request(f"{method} {path} HTTP/1.1", totp()))
        assert (reply.status, reply.fields["allow"]) == (405, allow)


def test_checks_come_in_the_documented_order(house: House) -> None:
    """Authorization present, path, method, parameters, code, grant."""
    malformed = "Authorization: TOTP x"
    assert house.ask(request("GET /nowhere HTTP/1.1", malformed)).status == 404
    assert house.ask(request("GET /register/home HTTP/1.1", malformed)).status == 405
    assert house.ask(request("PUT /register/home HTTP/1.1", malformed)).status == 400
    assert house.ask(request("PUT /register/cam HTTP/1.1", totp(code="000000"))).status == 401
    assert house.ask(request("PUT /register/cam HTTP/1.1", totp(code=house.code()))).status == 403


def test_the_client_of_2014_registers_15_times_with_one_code(house: House) -> None:
    """C1, C3: chunked with an empty body, Host with its port, the same code each time."""
    code = house.code()
    for _ in range(15):
        reply = house.ask(
            request(
                "PUT /register/home HTTP/1.1",
                totp(code=code),
                "Transfer-Encoding: chunked",
                "Connection: close",
                host=f"{REGISTRAR}:{house.service.port}",
            )
            + b"0\r\n\r\n"
        )
        assert reply.status == 200
        house.wire(reply.port)
    house.until(lambda: house.waiting() == 15)


def test_one_step_of_drift_is_accepted_each_way_and_two_are_not(house: House) -> None:
    now = house.wall.now
    assert house.put(code=house.code(at=now - 60)).status == 401
    assert house.put(code=house.code(at=now + 60)).status == 401
    assert house.put(code=house.code(at=now - 30)).status == 200
    assert house.put(code=house.code(at=now)).status == 200
    assert house.put(code=house.code(at=now + 30)).status == 200


def test_a_used_code_is_refused_from_another_address(house: House) -> None:
    code = house.code()
    assert house.put(code=code).status == 200
    stolen = house.put(code=code, source="127.0.0.2")
    assert stolen.status == 401
    assert stolen.body == house.put(code="000000").body
    assert house.put(code=code).status == 200  # and it costs the owner nothing


def test_a_fresh_code_is_good_from_another_address(house: House) -> None:
    assert house.put().status == 200
    house.pass_time(30)
    assert house.put(source="127.0.0.2").status == 200


def test_steps_older_than_the_newest_accepted_one_are_refused(house: House) -> None:
    old, new = house.code(), house.code(at=house.wall.now + 30)
    assert house.put(code=new).status == 200
    assert house.put(code=old).status == 401
    assert house.put(code=old, source="127.0.0.2").status == 200  # of that address it is the newest


def test_an_overused_code_is_429_until_the_next_step(build: Callable[..., House]) -> None:
    house = build(limits={"reuse": 2})
    assert [house.put().status for _ in range(2)] == [200, 200]
    reply = house.put()
    assert (reply.status, reply.fields["retry-after"]) == (429, "15")
    house.pass_time(15)
    assert house.put().status == 200


def test_reuse_of_1_is_strict(build: Callable[..., House]) -> None:
    house = build(limits={"reuse": 1})
    assert [house.put().status for _ in range(2)] == [200, 429]


def test_a_spent_code_stays_spent_over_a_restart(build: Callable[..., House]) -> None:
    first = build()
    code = first.code()
    assert first.put(code=code).status == 200
    second = build()
    assert second.put(code=code, source="127.0.0.2").status == 401
    assert second.put(code=code).status == 200


def test_with_claim_any_a_code_is_not_bound_to_an_address(build: Callable[..., House]) -> None:
    house = build(claim="any")
    code = house.code()
    assert [house.put(code=code, source=source).status for source in ("127.0.0.1", "127.0.0.2")] == [200, 200]


def test_ipv6_neighbours_in_one_64_share_a_code(build: Callable[..., House]) -> None:
    house = build(address=("127.0.0.1", "::1"))
    reply = house.put(address="::1")
    assert reply.status == 200
    assert reply.body == b"[::1]:%d" % reply.port
    house.wire(reply.port, "::1")
    house.until(lambda: house.waiting() == 1)


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
@pytest.mark.parametrize("digits", [6, 7, 8])
def test_digits_period_and_algorithm_are_the_credential_s(house: House, algorithm: str, digits: int) -> None:
    import hashlib

    id, secret = "44444444-4444-4444-8444-444444444444", pyotp.random_base32()
    with house.admin() as store:
        store.add(Credential(id, secret, digits, 60, algorithm), ["lab"], None, 0)
    digest = getattr(hashlib, algorithm.lower())
    code = pyotp.TOTP(secret, digits=digits, digest=digest, interval=60).generate_otp(
        int(house.wall.now) // 60
    )
    assert len(code) == digits
    assert house.put("lab", id, code).status == 200


def test_pairings_are_an_empty_array_at_first(house: House) -> None:
    reply = house.ask(request("GET /pairings/home HTTP/1.1", totp(code=house.code())))
    assert (reply.status, reply.fields["content-type"], json.loads(reply.body)) == (
        200,
        "application/json",
        [],
    )


def test_pairings_need_the_same_rights_as_a_registration(house: House) -> None:
    assert house.ask(request("GET /pairings/home HTTP/1.1")).status == 401
    assert house.ask(request("GET /pairings/home HTTP/1.1", totp())).status == 401
    assert house.ask(request("GET /pairings/cam HTTP/1.1", totp(code=house.code()))).status == 403


def test_pairings_tell_who_met_whom_oldest_first(build: Callable[..., House]) -> None:
    house = build(limits={"pairings": 2})
    names = []
    for _ in range(3):
        responder, initiator = house.pair()
        names.append((responder.name, initiator.name))
    listed = json.loads(house.ask(request("GET /pairings/home HTTP/1.1", totp(code=house.code()))).body)
    assert [(entry["responder"], entry["initiator"]) for entry in listed] == names[1:]
    assert all(entry["timestamp"] == 1_800_000_015_000 for entry in listed)


def test_a_full_label_is_429_at_the_put(build: Callable[..., House]) -> None:
    house = build(limits={"responders_per_label": 3})
    house.responder()
    assert [house.put(id=id).status for id in (ID, OTHER_ID, OTHER_ID)] == [200, 200, 429]
    assert "retry-after" in house.put().fields


def test_an_id_holds_no_more_than_its_share_of_unclaimed_ports(build: Callable[..., House]) -> None:
    house = build(limits={"unclaimed_per_id": 2})
    assert [house.put().status for _ in range(3)] == [200, 200, 429]
    assert house.put(id=OTHER_ID).status == 200
    house.pass_time(30)
    assert house.put().status == 200


def test_no_port_free_is_503(build: Callable[..., House]) -> None:
    house = build(ports=(range(20000, 20002),))
    assert [house.put().status for _ in range(3)] == [200, 200, 503]
    assert "retry-after" in house.put().fields


def test_a_locked_database_is_503_and_not_a_crash(house: House) -> None:
    other = sqlite3.connect(house.config.database, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        reply = house.put()
        assert (reply.status, "retry-after" in reply.fields) == (503, True)
        other.execute("ROLLBACK")
        assert house.put().status == 200
    finally:
        other.close()


def test_a_secret_or_a_code_never_reaches_the_log(house: House) -> None:
    good = house.code()
    house.put(code=good)
    house.put(code="987654")
    house.ask(request("PUT /register/home HTTP/1.1", totp(SECRETS[ID], "987654")))
    house.ask(request("PUT /register/home HTTP/1.1", f'Authorization: TOTP username="{SECRETS[ID]}'))
    assert house.events("registered") and house.events("wrong-code")
    for secret in (good, "987654", SECRETS[ID]):
        assert secret not in house.log


def test_an_id_may_be_written_in_capitals(house: House) -> None:
    id = "ABCDEF00-5555-4555-8555-ABCDEF000000"
    with house.admin() as store:
        store.add(Credential(id.lower(), SECRETS[ID]), ["big"], None, 0)
    assert house.put("big", id, house.code()).status == 200


def test_strict_codes_stay_spent_over_a_restart(build: Callable[..., House]) -> None:
    first = build(limits={"reuse": 1})
    code = first.code()
    assert first.put(code=code).status == 200
    assert build(limits={"reuse": 1}).put(code=code).status == 429


def test_b10_a_wrong_code_is_a_challenge_and_a_used_one_is_remembered(house: House) -> None:
    code = house.code()
    assert house.put(code=code).status == 200
    for reply in (house.put(code="000000"), house.put(code=code, source="127.0.0.2")):
        assert (reply.status, reply.fields["www-authenticate"]) == (401, 'TOTP realm="taas"')
    assert house.events("wrong-code") and house.events("code-used")
