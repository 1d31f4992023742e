// Texts as points in the plane, drawn on a canvas: thousands of elements would be slow.

import { h, text } from "./dom.js";

const MARGIN = 22; // pixels around the points
const REACH = 18; // pixels from the pointer to a point that is meant
const LABEL_CHARACTERS = 26;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * A map; `show` takes its points, `highlight` the indexes of the best results, best first.
 * @param {(index: number) => string} wordsOf
 */
export function vectorMap(wordsOf, signal) {
  const canvas = h("canvas", {
    tabindex: "0", role: "application", "aria-roledescription": "map", "aria-label": "Map of the texts. Arrow keys go from text to text.",
    "aria-describedby": "map-text",
  });
  const shown = h("p", { class: "map-text", id: "map-text", "aria-live": "polite" }, "Point at a dot, or use the arrow keys.");
  const element = h("div", { class: "map-frame" }, canvas, shown);
  let points = []; // {index, x, y}, y upwards
  let places = []; // [x, y] in pixels, as drawn
  let best = [];
  let chosen = -1; // a place among the points

  function draw() {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `12px ${style.fontFamily}`;
    places = fit(points, width, height);
    const radius = points.length > 500 ? 2.5 : points.length > 100 ? 3.5 : 4.5;
    pen.fillStyle = style.fill; // the style sheet's colours, as the theme has resolved them
    pen.globalAlpha = best.length ? 0.35 : 0.85;
    for (const [x, y] of places) dot(pen, x, y, radius);
    pen.globalAlpha = 1;
    const boxes = [];
    const rank = new Map(best.map((index, n) => [index, n + 1]));
    const at = new Map(points.map(({ index }, n) => [index, n]));
    for (const index of best.toReversed()) { // the best on top
      if (!at.has(index)) continue;
      const [x, y] = places[at.get(index)];
      pen.fillStyle = style.floodColor; // a rim, where two overlap
      dot(pen, x, y, 10);
      pen.fillStyle = style.fill;
      dot(pen, x, y, 9);
      pen.fillStyle = style.floodColor;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.font = `600 11px ${style.fontFamily}`;
      pen.fillText(String(rank.get(index)), x, y + 0.5);
      boxes.push([x - 10, y - 10, x + 10, y + 10]);
    }
    pen.font = `12px ${style.fontFamily}`;
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    if (points.length <= 200) label(pen, width, height, rank, boxes, radius, style.color);
    if (chosen >= 0 && places[chosen]) {
      const [x, y] = places[chosen];
      pen.lineWidth = 2;
      pen.strokeStyle = style.stroke;
      pen.fillStyle = style.stroke;
      if (!rank.has(points[chosen].index)) dot(pen, x, y, radius);
      pen.beginPath();
      pen.arc(x, y, 12, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  /** Words beside as many points as there is room for, results first. */
  function label(pen, width, height, rank, boxes, radius, colour) {
    const order = points.map((_, n) => n).sort((one, other) => (rank.get(points[one].index) ?? 99) - (rank.get(points[other].index) ?? 99));
    for (const [x, y] of places) boxes.push([x - radius, y - radius, x + radius, y + radius]);
    pen.fillStyle = colour;
    for (const n of order) {
      const words = wordsOf(points[n].index);
      const line = words.length > LABEL_CHARACTERS ? `${words.slice(0, LABEL_CHARACTERS - 1).trimEnd()}…` : words;
      const long = pen.measureText(line).width;
      const [x, y] = places[n];
      const gap = rank.has(points[n].index) ? 13 : 8;
      for (const left of [x + gap, x - gap - long]) {
        const box = [left - 2, y - 8, left + long + 2, y + 8];
        const free = box[0] > 0 && box[2] < width && box[1] > 0 && box[3] < height
          && boxes.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
        if (!free) continue;
        boxes.push(box);
        pen.globalAlpha = rank.size && !rank.has(points[n].index) ? 0.55 : 1;
        pen.fillText(line, left, y + 0.5);
        break;
      }
    }
    pen.globalAlpha = 1;
  }

  function choose(n) {
    if (n === chosen || n < 0) return;
    chosen = n;
    text(shown, wordsOf(points[n].index));
    draw();
  }

  function near(event) {
    const { left, top } = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    let [found, least] = [-1, REACH];
    places.forEach(([px, py], n) => {
      const distance = Math.hypot(px - x, py - y);
      if (distance < least) [found, least] = [n, distance];
    });
    choose(found);
  }

  /** The next point in a direction: near, and not far to the side. */
  function step(event) {
    const direction = STEPS[event.key];
    if (!direction || !points.length) return;
    event.preventDefault();
    if (chosen < 0) return choose(Math.max(0, points.findIndex((point) => point.index === best[0])));
    const [x, y] = places[chosen];
    let [found, least] = [-1, Infinity];
    places.forEach(([px, py], n) => {
      const along = (px - x) * direction[0] + (py - y) * direction[1];
      const aside = Math.abs((px - x) * direction[1]) + Math.abs((py - y) * direction[0]);
      const cost = along + 2 * aside;
      if (along > 0.5 && cost < least) [found, least] = [n, cost];
    });
    choose(found);
  }

  canvas.addEventListener("pointermove", near);
  canvas.addEventListener("pointerdown", near);
  canvas.addEventListener("keydown", step);
  const resized = new ResizeObserver(draw);
  resized.observe(canvas);
  signal.addEventListener("abort", () => resized.disconnect());
  window.addEventListener("themed", draw, { signal });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw, { signal });
  return {
    element,
    show(found) {
      points = found;
      chosen = -1;
      draw();
    },
    highlight(indexes) {
      best = indexes;
      draw();
    },
  };
}

/** The points in pixels: all of them as large as they fit, one scale for both directions. */
function fit(points, width, height) {
  if (!points.length) return [];
  const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min((width - 2 * MARGIN) / (right - left || 1), (height - 2 * MARGIN) / (high - low || 1));
  return points.map(({ x, y }) => [
    width / 2 + (x - (left + right) / 2) * scale,
    height / 2 - (y - (low + high) / 2) * scale,
  ]);
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}
