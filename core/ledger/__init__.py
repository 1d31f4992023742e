"""The ledger: the durable record of jobs, shards, leases and attempts in Redis. It is the truth; Celery only wakes workers.

Every change is one Lua script, so it happens whole or not at all, and every script may be repeated without harm. Keys, each
after the prefix of the settings (default `vector-api:`):

    key                              type    contents                                             expiry
    job:<id>                         hash    the job's record, see `core.jobs.Job.from_record`    ttl after its end
    inputs:<id>                      hash    shard -> input block; a field goes with its commit   10 min while staged
    pending:<id>                     list    shards nobody has claimed, in order                  10 min while staged
    staged:<id>                      string  bytes of the input blocks so far                     10 min, or until submitted
    attempts:<id>                    hash    shard -> number of its last claim; the fence         end of the job
    deaths:<id>                      hash    suspect -> how attempts ended, {"3": "died"}         end of the job
    vectors:<id>                     hash    shard -> result block, or a reference to it          with the job
    errors:<id>                      list    the first 100 failed inputs, JSON                    with the job
    line:<queue>:<lane>:<tenant>     list    jobs with pending shards, oldest first               when empty
    tenants:<queue>:<lane>           list    tenants with such jobs, whose turn it is first       when empty
    suspects:<queue>                 list    <job>/<shard> to be handed out alone                 when empty
    leases:<queue>                   zset    <job>/<shard> by the time the lease ends             when empty
    auto:<queue>                     zset    live jobs there that `move` may take elsewhere       when empty
    moving                           string  the worker that moves jobs just now                  1 s
    waiting                          hash    <queue>:<lane> -> inputs not under a lease           never
    live                             hash    bytes, jobs:<tenant>, inputs:<tenant> not yet ended; when empty
                                             files, files:<tenant>: what files that were sent count for;
                                             queued, running: jobs; interactive:<queue>: inputs under a lease
    rate:<kind>:<tenant>             string  when the tenant's requests or inputs are whole again when they are
    workers, workers:<queue>         zset    live workers by the time they count as gone          when empty
    worker:<name>                    hash    what a worker reports about itself, when, for how    3 heartbeats
                                             long it counts
    draining:<queue>                 zset    workers at work, by the time that stops being sure   when empty
    wake:<queue>                     string  a message was just sent                              1 s
    jobs:<tenant>                    zset    the tenant's jobs by creation                        when empty
    expiring                         zset    <job>/<tenant> of ended jobs by expiry               when empty
    stored                           set     jobs that may have objects in the result store       when empty
    garbage                          zset    <job>/<round> whose objects go, by when              when empty
    idempotency:<tenant>:<digest>    string  "<job> <digest of the body>"                         with the job
    file:<id>                        hash    record of a file that was sent                       its own
    content:<id>                     hash    number -> piece of it, 1 MiB each but for the last   10 min while sent, then its own
    sizes                            hash    <file>/<tenant> -> its bytes, and 4096               when empty
    uploads                          zset    <file>/<tenant> by expiry, of what is in `sizes`     when empty
    files:<tenant>                   zset    the tenant's files by creation, and those of batches when empty
    batch:<id>                       hash    what makes a job a batch, or why it is none          10 min staged, then the job's
    lines:<id>                       hash    number -> line block: whose inputs they are          10 min staged, then the job's
    batches:<tenant>                 zset    the tenant's batches by creation, as ids of jobs     when empty
    deadlines                        zset    live jobs of batches by the end of their window      when empty
    delivery:<job>/<target>          hash    an event for a webhook, and what came of it          7 days
    due:<tenant>:<target>            zset    deliveries that wait, by the time of their next try  7 days after the last came
    deliveries:<tenant>              zset    the last 1,000 deliveries by creation: the log       7 days after the last came
    counters                         hash    totals since the ledger began, see below             never
    throughput:<n>                   string  inputs embedded in the n-th 10 s since 1970          620 s
    cache                            hash    digest -> entry of `core.ledger.cache`; bytes of all never, see below
    cache:used                       zset    digests by the time of their last use, in seconds    never
    version                          string  the layout of the keys, 2                            never
    ended                            channel ids of jobs that have just ended
    bell:<queue>                     channel rings when work waits for the workers that listen
    celery:…                         Celery's own keys

Where traces are on, `traceparent` in a job's record is that of its submission; workers link their spans to it (`core.tracing`).

An `auto` job that `GPU_SHARE` gives to the gpu has `home` and `fallback` in its record, and `queue` says in which of the two it
waits. Its place in a line, its suspects and its part of `waiting` are there; a lease stays in the queue it was claimed from.

**Counters.** Per queue: `submitted:<queue>` (jobs); `finished:<queue>` (inputs that were done with in any way); of these, unless
they were of a dry run, `inputs:` (that have a vector), `cached:`, `truncated:` and `failed:<queue>:<code>`, and their `tokens:`;
`retried:` (shards that were handed out before), `divided:`, `hung:` (they were alone, and the engine did not come back from them)
and `refused:` (their result was thrown away: cancelled, or the lease went to another); `hangs:` (processes that ended as their
engine did not come back); `moved:` (jobs that came by `move`); `claims:` (whose turn it is, not for people). In all: `recovered`
(shards whose lease ran out, or that hung), `ended:<status>` (jobs). Jobs and inputs are counted once each, `refused:` and
`hangs:` again when a call is repeated.

`live` counts a job as the field `counted` in its record says; one of an older version has none until a worker claims some of it.
What older versions do to jobs beside this one is not counted, until a moment in which there is nothing to do (`wake`).

A queue is `cpu` or `gpu` of the default model, or `cpu.<alias>`, `gpu.<alias>` of another (`core.models`).

**The fence.** Every claim of a shard has a number of its own, one higher than the last, whatever became of that. Whoever commits,
extends, releases or divides names it, and can do nothing unless it is the last one and its lease is there. So a worker that was
stopped for an hour, or a call that is repeated after its answer was lost, changes nothing that others have begun.

**Deaths** are another count. A shard that was in flight when a lease ran out is a suspect and has an entry in `deaths`. What is
held against it there, and what is not, is told in `core.recovery`.

**The cache** is there when workers have `CACHE_BYTES`, and belongs to no job: its two keys alone hold what jobs leave behind.
`cache.lua` keeps them within the limit, and gives their memory back when Redis has little. Both may be removed at any time.

**Versions.** `version` is written with the first job or worker. A process that finds a higher one than it knows refuses every
call (`NewerLayout`): a newer version may have written what it would misread. An older one is worked off as it is:

    1    (no `version`) `release` lowered the number in `attempts`, which was also what counted as deaths; there were no `deaths`
    2    as above. Workers of layout 1 know no `deaths` and no batches, and do not look at `version`, so nothing refuses them.
         They are to be stopped before newer ones start: they fail an input at its fourth claim, also if the first three came to
         no harm, and `release` of theirs lets a number come twice

Options of a job have a version of their own (`core.jobs.OPTIONS_VERSION`). The shards of a dry run have no result blocks.

A batch is a job with a file at both ends: its id is the job's, and it goes with the job. One whose file cannot be embedded has no
job. Files that were sent are `file:` and `content:` alone. The two files of an ended batch, `file-output-<hex>` and
`file-error-<hex>`, are made of `batch:`, `lines:` and `vectors:` when they are read; `files:<tenant>` names both, even if one is
empty.

A delivery is made by the script that ends its job, for each target that the job's record names in `notify` (`core.webhooks`). It
has an expiry of its own and does not need the job: it is sent even if the job is deleted meanwhile.

A shard is written `first+count` (`core.sharding.Span`). Scripts name keys that are not declared, so a Redis Cluster is not
supported; one Redis with a replica (Sentinel) is.
"""

