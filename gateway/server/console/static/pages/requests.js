// Requests that run and that ended, filtered; one opens as a waterfall with its story.

import { getJson, may, request, segment } from "../lib/api.js";
import { h, render } from "../lib/dom.js";
import { cli, count, milliseconds, NONE, seconds } from "../lib/format.js";
import { live, subscribe } from "../lib/live.js";
import { confirmAction, copyLine, empty, field, scrolling, state, timeOf } from "../lib/widgets.js";

const SHOWN = 200;
const filters = { text: "", alias: "", model: "", node: "", outcome: "", key: "" };

export function open(root, [chosen]) {
  const text = h("input", { type: "search", id: "filter-text", value: filters.text, placeholder: "id, error …" });
  text.oninput = () => { filters.text = text.value; draw("request"); };
  const selects = Object.fromEntries(["alias", "model", "node", "key", "outcome"].map((name) => [name, h("select", { id: `filter-${name}` }, h("option", { value: "" }, "all"))]));
  for (const [name, select] of Object.entries(selects)) select.onchange = () => { filters[name] = select.value; draw("request"); };
  const fields = Object.entries(selects).map(([name, select]) => [name, field(name[0].toUpperCase() + name.slice(1), select)]);
  const bar = h("section", { class: "panel fields filters", "aria-label": "Filters" }, field("Search", text), fields.map(([, each]) => each));
  const running = h("section", { class: "panel", "aria-labelledby": "running-title" });
  const ended = h("section", { class: "panel", "aria-labelledby": "ended-title" });
  const detail = h("section", { class: "panel request-detail", "aria-label": "Request", hidden: true });
  const captured = h("section", { class: "panel", "aria-labelledby": "capture-title", hidden: !may("operate") });
  root.append(h("h1", {}, "Requests"), bar, detail, running, ended, captured);
  const closeCapture = may("operate") ? openCapture(captured) : () => {};
  let closeDetail = () => {};
  if (chosen) closeDetail = openDetail(detail, chosen);

  function draw(kind) {
    if (kind !== "request" && kind !== "all") return;
    drawOptions();
    const matches = live.requests.filter(isShown);
    render(running, h("h2", { id: "running-title" }, "Running ", h("span", { class: "unit" }, live.liveTotal > live.requests.length ? `first ${live.requests.length} of ${count(live.liveTotal)}` : count(live.liveTotal))),
      matches.length ? scrolling("Running requests", h("table", { class: "requests" }, head(["Started", "Request", "Key", "Alias", "Model", "Node", "State", "Time", "Tokens", ""]), h("tbody", {}, matches.map(runningRow)))) : empty("Nothing runs that matches."));
    const shown = live.ended.filter(isShown);
    render(ended, h("h2", { id: "ended-title" }, "Ended ", h("span", { class: "unit" }, `the last ${count(Math.min(SHOWN, shown.length))}${live.endedLeftOut ? `; ${count(live.endedLeftOut)} more ended too fast to be listed` : ""}`)),
      shown.length ? scrolling("Ended requests", h("table", { class: "requests" }, head(["Started", "Request", "Key", "Alias", "Model", "Node", "Outcome", "First token", "Total", "Tokens"]), h("tbody", {}, shown.slice(-SHOWN).reverse().map(endedRow)))) : empty("No request has ended that matches."));
  }

  function drawOptions() {
    const all = [...live.requests, ...live.ended];
    for (const [name, select] of Object.entries(selects)) {
      const values = [...new Set(all.map((each) => each[name]).filter(Boolean))].sort();
      if (filters[name] && !values.includes(filters[name])) values.push(filters[name]);
      const labels = [...select.options].slice(1).map((option) => option.value);
      if (values.join("\n") !== labels.join("\n")) {
        select.replaceChildren(h("option", { value: "" }, "all"), ...values.map((value) => h("option", { value }, value.replaceAll("_", " "))));
        select.value = filters[name];
      }
    }
    for (const [name, each] of fields) if (name === "key") each.hidden = selects.key.options.length < 2;
  }

  draw("all");
  const unsubscribe = subscribe(draw);
  return () => {
    unsubscribe();
    closeDetail();
    closeCapture();
  };
}

const head = (names) => h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col", class: ["Time", "Tokens", "First token", "Total"].includes(name) ? "number" : null }, name || h("span", { class: "offscreen" }, "Action")))));

