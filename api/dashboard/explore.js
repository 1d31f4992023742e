// A look at a job's vectors: search by meaning, and a map.

import { bar, h, keyed, text } from "./dom.js";
import { number, plural } from "./format.js";
import { vectorMap } from "./map.js";
import { patiently } from "./refresh.js";
import { QUESTIONS, SAMPLES } from "./samples.js";
import { get, jobPath } from "./service.js";
import { embedQuery, MOST, nearest, partOf, readVectors, textsOf } from "./vectors.js";

const BEST = 10;
const MAP_POINTS = 2_000;
const MAP_SECONDS = 60; // that a machine with other things to do may take for it

/** Search and map of an ended job, as a section. Vectors are read at the first search. */
export function explorer(job, signal) {
  const texts = textsOf(job.id);
  const wordsOf = (index) => texts?.[index] ?? `Text ${number(index)}`;
  const map = vectorMap(wordsOf, signal);
  const mapPart = h("figure", { class: "map", hidden: true }, map.element);
  const ideas = texts && SAMPLES.every((sample) => texts.includes(sample)) ? QUESTIONS : [];
  const search = searchPart(job, wordsOf, ideas, map, signal);
  const part = job.counts.total > MOST ? ` Search looks at the first ${number(MOST)} of ${plural(job.counts.total, "text")}.` : "";
  const unknown = texts ? "" : " The texts are not in this tab: the service deletes them when they are embedded.";
  drawMap(job, map, mapPart, signal);
  return h("section", { class: "panel explore", "aria-labelledby": "explore" },
    h("h2", { id: "explore" }, "Look at the vectors"),
    h("p", { class: "dim" }, `Near in meaning is near in space.${part}${unknown}`),
    h("div", { class: "explore-parts" }, search, mapPart));
}

async function drawMap(job, map, place, signal) {
  const again = () => {
    place.replaceChildren(map.element);
    map.element.querySelector("canvas").focus();
    drawMap(job, map, place, signal);
  };
  try {
    const found = await patiently(() => get(`${jobPath(job.id)}/map?limit=${MAP_POINTS}`, { signal, seconds: MAP_SECONDS }), signal);
    const explained = found.explained.reduce((sum, share) => sum + share, 0);
    place.hidden = false;
    place.append(h("figcaption", { class: "dim" },
      `${shownOf(found)}, by the two directions in which they differ most (${Math.round(100 * explained)}\u202f% of all difference).`));
    map.show(found.points);
  } catch (error) {
    if (error.name === "AbortError") return;
    place.hidden = false;
    place.replaceChildren(h("div", { class: "empty" },
      h("p", {}, `There is no map. ${error.message}`), h("p", {}, h("button", { type: "button", onclick: again }, "Try again"))));
  }
}

function shownOf({ points, total }) {
  if (points.length === total) return plural(total, "text");
  const some = `${number(points.length)} of ${plural(total, "text")}`;
  return points.length === MAP_POINTS ? `The first ${some}` : some;
}

function searchPart(job, wordsOf, ideas, map, signal) {
  let vectors = null; // a promise: two searches in a row read them once
  let latest = new AbortController();
  const query = h("input", { id: "query", type: "search", name: "query", autocomplete: "off", required: true, placeholder: "What are you looking for?" });
  const told = h("p", { class: "dim", role: "status" });
  const list = h("ol", { class: "found" });

  async function run(event) {
    event?.preventDefault();
    const words = query.value.trim();
    if (!words) return;
    latest.abort();
    latest = new AbortController();
    const mine = AbortSignal.any([signal, latest.signal]);
    text(told, "Searching…");
    try {
      vectors ??= readVectors(job, signal).catch((error) => {
        vectors = null; // the next search tries again
        throw error;
      });
      const [matrix, vector] = await Promise.all([vectors, embedQuery(job, words, mine)]);
      if (mine.aborted) return;
      const found = nearest(matrix, vector, BEST);
      keyed(list, found, (one) => String(one.index), (one) => foundLine(one, wordsOf));
      map.highlight(found.map((one) => one.index));
      text(told, `The ${plural(found.length, "nearest text", "nearest texts")}, by cosine.${partOf(matrix)}`);
    } catch (error) {
      if (mine.aborted) return;
      text(told, `The search failed. ${error.message}`);
    }
  }

  const chips = ideas.map((words) => h("button", { type: "button", class: "chip", onclick: () => {
    query.value = words;
    run();
  } }, words));
  return h("div", { class: "search" },
    h("form", { class: "inline", onsubmit: run, role: "search", "aria-label": "By meaning" },
      h("label", { for: "query", class: "hidden" }, "Search by meaning"), query, h("button", { class: "primary" }, "Search")),
    chips.length ? h("p", { class: "chips" }, chips) : null, told, list);
}

function foundLine(first, wordsOf) {
  const words = wordsOf(first.index);
  const score = bar("meter", `Cosine of ${words}`);
  const figure = h("span", { class: "mono" });
  return {
    element: h("li", {}, h("p", {}, words), h("div", { class: "score" }, score.element, figure)),
    update({ cosine }) {
      score.update(Math.max(0, cosine), cosine.toFixed(3));
      text(figure, cosine.toFixed(3));
    },
  };
}
