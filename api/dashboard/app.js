// Which view is shown: by the part of the address behind #. Also the login, and the choice of a theme.

import { complaint, h, say } from "./dom.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showOverview } from "./overview.js";
import { get, key, Refused } from "./service.js";
import { showTry } from "./try.js";
import { forgetTexts } from "./vectors.js";

const main = document.getElementById("main");
const forget = document.getElementById("forget");
const theme = /** @type {HTMLSelectElement} */ (document.getElementById("theme"));

/**
 * A view fills `place` and goes on until `signal` is aborted. `title` sets the window's title.
 * @typedef {{place: HTMLElement, parts: string[], query: URLSearchParams, signal: AbortSignal, title: (words: string) => void}} View
 */
const VIEWS = {
  "": ["overview", "Overview", showOverview],
  jobs: ["jobs", "Jobs", (view) => (view.parts[1] ? showJob(view) : showJobs(view))],
  try: ["try", "Try it", showTry],
};

let leaving = new AbortController();
let shown = null; // the path; at first the browser's own focus stays
let known = null; // the key that was there before the login

function leave() {
  leaving.abort();
  leaving = new AbortController();
  /** @type {HTMLDialogElement} */ (document.getElementById("confirm")).close("");
}

function show() {
  const held = document.activeElement?.id;
  leave();
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").map(safeDecode);
  const [name, title, fill] = VIEWS[parts[0]] ?? [null, "Not here", showNothing];
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  forget.hidden = !key.get();
  setTitle(title);
  const place = h("div", { class: `view view-${name ?? "none"}` });
  main.replaceChildren(place);
  fill({ place, parts, query: new URLSearchParams(query), signal: leaving.signal, title: setTitle });
  const same = shown === path && held ? document.getElementById(held) : null;
  same?.focus(); // the filter that was changed, for the next press of a key
  if (shown !== null && document.activeElement !== same) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
    say(title);
  }
  shown = path;
}

function safeDecode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function setTitle(words) {
  document.title = `${words} · vector-api`;
}

function showNothing({ place }) {
  place.append(
    h("h1", {}, "There is no such page"),
    h("p", { class: "empty" }, "The address leads nowhere. ", h("a", { href: "#/" }, "To the overview")),
  );
}

// The login ------------------------------------------------------------------------------------------------------------

function showLogin(error) {
  leave();
  forget.hidden = true;
  setTitle("API key needed");
  const field = h("input", {
    id: "api-key", class: "secret", autocomplete: "off", autocapitalize: "off", required: true, spellcheck: "false",
    "aria-describedby": "api-key-error api-key-help",
  });
  const problem = complaint();
  problem.element.id = "api-key-error";
  const enter = h("button", { class: "primary" }, "Enter");
  const form = h("form", { class: "login panel", onsubmit: (event) => tryKey(event, field, problem, enter) },
    h("h1", {}, "API key"),
    h("p", {}, "This service asks everybody for a key."),
    h("label", { for: "api-key" }, "Your key"),
    field, problem.element, enter,
    h("p", { class: "dim", id: "api-key-help" },
      "It stays in this tab and is gone when the tab is closed. Who runs the service makes keys with ", h("code", {}, "make key"), "."),
  );
  main.replaceChildren(h("div", { class: "view view-login" }, form));
  if (error?.code === "invalid_api_key") complain(problem, field, "The key that was kept here is not valid any more.");
  field.focus();
}

async function tryKey(event, field, problem, enter) {
  event.preventDefault();
  const entered = field.value.trim();
  enter.disabled = true;
  problem.update("");
  field.removeAttribute("aria-invalid");
  try {
    if (!/^[\x21-\x7e]+$/.test(entered)) throw new Refused("", { status: 401 });
    await get("v1", { as: entered });
    if (entered !== known) forgetTexts(); // who has another key is not to see them
    key.set(entered);
    shown = ""; // not where the focus is: it goes to what is shown
    show();
  } catch (error) {
    const unknown = error.status === 401;
    complain(problem, field, unknown ? "This key is unknown. Nothing was kept." : `The key could not be tried. ${error.message}`);
    if (unknown) field.select();
  } finally {
    enter.disabled = false;
  }
}

function complain(problem, field, words) {
  problem.update(words);
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

window.addEventListener("locked", (event) => {
  known = key.get() ?? known;
  key.forget();
  showLogin(event.detail);
});

forget.addEventListener("click", () => {
  key.forget();
  forgetTexts();
  showLogin();
});

// The theme ------------------------------------------------------------------------------------------------------------

theme.value = document.documentElement.dataset.theme ?? "";
theme.addEventListener("change", () => {
  if (theme.value) document.documentElement.dataset.theme = theme.value;
  else delete document.documentElement.dataset.theme;
  try {
    if (theme.value) localStorage.setItem("theme", theme.value);
    else localStorage.removeItem("theme");
  } catch { /* chosen for now */ }
  window.dispatchEvent(new Event("themed"));
});

// The newest of what the page is made of; without it most would fail, and the rest be hard to read.
if (AbortSignal.any && CSS.supports("color", "light-dark(red, red)")) {
  window.addEventListener("hashchange", show);
  show();
} else {
  main.replaceChildren(h("p", { class: "empty" }, "This page needs a newer browser: Chrome or Edge 123, Firefox 124, Safari 17.5. The service's ",
    h("a", { href: "docs" }, "API"), " does not."));
}
