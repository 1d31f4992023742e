import pytest

from core.recovery import Step, next_step


@pytest.mark.parametrize(
    ("inputs", "max_attempts", "expected"),
    [
        (1, 3, [Step.RUN, Step.RUN, Step.RUN, Step.FAIL, Step.FAIL]),
        (256, 3, [Step.RUN, Step.RUN, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE]),
        (2, 5, [Step.RUN, Step.RUN, Step.RUN, Step.RUN, Step.DIVIDE]),
        (1, 1, [Step.RUN, Step.FAIL, Step.FAIL, Step.FAIL, Step.FAIL]),
        (2, 1, [Step.RUN, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE]),
    ],
)
def test_step_follows_from_the_attempt_and_the_size(inputs: int, max_attempts: int, expected: list[Step]) -> None:
    assert [next_step(attempt, inputs, max_attempts) for attempt in range(1, 6)] == expected


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 7])
def test_no_text_kills_more_workers_than_it_may_and_no_shard_is_run_for_ever(max_attempts: int) -> None:
    deaths, attempt, inputs = 0, 0, 8
    for _ in range(100):
        attempt += 1
        match next_step(attempt, inputs, max_attempts):
            case Step.RUN:
                deaths += 1
            case Step.DIVIDE:
                attempt, inputs = attempt - 1, 1  # the attempt that only divides is not counted
            case Step.FAIL:
                break
    assert deaths == max_attempts
