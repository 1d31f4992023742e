// Which view is shown: by the part of the address behind #. Also the login, and the choice of a theme.

import { h, say } from "./dom.js";
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
let shown = null; // the first time the browser's own focus stays

function show() {
  leaving.abort();
  leaving = new AbortController();
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
  if (shown !== null && shown !== path) {
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
  leaving.abort();
  leaving = new AbortController();
  forget.hidden = true;
  setTitle("API key needed");
  const field = h("input", {
    id: "api-key", type: "password", name: "api-key", autocomplete: "current-password", required: true, spellcheck: "false",
    "aria-describedby": "api-key-error api-key-help",
  });
  const complaint = h("p", { class: "complaint", id: "api-key-error", role: "alert" });
  const enter = h("button", { class: "primary" }, "Enter");
  const form = h("form", { class: "login panel", onsubmit: (event) => tryKey(event, field, complaint, enter) },
    h("h1", {}, "API key"),
    h("p", {}, "This service asks everybody for a key."),
    h("label", { for: "api-key" }, "Your key"),
    field, complaint, enter,
    h("p", { class: "dim", id: "api-key-help" },
      "It stays in this tab and is gone when the tab is closed. Who runs the service makes keys with ", h("code", {}, "make key"), "."),
  );
  main.replaceChildren(h("div", { class: "view view-login" }, form));
  if (error?.code === "invalid_api_key") complain(complaint, field, "The key that was kept here is not valid any more.");
  field.focus();
}

async function tryKey(event, field, complaint, enter) {
  event.preventDefault();
  const entered = field.value.trim();
  enter.disabled = true;
  complaint.textContent = "";
  field.removeAttribute("aria-invalid");
  try {
    if (!/^[\x21-\x7e]+$/.test(entered)) throw new Refused("", { status: 401 });
    await get("v1", { as: entered });
    key.set(entered);
    shown = null;
    show();
  } catch (error) {
    const unknown = error.status === 401;
    complain(complaint, field, unknown ? "This key is unknown. Nothing was kept." : `The key could not be tried. ${error.message}`);
    if (unknown) field.select();
  } finally {
    enter.disabled = false;
  }
}

function complain(complaint, field, words) {
  complaint.textContent = words;
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

window.addEventListener("locked", (event) => {
  key.forget();
  showLogin(event.detail);
});

forget.addEventListener("click", () => {
  key.forget();
  forgetTexts(); // who has the next key is not to see them
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

window.addEventListener("hashchange", show);
show();
