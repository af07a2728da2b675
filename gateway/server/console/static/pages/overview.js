// Problems first, then the figures of the last hour, then the hosts.

import { may, request, segment } from "../lib/api.js";
import { timeChart } from "../lib/charts.js";
import { h, render } from "../lib/dom.js";
import { ago, cli, count, figure, gib, milliseconds, NONE, percent } from "../lib/format.js";
import { live, subscribe } from "../lib/live.js";
import { remedyOf } from "../lib/remedies.js";
import { confirmAction, copyLine, empty, hue, state, timeOf } from "../lib/widgets.js";

const percentOf = (value) => percent(value == null ? null : value / 100);

function firstToken(rates, last) {
  const { first_token_p50_ms: p50, first_token_p95_ms: p95 } = rates?.first_token_p50_ms != null ? rates : (last ?? {});
  return p50 == null ? NONE : `${milliseconds(p50)} · ${milliseconds(p95)}`;
}

const CHARTS = [
  { key: "requests", title: "Requests", unit: "per s", now: (rates) => figure(rates?.requests_per_s), format: figure,
    series: [{ label: "all", colour: "accent", value: (point) => point.requests_per_s }, { label: "errors", colour: "bad", value: (point) => point.errors_per_s }] },
  { key: "tokens", title: "Tokens", unit: "per s", now: (rates) => figure(rates?.tokens_per_s), format: figure,
    series: [{ label: "tokens", colour: "accent", value: (point) => point.tokens_per_s }] },
  { key: "ttft", title: "First token", unit: "p50 · p95", now: firstToken, format: milliseconds,
    series: [{ label: "p50", colour: "accent", value: (point) => point.first_token_p50_ms }, { label: "p95", colour: "warn", dash: [4, 3], value: (point) => point.first_token_p95_ms }] },
  { key: "queue", title: "Queue", unit: "waiting", now: (rates) => count(rates?.queued), format: figure,
    series: [{ label: "waiting", colour: "warn", value: (point) => point.queued }] },
  { key: "cache", title: "Cache hits", unit: "of prompt tokens", now: (rates, last) => percent(rates?.cache_hit_ratio ?? last?.cache_hit_ratio), format: percent,
    series: [{ label: "hits", colour: "accent", value: (point) => point.cache_hit_ratio }] },
  { key: "gpu", title: "GPU load and power", unit: "", now: (rates) => [percentOf(rates?.utilization_pct), rates?.watts == null ? null : `${figure(rates.watts)} W`].filter(Boolean).join(" · "), format: (value) => percentOf(value),
    series: [{ label: "load", colour: "accent", value: (point) => point.utilization_pct }] },
];

export function open(root) {
  const problems = h("section", { class: "panel problems", "aria-labelledby": "problems-title" });
  const figures = h("section", { class: "figures", "aria-label": "The last hour" });
  const hosts = h("section", { "aria-labelledby": "hosts-title" });
  root.append(h("h1", { class: "offscreen" }, "Overview"), problems, figures, hosts);
  const charts = CHARTS.map((chart) => ({ ...chart, plot: timeChart({ ...chart, label: `${chart.title} in the last hour` }), value: h("strong", {}) }));
  for (const chart of charts) {
    figures.append(h("article", { class: "panel figure" }, h("h2", {}, chart.title), h("p", { class: "value" }, chart.value, " ", h("span", { class: "unit" }, chart.unit)), chart.plot.element));
  }
  let shown = null;
  const draw = (kind) => {
    if (kind === "problem" || kind === "all") drawProblems(problems);
    if (kind === "fleet" || kind === "alias" || kind === "all") drawHosts(hosts);
    if (kind === "request" || kind === "all") {
      for (const chart of charts) chart.value.textContent = chart.now(live.rates, live.points.at(-1));
      const newest = live.points.at(-1)?.at ?? 0;
      if (newest !== shown) {
        shown = newest;
        for (const chart of charts) chart.plot.show(live.points);
      }
    }
  };
  draw("all");
  const unsubscribe = subscribe(draw);
  const clock = setInterval(() => drawProblems(problems), 10000); // "3 min ago"
  return () => {
    unsubscribe();
    clearInterval(clock);
    for (const chart of charts) chart.plot.close();
  };
}