function isShown(each) {
  for (const name of ["alias", "model", "node", "key"]) if (filters[name] && each[name] !== filters[name]) return false;
  if (filters.outcome && each.outcome !== filters.outcome) return false;
  if (!filters.text) return true;
  const text = filters.text.toLowerCase();
  return [each.request_id, each.alias, each.model, each.node, each.error, each.path, each.key].some((value) => value?.toLowerCase().includes(text));
}

const link = (each) => h("a", { class: "mono", href: `#/requests/${segment(each.request_id)}`, title: each.request_id }, each.request_id.length > 14 ? `${each.request_id.slice(0, 12)}…` : each.request_id);
const keyOf = (each) => `${each.request_id} ${each.received_at}`;

function runningRow(each) {
  return h("tr", { "data-key": keyOf(each) }, h("td", {}, timeOf(each.received_at)), h("th", { scope: "row" }, link(each)), h("td", {}, each.key ?? NONE), h("td", {}, each.alias ?? NONE), h("td", {}, each.model ?? NONE), h("td", {}, each.node ?? NONE),
    h("td", {}, state(each.state, each.position ? `${each.state}${each.priority === "batch" ? " as batch" : ""}, number ${each.position}` : each.state)), h("td", { class: "number" }, seconds(each.elapsed_s)), h("td", { class: "number" }, count(each.tokens)),
    h("td", { class: "number" }, may("operate") ? h("button", { class: "quiet danger", type: "button", "aria-label": `Cancel request ${each.request_id}`, onclick: () => cancel(each.request_id) }, "Cancel…") : null));
}

function endedRow(each) {
  return h("tr", { "data-key": keyOf(each) }, h("td", {}, timeOf(each.received_at)), h("th", { scope: "row" }, link(each)), h("td", {}, each.key ?? NONE), h("td", {}, each.alias ?? NONE), h("td", {}, each.model ?? NONE), h("td", {}, each.node ?? NONE),
    h("td", {}, state(each.outcome, each.error ?? each.outcome.replaceAll("_", " ")), each.retries ? h("span", { class: "chip" }, `${each.retries} retr${each.retries > 1 ? "ies" : "y"}`) : null, each.hedge ? h("span", { class: "chip" }, `hedge ${each.hedge}`) : null),
    h("td", { class: "number" }, milliseconds(each.first_token_ms)), h("td", { class: "number" }, milliseconds(each.total_ms)), h("td", { class: "number" }, count(each.completion_tokens)));
}

function cancel(id) {
  confirmAction("Cancel the request", `Request ${id} ends at once. Its client gets a 503, or an error event if its stream has begun.`, cli("requests", "--cancel", id), "Cancel the request",
    () => request("DELETE", `/admin/requests/${segment(id)}`), "The request is cancelled");
}

// Captured texts ........................................................................................................

const TIMES = { 60: "1 minute", 600: "10 minutes", 1800: "30 minutes", 3600: "1 hour" };

function openCapture(root) {
  const alias = h("select", { id: "capture-alias" });
  const time = h("select", { id: "capture-time" }, Object.entries(TIMES).map(([value, label]) => h("option", { value, selected: value === "600" }, label)));
  const redact = h("input", { type: "checkbox", checked: true, id: "capture-redact" });
  const list = h("div", { class: "captured" });
  const form = h("div", { class: "fields" }, field("Alias", alias), field("For", time), h("label", { class: "check", for: "capture-redact" }, redact, "Redact"), h("button", { type: "button", class: "danger", onclick: begin }, "Capture texts…"));
  root.append(h("h2", { id: "capture-title" }, "Captured texts"), form, list);
  let shown = null;
  let number = 0;

  function begin() {
    const words = ["capture", "--alias", alias.value, "--for", `${time.value}s`, ...(redact.checked ? ["--redact"] : [])];
    const body = { alias: alias.value, seconds: Number(time.value), redact: redact.checked };
    confirmAction(`Capture the texts of ${alias.value}`, `The gateway keeps the requests and answers of ${alias.value} in memory for ${TIMES[time.value]}, shows them to operators, and erases them then. This is in the audit log, and every page says so meanwhile.`, cli(...words), "Capture texts",
      () => request("POST", "/admin/capture", { body }), "Texts are being captured");
  }

  async function draw(kind) {
    if (kind !== "problem" && kind !== "alias" && kind !== "all") return;
    const names = (live.alias?.aliases ?? []).map((each) => each.name);
    if ([...alias.options].map((option) => option.value).join("\n") !== names.join("\n")) alias.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    const capture = live.problem?.capture ?? null;
    const state_ = JSON.stringify(capture);
    if (state_ === shown) return;
    shown = state_;
    form.hidden = capture !== null;
    const mine = ++number;
    if (!capture) return render(list, h("p", { class: "unit" }, "No text is kept. [capture] enabled = true in cortex.toml allows captures."));
    try {
      const { requests } = await getJson("/admin/capture");
      if (mine === number) render(list, h("div", { class: "actions" }, h("button", { type: "button", class: "danger", onclick: () => confirmAction("Stop the capture", "All captured texts are erased.", cli("capture", "--stop"), "Stop and erase", () => request("DELETE", "/admin/capture"), "The texts are erased") }, "Stop and erase…"), copyLine(cli("capture"))), requests.length ? requests.reverse().map(capturedView) : empty("Nothing is captured yet."));
    } catch (error) {
      if (mine === number) render(list, h("p", { class: "problem-text" }, error.message));
    }
  }
  draw("all");
  return subscribe(draw);
}

