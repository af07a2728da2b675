// What was used: by key, alias, model, node or day; what it cost; how near each key is to its limits.

import { getJson, may } from "../lib/api.js";
import { h, render } from "../lib/dom.js";
import { cli, count, figure, fullTime, NONE, percent, seconds } from "../lib/format.js";
import { copyLine, empty, field, scrolling, state, toast } from "../lib/widgets.js";

const GROUPS = { key: "Key", alias: "Alias", model: "Model", node: "Node", day: "Day" };
const PERIODS = { "24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days" };
const chosen = { by: "key", since: "7d" };
const REFRESH_MS = 15000;

export function open(root) {
  const by = h("select", {}, Object.entries(GROUPS).map(([value, label]) => h("option", { value, selected: value === chosen.by }, label)));
  const since = h("select", {}, Object.entries(PERIODS).map(([value, label]) => h("option", { value, selected: value === chosen.since }, label)));
  const download = h("button", { type: "button", disabled: true, onclick: () => report && save(report) }, "Download CSV");
  const sums = h("section", { class: "sums", "aria-label": "Sums" });
  const days = h("section", { class: "panel", "aria-labelledby": "days-title" });
  const groups = h("section", { class: "panel", "aria-labelledby": "groups-title" });
  const limits = h("section", { class: "panel", "aria-labelledby": "limits-title", hidden: !may("keys") });
  const command = h("div", {});
  let report = null;
  let number = 0;

  async function look() {
    const mine = ++number;
    chosen.by = by.value;
    chosen.since = since.value;
    render(command, h("div", { class: "stack" }, copyLine(cli("usage", "--by", chosen.by, "--since", chosen.since)), copyLine(cli("usage", "--csv", "--by", chosen.by, "--since", chosen.since), "Copy the command for the file")));
    try {
      const [rows, perDay, keys] = await Promise.all([
        getJson(`/admin/usage?by=${chosen.by}&since=${chosen.since}`), getJson(`/admin/usage?by=day&since=${chosen.since}`),
        may("keys") ? getJson("/admin/keys") : null]);
      if (mine !== number) return;
      report = rows;
      download.disabled = !rows.rows.length;
      drawSums(sums, perDay);
      drawDays(days, perDay);
      drawGroups(groups, rows);
      if (keys) drawLimits(limits, keys.keys);
    } catch (error) {
      if (mine === number) render(groups, h("h2", { id: "groups-title" }, "Usage"), h("p", { class: "problem-text" }, error.message));
    }
  }
  by.onchange = since.onchange = look;
  root.append(h("h1", {}, "Usage"), h("section", { class: "panel fields", "aria-label": "Report" }, field("By", by), field("Of the last", since), download), sums, days, groups, limits, command);
  look();
  const timer = setInterval(look, REFRESH_MS);
  return () => {
    number += 1;
    clearInterval(timer);
  };
}

const sum = (rows, column) => rows.reduce((total, row) => total + (row[column] ?? 0), 0);
const tokens = (row) => row.prompt_tokens + row.completion_tokens;

function money(value, currency) {
  if (!value) return NONE;
  return new Intl.NumberFormat(undefined, { style: "currency", currency, maximumFractionDigits: Math.abs(value) < 1 ? 4 : 2 }).format(value);
}

const compact = (value) => (value ? new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 }).format(value) : count(value));

function kwh(value) {
  if (!value) return NONE;
  if (value < 1e-5) return "< 0.01 Wh";
  return value < 0.1 ? `${figure(value * 1000)} Wh` : `${figure(value)} kWh`;
}

function drawSums(root, { rows, currency }) {
  const requests = sum(rows, "requests");
  const facts = [["Requests", count(requests), `${percent(requests ? sum(rows, "errors") / requests : 0)} errors`], ["Tokens in", compact(sum(rows, "prompt_tokens")), `${percent(sum(rows, "prompt_tokens") ? sum(rows, "cached_tokens") / sum(rows, "prompt_tokens") : null)} cached`],
    ["Tokens out", compact(sum(rows, "completion_tokens")), sum(rows, "estimated") ? `${count(sum(rows, "estimated"))} requests estimated` : ""], ["Cost", money(sum(rows, "cost"), currency), "of models with a price"], ["Energy", kwh(sum(rows, "energy_kwh")), money(sum(rows, "energy_cost"), currency)], ["GPU time", sum(rows, "gpu_seconds") ? seconds(sum(rows, "gpu_seconds")) : NONE, ""]];
  render(root, facts.map(([name, value, note]) => h("article", { class: "panel figure" }, h("h2", {}, name), h("p", { class: "value" }, h("strong", {}, value)), h("small", {}, note === NONE ? "" : note))));
}

