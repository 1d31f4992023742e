from itertools import pairwise

import pytest

from worker.engines.chunks import ending, windows


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("room", [6, 7, 9])
def test_windows_lose_no_token_and_overlap_as_asked(room: int, overlap: int) -> None:
    for count in range(1, 40):
        found = windows(count, room, overlap)
        assert (found[0][0], found[-1][1]) == (0, count)
        assert all(0 < end - first <= room for first, end in found)
        for (_, end), (first, next_end) in pairwise(found):
            assert end - first == overlap
            assert next_end > end, "a window that adds nothing"


@pytest.mark.parametrize(("room", "overlap"), [(5, 3), (3, 4), (0, 0), (-2, 0)])
def test_windows_of_too_little_room_are_none(room: int, overlap: int) -> None:
    assert windows(10, room, overlap) == []


@pytest.mark.parametrize(
    ("text", "characters", "kept"),
    [
        ("one two three", 100, "one two three"),
        ("one two three", 5, " three"),
        ("one two three", 6, " two three"),
        ("one two\nthree four", 8, "\nthree four"),
        ("onetwothree", 4, "onetwothree"),
    ],
)
def test_ending_begins_at_white_space(text: str, characters: int, kept: str) -> None:
    assert ending(text, characters) == kept