const capturedView = (each) => h("article", { class: "captured-one", "data-key": `${each.request_id} ${each.at}` },
  h("p", { class: "version-head" }, timeOf(each.at), h("a", { class: "mono", href: `#/requests/${segment(each.request_id)}` }, each.request_id), h("span", { class: "unit" }, `${each.model ?? NONE} on ${each.node ?? NONE}, ${each.status}${each.is_cut ? ", cut" : ""}`)),
  h("dl", {}, each.messages.map((message) => [h("dt", {}, message.role), h("dd", { class: "text" }, message.text)]), h("dt", {}, "answer"), h("dd", { class: "text" }, each.answer)));

// One request ...........................................................................................................

function openDetail(root, id) {
  root.hidden = false;
  let timer = 0;
  let closed = false;
  async function look() {
    try {
      const { requests } = await getJson(`/admin/requests/${segment(id)}`);
      if (closed) return;
      render(root, header(id, requests), requests.map(requestView));
      if (requests.some((each) => each.state !== "ended")) timer = setTimeout(look, 1000);
    } catch (error) {
      if (!closed) render(root, header(id, []), h("p", { class: "problem-text" }, error.message));
    }
  }
  look();
  return () => {
    closed = true;
    clearTimeout(timer);
  };
}

const header = (id, requests) => h("header", { class: "page-head" }, h("h2", {}, "Request ", h("span", { class: "mono" }, id)), h("span", { class: "spacer" }),
  may("operate") && requests.some((each) => each.state !== "ended") ? h("button", { class: "danger", type: "button", onclick: () => cancel(id) }, "Cancel…") : null,
  h("a", { href: "#/requests" }, "Close"));

