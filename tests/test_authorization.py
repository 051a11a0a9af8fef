"""The Authorization header read as RFC 9110 says, and the step that a code proves as RFC 6238 says."""

from __future__ import annotations

import base64
import hmac
import struct
import time
from collections.abc import Iterator
from itertools import product

import pyotp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taaslib.authorization import NOBODY, Claim, Malformed, Secret, is_totp, matching_step, parse

# ---- the header ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["TOTP", "TOTP ", "totp a=b", "ToTp\ta=b"])
def test_the_scheme_is_ours_in_any_case(value: str) -> None:
    assert is_totp(value)


@pytest.mark.parametrize("value", [None, "", "Basic TOTP", "TOTPX a=b", "TOT", "TOTP,a=b", " TOTP a=b"])
def test_another_scheme_is_not_ours(value: str | None) -> None:
    assert not is_totp(value)


@pytest.mark.parametrize(
    "value",
    [
        'TOTP username="ID", response="123456"',
        "TOTP username=ID, response=123456",
        "TOTP response=123456, username=ID",
        'totp USERNAME="ID",ReSponse=123456',
        'TOTP\t  username = "ID"\t,\t response\t=123456  ',
        'TOTP realm="a, response=9", username=ID, algorithm=SHA1, response=123456, x=""',
        "TOTP ,, ,username=ID,, ,response=123456, ,",
        "TOTP , username=ID , response=123456,",
        r'TOTP username="\I\D", response="123\4\56"',
        r'TOTP quoted="\"\\", username="ID", response="123456"',
    ],
)
def test_every_spelling_of_the_parameters_is_the_same_claim(value: str) -> None:
    assert parse(value) == Claim("ID", "123456")


@pytest.mark.parametrize(
    ("value", "id"),
    [
        (r'"a \"b\" \\ c"', r'a "b" \ c'),
        ('"a, response=1"', "a, response=1"),
        ('"\ta= "', "\ta= "),
        ('"J\xf6rg"', "Jörg"),
        ('"\\\xf6"', "ö"),
        ("!#$%&'*+-.^_`|~9aZ", "!#$%&'*+-.^_`|~9aZ"),
        ("toString", "toString"),
    ],
)
def test_a_value_means_what_its_quotes_and_escapes_say(value: str, id: str) -> None:
    assert parse(f"TOTP username={value}, response=123456") == Claim(id, "123456")


@pytest.mark.parametrize(
    "parameters",
    {
        "nothing": "",
        "commas alone": " , ,",
        "no response": ' username="ID"',
        "no username": ' response="123456"',
        "an empty username": ' username="", response="123456"',
        "an empty response": ' username="ID", response=""',
        "a username twice": ' username="ID", response="123456", username="ID"',
        "a response twice, in another case": " username=ID, response=123456, RESPONSE=123456",
        "an unknown one twice": " username=ID, response=123456, x=1, x=2",
        "token68": " dGVzdA==",
        "token68 without padding": " dGVzdA",
        "token68 with one =": " dGVzdA=",
        "token68 beside parameters": " dGVzdA==, username=ID, response=123456",
        "a value that is neither token nor quoted": " username=a@b, response=123456",
        "no value": " username=, response=123456",
        "no name": " =ID, response=123456",
        "a name in quotes": ' "username"=ID, response=123456',
        "an open quote": ' username="ID, response=123456',
        "a quote closed by an escaped one": r' response=123456, username="ID\"',
        "text behind a quote": ' username="ID"x, response=123456',
        "no comma between": ' username="ID" response="123456"',
        "no comma and no space between": ' username="ID"response="123456"',
        "a semicolon between": " username=ID; response=123456",
        "a control character": ' username="I\x01D", response=123456',
        "an escaped control character": ' username="I\\\x01D", response=123456',
        "a DEL": ' username="I\x7fD", response=123456',
        "a newline": ' username="ID",\n response=123456',
        "text at the end": " username=ID, response=123456 x",
        "single quotes around a space": " username='I D', response=123456",
    }.items(),
    ids=lambda item: item[0],
)
def test_malformed_parameters_are_told_apart_from_a_wrong_code(parameters: tuple[str, str]) -> None:
    with pytest.raises(Malformed):
        parse("TOTP" + parameters[1])


