// What `../calls.py` calls, with OpenAI's client for Node. Environment variables and output are the same.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

const MODEL = "sentence-transformers/all-MiniLM-L6-v2";
const { BASE_URL, HASTY_URL, API_KEY } = process.env;
const WANTED = JSON.parse(readFileSync(process.env.WANTED, "utf8"));
const TEXTS = Object.keys(WANTED);
const DEADLINE_SECONDS = 60;

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });

// What the calls share ------------------------------------------------------------------------------------------------

function checkNear(found, wanted) {
  assert.equal(found.length, wanted.length);
  found.forEach((number, n) => assert.ok(Math.abs(number - wanted[n]) <= 1e-5 * Math.abs(wanted[n]), `${found}`));
}

function checkVectors(answer, texts) {
  assert.deepEqual(answer.data.map((item) => item.index), texts.map((_, n) => n));
  answer.data.forEach((item, n) => checkNear(item.embedding, WANTED[texts[n]]));
}

/** The error of a call; it is of exactly this class. */
async function raised(kind, call) {
  const error = await call().then(() => null, (found) => found);
  assert.equal(error?.constructor, kind, error?.stack);
  return error;
}

function line(customId, text, body = {}) {
  return { custom_id: customId, method: "POST", url: "/v1/embeddings", body: { model: MODEL, input: text, ...body } };
}

async function send(lines) {
  const content = Buffer.from(lines.map((item) => JSON.stringify(item)).join("\n"));
  return client.files.create({ file: await toFile(content, "texts.jsonl"), purpose: "batch" });
}

async function start(lines) {
  const { id } = await send(lines);
  const options = { endpoint: "/v1/embeddings", completion_window: "24h", metadata: { run: "7" } };
  return client.batches.create({ input_file_id: id, ...options });
}

