"""API, Redis and workers on hosts of their own, and a cable that is pulled out."""

import pytest

from bench.network import why_not
from bench.scale_out import service, worker_hosts
from tests.conftest import QUICK
from tests.integration.test_worker import assert_every_vector, ended
from tests.processes import wait_for

TEXTS = [f"text number {n} " + "word " * (n % 40) for n in range(800)]


@pytest.fixture(scope="module", autouse=True)
def _network() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.mark.integration
def test_two_hosts_share_a_job_and_one_that_is_cut_off_loses_nothing() -> None:
    hosts = worker_hosts(2)
    with service(2, **QUICK, SHARD_INPUTS="16") as running:
        running.start_workers(hosts, FAKE_TOKEN_SECONDS="0.0003", BATCH_SIZE="2")
        job_id = running.submit(TEXTS)

        def both_embed() -> bool:
            done = {worker.name.split("@")[0]: worker.facts["inputs"] for worker in running.ledger.workers()}
            return all(done.get(host, 0) >= 32 for host in hosts)

        wait_for(both_embed, what="a part of the job for each")
        running.network.unplug(hosts[0])
        assert not running.ledger.get(job_id, "default").status.ended, "the job was too short to be cut"
        job = ended(running.ledger, job_id)
        assert (job.counts.done, job.counts.failed) == (len(TEXTS), 0)
        assert_every_vector(running.ledger, job_id, TEXTS)
        assert running.ledger.counters()["recovered"] > 0, "the host that was cut off held nothing"
        assert [worker.name.split("@")[0] for worker in running.ledger.workers()] == hosts[1:]
