// A first job without a terminal: texts in, progress, then a look at the vectors.

import { complaint, h, text } from "./dom.js";
import { explorer } from "./explore.js";
import { number, plural, shortModel } from "./format.js";
import { errorTable, jobProgress } from "./job.js";
import { endJob, reasonOf } from "./jobs.js";
import { every, watchJob } from "./refresh.js";
import { SAMPLES } from "./samples.js";
import { get, isLive, post } from "./service.js";
import { keepTexts, MOST, textsOf } from "./vectors.js";

const QUEUES = { auto: "auto", cpu: "cpu", gpu: "gpu" };

const linesOf = (value) => value.split("\n").map((line) => line.trim()).filter(Boolean);

export function showTry({ place, parts, signal, title }) {
  const id = parts[1];
  const before = id ? textsOf(id) : null;
  const result = h("div", { class: "result" });
  place.append(
    h("h1", {}, "Try it"),
    h("p", { class: "lead" }, "Put in some texts, a line each. They become vectors here, on this service's own machines; then search them by meaning."),
    tryForm(before ?? [], signal),
    result);
  if (id) showResult(id, result, signal, title);
}

function tryForm(lines, signal) {
  const area = h("textarea", {
    id: "texts", rows: "9", spellcheck: "false", "aria-describedby": "texts-count", placeholder: "A cat sat on the mat.\nRain is forecast for tonight.\n…",
  });
  area.value = lines.join("\n");
  const count = h("p", { class: "dim", id: "texts-count" });
  const problem = complaint();
  const queue = h("select", { id: "try-queue" }, Object.values(QUEUES).map((name) => h("option", { value: name }, name)));
  const model = h("select", { id: "try-model" });
  const modelPart = h("div", { class: "inline", hidden: true }, h("label", { for: "try-model" }, "Model"), model);
  const submit = h("button", { class: "primary" }, "Embed");

  function counted() {
    const found = linesOf(area.value).length;
    text(count, `${plural(found, "text")} of ${number(MOST)} at most`);
    count.classList.toggle("over", found > MOST);
    submit.disabled = found === 0 || found > MOST;
    return found;
  }
  area.addEventListener("input", counted);
  counted();

  async function send(event) {
    event.preventDefault();
    const inputs = linesOf(area.value);
    submit.disabled = true;
    problem.update("");
    try {
      const body = { inputs, queue: queue.value, priority: "interactive" };
      const job = await post("v1/jobs", model.value ? { ...body, model: model.value } : body);
      keepTexts(job.id, inputs);
      if (!signal.aborted) location.hash = `#/try/${job.id}`; // else somebody has gone elsewhere meanwhile
    } catch (error) {
      problem.update(error.message);
      counted();
    }
  }

  let queues = [];
  function markQueues() {
    const of = model.value || queues[0]?.model;
    for (const option of queue.options) {
      const live = queues.some((one) => one.queue === option.value && one.model === of && one.workers.length);
      const known = option.value === "auto" || live || !queues.length;
      text(option, known ? option.value : `${option.value} (no live worker: would wait)`);
    }
  }
  model.addEventListener("change", markQueues);
  every(10, async () => {
    queues = (await get("v1/queues", { signal })).data;
    const names = [...new Set(queues.map((one) => one.model))];
    if (names.length > 1 && !model.options.length) {
      model.append(...names.map((name) => h("option", { value: name }, shortModel(name))));
      modelPart.hidden = false;
    }
    markQueues();
  }, { signal });

  return h("form", { class: "panel try", onsubmit: send },
    h("div", { class: "panel-head" }, h("label", { for: "texts" }, "Texts"),
      h("button", { type: "button", onclick: () => {
        area.value = SAMPLES.join("\n");
        counted();
        submit.focus();
      } }, `Insert ${SAMPLES.length} sample texts`)),
    area,
    h("div", { class: "toolbar" }, count,
      h("div", { class: "inline" }, h("label", { for: "try-queue" }, "Queue"), queue), modelPart, submit),
    problem.element);
}

function showResult(id, place, signal, title) {
  const progress = jobProgress(id);
  const [looked, acted] = [complaint(), complaint()];
  const waits = h("p", { class: "notice", hidden: true });
  const cancel = h("button", { type: "button", class: "quiet", onclick: askEnd }, "Cancel");
  const tools = h("span", { class: "actions" }, cancel, h("a", { href: `#/jobs/${encodeURIComponent(id)}` }, "Record and downloads"));
  const panel = h("section", { class: "panel", "aria-labelledby": "your-job" },
    h("div", { class: "panel-head" }, h("h2", { id: "your-job" }, "Your job"), tools),
    progress.element, waits, acted.element, looked.element);
  const more = h("div", { class: "more" });
  tools.hidden = progress.element.hidden = true; // until it is known
  place.append(panel, more);
  requestAnimationFrame(() => panel.scrollIntoView());
  let job = null;
  async function askEnd() {
    acted.update("");
    try {
      const found = await endJob(job);
      if (found && !found.deleted) watched.hear(found);
    } catch (error) {
      acted.update(reasonOf(error));
    }
  }
  function update(latest) {
    job = latest;
    tools.hidden = progress.element.hidden = false;
    looked.update("");
    progress.update(job);
    title(`${job.status} · Try it`);
    cancel.hidden = !isLive(job.status);
    waits.hidden = !(job.waiting_for && isLive(job.status));
    if (job.waiting_for) text(waits, `Waits for ${job.waiting_for}.`);
    if (isLive(job.status) || more.firstChild) return;
    if (job.counts.done) more.append(explorer(job, signal));
    if (job.errors?.length) more.append(errorTable(job));
  }
  const watched = watchJob(id, { update, failed: (error) => looked.update(reasonOf(error)) }, signal);
}
