// What the dashboard's modules compute, by `node --test`; tests/unit/test_dashboard.py starts it, and says where they and the data are.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { test } from "node:test";

const at = (name) => import(`${process.env.MODULES}/${name}`);
const data = (name) => readFile(`${process.env.DATA}/${name}`);
const { get, readEvents, Refused } = await at("service.js");
const { newer, patiently } = await at("refresh.js");
const { keepTexts, nearest, partOf, readNpy, readPart, textsOf } = await at("vectors.js");
const { judge, Throughput, trouble } = await at("overview.js");
const { ago, bytes, duration, percent, plural, rate } = await at("format.js");
const { SAMPLES } = await at("samples.js");

async function eventsOf(text, size) {
  const content = new TextEncoder().encode(text);
  const pieces = Array.from({ length: Math.ceil(content.length / size) }, (_, n) => content.slice(n * size, (n + 1) * size));
  const found = [];
  for await (const one of readEvents(ReadableStream.from(pieces))) found.push([one.event, one.data]);
  return found;
}

test("events are read however they are cut into pieces", async () => {
  const text = 'retry: 2000\n\n:\n\nid: 1\nevent: progress\ndata: {"ü":\ndata:1}\n\nevent:end\r\ndata: x\r\n\r\ndata: y\r\rdata: not whole';
  for (let size = 1; size < text.length + 2; size++) {
    assert.deepEqual(await eventsOf(text, size), [["progress", '{"ü":\n1}'], ["end", "x"], ["message", "y"]], `in pieces of ${size}`);
  }
});