/** One column per day, also for days without a request. */
function drawDays(root, { rows, since, until }) {
  const known = new Map(rows.map((row) => [row.name, row]));
  const names = [];
  for (let at = since * 1000; at < until * 1000 + 86400000 && names.length < 92; at += 86400000) {
    const name = new Date(at).toISOString().slice(0, 10);
    if (name <= new Date(until * 1000).toISOString().slice(0, 10) || known.has(name)) names.push(name);
  }
  for (const name of known.keys()) if (!names.includes(name)) names.push(name);
  names.sort();
  const highest = Math.max(0, ...rows.map(tokens));
  const height = (value) => `${((100 * value) / (highest || 1)).toFixed(2)}%`;
  render(root, h("header", { class: "page-head" }, h("h2", { id: "days-title" }, "Tokens per day"), h("span", { class: "legend" }, h("span", { class: "swatch hue-0", "aria-hidden": "true" }), "in ", h("span", { class: "swatch hue-1", "aria-hidden": "true" }), "out"), h("span", { class: "spacer" }), h("span", { class: "unit" }, highest ? `at most ${compact(highest)}` : "no tokens yet")),
    h("div", { class: "days", role: "img", "aria-label": `Tokens per day: ${rows.map((row) => `${row.name} ${count(tokens(row))}`).join(", ") || "none"}` },
      names.map((name) => {
        const row = known.get(name);
        return h("div", { class: "day", title: `${name}: ${row ? `${count(row.prompt_tokens)} in, ${count(row.completion_tokens)} out, ${count(row.requests)} requests` : "nothing"}` },
          h("div", { class: "column" }, row ? [h("div", { class: "hue-1", style: { height: height(row.completion_tokens) } }), h("div", { class: "hue-0", style: { height: height(row.prompt_tokens) } })] : null),
          h("span", { class: "day-name" }, name.slice(8)));
      })));
}

function drawGroups(root, { by, rows, currency }) {
  const most = Math.max(1, ...rows.map(tokens));
  const names = [GROUPS[by], "Requests", "Errors", "In", "Out", "Cached", "GPU time", "Energy", "Cost", "per 10⁶ tokens"];
  render(root, h("h2", { id: "groups-title" }, `By ${GROUPS[by].toLowerCase()}`), rows.length ? scrolling("Usage", h("table", { class: "usage" },
    h("thead", {}, h("tr", {}, names.map((name, index) => h("th", { scope: "col", class: index ? "number" : null }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", { "data-key": row.name },
      h("th", { scope: "row" }, row.name, h("div", { class: "share", "aria-hidden": "true" }, h("div", { style: { width: `${((100 * tokens(row)) / most).toFixed(1)}%` } }))),
      [count(row.requests), row.errors ? count(row.errors) : NONE, count(row.prompt_tokens), count(row.completion_tokens), row.cached_tokens ? count(row.cached_tokens) : NONE, row.gpu_seconds ? seconds(row.gpu_seconds) : NONE, kwh(row.energy_kwh),
        money(row.cost, currency), money(row.cost_per_million_tokens ?? row.energy_cost_per_million_tokens, currency)].map((text) => h("td", { class: "number" }, text))))))) : empty("Nothing was used in this time."));
}

function drawLimits(root, keys) {
  const limited = keys.filter((key) => key.use && readings(key.use.limits).length);
  render(root, h("h2", { id: "limits-title" }, "Limits"), limited.length ? limited.map((key) => h("div", { class: "limit-of", "data-key": key.id },
    h("h3", {}, key.name, " ", h("span", { class: "unit" }, key.id), key.use.running ? h("span", { class: "chip" }, `${key.use.running} running`) : null),
    readings(key.use.limits).map(([name, reading]) => limitMeter(key.name, name, reading)))) : empty(keys.length ? "No key has a limit." : "There are no keys: cortex key create makes one."));
}

function readings(limits) {
  const found = Object.entries(limits).filter(([name, reading]) => name !== "budgets" && reading).map(([name, reading]) => [{ rpm: "requests per minute", tpm: "tokens per minute", concurrency: "at a time" }[name] ?? name, reading]);
  return [...found, ...(limits.budgets ?? []).map((budget) => [`${budget.unit} per ${budget.window}`, budget])];
}

function limitMeter(key, name, reading) {
  const ratio = reading.limit ? Math.min(1, (reading.used + (reading.reserved ?? 0)) / reading.limit) : 1;
  const kind = ratio < 0.75 ? "ok" : ratio < 1 ? "warn" : "bad";
  return h("div", { class: "guard" }, h("span", {}, name, reading.enforce ? null : h("span", { class: "chip" }, "observed only")),
    h("div", { class: `meter ${kind}`, role: "meter", "aria-label": `${key}: ${name}`, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(ratio * 100)) }, h("div", { style: { width: `${(ratio * 100).toFixed(1)}%` } })),
    h("span", { class: "number", title: reading.resets_at ? `until ${fullTime(reading.resets_at)}` : null }, kind === "bad" ? [state("failed", "reached"), " "] : null, `${figure(reading.used)} of ${figure(reading.limit)}`));
}

/** As a file for spreadsheets, as `cortex usage --csv` prints it. A cell that begins like a formula gets a quote before it. */
function save({ by, since, until, rows }) {
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const [, ...columns] = Object.keys(rows[0]); // the first is the name
  const lines = [[by, ...columns], ...rows.map(Object.values)];
  const day = (at) => new Date(at * 1000).toISOString().slice(0, 10);
  const url = URL.createObjectURL(new Blob([`${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`], { type: "text/csv" }));
  const link = h("a", { href: url, download: `cortex-usage-by-${by}-${day(since)}-${day(until)}.csv` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
  toast("The report is saved");
}
