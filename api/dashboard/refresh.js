// Doing something again and again: only while the page is seen, one at a time, and less often while it fails.

import { get, isLive, jobPath, readEvents, Refused, send } from "./service.js";

const MOST_SECONDS = 30;
const SILENT_SECONDS = 10; // in which the service, which says something each second, has said nothing
const RECORD_SECONDS = 10;
const TRIES = 4;
const LEAST_REST = 4; // times as long as an answer took: a service that is slow to answer is asked less often

/** Resolves after so many seconds, or when the signal says stop. */
export function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, 1000 * seconds);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done);
    if (signal.aborted) done();
  });
}

function seen(signal) {
  if (!document.hidden || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    function look() {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    }
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
  });
}

/** What `task` gives, tried a few times while the service is too busy for it, as far apart as it asks for. */
export async function patiently(task, signal) {
  for (let tries = 1; ; tries++) {
    try {
      return await task();
    } catch (error) {
      if (tries === TRIES || ![429, 503].includes(error.status)) throw error;
      await pause(Math.min(MOST_SECONDS, error.retryAfterSeconds || 1), signal);
    }
  }
}

/**
 * Call `task` every so many seconds until the signal is aborted. After an error it waits 4 seconds, then twice as long each time,
 * and at least as long as the service asks for; `failed` hears of it. `now()` of what is returned does not wait.
 */
export function every(seconds, task, { signal, failed = () => {} }) {
  let hurry = new AbortController();
  async function run() {
    let [waits, trouble] = [seconds, 2];
    while (!signal.aborted) {
      await seen(signal);
      if (signal.aborted) return;
      hurry = new AbortController();
      const began = performance.now();
      try {
        await task();
        trouble = 2;
        waits = Math.max(seconds, Math.min(MOST_SECONDS, (LEAST_REST * (performance.now() - began)) / 1000));
      } catch (error) {
        if (signal.aborted || error.name === "AbortError") return;
        if (error.status === 401) return; // the page is about to ask for a key
        if (!("status" in error)) console.error(error);
        trouble *= 2;
        waits = Math.min(MOST_SECONDS, Math.max(trouble, error.retryAfterSeconds ?? 0));
        failed(error);
      }
      await pause(waits, AbortSignal.any([signal, hurry.signal]));
    }
  }
  run();
  return { now: () => hurry.abort() };
}

const endedOf = ({ counts }) => counts.done + counts.failed;

/** What is known of a job when more is told of it. What was overtaken on its way changes nothing. */
export function newer(job, latest) {
  if (!job) return latest;
  const moved = endedOf(latest) - endedOf(job);
  if (moved < 0 || (isLive(latest.status) && !isLive(job.status))) return job;
  const begun = moved > 0 || latest.status !== job.status;
  return { ...job, ...(begun ? { waiting_for: null } : {}), ...latest };
}

/**
 * Tell what is known of a job, whenever that may have changed: its progress as it happens, its record each ten seconds while it
 * lives; after that again and again the same, so that times that are shown stay true. `hear` takes what is learnt elsewhere.
 * @param {{update: (job: object) => void, failed: (error: Error) => void}} told
 */
export function watchJob(id, { update, failed }, signal) {
  let [job, following] = [null, false];
  function hear(latest) {
    job = newer(job, latest);
    update(job);
  }
  every(RECORD_SECONDS, async () => {
    hear(job && !isLive(job.status) ? job : await get(jobPath(id), { signal }));
    if (!following && isLive(job.status)) follow(id, { progress: hear, ended: hear, failed }, signal);
    following = true;
  }, { signal, failed });
  return { hear };
}

/**
 * Follow a job until it ends: by server-sent events, by asking again where these are refused (all places are taken) or held back
 * on the way.
 * @param {{progress: (part: object) => void, ended: (job: object) => void, failed: (error: Error) => void}} told
 */
async function follow(id, told, signal) {
  let waits = 1;
  while (!signal.aborted) {
    await seen(signal);
    if (signal.aborted) return;
    const hidden = new AbortController();
    const hide = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", hide); // a page that nobody sees holds no place of the service's
    try {
      const ended = await listen(id, told, AbortSignal.any([signal, hidden.signal])).catch((error) => {
        if (error.status === 429 || error.status === 503 || error.code === "silent") return ask(id, told, signal);
        throw error;
      });
      if (ended) return;
      waits = 1;
    } catch (error) {
      if (signal.aborted || error.status === 401 || error.status === 404) {
        if (error.status === 404) told.failed(error);
        return;
      }
      if (error.name !== "AbortError") {
        waits = Math.min(MOST_SECONDS, 2 * waits);
        told.failed(error);
      }
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    await pause(waits, signal);
  }
}

async function listen(id, told, signal) {
  const silence = new AbortController();
  const either = AbortSignal.any([signal, silence.signal]);
  let timer;
  function heard() {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), 1000 * SILENT_SECONDS);
  }
  heard();
  try {
    const answer = await send(`${jobPath(id)}/events`, { signal: either, headers: { Accept: "text/event-stream" } });
    for await (const { event, data } of readEvents(answer.body, heard)) {
      const content = JSON.parse(data);
      if (event === "progress") told.progress(content);
      if (event === "end") {
        told.ended(content);
        return true;
      }
      if (event === "error") throw new Refused(content.error.message, { status: 503, code: content.error.code });
    }
    return false; // cut off: once more
  } catch (error) {
    if (silence.signal.aborted && !signal.aborted) throw new Refused("The service says nothing any more.", { code: "silent" });
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

async function ask(id, told, signal) {
  const job = await get(jobPath(id), { signal });
  if (isLive(job.status)) told.progress({ ...job, inputs_per_second: null, remaining_seconds: null });
  else told.ended(job);
  return !isLive(job.status);
}