def test_every_cut_of_a_header_is_malformed_and_so_is_one_with_more_behind() -> None:
    whole = 'TOTP username="ID", response="123456"'
    for part in [*(whole[:at] for at in range(len("TOTP"), len(whole))), *(whole + c for c in 'x"\\=;')]:
        with pytest.raises(Malformed):
            parse(part)
    assert all(parse(whole + rest) == Claim("ID", "123456") for rest in (" ", ",", " ,\t,", ", x=y"))


TOKENS = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1)
TEXTS = st.text(st.sampled_from(["\t", *(chr(c) for c in range(0x20, 0x100) if c != 0x7F)]), min_size=1)
BLANKS = st.text(" \t", max_size=2)
COMMAS = st.lists(BLANKS, min_size=2, max_size=4).map(",".join)


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, str, str]:
    """An ID, a code, and one of the many ways to send them."""

    def quoted(text: str) -> str:
        escaped = draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
        pairs = zip(text, escaped, strict=True)
        return '"' + "".join("\\" + c if escape or c in '"\\' else c for c, escape in pairs) + '"'

    id, code = draw(TEXTS), draw(TEXTS)
    names = TOKENS.map(lambda name: f"x-{name.lower()}")
    others = draw(st.dictionaries(names, TOKENS | TEXTS.map(quoted), max_size=3))
    items = draw(st.permutations([("USERname", quoted(id)), ("response", quoted(code)), *others.items()]))
    parameters = [name + draw(BLANKS) + "=" + draw(BLANKS) + value for name, value in items]
    separated = "".join(draw(COMMAS) + parameter for parameter in parameters)
    return id, code, "Totp " + separated + draw(BLANKS | COMMAS)


@settings(deadline=None)
@given(headers())
def test_what_a_client_may_send_comes_out_as_it_was_meant(sent: tuple[str, str, str]) -> None:
    id, code, value = sent
    assert parse(value) == Claim(id, code)


SOUP = st.lists(st.sampled_from([*'",=\\ \tx', "username=", "response=", '"ID"', "123456"])).map("".join)


@settings(deadline=None, max_examples=300)
@given(SOUP | st.text(st.characters(max_codepoint=0xFF)))
def test_no_header_raises_anything_but_malformed(rest: str) -> None:
    try:
        claim = parse("TOTP" + rest)
    except Malformed:
        return
    assert claim.id and claim.code


def test_neither_code_nor_secret_shows_in_a_log() -> None:
    assert "123456" not in repr(Claim("ID", "123456"))
    assert NOBODY.base32 not in repr(NOBODY)


# ---- the code --------------------------------------------------------------------------------------------

KEYS = {name: (b"1234567890" * 7)[:size] for name, size in (("SHA1", 20), ("SHA256", 32), ("SHA512", 64))}
APPENDIX_B = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
NOW = 1_761_350_417.5  # 17.5 s into a step of 30 s


def secret(algorithm: str = "SHA1", digits: int = 6, period: int = 30) -> Secret:
    return Secret(base64.b32encode(KEYS[algorithm]).decode(), digits, period, algorithm)


def code_of(step: int, of: Secret) -> str:
    """RFC 4226 5.3, written once more so that pyotp is not measured by itself."""
    digest = hmac.digest(base64.b32decode(of.base32), struct.pack(">Q", step), of.algorithm.lower())
    number = struct.unpack_from(">I", digest, digest[-1] & 15)[0] & 0x7FFFFFFF
    return f"{number % 10**of.digits:0{of.digits}d}"


