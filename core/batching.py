"""Group tokenised inputs into batches under a token budget."""

from collections.abc import Sequence


def batches(lengths: Sequence[int], budget_tokens: int, *, unpadded: bool = False) -> list[list[int]]:
    """Indices of the inputs in each batch, longest inputs first.

    Inputs of similar length share a batch, so little is spent on padding. The padded size of a batch, longest × number of
    inputs, stays within `budget_tokens`; an input that is longer than the budget is a batch of its own. Longest first
    makes an out-of-memory error come at the start rather than at the end.

    Args:
        lengths: tokens of each input.
        budget_tokens: most tokens in a batch, padding included.
        unpadded: whether the engine takes a batch without padding; the sum of its lengths then stays within the budget.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    groups: list[list[int]] = []
    room = 0
    for index in order:
        # Room is counted in inputs as long as the longest, or in tokens.
        size = max(1, lengths[index]) if unpadded else 1
        if room < size:
            groups.append([])
            room = budget_tokens if unpadded else max(1, budget_tokens // max(1, lengths[index]))
        groups[-1].append(index)
        room -= size
    return groups
