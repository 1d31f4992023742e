// A job's vectors in the browser, and what is near what.

import { post, send, jobPath } from "./service.js";

export const MOST = 5_000; // texts that are looked at here, of however many

/** @typedef {{rows: number, dimensions: number, numbers: Float32Array}} Matrix  in the order of the inputs; NaN where one failed */

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
  return readNpy(await answer.arrayBuffer());
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

const TEXTS = "texts:";
const KEPT_JOBS = 5;
const texts = new Map();

export function keepTexts(id, lines) {
  texts.set(id, lines);
  try {
    const older = Object.keys(sessionStorage).filter((name) => name.startsWith(TEXTS));
    while (older.length >= KEPT_JOBS) sessionStorage.removeItem(older.shift());
    sessionStorage.setItem(TEXTS + id, JSON.stringify(lines));
  } catch { /* too much for the tab's storage: they last until the page is loaded anew */ }
}

export function forgetTexts() {
  texts.clear();
  try {
    sessionStorage.clear();
  } catch { /* nothing was stored */ }
}

/** @returns {string[] | null} */
export function textsOf(id) {
  if (!texts.has(id)) {
    try {
      texts.set(id, JSON.parse(sessionStorage.getItem(TEXTS + id)));
    } catch {
      texts.set(id, null);
    }
  }
  return texts.get(id);
}
