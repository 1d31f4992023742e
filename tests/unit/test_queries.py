"""Query strings."""

import pytest
from werkzeug.datastructures import MultiDict

from api.queries import Query
from core.errors import InvalidRequest


def query(text: str, *known: str) -> Query:
    return Query(MultiDict(tuple(pair.split("=")) for pair in text.split("&") if pair), known)


@pytest.mark.parametrize(("raw", "value"), [("0", 0), ("7", 7), ("007", 7), ("100", 100)])
def test_whole_numbers(raw: str, value: int) -> None:
    assert query(f"n={raw}", "n").whole("n", 0, maximum=100) == value


@pytest.mark.parametrize("raw", ["-1", "101", "", "-", "1.0", "1e2", " 1", "1_0", "+1", "\u0661", "9" * 30, "null", "true"])
def test_what_is_no_whole_number_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRequest, match="n must be a whole number from 0 to 100") as caught:
        query(f"n={raw}", "n").whole("n", 0, maximum=100)
    assert caught.value.param == "n"


@pytest.mark.parametrize(("raw", "seconds"), [("0", 0), ("30", 30), ("0.5", 0.5), ("1e1", 10)])
def test_seconds_to_wait(raw: str, seconds: float) -> None:
    assert query(f"wait={raw}", "wait").wait_seconds() == seconds
    assert query("", "wait").wait_seconds() == 0


@pytest.mark.parametrize("raw", ["-0.1", "30.1", "nan", "inf", "-inf", "", "soon", "1s"])
def test_other_waits_are_refused(raw: str) -> None:
    with pytest.raises(InvalidRequest, match="wait must be a number of seconds from 0 to 30"):
        query(f"wait={raw}", "wait").wait_seconds()


def test_left_out_parameters_have_their_defaults() -> None:
    empty = query("", "n")
    assert empty.whole("n", 3) == 3
    assert empty.whole("n", None) is None
    assert empty.one_of("n", ("a",)) is None
    assert empty.text("n") == ""


def test_options_become_what_they_would_be_in_json() -> None:
    text = 'normalize=false&dimensions=8&ttl_seconds=60&metadata={"a":[1]}&queue=cpu&wait=3'
    known = ("normalize", "dimensions", "ttl_seconds", "metadata", "queue", "wait")
    assert query(text, *known).options() == {
        "normalize": False,
        "dimensions": 8,
        "ttl_seconds": 60,
        "metadata": {"a": [1]},
        "queue": "cpu",
    }


def test_canonical_form_ignores_order_and_waiting() -> None:
    known = ("a", "b", "wait")
    assert query("a=1&b=2", *known).canonical() == query("b=2&wait=9&a=1", *known).canonical()
    assert query("a=1&b=2", *known).canonical() != query("a=2&b=1", *known).canonical()


def test_long_values_are_not_shown() -> None:
    with pytest.raises(InvalidRequest, match="got 33 characters"):
        query("n=" + "x" * 33, "n").whole("n", 0)
