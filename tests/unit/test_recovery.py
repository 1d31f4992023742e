import pytest

from core.recovery import Step, next_step, why_it_failed


@pytest.mark.parametrize(
    ("inputs", "max_attempts", "expected"),
    [
        (1, 3, [Step.RUN, Step.RUN, Step.RUN, Step.FAIL, Step.FAIL]),
        (1, 1, [Step.RUN, Step.FAIL, Step.FAIL, Step.FAIL, Step.FAIL]),
        (256, 3, [Step.RUN, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE]),
        (2, 1, [Step.RUN, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE, Step.DIVIDE]),
    ],
)
def test_step_follows_from_the_deaths_and_the_size(inputs: int, max_attempts: int, expected: list[Step]) -> None:
    assert [next_step(deaths, inputs, max_attempts) for deaths in range(5)] == expected


@pytest.mark.parametrize(
    ("deaths", "hangs", "code", "words"),
    [
        (3, 0, "worker_died", "died 3 times while it embedded this input alone"),
        (3, 3, "worker_hung", "hung 3 times"),
        (3, 2, "worker_died", "2 of them because the model hung"),
    ],
)
def test_reason_tells_what_happened(deaths: int, hangs: int, code: str, words: str) -> None:
    found, message = why_it_failed(deaths, hangs)
    assert found == code
    assert words in message
