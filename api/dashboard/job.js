// One job: its progress as it happens, its record, errors, downloads, and a look at its vectors.

import { badge, bar, complaint, copyButton, facts, h, say, text } from "./dom.js";
import { explorer } from "./explore.js";
import { ago, bytes, duration, moment, number, percent, plural, rate } from "./format.js";
import { countsOf, endJob, reasonOf } from "./jobs.js";
import { patiently, watchJob } from "./refresh.js";
import { isLive, jobPath, key, send } from "./service.js";
import { partOf, readPart } from "./vectors.js";

const MOST_BYTES = 64 * 2 ** 20; // that a browser's memory holds on the way to a file
const SAID_EACH = 0.25;

/** A job's bar with counts, speed and the time that is left. */
export function jobProgress(id) {
  const state = badge("queued");
  const progress = bar("progressbar", `Progress of ${id}`);
  const share = h("strong", { class: "big" }, "–");
  const [counts, speed, left] = [h("span"), h("span"), h("span")];
  let said = 0;
  return {
    element: h("div", { class: "progress" },
      h("div", { class: "panel-head" }, share, state.element), progress.element,
      h("p", { class: "spread dim" }, counts, speed, left)),
    update(job) {
      const live = isLive(job.status);
      state.update(job.status);
      text(share, percent(job.progress));
      const failed = job.counts.failed ? `, ${number(job.counts.failed)} failed` : "";
      text(counts, `${countsOf(job)} ${job.counts.total === 1 ? "text" : "texts"}${failed}`);
      const took = !live && job.started_at && job.ended_at ? job.ended_at - job.started_at : 0;
      const perSecond = live ? job.inputs_per_second : took ? (job.counts.done + job.counts.failed) / took : null;
      text(speed, perSecond ? `${rate(perSecond)} texts/s` : "");
      text(left, live ? (job.remaining_seconds ? `${duration(job.remaining_seconds)} left` : "") : took ? `took ${duration(took)}` : "");
      progress.update(job.progress, `${counts.textContent}, ${job.status}`, job.status, job.counts.failed / (job.counts.total || 1));
      if (!live && said >= 0 && said < 2) {
        if (said > 0) say(`The job is ${job.status}: ${counts.textContent}`);
        said = 2;
      } else if (live && job.progress >= said) {
        if (said > 0) say(`${percent(job.progress)} of the job is done`);
        said = Math.floor(job.progress / SAID_EACH) * SAID_EACH + SAID_EACH;
      }
    },
  };
}

const RECORD = {
  created: "Created",
  started: "Started",
  ended: "Ended",
  expires: "Expires",
  queue: "Queue",
  model: "Model",
  revision: "Revision",
  computed: "Computed by",
  parity: "Parity",
  vectors: "Vectors",
  tokens: "Tokens",
  truncated: "Cut to length",
  cached: "From the cache",
  options: "Options",
};

function recordOf(job) {
  const time = (seconds) => (seconds ? h("time", { datetime: new Date(1000 * seconds).toISOString(), title: moment(seconds) }, ago(seconds)) : null);
  const options = [
    job.truncate === "end" ? null : `truncate ${job.truncate}`,
    job.chunk_overlap ? `chunk overlap ${job.chunk_overlap}` : null,
    job.prompt_name ? `prompt ${job.prompt_name}` : null,
  ].filter(Boolean);
  return {
    created: time(job.created_at), started: time(job.started_at), ended: time(job.ended_at), expires: time(job.expires_at),
    queue: `${job.queue} · ${job.priority}`,
    model: job.model,
    revision: job.revision,
    computed: job.engine ? [job.engine, job.device, job.dtype].join(" · ") : null,
    parity: job.parity === null ? null : (Math.floor(job.parity * 1e6) / 1e6).toFixed(6),
    vectors: job.dimensions ? `${number(job.dimensions)} dimensions, ${job.normalize ? "length 1" : "not normalised"}` : null,
    tokens: job.tokens ? number(job.tokens) : null,
    truncated: job.truncated ? plural(job.truncated, "text") : null,
    cached: job.cached ? plural(job.cached, "text") : null,
    options: options.length ? options.join(", ") : null,
  };
}

export function showJob({ place, parts, signal, title }) {
  const id = parts[1];
  const [looked, acted] = [complaint(), complaint()];
  const waits = h("p", { class: "notice", hidden: true });
  const progress = jobProgress(id);
  const record = facts(RECORD);
  const more = h("div", { class: "more" });
  const end = h("button", { type: "button", hidden: true, onclick: askEnd });
  const content = h("div", { class: "content", hidden: true },
    h("section", { class: "panel", "aria-label": "Progress" }, progress.element, waits),
    h("section", { class: "panel", "aria-labelledby": "record" }, h("h2", { id: "record" }, "Record"), record.element),
    more);
  place.append(
    h("p", { class: "crumb" }, h("a", { href: "#/jobs" }, "Jobs")),
    h("div", { class: "title" }, h("h1", { class: "id" }, id), copyButton("Copy the id", () => id), end),
    acted.element, looked.element, content);
  title(id);

  let job = null;
  async function askEnd() {
    acted.update("");
    try {
      const found = await endJob(job);
      if (!found || signal.aborted) return;
      if (found.deleted) location.hash = "#/jobs";
      else watched.hear(found);
    } catch (error) {
      acted.update(reasonOf(error));
    }
  }
  let shownAs = null;
  function update(latest) {
    job = latest;
    content.hidden = false;
    looked.update("");
    progress.update(job);
    title(isLive(job.status) ? `${percent(job.progress)} · ${id}` : `${job.status} · ${id}`);
    waits.hidden = !(job.waiting_for && isLive(job.status));
    if (job.waiting_for) text(waits, `Waits for ${job.waiting_for}.`);
    text(end, isLive(job.status) ? "Cancel" : "Delete");
    end.hidden = false;
    record.update(recordOf(job));
    if (shownAs === job.status) return;
    shownAs = job.status;
    if (!isLive(job.status)) more.replaceChildren(...afterTheEnd(job, signal));
  }
  const watched = watchJob(id, { update, failed: (error) => looked.update(reasonOf(error)) }, signal);
}

