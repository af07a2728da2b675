// What a change of an alias would load and evict, before it is made.

import { request } from "./api.js";
import { h, render } from "./dom.js";
import { gib } from "./format.js";
import { attempt, copyLine, dialog, scrolling, state } from "./widgets.js";

/**
 * Ask before a change that goes back: its plan, the command that does the same, and a button that works once the plan
 * is there. `bodyOf()` returns what to plan; `action(body, etag)` makes the change if the file is still that of the plan.
 */
export function confirmPlanned(name, title, text, command, label, bodyOf, action, done) {
  dialog(title, (close) => {
    let planned = null;
    const view = h("div", { class: "plan", role: "status", "aria-live": "polite" }, "Planning …");
    const button = h("button", { class: "primary", type: "button", disabled: true, onclick: async () => {
      button.disabled = true;
      if (await attempt(() => action(planned.body, planned.etag), done)) close();
      else await plan(); // the file may have changed
    } }, label);
    async function plan() {
      try {
        const body = await bodyOf();
        const response = await request("POST", "/admin/rollback/plan", { body });
        const answer = await response.json();
        planned = { body, etag: response.headers.get("etag") };
        render(view, planView(answer, name));
        button.disabled = answer.verdict === "nothing";
      } catch (error) {
        render(view, h("p", { class: "problem-text" }, error.message));
      }
    }
    plan();
    return [h("p", {}, text), view, copyLine(command), h("div", { class: "actions" }, h("button", { type: "button", onclick: close }, "Cancel"), button)];
  });
}

/** What a change would do: moves, loads, evictions, memory before and after. */
export function planView(plan, name) {
  const alias = plan.aliases.find((each) => each.name === name);
  if (plan.verdict === "nothing") return h("p", { class: "unit" }, "This changes nothing.");
  const inFlight = Object.entries(alias?.in_flight ?? {}).map(([model, number]) => `${number} running request${number > 1 ? "s" : ""} finish${number > 1 ? "" : "es"} on ${model}`);
  const placements = plan.aliases.flatMap((each) => each.placements);
  const nodes = new Set(placements.filter((each) => each.state === "to_load").map((each) => each.nodes[0]));
  const devices = plan.devices.filter((device) => device.used_before_mb !== device.used_after_mb || nodes.has(device.node));
  return h("div", { class: `plan-box ${plan.verdict}` },
    h("h4", {}, "Plan"),
    plan.verdict === "impossible" ? h("p", {}, state("failed", "not possible")) : null,
    alias ? h("p", {}, h("strong", {}, name), ": ", alias.old ?? "new", " → ", h("strong", {}, alias.new ?? "removed"), moveText(alias)) : null,
    h("ul", { class: "steps" }, placements.map((placement) => h("li", {}, placementLine(placement))), plan.keys.length ? h("li", {}, state("key", `used lately by ${plan.keys.map((key) => `${key.name} (${key.requests})`).join(", ")}`)) : null, inFlight.map((line) => h("li", {}, state("running", line))), plan.notes.map((note) => h("li", {}, note)), plan.warnings.map((fault) => h("li", {}, state("impaired", fault.message ?? fault.text ?? "")))),
    devices.length ? scrolling("Memory before and after", h("table", { class: "memory-plan" },
      h("caption", { class: "offscreen" }, "Memory before and after"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Memory"), h("th", { scope: "col", class: "number" }, "before"), h("th", { scope: "col", class: "number" }, "after"), h("th", { scope: "col", class: "number" }, "of GiB"), h("th", { scope: "col" }, h("span", { class: "offscreen" }, "Bar")))),
      h("tbody", {}, devices.map((device) => h("tr", {}, h("th", { scope: "row" }, `${device.node} GPU ${device.device}`), h("td", { class: "number" }, gib(device.used_before_mb)), h("td", { class: "number" }, h("strong", {}, gib(device.used_after_mb))), h("td", { class: "number" }, gib(device.total_mb)),
        h("td", { class: "bar-cell" }, beforeAfter(device))))))) : null);
}

function moveText(alias) {
  if (alias.is_warm) return `; requests stay on the old target until the new one ${alias.placements.every((each) => each.state === "loaded") ? "" : "is loaded and "}has answered`;
  return alias.placements.every((each) => each.state === "loaded") ? "; at once, because it is loaded" : "; at once, also if requests then wait for a load";
}

function beforeAfter(device) {
  const share = (mb) => `${Math.min(100, (100 * (mb ?? 0)) / device.total_mb).toFixed(1)}%`;
  return h("div", { class: "before-after", "aria-hidden": "true" }, h("div", { class: "before", style: { width: share(device.used_before_mb) } }), h("div", { class: "after", style: { width: share(device.used_after_mb) } }));
}

function placementLine(placement) {
  const where = placement.nodes[0];
  const needs = placement.vram_mb ? ` (${gib(placement.vram_mb)} GiB)` : "";
  switch (placement.state) {
    case "loaded": return state("loaded", `${placement.model} is loaded on ${placement.nodes.join(", ")}`);
    case "loading": return state("loading", `${placement.model} is being loaded on ${where}`);
    case "to_load": return [state("loading", `load ${placement.model}${needs} on ${where}${placement.devices.length ? ` GPU ${placement.devices.join(", ")}` : ""}`), placement.evicts.length ? [h("br"), state("unloading", `evict ${placement.evicts.join(", ")} there first`)] : null];
    default: return state(placement.state === "impossible" ? "failed" : "queued", `${placement.model}: ${placement.reason}`);
  }
}
