import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.batching import batches

lengths_lists = st.lists(st.integers(0, 600), max_size=60)
budgets = st.integers(1, 2048)


@pytest.mark.parametrize(
    ("lengths", "budget_tokens", "expected"),
    [
        ([], 100, []),
        ([7], 100, [[0]]),
        ([10, 10, 10], 20, [[0, 1], [2]]),
        ([10, 10, 10], 29, [[0, 1], [2]]),
        ([10, 10, 10], 30, [[0, 1, 2]]),
        ([3, 50, 3, 50], 100, [[1, 3], [0, 2]]),
        ([3, 50, 3], 100, [[1, 0], [2]]),  # short texts fill the batch of a long one
        ([200, 3, 3], 100, [[0], [1, 2]]),  # longer than the budget: by itself
        ([0, 0], 1, [[0], [1]]),
    ],
)
def test_inputs_are_grouped_longest_first(lengths: list[int], budget_tokens: int, expected: list[list[int]]) -> None:
    assert batches(lengths, budget_tokens) == expected


@pytest.mark.parametrize(
    ("lengths", "budget_tokens", "expected"),
    [
        ([], 100, []),
        ([60, 30, 10], 100, [[0, 1, 2]]),
        ([60, 30, 11], 100, [[0, 1], [2]]),
        ([200, 3, 3], 100, [[0], [1, 2]]),
        ([0, 0, 1], 2, [[2, 0], [1]]),  # an input without tokens counts as one, so that a batch has an end
    ],
)
def test_without_padding_the_sum_counts(lengths: list[int], budget_tokens: int, expected: list[list[int]]) -> None:
    assert batches(lengths, budget_tokens, unpadded=True) == expected


@given(lengths_lists, budgets, st.booleans())
def test_batches_hold_every_input_once(lengths: list[int], budget_tokens: int, unpadded: bool) -> None:
    found = batches(lengths, budget_tokens, unpadded=unpadded)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))


@given(lengths_lists, budgets)
def test_sum_without_padding_never_passes_the_budget_but_by_a_single_text(lengths: list[int], budget_tokens: int) -> None:
    for batch in batches(lengths, budget_tokens, unpadded=True):
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget_tokens


@given(lengths_lists, budgets)
def test_batch_never_passes_its_budget_but_by_a_single_text(lengths: list[int], budget_tokens: int) -> None:
    for batch in batches(lengths, budget_tokens):
        assert batch
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget_tokens


@given(lengths_lists, budgets)
def test_lengths_never_grow_from_one_input_to_the_next(lengths: list[int], budget_tokens: int) -> None:
    ordered = [lengths[index] for batch in batches(lengths, budget_tokens) for index in batch]
    assert ordered == sorted(lengths, reverse=True)


@given(lengths_lists, budgets)
def test_batch_is_full_before_the_next_begins(lengths: list[int], budget_tokens: int) -> None:
    for batch in batches(lengths, budget_tokens)[:-1]:
        assert max(1, lengths[batch[0]]) * (len(batch) + 1) > budget_tokens


def test_equal_lengths_keep_their_order() -> None:
    assert batches([5] * 4, 10) == [[0, 1], [2, 3]]
