// The overview: whether work flows, on which device, how full it is, and what is wrong.

import { badge, bar, facts, h, keyed, say, text } from "./dom.js";
import { bytes, compact, duration, number, percent, plural, rate, shortModel } from "./format.js";
import { every } from "./refresh.js";
import { get } from "./service.js";

const SECONDS = 2;
const BUCKETS = 60;
const BUCKET_SECONDS = 10;
const RATE_SECONDS = 20; // workers commit shards, so texts come in lumps
const LOOKED_SECONDS = 2 * RATE_SECONDS; // between two looks; after a longer time, as in a hidden tab, it begins anew
const STUCK_SECONDS = 60;
const NEARLY_FULL = 0.9;

/** What came through, from the totals' counters and, where the service tells it, from its own last ten minutes. */
export class Throughput {
  #seen = []; // [seconds, inputs], a sample for each look
  #counted = ""; // what is counted
  #moved = 0; // when a text was done with last, or nothing was to be done, or nobody had looked

  look(totals, now = Date.now() / 1000) {
    const counters = Object.entries(totals.counters ?? {});
    const counted = counters.some(([name]) => name.startsWith("finished:")) ? "finished:" : "inputs:"; // failures and dry runs are progress, too
    const count = counters.filter(([name]) => name.startsWith(counted)).reduce((sum, [, value]) => sum + value, 0);
    if (counted !== this.#counted) this.#seen = [];
    this.#counted = counted;
    const [before, last] = this.#seen.at(-1) ?? [-Infinity];
    if (count !== last || before < now - LOOKED_SECONDS || !(totals.waiting + totals.running)) this.#moved = now;
    this.#seen.push([now, count]);
    if (this.#seen[0][0] < now - BUCKETS * BUCKET_SECONDS - RATE_SECONDS) this.#seen.shift();
    this.told = totals.throughput ?? null;
  }

  /** For how long there was work and nothing was done. */
  get stoodSeconds() {
    return this.#seen.at(-1)[0] - this.#moved;
  }

  /** Texts per second over the last moments; null when that cannot be said yet. */
  get perSecond() {
    const [now, count] = this.#seen.at(-1);
    const recent = this.#seen.filter(([time]) => time >= now - LOOKED_SECONDS);
    const [since, first] = recent.findLast(([time]) => time <= now - RATE_SECONDS) ?? recent[0];
    const counted = now > since ? Math.max(0, count - first) / (now - since) : 0;
    if (now - since >= RATE_SECONDS) return counted;
    const whole = this.told?.inputs.slice(-3, -1) ?? [];
    const told = whole.reduce((sum, value) => sum + value, 0) / (whole.length * this.told?.seconds_each) || 0;
    return Math.max(told, counted) || null;
  }

  /** Texts per second in each bucket, oldest first; null where nobody looked. The running bucket is left out. */
  get series() {
    if (this.told) return this.told.inputs.slice(0, -1).map((inputs) => inputs / this.told.seconds_each);
    const [last] = this.#seen.at(-1);
    return Array.from({ length: BUCKETS }, (_, n) => {
      const end = last - (BUCKETS - 1 - n) * BUCKET_SECONDS;
      const inside = this.#seen.filter(([time]) => time > end - BUCKET_SECONDS - SECONDS && time <= end);
      if (inside.length < 2) return null;
      const [from, to] = [inside[0], inside.at(-1)];
      return Math.max(0, to[1] - from[1]) / (to[0] - from[0]);
    });
  }

  get secondsEach() {
    return this.told?.seconds_each ?? BUCKET_SECONDS;
  }
}

/** The workers of all queues, each once. */
function workersOf(queues) {
  const found = new Map(queues.flatMap((queue) => queue.workers).map((worker) => [worker.name, worker]));
  return [...found.values()].sort((one, other) => one.name.localeCompare(other.name));
}

const waitingIn = (queue) => Object.values(queue.waiting).reduce((sum, count) => sum + count, 0);
const ready = (worker) => worker.dimensions > 0;
const isStalled = (queue) => queue.stalled || (queue.backlog > 0 && !queue.workers.length);

function leftIn(queue) {
  const waiting = waitingIn(queue);
  const parts = [
    waiting ? plural(waiting, "text waits", "texts wait") : null,
    queue.running ? `${plural(queue.running, waiting ? "is" : "text is", waiting ? "are" : "texts are")} in flight` : null,
  ];
  return parts.filter(Boolean).join(" and ");
}

/** Parts of what there is of something, null where it has no limit or nobody tells. */
const shareOf = (used, most) => (most && used !== null && used !== undefined ? used / most : null);

function nearlyFull(totals, workers) {
  const found = [
    [shareOf(totals.waiting, totals.max_waiting), (share) => `The backlog is ${share} full; beyond it new jobs are refused.`],
    [shareOf(totals.waiting_bytes, totals.max_waiting_bytes), (share) => `The texts that wait fill ${share} of their room; beyond it new jobs are refused.`],
    [shareOf(totals.redis_used_bytes, totals.redis_max_bytes), (share) => `Redis' memory is ${share} full; beyond it nothing more can be written.`],
    ...workers.map((worker) => [shareOf(fact(worker, "memory_used_bytes"), fact(worker, "memory_limit_bytes")),
      (share) => `The main memory of ${worker.name} is ${share} full; beyond it the system ends processes.`]),
  ];
  return found.filter(([share]) => share >= NEARLY_FULL).map(([share, words]) => words(percent(share)));
}

/**
 * The state of the service in one line, and what else is wrong.
 * @returns {{tone: "ok" | "idle" | "warn" | "bad", line: string, notices: string[]}}
 */
export function judge({ data: queues, totals }, { perSecond, stoodSeconds }) {
  const workers = workersOf(queues);
  const stalled = queues.filter(isStalled);
  const suspects = queues.reduce((sum, queue) => sum + queue.suspects, 0);
  const notices = [];
  if (suspects) notices.push(`${plural(suspects, "suspect")}: in flight when a worker died, now tried alone.`);
  notices.push(...nearlyFull(totals, workers));
  if (stalled.length) {
    const each = stalled.map((queue) => `${leftIn(queue)}, no ${queue.name} worker lives`);
    if (totals.running && perSecond) notices.push(`Other work flows: ${rate(perSecond)} texts/s.`);
    return { tone: "bad", line: `Stalled: ${each.join("; ")}`, notices };
  }
  if (!workers.length) return { tone: "warn", line: "No worker lives: jobs will wait", notices };
  const busy = queues.filter((queue) => queue.backlog > 0);
  if (busy.length) {
    const devices = [...new Set(busy.flatMap((queue) => queue.workers).filter(ready).map((worker) => worker.device))];
    if (!devices.length) return { tone: "warn", line: "Work waits while a worker loads its model", notices };
    const where = devices.join(" and ");
    const oldest = Math.max(...busy.map((queue) => queue.oldest_seconds)); // of what waits: 0 when all is in flight
    if (stoodSeconds >= STUCK_SECONDS || (stoodSeconds >= RATE_SECONDS && oldest > STUCK_SECONDS)) {
      return { tone: "warn", line: `Nothing moves: no text was finished on ${where} for ${duration(stoodSeconds)}`, notices };
    }
    if (!perSecond) return { tone: "ok", line: `Work is under way on ${where}`, notices };
    return { tone: "ok", line: `Work flows: ${rate(perSecond)} texts/s on ${where}`, notices };
  }
  if (!workers.some(ready)) return { tone: "idle", line: "A worker loads its model", notices };
  return { tone: "idle", line: "Idle: nothing waits", notices };
}

/** The same for a service that gives no figures. */
export function trouble(error) {
  const before = "What is below is as of before.";
  if (!("status" in error)) return { line: "This page fails", notices: [error.message, before] };
  if (error.code === "unreachable") return { line: "The service does not answer", notices: [before] };
  if (error.code === "ledger_unavailable") return { line: "Redis cannot be reached", notices: [`Workers wait, too, and go on by themselves. ${before}`] };
  if (error.code === "newer_layout") return { line: "Redis was written by a newer version", notices: [error.message, before] };
  if (error.code === "no_json") return { line: "Something else answers", notices: [error.message, before] };
  if (error.code === "unknown" && [502, 503, 504].includes(error.status)) {
    return { line: "The service cannot be reached", notices: [`What stands before it answers ${error.status} in its place.`, before] };
  }
  return { line: error.status < 500 ? "The service refuses to tell" : "The service fails", notices: [error.message, before] };
}

const SHAPES = { ok: "▲", idle: "●", warn: "◆", bad: "■" };
const FIGURES = ["Waiting", "Running", "Live jobs", "Workers"];

export function showOverview({ place, signal, title }) {
  const line = h("span", {}, "Asking the service…");
  const shape = h("span", { class: "shape", "aria-hidden": "true" });
  const notices = h("ul", { class: "notices" });
  const figures = Object.fromEntries(FIGURES.map((name) => [name, h("dd", {}, "–")]));
  const status = h("section", { class: "status panel", "data-tone": "idle", "aria-labelledby": "status-line" },
    h("h1", { id: "status-line" }, shape, line),
    h("dl", { class: "figures" }, FIGURES.map((name) => h("div", {}, h("dt", {}, name), figures[name]))),
    notices,
  );
  const chart = sparkline();
  const room = backlog();
  const queues = queueTable();
  const workers = workerCards();
  const models = modelList();
  place.append(
    status,
    h("div", { class: "pair" }, chart.element, room.element),
    queues.element, workers.element, models.element,
  );

  const throughput = new Throughput();
  let told = "";
  function tell({ tone, line: words, notices: more }) {
    status.dataset.tone = tone;
    text(shape, SHAPES[tone]);
    text(line, words);
    title(words.split(":")[0]);
    keyed(notices, more, (notice) => notice, (notice) => ({ element: h("li", {}, notice), update() {} }));
    const state = words.split(":")[0];
    if (told && told !== state) say(words);
    told = state;
  }

  every(SECONDS, async () => {
    const found = await get("v1/queues", { signal });
    throughput.look(found.totals);
    tell(judge(found, throughput));
    place.removeAttribute("data-stale");
    const { totals } = found;
    const jobs = totals.jobs ? totals.jobs.queued + totals.jobs.running : null;
    text(figures.Waiting, compact(totals.waiting));
    text(figures.Running, compact(totals.running));
    text(figures["Live jobs"], jobs === null ? "" : compact(jobs));
    figures["Live jobs"].parentElement.hidden = jobs === null;
    text(figures.Workers, number(totals.workers));
    chart.update(throughput);
    room.update(found.data, totals);
    queues.update(found.data);
    workers.update(workersOf(found.data));
    await models.update(found.data, signal);
  }, {
    signal,
    failed(error) {
      place.setAttribute("data-stale", "");
      tell({ tone: "bad", ...trouble(error) });
    },
  });
}

// Throughput -----------------------------------------------------------------------------------------------------------

function sparkline() {
  const [width, height] = [600, 96];
  const area = h("svg:path", { class: "spark-area" });
  const stroke = h("svg:path", { class: "spark-line" });
  const picture = h("svg:svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" },
    h("svg:line", { class: "spark-base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }), area, stroke);
  const now = h("strong", {}, "–");
  const peak = h("span", { class: "dim" });
  const start = h("span", {}, "10 min ago");
  const element = h("section", { class: "panel", "aria-labelledby": "throughput" },
    h("div", { class: "panel-head" }, h("h2", { id: "throughput" }, "Throughput"), peak),
    h("p", { class: "big" }, now, h("span", { class: "unit" }, " texts/s")),
    picture,
    h("p", { class: "axis dim" }, start, h("span", {}, "now")),
  );
  return {
    element,
    update(throughput) {
      const values = throughput.series;
      const known = values.filter((value) => value !== null);
      const most = Math.max(0, ...known);
      const mean = known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : 0;
      const perSecond = throughput.perSecond ?? 0;
      const minutes = Math.round((values.length + (throughput.told ? 1 : 0)) * throughput.secondsEach / 60);
      text(now, rate(perSecond));
      text(peak, most ? `mean ${rate(mean)} · most ${rate(most)}` : "nothing yet");
      text(start, `${minutes} min ago`);
      picture.setAttribute("aria-label",
        `Texts per second in the last ${minutes} minutes: now ${rate(perSecond)}, mean ${rate(mean)}, at most ${rate(most)}`);
      const x = (n) => ((n * width) / (values.length - 1)).toFixed(1);
      const y = (value) => (height - 1 - ((height - 6) * value) / (most || 1)).toFixed(1);
      const points = values.map((value, n) => (value === null ? null : `${x(n)} ${y(value)}`)).filter(Boolean);
      const first = values.findIndex((value) => value !== null);
      stroke.setAttribute("d", points.length > 1 ? `M ${points.join(" L ")}` : "");
      area.setAttribute("d", points.length > 1 ? `M ${x(first)} ${height} L ${points.join(" L ")} L ${width} ${height} Z` : "");
    },
  };
}

function backlog() {
  const meter = bar("meter", "Backlog");
  const count = h("strong", {}, "–");
  const share = h("span", { class: "dim" });
  const lanes = facts({ interactive: "Interactive", bulk: "Bulk", oldest: "Oldest" });
  const bars = memoryBars();
  const element = h("section", { class: "panel", "aria-labelledby": "backlog" },
    h("div", { class: "panel-head" }, h("h2", { id: "backlog" }, "Backlog"), share),
    h("p", { class: "big" }, count, h("span", { class: "unit" }, " texts wait")),
    meter.element, lanes.element, bars.element,
  );
  return {
    element,
    update(queues, totals) {
      const { waiting, max_waiting: most } = totals;
      const full = waiting / most;
      text(count, compact(waiting));
      text(share, `${waiting ? percent(full) : "0\u202f%"} of ${compact(most)}`);
      const inLane = (lane) => compact(queues.reduce((sum, queue) => sum + (queue.waiting[lane] ?? 0), 0));
      const oldest = Math.max(0, ...queues.map((queue) => queue.oldest_seconds));
      lanes.update({ interactive: inLane("interactive"), bulk: inLane("bulk"), oldest: oldest ? duration(oldest) : "–" });
      meter.update(full, `${number(waiting)} of ${number(most)} texts wait`, full >= NEARLY_FULL ? "bad" : "");
      bars.update([
        { label: "Texts that wait", used: totals.max_waiting_bytes ? totals.waiting_bytes : null, total: totals.max_waiting_bytes },
        { label: "Redis' memory", used: totals.redis_used_bytes, total: totals.redis_max_bytes },
      ]);
    },
  };
}

// Queues ---------------------------------------------------------------------------------------------------------------

const LANES = ["interactive", "bulk"];

function queueState(queue) {
  if (isStalled(queue)) return "stalled";
  if (!queue.workers.length) return "no worker";
  return queue.backlog > 0 ? "flowing" : "idle";
}

function queueTable() {
  const body = h("tbody");
  const columns = ["Queue", "State", "Interactive", "Bulk", "Running", "Oldest", "Share of auto jobs"];
  const element = h("section", { class: "panel", "aria-labelledby": "queues" },
    h("h2", { id: "queues" }, "Queues"),
    h("p", { class: "dim" }, "Texts that wait in each lane, interactive before bulk, and texts that are being embedded."),
    h("table", { class: "cards queues" },
      h("thead", {}, h("tr", {}, columns.map((name, n) => h("th", { scope: "col", class: n > 1 ? "figure" : null }, name)))), body),
  );
  function row(first) {
    const state = badge(queueState(first));
    const cells = Object.fromEntries([...LANES, "running", "oldest", "auto"].map((name) => [name, h("span")]));
    const cell = (label, ...content) => h("td", { class: "figure", "data-label": label }, content);
    const line = h("tr", {},
      h("th", { scope: "row" }, h("span", { class: "name" }, first.name), h("small", { class: "dim" }, shortModel(first.model))),
      h("td", { "data-label": "State" }, state.element),
      cell("Interactive", cells.interactive), cell("Bulk", cells.bulk), cell("Running", cells.running),
      cell("Oldest", cells.oldest), cell("Share of auto jobs", cells.auto),
    );
    return {
      element: line,
      update(queue) {
        state.update(queueState(queue));
        for (const lane of LANES) text(cells[lane], number(queue.waiting[lane] ?? 0));
        text(cells.running, number(queue.running));
        text(cells.oldest, queue.oldest_seconds ? duration(queue.oldest_seconds) : "–");
        text(cells.auto, queue.auto_share ? percent(queue.auto_share) : "–");
      },
    };
  }
  return { element, update: (queues) => keyed(body, queues, (queue) => queue.name, row) };
}

// Workers --------------------------------------------------------------------------------------------------------------

/** A figure of a worker's report, wherever the service puts it; null where it is unknown. */
const fact = (worker, name) => worker[name] ?? worker.facts?.[name] ?? null;

function workerState(worker) {
  if (!ready(worker) && !worker.silent) return "loading";
  return worker.silent ? "silent" : worker.state;
}

const WORKER_FACTS = {
  model: "Model",
  engine: "Engine",
  parity: "Parity",
  queues: "Queues",
  speed: "Speed",
  inputs: "Texts so far",
  resident: "Own memory",
  memory: "Out of memory",
  utilization: "GPU busy",
  heat: "Temperature",
  power: "Power",
};

function workerCards() {
  const list = h("div", { class: "workers" });
  const none = h("div", { class: "empty" },
    h("p", {}, h("strong", {}, "No worker lives.")),
    h("p", {}, "Jobs are taken all the same, and wait. Start one with "), h("pre", {}, h("code", {}, "celery -A worker worker -Q cpu -n cpu@%h")));
  none.hidden = true;
  const element = h("section", { "aria-labelledby": "workers" }, h("h2", { id: "workers" }, "Workers"), list, none);
  return {
    element,
    update(workers) {
      none.hidden = workers.length > 0;
      keyed(list, workers, (worker) => worker.name, workerCard);
    },
  };
}

function workerCard(first) {
  const state = badge(workerState(first));
  const device = h("p", { class: "device" });
  const known = facts(WORKER_FACTS);
  const bars = memoryBars();
  const element = h("article", { class: "panel worker", "aria-label": `Worker ${first.name}` },
    h("div", { class: "panel-head" }, h("h3", {}, first.name), state.element), device, known.element, bars.element);
  return {
    element,
    update(worker) {
      state.update(workerState(worker));
      const name = fact(worker, "device_name");
      text(device, name ? `${worker.device} · ${name}` : worker.device || "its device is not known yet");
      known.update(workerFigures(worker));
      bars.update(memoryOf(worker));
    },
  };
}

function workerFigures(worker) {
  const speed = fact(worker, "inputs_per_second");
  const busy = fact(worker, "utilization_ratio");
  const heat = fact(worker, "temperature_celsius");
  const power = fact(worker, "power_watts");
  const inputs = fact(worker, "inputs");
  const resident = fact(worker, "resident_bytes");
  return {
    model: shortModel(worker.model),
    engine: [worker.engine, worker.dtype].filter(Boolean).join(" · ") || null,
    parity: worker.parity === null ? null : (Math.floor(worker.parity * 1e6) / 1e6).toFixed(6),
    queues: worker.queues.join(", "),
    speed: speed === null ? null : speed ? `${rate(speed)} texts/s` : "–",
    inputs: inputs === null ? null : compact(inputs),
    resident: resident === null ? null : bytes(resident),
    memory: fact(worker, "out_of_memory") ? plural(fact(worker, "out_of_memory"), "time") : null,
    utilization: busy === null ? null : percent(busy),
    heat: heat === null ? null : `${Math.round(heat)}\u202f°C`,
    power: power === null ? null : `${Math.round(power)}\u202fW`,
  };
}

/** @typedef {{label: string, used: number | null, total: number | null}} Memory  in bytes; null where it is unknown, or without a limit */

/**
 * Of its container or machine, and of its device: what all processes use. Then what its own take of the device.
 * @returns {Memory[]}
 */
function memoryOf(worker) {
  const total = fact(worker, "total_bytes");
  return [
    { label: "Main memory", used: fact(worker, "memory_used_bytes"), total: fact(worker, "memory_limit_bytes") },
    { label: "Device memory", used: fact(worker, "used_bytes"), total },
    { label: "Device, reserved", used: fact(worker, "reserved_bytes"), total },
    { label: "Device, allocated", used: fact(worker, "allocated_bytes"), total },
  ];
}

/** Bars of memories, those that are known; `update` takes all. */
function memoryBars() {
  const element = h("div", { class: "memory" });
  return {
    element,
    update: (memories) => keyed(element, memories.filter(({ used }) => used !== null && used !== undefined), (one) => one.label, memoryBar),
  };
}

function memoryBar(first) {
  const words = h("span");
  const meter = bar("meter", first.label);
  return {
    element: h("div", { class: "memory-row" }, h("p", {}, h("span", { class: "dim" }, first.label), words), meter.element),
    update({ used, total }) {
      const share = shareOf(used, total);
      const value = share === null ? bytes(used) : `${bytes(used)} of ${bytes(total)}`;
      text(words, value);
      meter.element.hidden = share === null;
      meter.update(share, value, share >= NEARLY_FULL ? "warn" : "");
    },
  };
}

// Models, where there are several --------------------------------------------------------------------------------------

function modelList() {
  const body = h("tbody");
  const element = h("section", { class: "panel", "aria-labelledby": "models", hidden: true },
    h("h2", { id: "models" }, "Models"),
    h("table", { class: "cards" },
      h("thead", {}, h("tr", {}, ["Model", "Alias", "State", "Dimensions", "Longest text"].map((name, n) =>
        h("th", { scope: "col", class: n > 2 ? "figure" : null }, name)))), body));
  let looked = 0;
  function row(first) {
    const state = badge("");
    const [dimensions, tokens] = [h("span"), h("span")];
    return {
      element: h("tr", {}, h("th", { scope: "row" }, first.id), h("td", { "data-label": "Alias" }, first.alias ?? (first.default ? "default" : "–")),
        h("td", { "data-label": "State" }, state.element),
        h("td", { class: "figure", "data-label": "Dimensions" }, dimensions), h("td", { class: "figure", "data-label": "Longest text" }, tokens)),
      update(model) {
        state.update(model.live ? "live" : "no worker");
        text(dimensions, model.dimensions ? number(model.dimensions) : "–");
        text(tokens, model.max_tokens ? `${number(model.max_tokens)} tokens` : "–");
      },
    };
  }
  return {
    element,
    async update(queues, signal) {
      if (new Set(queues.map((queue) => queue.model)).size < 2 || Date.now() - looked < 10_000) return;
      looked = Date.now();
      keyed(body, (await get("v1/models", { signal })).data, (model) => model.id, row);
      element.hidden = false;
    },
  };
}
