import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.budget import GROW_AFTER, TokenBudget


def test_first_batch_is_as_large_as_memory_allows() -> None:
    assert TokenBudget(8192, 256, 0.05).tokens == 8192


@pytest.mark.parametrize(
    ("tokens_per_second", "budget"),
    [(1_000_000, 8192), (100_000, 5000), (1_000, 256)],
)
def test_budget_is_what_the_device_does_in_the_time_of_a_batch(tokens_per_second: int, budget: int) -> None:
    found = TokenBudget(8192, 256, 0.05)
    found.succeeded(tokens_per_second, 1)
    assert found.tokens == budget


def test_memory_that_ran_out_halves_the_budget_and_it_grows_back_carefully() -> None:
    found = TokenBudget(8192, 256, 10)
    found.succeeded(8192, 0.001)
    found.ran_out(8192)
    assert found.tokens == 4096
    for _ in range(GROW_AFTER - 1):
        found.succeeded(4096, 0.001)
    assert found.tokens == 4096
    found.succeeded(4096, 0.001)
    assert found.tokens == 8192


def test_small_batches_say_nothing_about_memory() -> None:
    found = TokenBudget(8192, 256, 10)
    found.ran_out(8192)
    for _ in range(3 * GROW_AFTER):
        found.succeeded(100, 0.00001)
    assert found.tokens == 4096


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10**6), st.floats(0, 100))))
def test_budget_always_lies_between_one_input_and_the_most(events: list[tuple[bool, int, float]]) -> None:
    found = TokenBudget(8192, 512, 0.05)
    for fits, tokens, seconds in events:
        if fits:
            found.succeeded(tokens, seconds)
        else:
            found.ran_out(tokens)
        assert 512 <= found.tokens <= 8192