function requestView(each) {
  const facts = [["Path", each.path], ["Key", each.key?.name], ["Alias", each.alias], ["Model", each.model], ["Node", each.node], ["Generation", each.generation], ["Status", each.status], ["First token", milliseconds(each.first_token_ms)], ["Total", milliseconds(each.total_ms)],
    ["Tokens", each.tokens ? `${count(each.tokens.prompt)} in, ${count(each.tokens.completion)} out${each.tokens.cached ? `, ${count(each.tokens.cached)} cached` : ""}${each.tokens.estimated ? " (estimated)" : ""}` : null], ["Bytes", `${count(each.bytes_in)} in, ${count(each.bytes_out)} out`]];
  return h("div", { class: "request-view", "data-key": String(each.received_at) },
    h("p", { class: "version-head" }, state(each.state === "ended" ? each.outcome : each.state), h("span", { class: "unit" }, "received ", timeOf(each.received_at))),
    each.error ? h("p", { class: "problem-text" }, `${each.error.code}: ${each.error.message}`) : null,
    h("dl", { class: "facts" }, facts.filter(([, value]) => value !== null && value !== undefined && value !== NONE).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    waterfall(each), h("h3", {}, "What happened"), h("ol", { class: "story" }, story(each).map(([at, kind, line]) => h("li", {}, h("span", { class: "number unit" }, at === null ? "" : `+${milliseconds(at)}`), h("span", {}, kind ? state(kind, line) : line)))),
    copyLine(cli("explain", each.request_id)));
}

const PHASES = [["header", "read"], ["queue", "queue"], ["load", "load"], ["connect", "connect"], ["upload", "upload"], ["first_byte", "first token"], ["idle", "stream"]];

function waterfall(each) {
  const total = Math.max(each.total_ms, 0.001);
  const rows = [];
  const spent = PHASES.map(([phase, label]) => [label, each.phases_ms[phase] ?? 0]).filter(([, ms]) => ms > 0);
  let at = Math.max(0, total - spent.reduce((sum, [, ms]) => sum + ms, 0)); // before the first phase the body was read
  if (at > 0.05) rows.push(["read", "phase read", 0, at, ""]);
  for (const [label, ms] of spent) {
    rows.push([label, `phase ${label.replace(" ", "-")}`, at, ms, ""]);
    at += ms;
  }
  for (const load of each.loads) rows.push([`load on ${load.node}`, `attempt loading`, Math.max(0, load.at_ms), (load.took_ms ?? total - load.at_ms) + Math.min(0, load.at_ms), load.outcome ?? "under way"]);
  for (const attempt of each.attempts) rows.push([`${attempt.hedge ? "hedge" : "attempt"} ${attempt.node}`, `attempt ${attempt.result ?? "running"}`, attempt.at_ms, attempt.took_ms, attempt.result ?? "running"]);
  const marks = each.first_token_ms === null ? null : h("div", { class: "mark", style: { left: `${(100 * each.first_token_ms) / total}%` }, title: `first token after ${milliseconds(each.first_token_ms)}` });
  return h("figure", { class: "waterfall", role: "img", "aria-label": `Phases: ${rows.map(([label, , , ms, note]) => `${label} ${milliseconds(ms)} ${note}`).join(", ")}` },
    rows.map(([label, kind, start, ms, note]) => h("div", { class: "lane" }, h("span", { class: "lane-name" }, label),
      h("div", { class: "lane-track" }, h("div", { class: `lane-bar ${kind}`, style: { left: `${Math.min(99.5, (100 * start) / total)}%`, width: `${Math.max(0.5, Math.min(100, (100 * ms) / total))}%` } }), marks?.cloneNode()),
      h("span", { class: "lane-time number" }, milliseconds(ms)), h("span", { class: "lane-note unit" }, note))));
}

/** Lines of what the gateway decided: when (ms), a state or null, text. */
function story(each) {
  const lines = [];
  if (each.alias) lines.push([0, null, `${each.alias} stood for ${each.target} in generation ${each.generation}: ${each.resolved}`]);
  else if (each.model) lines.push([0, null, `${each.model} was asked for by its own name`]);
  for (const choice of each.choices) lines.push([choice.at_ms, null, `${choice.decision}${choice.node ? ` on ${choice.node}` : ""} for ${choice.model}: ${choice.candidates.map((one) => `${one.node} ${one.state}${one.detail ? ` (${one.detail})` : ""}`).join("; ")}`]);
  for (const load of each.loads) lines.push([load.at_ms, load.outcome === "loaded" ? "loaded" : load.outcome ? "failed" : "loading", `load of ${load.model} on ${load.node}: ${load.outcome ?? "under way"}${load.took_ms ? ` after ${milliseconds(load.took_ms)}` : ""}${load.reason ? `, ${load.reason}` : ""}${load.evicted.length ? `; evicted ${load.evicted.join(", ")}` : ""}`]);
  for (const fallback of each.fallbacks) lines.push([fallback.at_ms, "impaired", `${fallback.passed_over ? `fallback ${fallback.to} was passed over` : `fell back from ${fallback.model} to ${fallback.to}`}: ${fallback.error.message}`]);
  for (const attempt of each.attempts) lines.push([attempt.at_ms, attempt.result ?? "running", `${attempt.hedge ? "hedge" : "attempt"} of ${attempt.model} on ${attempt.node}: ${attempt.result ?? "running"}${attempt.error ? `, ${attempt.error.message}` : ""}`]);
  if (each.state === "ended") lines.push([each.total_ms, each.outcome, `ended: ${each.outcome.replaceAll("_", " ")}${each.status ? `, status ${each.status}` : ""}`]);
  return lines.sort((one, other) => one[0] - other[0]);
}
