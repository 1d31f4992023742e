// The list of jobs: a page of it, kept fresh.

import { badge, bar, complaint, confirmed, h, keyed, say, text } from "./dom.js";
import { ago, moment, number, plural, shortId } from "./format.js";
import { every } from "./refresh.js";
import { cancelJob, deleteJob, get, isLive } from "./service.js";

const SECONDS = 2;
const ROWS = 25;
const STATES = ["queued", "running", "succeeded", "failed", "cancelled"];

const linkOf = (id) => `#/jobs/${encodeURIComponent(id)}`;

function pageLink(status, after) {
  const query = new URLSearchParams();
  if (status) query.set("status", status);
  if (after) query.set("after", after);
  return `#/jobs${query.size ? `?${query}` : ""}`;
}

/** Why nothing is told of a job, or done to it. */
export const reasonOf = (error) =>
  error.status === 404 ? "There is no such job: it was deleted, has expired, or belongs to another key." : error.message;

/** Ask, then cancel a live job or delete an ended one. Returns what the service says of it then; null when nothing was to be done. */
export async function endJob(job) {
  const live = isLive(job.status);
  const sure = await confirmed(live
    ? { title: "Cancel this job?", yes: "Cancel the job", words: `${job.id} stops within one batch. Vectors that are finished stay readable.` }
    : { title: "Delete this job?", yes: "Delete the job", words: `${job.id} and its ${plural(job.counts.done, "vector")} are gone for good.` });
  if (!sure) return null;
  const found = await (live ? cancelJob(job.id) : deleteJob(job.id));
  say(found.deleted ? "The job is deleted" : found.status === "cancelled" ? "The job is cancelled" : `The job had ended before: ${found.status}`);
  return found;
}

/** Counts in words, in the fewest. */
export function countsOf({ counts }) {
  const ended = counts.done + counts.failed;
  const total = number(counts.total);
  return ended === counts.total ? total : `${number(ended)} of ${total}`;
}

export function showJobs({ place, query, signal }) {
  const [status, after] = [STATES.includes(query.get("status")) ? query.get("status") : "", query.get("after") ?? ""];
  const body = h("tbody");
  const [looked, acted] = [complaint(), complaint()];
  const empty = h("div", { class: "empty", hidden: true },
    h("p", {}, h("strong", {}, status ? `No job is ${status}.` : after ? "There are no older jobs." : "There is no job yet.")),
    h("p", {}, status || after ? h("a", { href: "#/jobs" }, "See the newest of all jobs") : h("a", { href: "#/try" }, "Try the service with texts of yours")));
  const columns = ["Job", "State", "Progress", "Texts", "Failed", "Queue", "Created"];
  const table = h("table", { class: "cards jobs", hidden: true },
    h("thead", {}, h("tr", {},
      columns.map((name) => h("th", { scope: "col", class: ["Texts", "Failed"].includes(name) ? "figure" : null }, name)),
      h("th", { scope: "col" }, h("span", { class: "hidden" }, "Actions")))),
    body);
  const newest = h("a", { class: "button", id: "newest", href: pageLink(status, ""), hidden: !after }, "Newest");
  const older = h("a", { class: "button", id: "older", hidden: true }, "Older");

  const filter = h("select", { id: "status-filter", onchange: () => { location.hash = pageLink(filter.value, ""); } },
    h("option", { value: "" }, "All states"), STATES.map((one) => h("option", { value: one, selected: one === status }, one)));
  const id = h("input", { id: "open-id", name: "id", placeholder: "job_…", autocomplete: "off", spellcheck: "false", required: true, pattern: "\\s*[A-Za-z0-9_\\-]+\\s*" });
  const open = h("form", { class: "inline", onsubmit: (event) => {
    event.preventDefault();
    location.hash = linkOf(id.value.trim());
  } }, h("label", { for: "open-id" }, "Open by id"), id, h("button", {}, "Open"));

  place.append(
    h("h1", {}, "Jobs"),
    h("div", { class: "toolbar" }, h("div", { class: "inline" }, h("label", { for: "status-filter" }, "State"), filter), open),
    acted.element, looked.element,
    h("section", { class: "panel flush", "aria-label": "Jobs, newest first" }, table, empty),
    h("nav", { class: "pages", "aria-label": "Pages" }, newest, older),
  );

  async function end(job) {
    acted.update("");
    try {
      if (await endJob(job)) loop.now();
    } catch (error) {
      acted.update(reasonOf(error));
    }
  }

  const loop = every(SECONDS, async () => {
    const asked = new URLSearchParams({ limit: String(ROWS), ...(status && { status }), ...(after && { after }) });
    const found = await get(`v1/jobs?${asked}`, { signal });
    looked.update("");
    keyed(body, found.data, (job) => job.id, (job) => jobRow(job, end));
    table.hidden = !found.data.length;
    empty.hidden = found.data.length > 0;
    older.hidden = !found.has_more;
    if (found.has_more) older.href = pageLink(status, found.last_id);
  }, { signal, failed: (error) => looked.update(error.status === 404 && after ? "The job that this page began behind is gone. See the newest." : error.message) });
}

function jobRow(first, end) {
  let job = first;
  const state = badge(first.status);
  const progress = bar("progressbar", `Progress of ${first.id}`);
  const [counts, failed] = [h("span"), h("span")];
  const created = h("time", { datetime: new Date(1000 * first.created_at).toISOString(), title: moment(first.created_at) });
  const button = h("button", { type: "button", class: "quiet", onclick: () => end(job) });
  const element = h("tr", {},
    h("th", { scope: "row" }, h("a", { href: linkOf(first.id), class: "id", title: first.id }, shortId(first.id))),
    h("td", { "data-label": "State" }, state.element),
    h("td", { class: "wide", "data-label": "Progress" }, progress.element),
    h("td", { class: "figure", "data-label": "Texts" }, counts),
    h("td", { class: "figure", "data-label": "Failed" }, failed),
    h("td", { "data-label": "Queue" }, `${first.queue} · ${first.priority}`),
    h("td", { "data-label": "Created" }, created),
    h("td", { class: "actions" }, button),
  );
  return {
    element,
    update(latest) {
      job = latest;
      state.update(job.status);
      const failedShare = job.counts.total ? job.counts.failed / job.counts.total : 0;
      progress.update(job.progress, `${countsOf(job)} texts`, job.status, failedShare);
      text(counts, countsOf(job));
      text(failed, job.counts.failed ? number(job.counts.failed) : "–");
      failed.parentElement.classList.toggle("none", !job.counts.failed);
      text(created, ago(job.created_at));
      text(button, isLive(job.status) ? "Cancel" : "Delete");
      button.setAttribute("aria-label", `${button.textContent} ${job.id}`);
    },
  };
}
