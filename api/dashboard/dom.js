// Making and changing elements. Texts become text nodes only: nothing that the service or a user sends is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `on…` attributes are listeners, null and false ones are left out, nested arrays of children are flattened.
 * @param {string} tag  `svg:path` makes one of SVG
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Write only what has changed, so that selections and screen readers are left in peace. */
export function text(element, value) {
  const words = String(value ?? "");
  if (element.textContent !== words) element.textContent = words;
  return element;
}

export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : String(value));
}

/**
 * Make a parent's children those of a list, in its order, and keep the elements of items that stay: focus and selection live on.
 * The focus of one that goes moves to the same thing of its neighbour.
 * @param {(item: any) => string} keyOf
 * @param {(item: any) => {element: Element, update: (item: any) => void}} make
 */
export function keyed(parent, items, keyOf, make) {
  const known = (parent.keyedParts ??= new Map());
  const kept = new Set(items.map(keyOf));
  for (const [key, part] of known) {
    if (!kept.has(key)) {
      const held = part.element.contains(document.activeElement) ? document.activeElement : null;
      const beside = part.element.nextElementSibling ?? part.element.previousElementSibling;
      part.element.remove();
      known.delete(key);
      if (held) (beside?.querySelector(held.tagName) ?? document.getElementById("main")).focus({ preventScroll: true });
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (!known.has(key)) known.set(key, make(item));
    const part = known.get(key);
    part.update(item);
    if (part.element === place) place = place.nextElementSibling;
    else parent.insertBefore(part.element, place);
  }
}

/**
 * A bar with a name and a value for all: `role` is progressbar (of work) or meter (of room).
 * @returns {{element: HTMLElement, update: (share: number | null, words: string, tone?: string, failed?: number) => void}}
 */
export function bar(role, label) {
  const done = h("span", { class: "bar-done" });
  const failed = h("span", { class: "bar-failed" });
  const element = h("div", { class: "bar", role, "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, done, failed);
  return {
    element,
    update(share, words, tone = "", failedShare = 0) {
      const whole = Math.max(0, Math.min(1, share ?? 0));
      done.style.width = `${100 * Math.max(0, whole - failedShare)}%`;
      failed.style.width = `${100 * failedShare}%`;
      attribute(element, "aria-valuenow", Math.round(100 * whole));
      attribute(element, "aria-valuetext", words);
      attribute(element, "data-tone", tone || null);
    },
  };
}

/** Tell those who listen to the page instead of seeing it. */
export function say(words) {
  text(document.getElementById("said"), words);
}

/** Where it stands what went wrong; not seen while there are no words. */
export function complaint() {
  const element = h("p", { class: "complaint", role: "alert", hidden: true });
  return {
    element,
    update(words) {
      element.hidden = !words;
      text(element, words);
    },
  };
}

/** Ask before something is lost. Resolves to whether it may. */
export function confirmed({ title, words, yes }) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("confirm"));
  text(document.getElementById("confirm-title"), title);
  text(document.getElementById("confirm-text"), words);
  const buttons = { yes: document.getElementById("confirm-yes"), no: document.getElementById("confirm-no") };
  text(buttons.yes, yes);
  return new Promise((resolve) => {
    buttons.yes.onclick = () => dialog.close("yes");
    buttons.no.onclick = () => dialog.close("no");
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.returnValue = "";
    dialog.showModal();
    buttons.no.focus();
  });
}

/** The state of a thing: a word and a shape, never a colour alone. */
export function badge(state) {
  const element = h("span", { class: "badge", "data-state": state }, state);
  return {
    element,
    update(value) {
      attribute(element, "data-state", value);
      text(element, value);
    },
  };
}

/** Several figures under their names; `update` takes an object of the values by the same names, null for those that are unknown. */
export function facts(names) {
  const rows = Object.fromEntries(Object.keys(names).map((name) => [name, h("dd")]));
  const pairs = Object.entries(names).map(([name, label]) => h("div", { "data-fact": name }, h("dt", {}, label), rows[name]));
  return {
    element: h("dl", { class: "facts" }, pairs),
    update(values) {
      for (const [name, row] of Object.entries(rows)) {
        const value = values[name];
        row.parentElement.hidden = value === null || value === undefined;
        if (value instanceof Node) {
          if (!row.firstChild?.isEqualNode(value)) row.replaceChildren(value);
        } else text(row, value);
      }
    },
  };
}

export function copyButton(label, value) {
  const button = h("button", { type: "button", class: "quiet", onclick: copy }, label);
  async function copy() {
    try {
      await navigator.clipboard.writeText(value());
      text(button, "Copied");
      say("Copied");
    } catch {
      text(button, "Cannot copy here");
    }
    setTimeout(() => text(button, label), 1500);
  }
  return button;
}
