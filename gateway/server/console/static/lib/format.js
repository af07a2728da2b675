// Numbers with units, times with the zone. A missing value is "–".

export const NONE = "–";

/** Make a formatter when it is first used: each takes a browser milliseconds, and the first page needs few of them. */
const lazy = (make) => {
  let made = null;
  return { format: (value) => (made ??= make()).format(value) };
};

const number = (digits) => lazy(() => new Intl.NumberFormat("en-US", { maximumFractionDigits: digits, minimumFractionDigits: 0 }));
const byDigits = [number(0), number(1), number(2)];

/** Three significant digits are enough to read. */
export function figure(value) {
  if (value === null || value === undefined) return NONE;
  const size = Math.abs(value);
  return byDigits[size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2].format(value);
}

export const count = (value) => (value === null || value === undefined ? NONE : byDigits[0].format(value));

export function percent(ratio) {
  return ratio === null || ratio === undefined ? NONE : `${byDigits[ratio < 0.1 ? 1 : 0].format(ratio * 100)} %`;
}

/** MiB, as neurons count memory, in GiB. */
export function gib(mb) {
  return mb === null || mb === undefined ? NONE : (mb / 1024).toFixed(1);
}

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 1000) return `${ms > 0 && ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  return seconds(ms / 1000);
}

export function seconds(s) {
  if (s === null || s === undefined) return NONE;
  if (s < 10) return `${s.toFixed(s < 1 ? 2 : 1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min ${String(Math.round(s % 60)).padStart(2, "0")} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d`;
}

const clock = lazy(() => new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }));
const stamp = lazy(() => new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hourCycle: "h23", timeZoneName: "short",
}));
const today = lazy(() => new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" }));

/** The time of day; with the day if it is not today. `at`: unix seconds. */
export function time(at) {
  if (!at) return NONE;
  const date = new Date(at * 1000);
  const day = date.toDateString() === new Date().toDateString() ? "" : `${today.format(date)} `;
  return day + clock.format(date);
}

/** Date, time and zone. */
export const fullTime = (at) => (at ? stamp.format(new Date(at * 1000)) : "");

const zones = new Map(); // by offset: summer time may begin while the page is open

/** The short name of the browser's time zone. */
export function zone() {
  const now = new Date();
  const offset = now.getTimezoneOffset();
  if (!zones.has(offset)) {
    const parts = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts(now);
    zones.set(offset, parts.find((part) => part.type === "timeZoneName")?.value ?? "");
  }
  return zones.get(offset);
}

/** "3 min ago". */
export function ago(at) {
  const passed = Date.now() / 1000 - at;
  return passed < 5 ? "just now" : `${passed < 60 ? `${Math.floor(passed)} s` : passed < 3600 ? `${Math.floor(passed / 60)} min` : seconds(passed)} ago`;
}

/** A word for a shell, quoted if need be. */
export function shell(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${String(word).replaceAll("'", `'\\''`)}'`;
}

/** The `cortex` line that does the same as a control. */
export const cli = (...words) => `cortex ${words.map(shell).join(" ")} --url ${shell(location.origin)}`;
