// Figures and times in words.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const precise = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const exact = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium" });

export const number = (value) => whole.format(value);
export const compact = (value) => (Math.abs(value) < 10_000 ? whole : short).format(value);
export const rate = (value) => (value > 0 && value < 9.95 ? precise : whole).format(value);
export const percent = (share) => `${share > 0 && share < 0.01 ? "< 1" : Math.floor(100 * share)}\u202f%`;
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
export const moment = (seconds) => exact.format(new Date(1000 * seconds));

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return `${precise.format(value / 1024 ** power)}\u202f${units[power]}`;
}

const STEPS = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

/** "3 minutes ago"; below a minute in steps, so that it does not flicker. */
export function ago(seconds, now = Date.now() / 1000) {
  const passed = now - seconds;
  for (const [unit, length] of STEPS) {
    if (Math.abs(passed) >= length) return relative.format(-Math.trunc(passed / length), unit);
  }
  if (passed < 0) return `in ${Math.ceil(-passed)} s`;
  return passed < 5 ? "just now" : `${Math.floor(passed / 5) * 5} s ago`;
}

/** A length of time with its two largest units: "1 h 05 min". */
export function duration(seconds) {
  if (seconds < 0.95) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${precise.format(seconds)} s`;
  const rounded = Math.round(seconds);
  const pad = (value) => String(value).padStart(2, "0");
  if (rounded < 60) return `${rounded} s`;
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min ${pad(rounded % 60)} s`;
  if (rounded < 86_400) return `${Math.floor(rounded / 3600)} h ${pad(Math.floor((rounded % 3600) / 60))} min`;
  return `${Math.floor(rounded / 86_400)} d ${Math.floor((rounded % 86_400) / 3600)} h`;
}

/** The part of an id that tells it from others. */
export const shortId = (id) => (id.length > 16 ? `${id.slice(0, 12)}…` : id);

/** A model's name without its owner. */
export const shortModel = (name) => name.slice(name.lastIndexOf("/") + 1);
