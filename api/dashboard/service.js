// Requests to the service. The key is kept in this tab's sessionStorage alone and travels in a header, never in a URL.

const KEY = "api-key";
const PATIENCE_SECONDS = 10; // with what the page asks for again and again
let inMemory = null; // where sessionStorage is forbidden

export const key = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? inMemory;
    } catch {
      return inMemory;
    }
  },
  set(value) {
    inMemory = value;
    try {
      sessionStorage.setItem(KEY, value);
    } catch { /* this page's memory has it */ }
  },
  forget() {
    inMemory = null;
    try {
      sessionStorage.removeItem(KEY);
    } catch { /* nothing was stored */ }
  },
};

const UNREACHABLE = "The service does not answer.";

/** What the service, or the way to it, answered instead of a success. `status` 0: nothing answered. */
export class Refused extends Error {
  constructor(message, { status = 0, code = "unreachable", retryAfterSeconds = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** A fetch with the key that is kept (or `as`). Fires `locked` at the window when the key is missing or not taken any more. */
export async function send(path, { as = key.get(), headers = {}, ...options } = {}) {
  let answer;
  try {
    const authorization = as ? { Authorization: `Bearer ${as}` } : {};
    answer = await fetch(path, { ...options, headers: { ...headers, ...authorization }, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(UNREACHABLE);
  }
  if (answer.ok) return answer;
  const refused = await refusal(answer);
  if (answer.status === 401 && as === key.get()) window.dispatchEvent(new CustomEvent("locked", { detail: refused }));
  throw refused;
}

async function refusal(answer) {
  const error = (await answer.json().catch(() => null))?.error;
  return new Refused(error?.message ?? `The service answers ${answer.status}.`, {
    status: answer.status,
    code: error?.code ?? "unknown",
    retryAfterSeconds: Number(answer.headers.get("Retry-After")) || 0,
  });
}

/** What an answer says, as JSON, if it has come whole within so many seconds. */
export async function get(path, { signal, seconds = PATIENCE_SECONDS, ...options } = {}) {
  const limit = AbortSignal.timeout(1000 * seconds);
  try {
    return await read(await send(path, { ...options, signal: signal ? AbortSignal.any([signal, limit]) : limit }));
  } catch (error) {
    if (limit.aborted && !signal?.aborted && !error.status) throw new Refused(UNREACHABLE);
    throw error;
  }
}

async function read(answer) {
  const words = await answer.text().catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refused(UNREACHABLE); // cut off
  });
  try {
    return JSON.parse(words);
  } catch {
    throw new Refused("What answers there is not the service.", { status: answer.status, code: "no_json" });
  }
}

export async function post(path, body, options = {}) {
  const answer = await send(path, {
    ...options,
    method: "POST",
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return read(answer);
}

export const jobPath = (id) => `v1/jobs/${encodeURIComponent(id)}`;
export const cancelJob = (id) => post(`${jobPath(id)}/cancel`);
export const deleteJob = async (id) => read(await send(jobPath(id), { method: "DELETE" }));

export const isLive = (status) => status === "queued" || status === "running";

/**
 * The server-sent events of an answer (https://html.spec.whatwg.org/multipage/server-sent-events.html, "event stream
 * interpretation"). EventSource cannot send a key, so the stream is read here.
 * @param {ReadableStream<Uint8Array>} stream
 * @param {() => void} heard  called for whatever comes, comments too
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
export async function* readEvents(stream, heard = () => {}) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without its empty line is not whole
      heard();
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event: event || "message", data: data.join("\n") };
          event = "";
          data = [];
          continue;
        }
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const content = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "data") data.push(content);
        else if (field === "event") event = content;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
