// A look at a job's vectors: search by meaning, and a map.

import { bar, h, keyed, text } from "./dom.js";
import { number, plural } from "./format.js";
import { vectorMap } from "./map.js";
import { QUESTIONS } from "./samples.js";
import { get, jobPath } from "./service.js";
import { embedQuery, MOST, nearest, readVectors, textsOf } from "./vectors.js";

const BEST = 10;
const MAP_POINTS = 2_000;

/** Search and map of an ended job, as a section. Vectors are read at the first search. */
export function explorer(job, signal) {
  const texts = textsOf(job.id);
  const wordsOf = (index) => texts?.[index] ?? `Text ${number(index)}`;
  const map = vectorMap(wordsOf, signal);
  const mapPart = h("figure", { class: "map", hidden: true }, map.element);
  const search = searchPart(job, wordsOf, map, signal);
  const part = job.counts.total > MOST ? ` Search looks at the first ${number(MOST)} of ${plural(job.counts.total, "text")}.` : "";
  const unknown = texts ? "" : " The texts are not in this tab: the service deletes them when they are embedded.";
  drawMap(job, map, mapPart, signal);
  return h("section", { class: "panel explore", "aria-labelledby": "explore" },
    h("h2", { id: "explore" }, "Look at the vectors"),
    h("p", { class: "dim" }, `Near in meaning is near in space.${part}${unknown}`),
    h("div", { class: "explore-parts" }, search, mapPart));
}

async function drawMap(job, map, place, signal) {
  try {
    const found = await get(`${jobPath(job.id)}/map?limit=${MAP_POINTS}`, { signal });
    const shown = found.points.length < found.total ? `${number(found.points.length)} of ${plural(found.total, "text")}` : plural(found.total, "text");
    const explained = found.explained.reduce((sum, share) => sum + share, 0);
    place.hidden = false;
    place.append(h("figcaption", { class: "dim" },
      `${shown}, by the two directions in which they differ most (${Math.round(100 * explained)}\u202f% of all difference).`));
    map.show(found.points);
  } catch (error) {
    if (error.name === "AbortError") return;
    place.hidden = false;
    place.replaceChildren(h("p", { class: "empty" }, `There is no map. ${error.message}`));
  }
}

function searchPart(job, wordsOf, map, signal) {
  let vectors = null; // a promise: two searches in a row read them once
  const query = h("input", { id: "query", type: "search", name: "query", autocomplete: "off", required: true, placeholder: "What are you looking for?" });
  const button = h("button", { class: "primary" }, "Search");
  const told = h("p", { class: "dim", role: "status" });
  const list = h("ol", { class: "found" });

  async function run(event) {
    event?.preventDefault();
    const words = query.value.trim();
    if (!words) return;
    button.disabled = true;
    text(told, "Searching…");
    try {
      vectors ??= readVectors(job, signal);
      const [matrix, vector] = await Promise.all([vectors, embedQuery(job, words, signal)]);
      const found = nearest(matrix, vector, BEST);
      keyed(list, found.map((one, n) => ({ ...one, key: `${n}:${one.index}` })), (one) => one.key, (one) => foundLine(one, wordsOf));
      map.highlight(found.map((one) => one.index));
      text(told, `The ${plural(found.length, "nearest text", "nearest texts")}, by cosine.`);
    } catch (error) {
      if (error.name === "AbortError") return;
      vectors = null;
      text(told, `The search failed. ${error.message}`);
    } finally {
      button.disabled = false;
    }
  }

  const ideas = QUESTIONS.map((words) => h("button", { type: "button", class: "chip", onclick: () => {
    query.value = words;
    run();
  } }, words));
  return h("div", { class: "search" },
    h("form", { class: "inline", onsubmit: run, role: "search", "aria-label": "By meaning" },
      h("label", { for: "query", class: "hidden" }, "Search by meaning"), query, button),
    h("p", { class: "chips" }, ideas), told, list);
}

function foundLine(one, wordsOf) {
  const words = wordsOf(one.index);
  const score = bar("meter", `Cosine of ${words}`);
  score.update(Math.max(0, one.cosine), one.cosine.toFixed(3));
  return {
    element: h("li", {}, h("p", {}, words), h("div", { class: "score" }, score.element, h("span", { class: "mono" }, one.cosine.toFixed(3)))),
    update() {},
  };
}
