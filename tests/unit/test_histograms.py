"""The histograms that a worker keeps and reports."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.histograms import INPUTS, RATIOS, SECONDS, STAGES, TOKENS, WAIT_SECONDS, Histogram, Histograms


@pytest.mark.parametrize("bounds", [SECONDS, WAIT_SECONDS, INPUTS, TOKENS, RATIOS])
def test_bounds_rise_and_come_once(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_value_counts_up_to_every_bound_that_it_does_not_exceed() -> None:
    found = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 5.1, 100):
        found.count(value)
    assert found.report() == {"bounds": [1, 2, 5], "counts": [2, 3, 4, 6], "sum": 113.1}


def test_no_value_is_lost_that_threads_count_at_once() -> None:
    found = Histogram((10,))

    def count(_: int) -> None:
        for value in range(2000):
            found.count(value % 20)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert found.report() == {"bounds": [10], "counts": [8 * 1100, 8 * 2000], "sum": 8 * 100 * sum(range(20))}


def test_report_is_small_and_goes_through_json_unharmed() -> None:
    found = Histograms()
    for _ in range(10**5):
        found.batch_tokens.count(4000)
    report = found.report()
    assert set(report["stage_seconds"]) == set(STAGES)
    assert json.loads(json.dumps(report)) == report
    assert len(json.dumps(report)) < 4096, "it is sent with every heartbeat"