from core.ledger.batches import Batch, Batches, LineBlock, NewBatch
from core.ledger.deliveries import DELIVERED, GIVEN_UP, WAITING, Deliveries, Delivery, State
from core.ledger.files import FILE_BYTES, PIECE_BYTES, File, Files
from core.ledger.ledger import (
    BUCKET_SECONDS,
    NO_LIMITS,
    Allowance,
    Claim,
    ClaimedShard,
    Committed,
    Ledger,
    Limits,
    NewJob,
    QueueState,
    Survey,
    Worker,
    connect,
    rate_limited,
    require_same_body,
)
from core.ledger.storing import StoringLedger, open_ledger

__all__ = [
    "BUCKET_SECONDS",
    "DELIVERED",
    "FILE_BYTES",
    "GIVEN_UP",
    "NO_LIMITS",
    "PIECE_BYTES",
    "WAITING",
    "Allowance",
    "Batch",
    "Batches",
    "Claim",
    "ClaimedShard",
    "Committed",
    "Deliveries",
    "Delivery",
    "File",
    "Files",
    "Ledger",
    "Limits",
    "LineBlock",
    "NewBatch",
    "NewJob",
    "QueueState",
    "State",
    "StoringLedger",
    "Survey",
    "Worker",
    "connect",
    "open_ledger",
    "rate_limited",
    "require_same_body",
]
