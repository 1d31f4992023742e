// A job's vectors in the browser, and what is near what.

import { number, plural } from "./format.js";
import { post, send, jobPath } from "./service.js";

export const MOST = 5_000; // texts that are looked at here, of however many

/**
 * In the order of the inputs; NaN where one failed. `part`: what is in it, of a job that has more.
 * @typedef {{rows: number, dimensions: number, numbers: Float32Array, part?: Part | null}} Matrix
 */

/**
 * A cancelled job's result ends at the first text without one; there may be more behind it.
 * @typedef {{count: number, total: number, next: number | null}} Part
 */

/**
 * How far an answer with vectors goes; null when it has all that was asked for.
 * @returns {Part | null}
 */
export function readPart(headers, limit = Infinity) {
  const [count, total] = [Number(headers.get("X-Vector-Count")), Number(headers.get("X-Vector-Total"))];
  if (count >= Math.min(limit, total)) return null;
  return { count, total, next: headers.has("X-Next-Offset") ? Number(headers.get("X-Next-Offset")) : null };
}

/** The same in words, behind a sentence. */
export function partOf({ part }) {
  if (!part) return "";
  const more = part.next === null ? "" : ` More follow behind a gap, from text ${number(part.next)} on.`;
  return ` Only the first ${number(part.count)} of the cancelled job's ${plural(part.total, "text")} are in it.${more}`;
}

/**
 * The array of a file of `numpy.save` (numpy.lib.format, version 1.0), little-endian float32 in C order.
 * @param {ArrayBuffer} buffer
 * @returns {Matrix}
 */
export function readNpy(buffer) {
  const length = new DataView(buffer).getUint16(8, true);
  const head = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, length));
  const shape = /'shape': \((\d+), (\d+)\)/.exec(head);
  if (!shape || !head.includes("'<f4'")) throw new Error("The vectors are in no form that this page reads.");
  const [rows, dimensions] = [Number(shape[1]), Number(shape[2])];
  return { rows, dimensions, numbers: new Float32Array(buffer, 10 + length, rows * dimensions) };
}

export async function readVectors(job, signal) {
  const limit = Math.min(MOST, job.counts.total);
  const answer = await send(`${jobPath(job.id)}/result?format=npy&limit=${limit}`, { signal });
  return { ...readNpy(await answer.arrayBuffer()), part: readPart(answer.headers, limit) };
}

/** The vector of a text as the job's model gives it, by the interactive lane, so that it waits for one batch at most. */
export async function embedQuery(job, query, signal) {
  const body = { model: job.model, input: query, dimensions: job.dimensions, encoding_format: "float" };
  if (job.prompt_name) body.prompt_name = job.prompt_name;
  const found = await post("v1/embeddings", body, { signal });
  return Float32Array.from(found.data[0].embedding);
}

/**
 * The rows whose angle to the vector is smallest, best first.
 * @returns {{index: number, cosine: number}[]}
 */
export function nearest({ rows, dimensions, numbers }, vector, count) {
  const length = Math.hypot(...vector);
  const found = [];
  for (let index = 0; index < rows; index++) {
    let product = 0;
    let square = 0;
    for (let n = 0, at = index * dimensions; n < dimensions; n++, at++) {
      product += numbers[at] * vector[n];
      square += numbers[at] * numbers[at];
    }
    const cosine = product / (Math.sqrt(square) * length);
    if (!Number.isNaN(cosine)) found.push({ index, cosine });
  }
  return found.sort((one, other) => other.cosine - one.cosine).slice(0, count);
}

// The texts of this tab: the service deletes a text when it is embedded, so only who sent it can show it.

const TEXTS = "texts";
const KEPT_JOBS = 5;
let kept = null; // [id, texts] of each job, oldest first

function keptTexts() {
  try {
    kept ??= JSON.parse(sessionStorage.getItem(TEXTS));
  } catch { /* storage may be forbidden */ }
  return (kept ??= []);
}

export function keepTexts(id, lines) {
  kept = [...keptTexts(), [id, lines]].slice(-KEPT_JOBS);
  for (let stored = kept; stored.length; stored = stored.slice(1)) {
    try {
      sessionStorage.setItem(TEXTS, JSON.stringify(stored));
      return;
    } catch { /* too much for the tab's storage: the oldest last until the page is loaded anew */ }
  }
}

export function forgetTexts() {
  kept = [];
  try {
    sessionStorage.clear();
  } catch { /* nothing was stored */ }
}

/** @returns {string[] | null} */
export const textsOf = (id) => keptTexts().find(([one]) => one === id)?.[1] ?? null;
