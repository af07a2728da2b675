// The last events of the gateway's log, filtered, following.

import { h, render } from "../lib/dom.js";
import { live, subscribe } from "../lib/live.js";
import { empty, field, timeOf } from "../lib/widgets.js";

const LEVELS = ["debug", "info", "warning", "error", "critical"];
const GLYPHS = { debug: "muted", info: "info", warning: "warn", error: "bad", critical: "bad" };
const HIDDEN = new Set(["event", "level", "timestamp", "number"]);
const SHOWN = 400;
const filters = { text: "", level: "debug", follow: true };

export function open(root) {
  const text = h("input", { type: "search", value: filters.text, placeholder: "event, name, text …" });
  const level = h("select", {}, LEVELS.map((name) => h("option", { value: name, selected: name === filters.level }, name)));
  const follow = h("input", { type: "checkbox", checked: filters.follow, id: "follow" });
  const lines = h("section", { class: "panel log", tabindex: "0", "aria-label": "Events of the log" });
  text.oninput = () => { filters.text = text.value; draw("log"); };
  level.onchange = () => { filters.level = level.value; draw("log"); };
  follow.onchange = () => { filters.follow = follow.checked; draw("log"); };
  root.append(h("h1", {}, "Log"), h("section", { class: "panel fields", "aria-label": "Filters" }, field("Search", text), field("At least", level), h("label", { class: "check", for: "follow" }, follow, "Follow")), lines,
    h("p", { class: "unit" }, "The last 1,000 events from the level info on, whatever [log] level is. A line for each request is among them only with the level info or debug; ", h("a", { href: "#/requests" }, "Requests"), " lists them."));

  function draw(kind) {
    if (kind !== "log" && kind !== "all") return;
    const found = live.log.filter(isShown).slice(-SHOWN);
    render(lines, found.length ? h("ol", {}, found.map(line)) : empty(live.log.length ? "No event matches." : "Nothing has been logged yet."));
    if (filters.follow) lines.scrollTop = lines.scrollHeight;
  }
  draw("all");
  return subscribe(draw);
}

function isShown(event) {
  if (LEVELS.indexOf(event.level) < LEVELS.indexOf(filters.level)) return false;
  return !filters.text || JSON.stringify(event).toLowerCase().includes(filters.text.toLowerCase());
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function line(event) {
  const kind = GLYPHS[event.level] ?? "muted";
  const glyph = { muted: "·", info: "●", warn: "▲", bad: "✕" }[kind];
  return h("li", { "data-key": String(event.number) }, timeOf(Date.parse(event.timestamp) / 1000), h("span", { class: `state ${kind}` }, h("span", { class: "glyph", "aria-hidden": "true" }, glyph), event.level), h("strong", {}, event.event),
    h("span", { class: "pairs" }, Object.entries(event).filter(([name, value]) => !HIDDEN.has(name) && value !== null).map(([name, value]) => h("span", {}, h("span", { class: "unit" }, `${name}=`), shown(value), " "))));
}