async function ended(batch) {
  const deadline = performance.now() + 1000 * DEADLINE_SECONDS;
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    assert.ok(performance.now() < deadline, JSON.stringify(batch));
    await sleep(100);
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

/** The lines of an output, or of none. */
async function read(fileId) {
  if (!fileId) return [];
  const content = await (await client.files.content(fileId)).text();
  return content.trimEnd().split("\n").map((item) => JSON.parse(item));
}

const ids = (items) => items.map((item) => item.custom_id);

/** Ids of a list's items, page by page. */
async function idsOf(list) {
  const found = [];
  for await (const item of list) found.push(item.id);
  return found;
}

/** A client of the API that is in a hurry, and how often it asked. */
function hasty(maxRetries) {
  const found = { asked: 0 };
  const counted = (url, init) => {
    found.asked += 1;
    return fetch(url, init);
  };
  found.client = new OpenAI({ baseURL: HASTY_URL, apiKey: API_KEY, maxRetries, fetch: counted });
  return found;
}

// The calls -----------------------------------------------------------------------------------------------------------

async function embeddings() {
  const plain = await client.embeddings.create({ model: MODEL, input: TEXTS }); // asks for base64 by itself
  checkVectors(plain, TEXTS);
  assert.deepEqual([plain.model, plain.object], [MODEL, "list"]);
  assert.ok(plain.usage.prompt_tokens === plain.usage.total_tokens && plain.usage.total_tokens > TEXTS.length);
  checkVectors(await client.embeddings.create({ model: MODEL, input: TEXTS, encoding_format: "float" }), TEXTS);
  checkVectors(await client.embeddings.create({ model: MODEL, input: TEXTS[0], user: "me" }), TEXTS.slice(0, 1));
}

async function embeddings_in_base64() {
  const answer = await client.embeddings.create({ model: MODEL, input: TEXTS.slice(0, 2), encoding_format: "base64" });
  answer.data.forEach((item, n) => {
    const content = Buffer.from(item.embedding, "base64");
    const numbers = Array.from({ length: content.length / 4 }, (_, k) => content.readFloatLE(4 * k));
    checkNear(numbers, WANTED[TEXTS[n]]);
  });
}

async function embeddings_in_fewer_dimensions() {
  const answer = await client.embeddings.create({ model: MODEL, input: TEXTS[0], dimensions: 3 });
  const start = WANTED[TEXTS[0]].slice(0, 3);
  checkNear(answer.data[0].embedding, start.map((number) => number / Math.hypot(...start)));
}

async function models() {
  assert.deepEqual(await idsOf(client.models.list()), [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  assert.equal((await raised(OpenAI.NotFoundError, () => client.models.retrieve("gpt-4"))).code, "model_not_found");
}

async function files() {
  const lines = [line("a", TEXTS[0])];
  const file = await send(lines);
  assert.deepEqual([file.object, file.purpose, file.filename], ["file", "batch", "texts.jsonl"]);
  assert.equal((await client.files.retrieve(file.id)).bytes, file.bytes);
  assert.deepEqual(await read(file.id), lines);
  assert.ok((await idsOf(client.files.list({ purpose: "batch" }))).includes(file.id));
  assert.equal((await client.files.delete(file.id)).deleted, true);
  await raised(OpenAI.NotFoundError, () => client.files.content(file.id));
  assert.ok(!(await idsOf(client.files.list())).includes(file.id));
}

async function batch_to_the_end() {
  const lines = Array.from({ length: 300 }, (_, n) => line(`n${n}`, TEXTS[n % TEXTS.length], { truncate: "error" }));
  lines[3].body.input = "word ".repeat(300);
  const batch = await start(lines);
  assert.deepEqual([batch.status, batch.request_counts.total, batch.metadata], ["in_progress", 300, { run: "7" }]);
  const done = await ended(batch);
  assert.deepEqual([done.status, done.request_counts], ["completed", { total: 300, completed: 299, failed: 1 }]);
  const [output, errors] = [await read(done.output_file_id), await read(done.error_file_id)];
  assert.deepEqual(errors.map((item) => [item.custom_id, item.response.status_code]), [["n3", 400]]);
  assert.deepEqual(ids(output), ids(lines).filter((id) => id !== "n3"));
  for (const item of output) {
    checkNear(item.response.body.data[0].embedding, WANTED[TEXTS[Number(item.custom_id.slice(1)) % TEXTS.length]]);
  }
  await raised(OpenAI.ConflictError, () => client.batches.cancel(done.id));
}

async function batch_that_is_cancelled() {
  const lines = Array.from({ length: 4000 }, (_, n) => line(`n${n}`, TEXTS[n % TEXTS.length]));
  const done = await ended(await client.batches.cancel((await start(lines)).id));
  assert.equal(done.status, "cancelled");
  assert.ok(done.cancelled_at);
  const [output, errors] = [await read(done.output_file_id), await read(done.error_file_id)];
  assert.deepEqual(ids([...output, ...errors]).sort(), ids(lines).sort());
  assert.deepEqual(new Set(errors.map((item) => item.error.code)), new Set(["batch_cancelled"]));
}

async function batch_of_a_wrong_file() {
  const batch = await start([line("a", TEXTS[0]), line("a", TEXTS[0])]);
  assert.equal(batch.status, "failed");
  assert.deepEqual(batch.errors.data.map((error) => [error.code, error.line]), [["duplicate_custom_id", 2]]);
}

async function lists_in_pages() {
  const newest = [];
  for (let n = 0; n < 5; n++) newest.unshift(await start([line("a", TEXTS[0])]));
  const page = await client.batches.list({ limit: 2 });
  assert.deepEqual([page.data.map((batch) => batch.id), page.hasNextPage()], [newest.slice(0, 2).map((batch) => batch.id), true]);
  const found = await idsOf(client.batches.list({ limit: 2 }));
  assert.deepEqual(found.slice(0, 5), newest.map((batch) => batch.id));
  assert.ok(new Set(found).size === found.length && found.length > 5);
  const sent = await idsOf(client.files.list({ purpose: "batch", limit: 2 }));
  assert.deepEqual(sent.slice(0, 5), newest.map((batch) => batch.input_file_id));
  assert.deepEqual(sent, await idsOf(client.files.list({ purpose: "batch", limit: 1000 })));
}

async function errors() {
  const embed = (values, found = client) => () => found.embeddings.create({ model: MODEL, input: "a", ...values });
  const empty = await raised(OpenAI.BadRequestError, embed({ input: ["a", ""] }));
  assert.deepEqual([empty.param, empty.code, empty.type], ["input[1]", "invalid_request", "invalid_request_error"]);
  assert.ok(empty.requestID);
  const tooLong = await raised(OpenAI.BadRequestError, embed({ input: "word ".repeat(300), truncate: "error" }));
  assert.equal(tooLong.code, "context_length_exceeded");
  assert.equal((await raised(OpenAI.NotFoundError, embed({ model: "ada" }))).code, "model_not_found");
  const broken = await raised(OpenAI.InternalServerError, embed({ input: "RAISE" }));
  assert.deepEqual([broken.status, broken.code], [500, "embedding_failed"]);
  const stranger = new OpenAI({ baseURL: BASE_URL, apiKey: "va_nobody" });
  assert.equal((await raised(OpenAI.AuthenticationError, embed({}, stranger))).code, "invalid_api_key");
  const impatient = client.withOptions({ timeout: 300 });
  await raised(OpenAI.APIConnectionTimeoutError, embed({ input: TEXTS[0], queue: "gpu" }, impatient));
  const nowhere = new OpenAI({ baseURL: "http://127.0.0.1:1/v1", apiKey: "none", maxRetries: 0 });
  await raised(OpenAI.APIConnectionError, () => nowhere.models.list());
}

// The vectors take longer than the API waits; with a key the work goes on, and the client's next try finds it.
async function retries_after_503() {
  const asked = { model: MODEL, input: TEXTS[0], queue: "gpu" };
  const late = await raised(OpenAI.InternalServerError, () => hasty(0).client.embeddings.create(asked));
  assert.deepEqual([late.status, late.code], [503, "not_in_time"]);
  const patient = hasty(9);
  const headers = { "Idempotency-Key": randomUUID() };
  const { data, response } = await patient.client.embeddings.create(asked, { headers }).withResponse();
  assert.ok(patient.asked >= 2);
  assert.equal(response.headers.get("idempotent-replayed"), "true");
  checkVectors(data, TEXTS.slice(0, 1));
}

// One more try is enough, as it comes when it was told to; the pause that the client would choose is half a second.
async function retries_after_429() {
  const many = (count) => ({ model: MODEL, input: Array(count).fill(TEXTS[0]) });
  const { response } = await hasty(0).client.embeddings.create(many(30)).withResponse();
  const asked = many(Number(response.headers.get("x-ratelimit-remaining-inputs")) + 4);
  const refused = await raised(OpenAI.RateLimitError, () => hasty(0).client.embeddings.create(asked));
  assert.equal(refused.code, "rate_limit_exceeded");
  assert.ok(Number(refused.headers.get("retry-after")) >= 2);
  const patient = hasty(1);
  await patient.client.embeddings.create(asked);
  assert.equal(patient.asked, 2);
}

const CALLS = [
  embeddings,
  embeddings_in_base64,
  embeddings_in_fewer_dimensions,
  models,
  files,
  batch_to_the_end,
  batch_that_is_cancelled,
  batch_of_a_wrong_file,
  lists_in_pages,
  errors,
  retries_after_503,
  retries_after_429,
];

console.log(`openai ${VERSION}`);
for (const call of CALLS) {
  await call();
  console.log(call.name);
}