// Problems ..............................................................................................................

function drawProblems(root) {
  const found = live.problem?.problems;
  if (!found) return render(root, h("h2", { id: "problems-title" }, "Problems"), empty("Waiting for the gateway …"));
  if (!found.length) {
    root.className = "panel problems none";
    return render(root, h("h2", { id: "problems-title" }, state("ok", "No problems")));
  }
  root.className = "panel problems";
  render(root, h("h2", { id: "problems-title" }, `${found.length} problem${found.length > 1 ? "s" : ""}`),
    h("ul", { class: "problem-list" }, found.map((problem) => {
      const remedy = remedyOf(problem);
      return h("li", { "data-key": `${problem.code} ${problem.subject}` },
        h("div", { class: "problem-head" }, state(remedy.kind, problem.code.replaceAll("_", " ")), h("strong", {}, problem.subject),
          h("span", { class: "since" }, "since ", timeOf(problem.since), ` · ${ago(problem.since)}`)),
        h("p", {}, problem.text),
        h("div", { class: "remedy" }, h("span", {}, remedy.text), remedy.command ? copyLine(remedy.command) : null, remedy.button && may("operate") ? h("button", { type: "button", onclick: remedy.button }, remedy.label) : null));
    })));
}

// Hosts .................................................................................................................

function drawHosts(root) {
  const fleet = live.fleet;
  if (!fleet) return render(root, h("h2", { id: "hosts-title" }, "Hosts"), empty("Waiting for the gateway …"));
  const healthy = fleet.nodes.filter((node) => node.healthy).length;
  render(root, h("h2", { id: "hosts-title" }, "Hosts ", h("span", { class: "unit" }, `${healthy} of ${fleet.nodes.length} healthy`)),
    fleet.nodes.length ? h("div", { class: "hosts" }, fleet.nodes.map(host)) : empty("No neurons are configured: [[neurons]] in cortex.toml lists them."));
}