function afterTheEnd(job, signal) {
  const has = job.counts.done > 0 && !job.dry_run;
  const empty = Object.keys(job.metadata ?? {}).length === 0;
  return [
    has ? explorer(job, signal) : null,
    job.errors?.length ? errorTable(job) : null,
    has ? downloads(job, signal) : null,
    job.dry_run ? dryRun(job.dry_run) : null,
    empty ? null : h("section", { class: "panel", "aria-labelledby": "metadata" }, h("h2", { id: "metadata" }, "Metadata"),
      h("pre", { tabindex: "0", "aria-labelledby": "metadata" }, h("code", {}, JSON.stringify(job.metadata, null, 2)))),
  ].filter(Boolean);
}

export function errorTable({ errors, counts }) {
  const shown = errors.length < counts.failed ? `The first ${number(errors.length)} of ${number(counts.failed)} texts that have no vector.` : null;
  return h("section", { class: "panel", "aria-labelledby": "errors" },
    h("h2", { id: "errors" }, "Errors"),
    shown && h("p", { class: "dim" }, shown),
    h("table", { class: "cards" },
      h("thead", {}, h("tr", {}, ["Text", "Code", "What happened", "Try again"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, errors.toSorted((one, other) => one.index - other.index).map((error) => h("tr", {},
        h("th", { scope: "row", "data-label": "Text" }, number(error.index)),
        h("td", { "data-label": "Code" }, h("code", {}, error.code)),
        h("td", { class: "wide", "data-label": "What happened" }, error.message),
        h("td", { "data-label": "Try again" }, error.retryable ? "may help" : "will not help"))))));
}

function dryRun(found) {
  const known = facts({ inputs: "Texts", tokens: "Tokens", long: "Too long", twice: "Duplicates", cached: "In the cache", bytes: "Vectors", time: "Time" });
  known.update({
    inputs: number(found.inputs), tokens: number(found.tokens), long: number(found.over_long), cached: number(found.cached),
    twice: found.duplicates === null ? null : number(found.duplicates),
    bytes: found.bytes === null ? null : bytes(found.bytes),
    time: found.seconds === null || found.seconds === undefined ? null : duration(found.seconds),
  });
  return h("section", { class: "panel", "aria-labelledby": "dry-run" }, h("h2", { id: "dry-run" }, "Dry run"),
    h("p", { class: "dim" }, "Only counted: what the job would be. It has no vectors."), known.element);
}

// Downloads ------------------------------------------------------------------------------------------------------------

/** Formats by what reads them, with the bytes that a number and a text take. */
const FORMATS = [
  { name: "npy", ending: "npy", words: "numpy.load", each: 4, row: 0 },
  { name: "ndjson", ending: "ndjson", words: "an object a line", each: 13, row: 80 },
  { name: "json", ending: "json", words: "one object", each: 13, row: 80 },
  { name: "parquet", ending: "parquet", words: "pandas, DuckDB, Polars", each: 4, row: 24 },
  { name: "arrow", ending: "arrows", words: "an Arrow stream", each: 4, row: 24 },
];

function downloads(job, signal) {
  const note = complaint();
  return h("section", { class: "panel", "aria-labelledby": "downloads" },
    h("h2", { id: "downloads" }, "Download the vectors"),
    note.element,
    h("ul", { class: "downloads" }, FORMATS.map((format) => download(job, format, note, signal))));
}

function curlLine(job, format) {
  const url = new URL(`${jobPath(job.id)}/result?format=${format.name}`, document.baseURI).href;
  return `curl --fail${key.get() ? ' -H "Authorization: Bearer $API_KEY"' : ""} -o ${job.id}.${format.ending} '${url}'`;
}

function download(job, format, note, signal) {
  const size = job.counts.total * (format.row + format.each * (job.dimensions ?? 0));
  const small = size <= MOST_BYTES;
  const line = h("code", { class: "curl", hidden: small }, curlLine(job, format));
  const button = h("button", { type: "button", hidden: !small, "aria-label": `Download ${format.name}`, onclick: fetchIt }, "Download");
  async function fetchIt() {
    button.disabled = true;
    text(button, "Reading…");
    note.update("");
    try {
      const answer = await patiently(() => send(`${jobPath(job.id)}/result?format=${format.name}`, { signal }), signal);
      const part = readPart(answer.headers);
      const link = h("a", { href: URL.createObjectURL(await answer.blob()), download: `${job.id}.${format.ending}` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      note.update(partOf({ part }).trim());
    } catch (error) {
      if (!signal.aborted) note.update(error.message);
    } finally {
      button.disabled = false;
      text(button, "Download");
    }
  }
  const copy = copyButton("Copy curl", () => curlLine(job, format));
  copy.setAttribute("aria-label", `Copy curl for ${format.name}`);
  return h("li", {},
    h("span", { class: "name" }, h("strong", {}, format.name), h("span", { class: "dim" }, format.words)),
    h("span", { class: "dim size" }, `about ${bytes(size)}`),
    h("span", { class: "actions" }, button, copy), line);
}
