"""Guessing: who is slowed down, by how much, and who is not, whatever strangers do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from house import ID, OTHER_ID, REGISTRAR, House
from hypothesis import given, settings
from hypothesis import strategies as st

from taaslib.guesses import LONGEST, MINUTE, PROOF, Guesses
from taaslib.limits import Limits


def guesses(per_address: int = 100, per_id: int = 10, most: int = 1000) -> Guesses:
    return Guesses(Limits(failures_per_address=per_address, failures_per_id=per_id, failures_remembered=most))


def test_ten_wrong_codes_for_an_id_cost_nothing_and_the_next_one_does() -> None:
    g = guesses()
    for number in range(10):
        assert g.wait("id", f"a{number}", 0.0) == 0
        g.failed("id", f"a{number}", 0.0)
    assert g.wait("id", "anybody", 0.0) == 0
    g.failed("id", "a", 0.0)
    assert g.wait("id", "anybody", 0.0) == 1.0
    assert g.wait("another id", "a", 0.0) == 0


def test_a_hundred_wrong_codes_from_an_address_cost_nothing_and_the_next_one_does() -> None:
    g = guesses()
    for number in range(101):
        assert g.wait(f"id{number}", "a", 0.0) == 0
        g.failed(f"id{number}", "a", 0.0)
    assert g.wait("a fresh id", "a", 0.0) == 1.0
    assert g.wait("a fresh id", "another", 0.0) == 0


def test_the_delay_doubles_up_to_five_minutes_and_is_forgotten_after_five_quiet_ones() -> None:
    g, now, delays = guesses(per_id=1), 0.0, []
    g.failed("id", "a", now)
    for _ in range(12):
        g.failed("id", "a", now)
        delays.append(g.wait("id", "b", now))
        now += delays[-1]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    now += LONGEST
    g.failed("id", "a", now)
    assert g.wait("id", "b", now) == 0


def test_ten_a_minute_are_free_for_ever() -> None:
    g = guesses()
    for number in range(1000):
        g.failed("id", f"a{number}", number * 6.0)
        assert g.wait("id", "x", number * 6.0) == 0


def test_strangers_can_not_lock_out_who_showed_a_right_code_within_a_day() -> None:
    g = guesses()
    g.proved("id", "home", 0.0)
    for _ in range(500):
        g.failed("id", "stranger", 1.0)
        g.failed("other", "home", 1.0)
    assert g.wait("id", "stranger", 1.0) > 0 and g.wait("other", "home", 1.0) > 0
    assert g.wait("id", "home", 1.0) == 0
    assert g.wait("id", "home", PROOF - 1) == 0


def test_who_is_proven_has_a_hundred_a_minute_of_its_own() -> None:
    g = guesses()
    g.proved("id", "home", 0.0)
    for _ in range(100):
        assert g.wait("id", "home", 1.0) == 0
        g.failed("id", "home", 1.0)
    g.failed("id", "home", 1.0)
    assert g.wait("id", "home", 1.0) == 1
    assert g.wait("id", "elsewhere", 1.0) == g.wait("other", "home", 1.0) == 0  # nor do they cost others


def test_a_proof_ends_after_a_day() -> None:
    g = guesses()
    g.proved("id", "home", 0.0)
    for _ in range(12):
        g.failed("id", "stranger", PROOF - 1)
    assert g.wait("id", "home", PROOF - 0.5) == 0
    assert g.wait("id", "home", PROOF) > 0


def test_when_a_table_is_full_newcomers_share_one_count() -> None:
    g = guesses(most=20)
    for number in range(20):
        g.failed(f"id{number}", "a", 0.0)
    for number in range(11):
        assert g.wait(f"new{number}", "b", 0.0) == 0
        g.failed(f"new{number}", "b", 0.0)
    assert g.wait("newest", "c", 0.0) == 1
    assert g.wait("id3", "c", 0.0) == 0  # who is told apart has nothing to do with them
    assert len(g._ids) == 20


def test_a_flood_of_newcomers_forgives_nobody() -> None:
    g = guesses(most=20)
    for _ in range(16):
        g.failed("victim", "x", 0.0)
    wait = g.wait("victim", "x", 0.0)
    assert wait == 32
    for number in range(500):
        g.failed(f"id{number}", f"a{number}", 1.0)
    assert g.wait("victim", "x", 1.0) == wait - 1


def test_room_that_came_free_forgives_no_newcomer_who_is_being_delayed() -> None:
    g = guesses(most=20)
    for number in range(20):
        g.failed(f"id{number}", "a", 0.0)
    for number in range(17):
        g.failed(f"new{number}", f"b{number}", 50.0)
    assert g.wait("new1", "c", 50.0) == 64
    assert g.wait("new1", "c", 50.0 + MINUTE) == 4
    assert g.wait("new1", "c", 50.0 + 64) == 0
    assert len(g._ids) == 0


def test_too_many_proofs_leave_the_next_one_a_stranger_and_forget_none() -> None:
    g = guesses(most=3)
    for address in "abcd":
        g.proved("id", address, 0.0)
    for _ in range(11):
        g.failed("id", "x", 1.0)
    assert [g.wait("id", address, 1.0) > 0 for address in "abcd"] == [False, False, False, True]
    g.proved("id", "a", PROOF + 1)
    g.proved("id", "d", PROOF + 1)
    g.failed("id", "x", PROOF + 1)
    assert len(g._proven) == 3 and ("id", "d") in g._proven


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["i1", "i2", "i3", "i4"]),
        st.sampled_from(["a1", "a2", "a3", "a4", "a5"]),
        st.booleans() | st.just(False),
        st.sampled_from([0.0, 0.0, 0.1, 1.0, 7.0, 61.0, 301.0, PROOF]),
    ),
    max_size=300,
)


@settings(deadline=None)
@given(STEPS, st.integers(1, 4), st.integers(1, 3))
def test_no_delay_is_longer_than_five_minutes_and_no_table_grows(
    steps: list[tuple[str, str, bool, float]], most: int, per_id: int
) -> None:
    g, now = guesses(per_address=5, per_id=per_id, most=most), 0.0
    for id, address, right, pause in steps:
        now += pause
        wait = g.wait(id, address, now)
        assert 0 <= wait <= LONGEST
        if not wait:
            (g.proved if right else g.failed)(id, address, now)
            if right:
                assert g.wait(id, address, now) == 0 or (id, address) not in g._proven
        assert len(g._ids) <= most and len(g._addresses) <= most and len(g._proven) <= most


@settings(deadline=None)
@given(STEPS)
def test_a_proven_pair_never_feels_what_others_do(steps: list[tuple[str, str, bool, float]]) -> None:
    g, now = guesses(per_address=2, per_id=1, most=3), 0.0
    g.proved("i1", "a1", now)
    for id, address, right, pause in steps:
        now = min(now + pause, PROOF - 1)
        if (id, address) != ("i1", "a1") and not g.wait(id, address, now):
            (g.proved if right else g.failed)(id, address, now)
        assert g.wait("i1", "a1", now) == 0


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 5.0, 6.0, 59.0, 60.0, 300.0]), min_size=1), st.integers(1, 10)
)
def test_however_a_guesser_paces_it_gets_in_no_more_than_the_policy_allows(
    pauses: list[float], free: int
) -> None:
    """From any number of addresses: FREE a minute, and the ten of a doubling series."""
    g, now, tried, addresses = guesses(per_address=1, per_id=free), 0.0, 0, count()
    for pause in pauses * 5:
        now += pause
        while not g.wait("id", f"{(address := next(addresses))}", now) and tried < 10_000:
            g.failed("id", f"{address}", now)
            tried += 1
        now += g.wait("id", "x", now)
    assert tried <= free * (now // MINUTE + 1) + 10 * (now // (LONGEST + MINUTE) + 1)


# At the registrar


def wrong(house: House, id: str = ID, **options: str) -> int:
    return house.put(id=id, code="000000", **options).status


def test_the_eleventh_wrong_code_slows_down_all_strangers_with_429(house: House) -> None:
    assert [wrong(house) for _ in range(12)] == [401] * 11 + [429]
    reply = house.put(source="127.0.0.2")  # a right one is not looked at either
    assert (reply.status, reply.fields["retry-after"]) == (429, "1")
    assert house.events("slowed")
    house.pass_time(1)
    assert house.put(source="127.0.0.2").status == 200


def test_an_unknown_id_is_slowed_down_in_the_same_words(house: House) -> None:
    unknown = "99999999-9999-4999-8999-999999999999"
    for id in (ID, unknown):
        for _ in range(11):
            assert wrong(house, id) == 401
    assert house.put(id=ID, code="000000").raw == house.put(id=unknown, code="000000").raw


def test_who_showed_a_right_code_is_not_locked_out_by_strangers(house: House) -> None:
    assert house.put("cam").status == 403  # right, if not granted
    assert [wrong(house, source="127.0.0.2") for _ in range(12)] == [401] * 11 + [429]
    assert house.put().status == 200


@pytest.mark.parametrize(("age", "status"), [(0, 200), (PROOF - 60, 200), (PROOF + 60, 429)])
def test_who_showed_a_right_code_is_not_locked_out_after_a_restart(
    build: Callable[..., House], age: float, status: int
) -> None:
    first = build()
    with first.admin() as store:
        step = int(first.wall.now - age) // 30 - 1
        store.spend_step(ID, step, "127.0.0.1", step)
    house = build()
    assert [wrong(house, source="127.0.0.2") for _ in range(12)] == [401] * 11 + [429]
    assert (house.put().status, house.put(source="127.0.0.3").status) == (status, 429)


def test_a_right_code_never_counts(house: House) -> None:
    assert {house.put(source=f"127.0.0.{number % 3 + 1}").status for number in range(60)} == {200, 401}
    assert wrong(house, source="127.0.0.9") == 401


def test_names_that_can_be_no_id_share_one_count(house: House) -> None:
    for number in range(11):
        request = (
            f"PUT /register/home HTTP/1.1\r\nHost: {REGISTRAR}\r\n"
            f'Authorization: TOTP username="{"x" * 5000}{number}", response="1"\r\n\r\n'
        )
        assert house.ask(request.encode()).status == 401
    assert house.put(id="another", code="1").status == 429
    assert house.put().status == 200
    assert list(house.service.registrar._guesses._ids._counts) == [""]


def test_a_jump_of_the_wall_clock_forgives_nothing(house: House) -> None:
    assert [wrong(house) for _ in range(12)] == [401] * 11 + [429]
    house.wall.now += 7200
    assert house.put(source="127.0.0.2").status == 429


@pytest.mark.parametrize("ahead", [-3600, -300, 90, 3600, 7200])
def test_the_log_and_the_operator_are_told_by_how_much_a_clock_is_off(house: House, ahead: int) -> None:
    answer = house.put(id=OTHER_ID, code="000000")
    house.pass_time(10)
    reply = house.put(code=house.code(at=house.wall.now + ahead))
    assert reply.status == 401 and reply.body == answer.body  # the answer does not tell
    way = "ahead" if ahead > 0 else "behind"
    assert house.events("wrong-code")[-1]["cause"] == f"the device's clock is {abs(ahead)} s {way}"
    with house.admin() as store:
        assert store.clock(ID) == (ahead, int(house.wall.now))
        assert store.clock(OTHER_ID) is None
    assert house.put().status == 200
    with house.admin() as store:
        assert store.clock(ID) is None


def test_an_unknown_or_disabled_id_has_no_clock(house: House) -> None:
    with house.admin() as store:
        store.set_enabled(ID, False)
    assert house.put(code=house.code(at=house.wall.now - 3600)).status == 401
    assert "cause" not in house.events("wrong-code")[-1]


def test_a_flood_of_wrong_codes_is_not_searched_for_other_times(house: House) -> None:
    wrong(house)
    house.put(code=house.code(at=house.wall.now - 3600))
    assert "cause" not in house.events("wrong-code")[-1]
    house.pass_time(5)
    house.put(code=house.code(at=house.wall.now - 3600))
    assert "cause" in house.events("wrong-code")[-1]