test("a file that numpy wrote is read, and its nearest rows are those that numpy finds", async () => {
  const expected = JSON.parse(await data("nearest.json"));
  const file = await data("vectors.npy");
  const matrix = readNpy(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
  assert.deepEqual([matrix.rows, matrix.dimensions], expected.shape);
  const found = nearest(matrix, Float32Array.from(expected.query), 5);
  assert.deepEqual(found.map(({ index }) => index), expected.indexes);
  found.forEach(({ cosine }, n) => assert.ok(Math.abs(cosine - expected.cosines[n]) < 1e-5));
  assert.throws(() => readNpy(new Uint8Array(200).buffer), /no form that this page reads/);
});

test("an answer tells how far it goes", () => {
  const answer = (count, total, next) => new Headers({ "X-Vector-Count": count, "X-Vector-Total": total, ...(next && { "X-Next-Offset": next }) });
  assert.equal(readPart(answer(20, 20)), null);
  assert.equal(readPart(answer(5_000, 9_000, 5_000), 5_000), null, "all that was asked for");
  assert.equal(partOf({ part: readPart(answer(16, 1_500)) }), " Only the first 16 of the cancelled job's 1,500 texts are in it.");
  assert.match(partOf({ part: readPart(answer(0, 1_500, 32)) }), /behind a gap, from text 32 on\.$/);
  assert.equal(partOf({ part: null }), "");
});

test("the tab keeps the texts of its last five jobs, fewer where it has no room", () => {
  let [room, stored] = [1_000, {}];
  globalThis.sessionStorage = {
    getItem: (name) => stored[name] ?? null,
    setItem(name, value) {
      if (value.length > room) throw new Error("QuotaExceededError");
      stored[name] = value;
    },
  };
  const ids = ["z", "b", "y", "a", "x", "c"];
  for (const id of ids) keepTexts(id, [`text of ${id}`]);
  assert.deepEqual(ids.map((id) => textsOf(id)?.[0] ?? null), [null, ...ids.slice(1).map((id) => `text of ${id}`)], "the oldest goes");
  room = 60;
  keepTexts("new", ["text of new"]);
  assert.deepEqual(JSON.parse(stored.texts).map(([id]) => id), ["c", "new"]);
  delete globalThis.sessionStorage;
});

const job = (status, done, more = {}) => ({ status, counts: { done, failed: 0, total: 9 }, ...more });

test("what was overtaken on its way changes nothing", () => {
  const waiting = job("queued", 0, { queue: "cpu", waiting_for: "a worker" });
  assert.deepEqual(newer(null, waiting), waiting);
  assert.deepEqual(newer(waiting, job("running", 0)), job("running", 0, { queue: "cpu", waiting_for: null }));
  assert.equal(newer(job("running", 3), job("running", 2)).counts.done, 3);
  assert.equal(newer(job("cancelled", 3), job("running", 3)).status, "cancelled");
  assert.equal(newer(job("running", 3), job("running", 3, { waiting_for: "a worker" })).waiting_for, "a worker", "its worker died");
});

test("what is refused because others are served is asked for again, a few times", async () => {
  const never = new AbortController().signal;
  const refused = (status) => new Refused("", { status, retryAfterSeconds: 0.001 });
  const answers = [refused(429), refused(503), "there"];
  const give = async () => {
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  };
  assert.equal(await patiently(give, never), "there");
  answers.push(...Array.from({ length: 9 }, () => refused(429)));
  await assert.rejects(patiently(give, never), { status: 429 });
  assert.equal(answers.length, 5);
  await assert.rejects(patiently(() => Promise.reject(refused(404)), never), { status: 404 });
});

const worker = (name, more = {}) => ({ name, device: name, dimensions: 384, parity: 1, queues: [name], seen_at: 0, ...more });
const queue = (name, more = {}) => ({
  name, stalled: false, waiting: { interactive: 0, bulk: 0 }, running: 0, backlog: 0, suspects: 0, oldest_seconds: 0, workers: [], ...more,
});
const of = (...data) => ({
  data,
  totals: {
    waiting: data.reduce((sum, one) => sum + one.waiting.interactive + one.waiting.bulk, 0),
    running: data.reduce((sum, one) => sum + one.running, 0),
    max_waiting: 10_000,
  },
});
const busy = queue("cpu", { workers: [worker("cpu")], waiting: { interactive: 2, bulk: 40 }, running: 8, backlog: 50 });
const stalled = queue("gpu", { stalled: true, waiting: { interactive: 0, bulk: 1200 }, backlog: 1200 });

const abandoned = queue("gpu", { running: 8, backlog: 8 });
const mebibyte = 2 ** 20;

for (const [what, found, perSecond, tone, line, notices, stoodSeconds = 0] of [
  ["idle", of(queue("cpu", { workers: [worker("cpu")] })), 0, "idle", "Idle: nothing waits", []],
  ["nobody", of(queue("cpu")), 0, "warn", "No worker lives: jobs will wait", []],
  ["flowing", of(busy), 412.3, "ok", "Work flows: 412 texts/s on cpu", []],
  ["beginning", of(busy), null, "ok", "Work is under way on cpu", []],
  ["stuck", of({ ...busy, oldest_seconds: 61 }), 0, "warn", "Nothing moves: no text was finished on cpu for 20 s", [], 20],
  ["slow", of({ ...busy, oldest_seconds: 59 }), 0, "ok", "Work is under way on cpu", [], 59],
  ["stuck with all in flight", of({ ...busy, waiting: { interactive: 0, bulk: 0 } }), 0, "warn", "Nothing moves: no text was finished on cpu for 1 min 00 s", [], 60],
  ["loading", of({ ...busy, workers: [worker("cpu", { dimensions: 0 })] }), 0, "warn", "Work waits while a worker loads its model", []],
  ["idle beside one that loads", of(queue("cpu", { workers: [worker("cpu")] }), queue("gpu", { workers: [worker("gpu", { dimensions: 0 })] })), 0,
    "idle", "Idle: nothing waits", []],
  ["left in flight", of(abandoned), 0, "bad", "Stalled: 8 texts are in flight, no gpu worker lives", []],
  ["left in flight and waiting", of({ ...abandoned, waiting: { interactive: 1, bulk: 0 }, running: 1, backlog: 2 }), 0, "bad",
    "Stalled: 1 text waits and 1 is in flight, no gpu worker lives", []],
  ["left beside a worker that works", of(busy, abandoned), 9, "bad", "Stalled: 8 texts are in flight, no gpu worker lives", ["Other work flows: 9 texts/s."]],
  ["stalled", of(stalled), 0, "bad", "Stalled: 1,200 texts wait, no gpu worker lives", []],
  ["stalled in part", of(busy, stalled), 9, "bad", "Stalled: 1,200 texts wait, no gpu worker lives", ["Other work flows: 9 texts/s."]],
  ["suspects", of({ ...busy, suspects: 1 }), 1, "ok", "Work flows: 1 texts/s on cpu", ["1 suspect: in flight when a worker died, now tried alone."]],
  ["nearly full", of({ ...busy, waiting: { interactive: 0, bulk: 9500 } }), 1, "ok", "Work flows: 1 texts/s on cpu",
    ["The backlog is 95\u202f% full; beyond it new jobs are refused."]],
  ["nearly out of memory", {
    ...of({ ...busy, workers: [worker("cpu", { memory_used_bytes: 91 * mebibyte, memory_limit_bytes: 100 * mebibyte })] }),
    totals: { waiting: 42, running: 8, max_waiting: 10_000, waiting_bytes: 95, max_waiting_bytes: 100, redis_used_bytes: 90, redis_max_bytes: 100 },
  }, 1, "ok", "Work flows: 1 texts/s on cpu", [
    "The texts that wait fill 95\u202f% of their room; beyond it new jobs are refused.",
    "Redis' memory is 90\u202f% full; beyond it nothing more can be written.",
    "The main memory of cpu is 91\u202f% full; beyond it the system ends processes.",
  ]],
  ["without limits", {
    ...of({ ...busy, workers: [worker("cpu", { memory_used_bytes: 91, memory_limit_bytes: null })] }),
    totals: { waiting: 42, running: 8, max_waiting: 10_000, waiting_bytes: 95, max_waiting_bytes: null, redis_used_bytes: 90, redis_max_bytes: null },
  }, 1, "ok", "Work flows: 1 texts/s on cpu", []],
]) {
  test(`the status line of a service: ${what}`, () => assert.deepEqual(judge(found, { perSecond, stoodSeconds }), { tone, line, notices }));
}

for (const [what, error, line] of [
  ["nothing answers", new Refused("The service does not answer."), "The service does not answer"],
  ["Redis is away", new Refused("", { status: 503, code: "ledger_unavailable" }), "Redis cannot be reached"],
  ["Redis is ahead", new Refused("", { status: 503, code: "newer_layout" }), "Redis was written by a newer version"],
  ["a proxy finds nobody", new Refused("", { status: 502, code: "unknown" }), "The service cannot be reached"],
  ["a proxy gives up", new Refused("", { status: 504, code: "unknown" }), "The service cannot be reached"],
  ["a page of something else", new Refused("", { status: 200, code: "no_json" }), "Something else answers"],
  ["another error", new Refused("", { status: 500, code: "internal_error" }), "The service fails"],
  ["another 503", new Refused("", { status: 503, code: "result_store_unavailable" }), "The service fails"],
  ["a refusal", new Refused("", { status: 429, code: "rate_limit_exceeded" }), "The service refuses to tell"],
  ["an error of the page's own", new TypeError("undefined is not a function"), "This page fails"],
]) {
  test(`the status line without figures: ${what}`, () => assert.equal(trouble(error).line, line));
}

/** A server that answers as told, while `task` runs with its address. */
async function serving(answer, task) {
  const server = createServer(answer).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await task(`http://127.0.0.1:${server.address().port}/`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

test("an answer that does not come in time counts as none, wherever it stops", async () => {
  const silent = { code: "unreachable", status: 0 };
  await serving(() => {}, (url) => assert.rejects(get(url, { seconds: 0.05 }), silent));
  await serving((_, answer) => answer.write('{"data": '), (url) => assert.rejects(get(url, { seconds: 0.05 }), silent));
  await serving((_, answer) => answer.write("{"), (url) => assert.rejects(get(url, { signal: AbortSignal.abort() }), { name: "AbortError" }));
});

test("an answer that is no JSON is told from none", async () => {
  await serving((_, answer) => answer.end("<p>Log in to the hotel's network"), (url) => assert.rejects(get(url), { code: "no_json", status: 200 }));
});

const counted = (finished, { waiting = 1, running = 1 } = {}) => ({ waiting, running, counters: { "finished:cpu": finished, "inputs:cpu": 7 } });

test("a dry run and failures are progress, where the service counts them", () => {
  const throughput = new Throughput();
  for (let second = 0; second <= 30; second += 2) throughput.look(counted(10 * second), 1000 + second);
  assert.equal(throughput.perSecond, 10);
  throughput.look({ counters: { "inputs:cpu": 9e9 } }, 1032);
  assert.equal(throughput.perSecond, null, "one count is not compared with another");
});

test("the time of standing still begins with the last text, the last work, or the first look", () => {
  const throughput = new Throughput();
  const looks = (from, to, totals) => {
    for (let second = from; second <= to; second += 2) throughput.look(totals, second);
  };
  looks(1000, 1060, counted(5));
  assert.equal(throughput.stoodSeconds, 60);
  looks(1062, 1070, counted(6));
  assert.equal(throughput.stoodSeconds, 8);
  looks(1072, 1100, counted(6, { waiting: 0, running: 0 }));
  looks(1102, 1110, counted(6, { waiting: 0 }));
  assert.equal(throughput.stoodSeconds, 10);
  looks(1700, 1704, counted(6));
  assert.equal(throughput.stoodSeconds, 4, "nobody looked");
});

test("the rate is not that of a time when nobody looked", () => {
  const throughput = new Throughput();
  for (let second = 0; second <= 30; second += 2) throughput.look(counted(100 * second), 1000 + second);
  throughput.look(counted(3_000), 2000);
  assert.equal(throughput.perSecond, null);
  for (let second = 2; second <= 30; second += 2) {
    throughput.look(counted(3_000 + 50 * second), 2000 + second);
    assert.equal(throughput.perSecond, 50);
  }
});

test("throughput is what was counted between two looks, or what the service tells", () => {
  const counted = new Throughput();
  for (let second = 0; second <= 30; second += 2) counted.look({ counters: { "inputs:cpu": 100 * second, "inputs:gpu": 5, "tokens:cpu": 9e9 } }, 1000 + second);
  assert.equal(counted.perSecond, 100);
  assert.equal(counted.series.length, 60);
  assert.equal(counted.series.at(-1), 100);
  assert.equal(counted.series[0], null, "nobody looked then");
  const told = new Throughput();
  told.look({ counters: {}, throughput: { seconds_each: 10, inputs: [...Array(57).fill(0), 100, 300, 50] } }, 1000);
  assert.equal(told.perSecond, 20, "the running bucket is not whole");
  told.look({ counters: {}, throughput: told.told }, 1021);
  assert.equal(told.perSecond, 0, "nothing was counted while it was looked at");
  assert.deepEqual(told.series.slice(-3), [0, 10, 30]);
});

test("figures are told in words", () => {
  assert.deepEqual([0, 0.001, 0.5, 0.999, 1].map(percent), ["0\u202f%", "< 1\u202f%", "50\u202f%", "99\u202f%", "100\u202f%"]);
  assert.deepEqual([0, 0.25, 3.21, 12.4, 65, 3_900, 100_000].map(duration),
    ["0 ms", "250 ms", "3.2 s", "12 s", "1 min 05 s", "1 h 05 min", "1 d 3 h"]);
  assert.deepEqual([0, 1023, 1024, 1.5 * 2 ** 30].map(bytes), ["0\u202fB", "1,023\u202fB", "1\u202fKiB", "1.5\u202fGiB"]);
  assert.deepEqual([2, 34, 61, 7_300, -3_600].map((passed) => ago(1e9 - passed, 1e9)), ["just now", "30 s ago", "1 min. ago", "2 hr. ago", "in 1 hr."]);
  assert.deepEqual([[1, "text"], [1_200, "text"]].map(([count, word]) => plural(count, word)), ["1 text", "1,200 texts"]);
  assert.deepEqual([0, 3.14, 412.7].map(rate), ["0", "3.1", "413"]);
});

test("the samples are fifty texts of one line", () => {
  assert.equal(new Set(SAMPLES).size, 50);
  assert.ok(SAMPLES.every((line) => line.trim() === line && line.length > 20));
});