function host(node) {
  const status = !node.healthy ? "down" : node.drain === "open" ? "healthy" : node.drain;
  const loads = new Map(live.fleet.loads.filter((load) => load.node === node.name).map((load) => [load.model, load]));
  const models = node.models.filter((model) => model.status !== "unloaded");
  return h("article", { class: `panel host ${node.healthy ? "" : "is-down"}`, "data-key": node.name, "aria-label": `Host ${node.name}` },
    h("header", {}, h("h3", {}, node.name), state(status), h("span", { class: "spacer" }), h("span", { class: "unit" }, `${count(node.leases)} running`), may("operate") ? drainButton(node) : null),
    node.failure ? h("p", { class: "problem-text" }, node.failure) : null,
    (node.devices ?? []).map((device) => deviceBar(device, node.devices, models, loads)),
    node.devices === null ? empty("This host does not report its GPUs.") : null,
    models.length ? h("table", { class: "models" },
      h("thead", { class: "offscreen" }, h("tr", {}, ["Model", "State", "Memory", "Running"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, models.map((model) => modelRow(model, loads.get(model.id))))) : empty("No model is loaded."));
}

function drainButton(node) {
  if (node.drain !== "open") {
    return h("button", { class: "quiet", type: "button", onclick: () => confirmAction(`Undrain ${node.name}`, `${node.name} gets new requests again.`, cli("undrain", node.name), "Undrain",
      () => request("POST", `/admin/nodes/${segment(node.name)}/undrain`, {}), `${node.name} gets requests again`) }, "Undrain…");
  }
  return h("button", { class: "quiet", type: "button", onclick: () => confirmAction(`Drain ${node.name}`, `${node.name} gets no new requests. Its models are loaded on other hosts first; running requests end there.`, cli("drain", node.name, "--move"), "Drain",
    () => request("POST", `/admin/nodes/${segment(node.name)}/drain`, { body: { move: true } }), `${node.name} is being drained`) }, "Drain…");
}

const HATCHED = new Set(["loading", "asleep", "unloading", "recovering", "reloading"]);

/** The devices of a model: as the neuron reports them, else as our load names them, else all of the host's. */
function devicesOf(model, devices, loads) {
  if (model.devices.length) return model.devices;
  const named = loads.get(model.id)?.devices ?? [];
  return named.length ? named : devices.map((device) => device.index);
}

function deviceBar(device, devices, models, loads) {
  const total = device.vram_total_mb;
  const placed = models.map((model) => ({ model, on: devicesOf(model, devices, loads) })).filter(({ on }) => on.includes(device.index));
  const here = placed.map(({ model }) => model);
  const blocks = placed.map(({ model, on }) => ({ model, mb: (model.vram_used_mb || (model.status === "loading" ? model.vram_needed_mb : 0) || 0) / on.length }));
  const asleep = here.filter((model) => model.status === "asleep" && !model.vram_used_mb);
  const known = blocks.reduce((sum, block) => sum + block.mb, 0);
  const other = device.vram_used_mb === null ? 0 : Math.max(0, device.vram_used_mb - known);
  const used = device.vram_used_mb ?? known;
  const text = `${gib(used)} of ${gib(total)} GiB used`;
  const reading = [
    device.utilization_pct === null ? null : `${Math.round(device.utilization_pct)} %`,
    device.temp_c === null ? null : `${Math.round(device.temp_c)} °C`,
    device.power_w === null ? null : `${Math.round(device.power_w)} W`,
  ].filter(Boolean).join(" · ");
  const share = (mb) => `${Math.min(100, (100 * mb) / total).toFixed(2)}%`;
  return h("div", { class: "device" },
    h("div", { class: "device-head" }, h("span", {}, `GPU ${device.index}`), h("span", { class: "unit" }, device.name), h("span", { class: "spacer" }), h("span", { class: "reading" }, reading || NONE)),
    h("div", { class: "memory", role: "img", "aria-label": `Memory of GPU ${device.index}: ${text}. ${here.map((model) => `${model.id} ${model.status}`).join(", ")}` },
      blocks.filter((block) => block.mb > 0).map(({ model, mb }) => h("div", { class: `block hue-${hue(model.id)} ${HATCHED.has(model.status) ? "hatched" : ""}`, style: { width: share(mb) }, title: `${model.id}: ${model.status}, ${gib(mb)} GiB` }, mb > total * 0.06 ? h("span", {}, shortName(model.id)) : null)),
      asleep.map((model) => h("div", { class: `block asleep hatched hue-${hue(model.id)}`, title: `${model.id} is asleep: it keeps no GPU memory` }, h("span", { "aria-hidden": "true" }, "☾"))),
      other > total * 0.004 ? h("div", { class: "block other", style: { width: share(other) }, title: `other use: ${gib(other)} GiB` }) : null),
    h("div", { class: "device-foot" }, h("span", { class: "reading" }, text)));
}

const shortName = (id) => id.split("/").at(-1);

function modelRow(model, load) {
  const aliases = (live.alias?.aliases ?? []).filter((alias) => alias.targets.some((target) => target.model === model.id));
  const progress = model.progress !== null ? ` ${Math.round(model.progress * 100)} %` : load ? ` ${load.elapsed_s} s${load.estimate_s ? ` of about ${Math.round(load.estimate_s)} s` : ""}` : "";
  return h("tr", { "data-key": model.id },
    h("th", { scope: "row" }, h("span", { class: "with-swatch" }, h("span", { class: `swatch hue-${hue(model.id)} ${HATCHED.has(model.status) ? "hatched" : ""}`, "aria-hidden": "true" }), h("span", {}, model.id)),
      aliases.map((alias) => h("a", { class: "chip", href: `#/aliases/${segment(alias.name)}` }, alias.name))),
    h("td", {}, state(model.servable ? model.status : "unservable", (model.servable ? model.status : "unservable") + progress), model.reason ? h("small", { class: "reason" }, model.reason) : null),
    h("td", { class: "number" }, model.vram_used_mb === null ? NONE : `${gib(model.vram_used_mb)} GiB`),
    h("td", { class: "number" }, model.leases ? `${count(model.leases)} running` : "idle"));
}

