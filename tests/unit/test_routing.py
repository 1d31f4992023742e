import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.routing import QUEUES, auto_shares, base_of, beside, choose_queue, may_move, queue_of, share_of

job_ids = st.text(min_size=1, max_size=40)
shares = st.floats(0, 1)


@pytest.mark.parametrize("requested", QUEUES)
@pytest.mark.parametrize("live_queues", [(), ("cpu",), ("gpu",), ("cpu", "gpu")])
def test_named_queue_is_taken_whoever_lives(requested: str, live_queues: tuple[str, ...]) -> None:
    assert choose_queue(requested, job_id="j", live_queues=live_queues, gpu_share=0.5) == requested


@pytest.mark.parametrize(
    ("live_queues", "gpu_share", "expected"),
    [((), 1, "cpu"), (("cpu",), 1, "cpu"), (("cpu", "gpu"), 1, "gpu"), (("gpu",), 1, "gpu"), (("cpu", "gpu"), 0, "cpu")],
)
def test_auto_takes_gpu_where_one_lives_and_has_a_share(live_queues: tuple[str, ...], gpu_share: float, expected: str) -> None:
    assert choose_queue("auto", job_id="j", live_queues=live_queues, gpu_share=gpu_share) == expected


@given(job_ids)
def test_full_share_takes_every_job_and_none_takes_none(job_id: str) -> None:
    assert 0 <= share_of(job_id) < 1
    assert choose_queue("auto", job_id=job_id, live_queues=QUEUES, gpu_share=1.0) == "gpu"
    assert choose_queue("auto", job_id=job_id, live_queues=QUEUES, gpu_share=0.0) == "cpu"


@given(job_ids, shares)
def test_choice_follows_from_the_job_alone(job_id: str, gpu_share: float) -> None:
    choices = {choose_queue("auto", job_id=job_id, live_queues=QUEUES, gpu_share=gpu_share) for _ in range(3)}
    assert len(choices) == 1


@given(job_ids, shares, shares)
def test_growing_share_moves_jobs_to_gpu_only(job_id: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if choose_queue("auto", job_id=job_id, live_queues=QUEUES, gpu_share=small) == "gpu":
        assert choose_queue("auto", job_id=job_id, live_queues=QUEUES, gpu_share=large) == "gpu"


@pytest.mark.parametrize("gpu_share", [0.1, 0.5, 0.9])
def test_share_is_kept_roughly(gpu_share: float) -> None:
    names = [str(uuid.UUID(int=n)) for n in range(5000)]
    chosen = [choose_queue("auto", job_id=name, live_queues=QUEUES, gpu_share=gpu_share) for name in names]
    assert chosen.count("gpu") / len(chosen) == pytest.approx(gpu_share, abs=0.03)  # four standard deviations


@given(job_ids, shares)
def test_job_may_move_exactly_where_a_gpu_worker_decides_over_its_queue(job_id: str, gpu_share: float) -> None:
    choices = {choose_queue("auto", job_id=job_id, live_queues=live, gpu_share=gpu_share) for live in (("cpu",), QUEUES)}
    assert may_move("auto", job_id=job_id, gpu_share=gpu_share) == (len(choices) == 2)
    assert not any(may_move(queue, job_id=job_id, gpu_share=1.0) for queue in QUEUES)


@pytest.mark.parametrize(
    ("live_queues", "gpu_share", "expected"),
    [
        (QUEUES, 0.05, ({"cpu": 0.95, "gpu": 0.05}, "setting")),
        (("gpu",), 1.0, ({"cpu": 0.0, "gpu": 1.0}, "setting")),
        (QUEUES, 0.0, ({"cpu": 1.0, "gpu": 0.0}, "setting")),
        (("cpu",), 0.05, ({"cpu": 1.0, "gpu": 0.0}, "no_gpu_worker")),
        ((), 1.0, ({"cpu": 1.0, "gpu": 0.0}, "no_gpu_worker")),
    ],
)
def test_shares_of_auto_jobs_and_why(
    live_queues: tuple[str, ...], gpu_share: float, expected: tuple[dict[str, float], str]
) -> None:
    assert auto_shares(live_queues=live_queues, gpu_share=gpu_share) == expected


@pytest.mark.parametrize("alias", [None, "large", "e5-small_v2", "gpu", "cpu"])
def test_queues_of_a_model_lead_to_each_other_and_say_what_they_are(alias: str | None) -> None:
    queues = {asked: queue_of(asked, alias) for asked in QUEUES}
    assert len(set(queues.values())) == len(QUEUES)
    for asked, queue in queues.items():
        assert base_of(queue) == asked
        assert {other: beside(queue, other) for other in QUEUES} == queues


def test_queues_of_the_default_model_have_no_alias() -> None:
    assert (queue_of("gpu", None), queue_of("gpu", "large")) == ("gpu", "gpu.large")