@pytest.mark.parametrize("vector", APPENDIX_B, ids=lambda vector: str(vector[0]))
def test_the_vectors_of_rfc_6238_match(vector: tuple[int, str, str, str]) -> None:
    now, *codes = vector
    for algorithm, code in zip(KEYS, codes, strict=True):
        assert code_of(now // 30, secret(algorithm, 8)) == code
        assert matching_step(code, secret(algorithm, 8), now) == now // 30
        assert matching_step(code[1:], secret(algorithm, 7), now) == now // 30
        assert matching_step(code[2:], secret(algorithm, 6), now) == now // 30


@pytest.mark.parametrize(("algorithm", "digits", "period"), product(KEYS, (6, 7, 8), (15, 30, 60)))
def test_one_step_of_drift_is_forgiven_each_way_not_two(algorithm: str, digits: int, period: int) -> None:
    whose = secret(algorithm, digits, period)
    step = int(NOW) // period
    for now in (step * period, step * period + period - 0.001):
        found = [matching_step(code_of(step + off, whose), whose, now) for off in range(-3, 4)]
        assert found == [None, None, step - 1, step, step + 1, None, None]


def test_nothing_is_before_1970() -> None:
    assert [matching_step(code_of(step, secret()), secret(), 0.0) for step in (0, 1, 2)] == [0, 1, None]


def test_a_leading_zero_belongs_to_the_code() -> None:
    step = next(step for step in range(10**6) if code_of(step, secret()).startswith("0"))
    code = code_of(step, secret())
    assert matching_step(code, secret(), step * 30) == step
    assert matching_step(code[1:], secret(), step * 30) is None


@pytest.mark.parametrize("digits", [6, 7, 8])
def test_a_code_of_another_length_or_alphabet_is_wrong(digits: int) -> None:
    whose = secret(digits=digits)
    code = code_of(int(NOW) // 30, whose)
    wrong = ["", code[1:], code[:-1], "0" + code, code + "0", " " + code, code + "\n", "\xb2" * digits]
    assert [matching_step(text, whose, NOW) for text in wrong] == [None] * len(wrong)


CODES = st.text(st.characters(max_codepoint=0xFF)) | st.text("0123456789", min_size=6, max_size=6)


@settings(deadline=None)
@given(CODES, st.floats(0, 4e9))
def test_no_code_raises_anything(code: str, now: float) -> None:
    step = matching_step(code, secret(), now)
    assert step is None or (code_of(step, secret()) == code and abs(step - int(now) // 30) <= 1)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # Europe/Berlin, where no zones are installed too
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("utc", [1792888200, 1792891800], ids=["summer time", "winter time"])
def test_the_hour_that_comes_twice_in_autumn_is_as_good_as_any(
    berlin: None, utc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(utc)) == "2026-10-25 02:30"
    for name in ("at", "now", "verify"):  # through local time: wrong in one of the two
        monkeypatch.delattr(pyotp.TOTP, name)
    for off in (-1, 0, 1):
        assert matching_step(code_of(utc // 30 + off, secret()), secret(), utc) == utc // 30 + off
    for off in (-120, 120):  # the other 02:30
        assert matching_step(code_of(utc // 30 + off, secret()), secret(), utc) is None


def test_an_unknown_id_costs_as_many_hmacs_as_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    step = int(NOW) // 30
    cases = [(NOBODY, "123456"), (NOBODY, ""), (secret(), "123456"), (secret(), "x" * 5000)]
    cases += [(secret(), code_of(step + off, secret())) for off in (-1, 0, 1)]
    done: list[str] = []

    def count(module: object, name: str) -> None:
        real = getattr(module, name)

        def counted(*args: object) -> object:
            done.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, counted)

    count(hmac, "new")
    count(hmac, "compare_digest")
    for whose, code in cases:
        done.clear()
        matching_step(code, whose, NOW)
        assert (done.count("new"), done.count("compare_digest")) == (3, 3), (whose, code)
