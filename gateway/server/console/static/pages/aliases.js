// What each alias points at, its past, and every change of it: the plan is on the page before the button works.

import { getJson, may, request, segment } from "../lib/api.js";
import { h, render } from "../lib/dom.js";
import { cli, count, figure, gib, milliseconds, NONE, percent, seconds } from "../lib/format.js";
import { live, subscribe } from "../lib/live.js";
import { confirmPlanned, planView } from "../lib/plan.js";
import { attempt, copyLine, empty, field, hue, scrolling, state, timeOf, toast } from "../lib/widgets.js";

const GUARDS = { errors: "error rate", ttft: "time to the first token", speed: "tokens per second", finish: "finish reasons", tools: "valid tool calls" };

export function open(root, [chosen]) {
  const list = h("nav", { class: "panel alias-list", "aria-label": "Aliases" });
  const detail = h("div", { class: "alias-detail" });
  root.append(h("h1", {}, "Aliases"), h("div", { class: "split" }, list, detail));
  let page = null;
  const draw = (kind) => {
    if (kind !== "alias" && kind !== "fleet" && kind !== "all") return;
    const aliases = live.alias?.aliases ?? [];
    const name = chosen ?? aliases[0]?.name;
    render(list, aliases.length ? h("ul", {}, aliases.map((alias) => h("li", { "data-key": alias.name },
      h("a", { href: `#/aliases/${segment(alias.name)}`, "aria-current": alias.name === name ? "true" : null },
        h("strong", {}, alias.name), h("span", { class: "unit" }, shownTargets(alias.targets)), alias.rollout?.state === "running" ? state("running", "rollout") : state(alias.state))))) : empty(live.alias ? "models.toml has no [aliases]." : "Waiting for the gateway …"));
    const alias = aliases.find((each) => each.name === name);
    if (!alias) {
      page = null;
      render(detail, live.alias && chosen ? empty(`There is no alias ${chosen}.`) : null);
    } else if (page?.name !== name) {
      detail.replaceChildren();
      page = aliasPage(detail, alias);
    } else page.update(alias);
  };
  draw("all");
  return subscribe(draw);
}

const shownTargets = (targets) => targets.map((target) => (targets.length > 1 ? `${share(target, targets)} ${target.model}` : target.model)).join(", ");

function share(target, targets) {
  const total = targets.reduce((sum, each) => sum + each.weight, 0);
  return percent(total ? target.weight / total : 0);
}

function aliasPage(root, first) {
  const name = first.name;
  let alias = first;
  let generation = null;
  const now = h("section", { class: "panel" });
  const rollout = h("section", { class: "panel rollout", "aria-label": "Rollout" });
  const change = h("section", { class: "panel" });
  const shadow = h("section", { class: "panel stack", "aria-label": "Shadow" });
  const timeline = h("section", { class: "panel", "aria-label": "Timeline" });
  root.append(now, rollout, change, shadow, timeline);
  if (may("operate")) changeForm(change, () => alias);
  else change.hidden = true;
  drawShadow(shadow, name);

  function update(next) {
    alias = next;
    drawNow(now, alias);
    drawRollout(rollout, alias);
    if (generation !== live.alias.catalogue.generation) {
      generation = live.alias.catalogue.generation;
      drawTimeline(timeline, name);
    }
  }
  update(first);
  return { name, update };
}

// Now ...................................................................................................................

function drawNow(root, alias) {
  const swap = live.fleet?.swaps.find((each) => each.alias === alias.name);
  render(root,
    h("header", { class: "page-head" }, h("h2", {}, alias.name), state(alias.state), h("span", { class: "unit" }, `generation ${live.alias.catalogue.generation}`)),
    swap ? h("div", { class: "swap" }, state(swap.state === "failed" ? "swap_failed" : "warming", swap.state === "failed" ? "could not move" : "moving"), h("span", {}, ` from ${swap.in_force} to ${swap.wanted}`),
      swap.state === "failed" ? h("p", { class: "problem-text" }, swap.reason) : h("p", { class: "unit" }, `${swap.phase ?? "wait"} ${swap.model ?? ""} · ${seconds(swap.elapsed_s)} of at most ${seconds(swap.allowed_s)}${swap.reason ? ` · ${swap.reason}` : ""}`)) : null,
    scrolling("Targets", h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Target"), h("th", { scope: "col", class: "number" }, "Share"), h("th", { scope: "col" }, "On"))),
      h("tbody", {}, alias.targets.map((target) => h("tr", { "data-key": target.model },
        h("th", { scope: "row" }, h("span", { class: "with-swatch" }, h("span", { class: `swatch hue-${hue(target.model)}`, "aria-hidden": "true" }), h("span", {}, target.model))),
        h("td", { class: "number" }, share(target, alias.targets)),
        h("td", {}, replicas(target.model))))))));
}

function replicas(model) {
  const found = (live.fleet?.nodes ?? []).flatMap((node) => node.models.filter((each) => each.id === model && each.status !== "unloaded").map((each) => h("span", { class: "replica" }, node.name, " ", state(each.status))));
  return found.length ? found : h("span", { class: "unit" }, "not loaded: the next request loads it");
}

// Change ................................................................................................................

function changeForm(root, current) {
  const alias = current();
  const target = h("input", { id: "target", list: "models", autocomplete: "off", spellcheck: "false", placeholder: "a model's id" });
  const models = h("datalist", { id: "models" });
  const weight = h("input", { type: "number", min: "1", max: "100", step: "1", value: "100", id: "share" });
  const mode = h("select", { id: "how" }, h("option", { value: "swap" }, "at once, when it is warm"), h("option", { value: "rollout" }, "by steps, with guards"));
  const steps = h("input", { value: "5, 25, 50, 100", id: "steps", inputmode: "decimal" });
  const every = h("input", { type: "number", min: "0", value: "600", id: "every" });
  const minimum = h("input", { type: "number", min: "0", value: "20", id: "minimum" });
  const guards = Object.fromEntries(Object.keys(GUARDS).map((guard) => [guard, h("input", { type: "checkbox", checked: true, id: `guard-${guard}` })]));
  const forRollout = h("div", { class: "fields rollout-fields", hidden: true },
    field("Steps, %", steps), field("Each at least, s", every), field("Requests per side", minimum),
    h("fieldset", {}, h("legend", {}, "Guards"), Object.entries(GUARDS).map(([guard, text]) => h("label", { class: "check", title: text, for: `guard-${guard}` }, guards[guard], guard))));
  const forSwap = field("Share, %", weight);
  const planned = h("div", { class: "plan", role: "status", "aria-live": "polite" });
  const command = h("div", {});
  const button = h("button", { class: "primary", type: "submit", disabled: true }, "Move");
  let plan = null;
  let number = 0;

  const isRollout = () => mode.value === "rollout";
  const stepList = () => steps.value.split(/[\s,]+/).filter(Boolean).map(Number);
  const guardList = () => Object.keys(guards).filter((guard) => guards[guard].checked);

  function bodyOf(keys) {
    const { targets: _, target: __, ...rest } = keys;
    const part = isRollout() ? 100 : Number(weight.value) || 100;
    if (part >= 100) return { ...rest, target: target.value };
    const others = current().targets.filter((each) => each.model !== target.value);
    const total = others.reduce((sum, each) => sum + each.weight, 0) || 1;
    const round = (value) => Math.round(value * 100) / 100;
    return { ...rest, targets: [...others.map((each) => ({ model: each.model, weight: round((each.weight / total) * (100 - part)) })), { model: target.value, weight: part }] };
  }

  function commandLine() {
    const name = current().name;
    if (!isRollout()) return cli("alias", "set", name, target.value, ...(Number(weight.value) < 100 ? ["--weight", weight.value] : []));
    const chosen = guardList();
    const words = ["alias", "rollout", name, target.value, "--steps", stepList().join(","), "--every", `${every.value}s`, "--min-requests", minimum.value];
    if (chosen.length === 0) words.push("--guard", "none");
    else if (chosen.length < Object.keys(GUARDS).length) for (const guard of chosen) words.push("--guard", guard);
    return cli(...words);
  }

  async function replan() {
    forRollout.hidden = !isRollout();
    forSwap.hidden = isRollout();
    button.disabled = true;
    plan = null;
    button.textContent = isRollout() ? "Start the rollout" : `Move ${current().name}`;
    const mine = ++number;
    if (!target.value) {
      render(planned);
      render(command);
      return;
    }
    render(command, copyLine(commandLine()));
    try {
      const keys = await getJson(`/admin/aliases/${segment(current().name)}`);
      const body = bodyOf(keys);
      const response = await request("POST", `/admin/aliases/${segment(current().name)}/plan`, { body });
      const answer = await response.json();
      if (mine !== number) return;
      plan = { body, etag: response.headers.get("etag"), verdict: answer.verdict };
      render(planned, planView(answer, current().name));
      button.disabled = answer.verdict !== "changes";
    } catch (error) {
      if (mine === number) render(planned, h("p", { class: "problem-text" }, error.message));
    }
  }

  async function apply(event) {
    event.preventDefault();
    if (!plan || button.disabled) return;
    button.disabled = true;
    const path = `/admin/aliases/${segment(current().name)}`;
    const headers = forAudit(commandLine());
    const started = isRollout();
    const succeeded = await attempt(async () => {
      if (started) {
        const chosen = Object.fromEntries(guardList().map((guard) => [guard, null]));
        const all = guardList().length === Object.keys(GUARDS).length;
        await request("POST", `${path}/rollout`, { headers, body: { target: target.value, steps: stepList(), every_seconds: Number(every.value), min_requests: Number(minimum.value), ...(all ? {} : { guards: defaults(chosen) }) } });
      } else await request("PUT", path, { headers: { ...headers, "if-match": plan.etag }, body: plan.body });
    });
    if (succeeded) {
      toast(started ? `The rollout of ${current().name} to ${target.value} has begun` : `${current().name} moves to ${target.value}`);
      target.value = "";
    }
    await replan();
  }

  for (const control of [target, weight, mode, steps, every, minimum, ...Object.values(guards)]) control.onchange = replan;
  getJson("/admin/models").then(({ data }) => render(models, data.filter((entry) => !entry.alias_of).map((entry) => h("option", { value: entry.id }, entry.loaded ? "loaded" : "not loaded")))).catch(() => {});
  root.setAttribute("aria-labelledby", "change-title");
  root.append(h("form", { onsubmit: apply, class: "change" },
    h("h3", { id: "change-title" }, `Change ${alias.name}`), models,
    h("div", { class: "fields" }, h("div", { class: "field wide" }, h("label", { for: "target" }, "New target"), target), h("div", { class: "field mode" }, h("label", { for: "how" }, "How"), mode), forSwap),
    forRollout, planned, command, h("div", { class: "actions" }, button, rollbackButton(current))));
  replan();
}

const DEFAULT_TOLERANCES = { errors: 0.02, ttft: 0.25, speed: 0.2, finish: 0.1, tools: 0.02 };
const defaults = (guards) => Object.fromEntries(Object.keys(guards).map((guard) => [guard, DEFAULT_TOLERANCES[guard]]));

function rollbackButton(current) {
  const roll = () => {
    const name = current().name;
    const [command, headers] = undoing("alias", "rollback", name);
    confirmPlanned(name, `Roll back ${name}`, `${name} goes back to what it was before its last change. Rolling back again undoes this.`, command, "Roll back",
      async () => ({ alias: name }), (body, etag) => request("POST", "/admin/rollback", { body, headers: { ...headers, "if-match": etag } }), `${name} goes back to what it was`);
  };
  return h("button", { type: "button", onclick: roll }, "Roll back…");
}

/** The line to copy, and the headers that put it into the audit log. */
const undoing = (...words) => [cli(...words), forAudit(cli(...words))];

const forAudit = (line) => ({ "x-cortex-command": encodeURIComponent(line.replace(/ --url.*/, "")), "x-cortex-user": "console" });

// Rollout ...............................................................................................................

function drawRollout(root, alias) {
  const rollout = alias.rollout;
  root.hidden = !rollout;
  if (!rollout) return render(root);
  const path = `/admin/aliases/${segment(alias.name)}/rollout`;
  if (rollout.state !== "running") {
    return render(root, h("h3", {}, "Rollout"), h("p", {}, state(rollout.state), ` to ${rollout.target}: ${rollout.reason}`),
      may("operate") ? h("div", { class: "actions" }, h("button", { type: "button", onclick: () => attempt(() => request("POST", `${path}/acknowledge`, {}), "Acknowledged") }, "Acknowledge"), copyLine(cli("alias", "rollout", alias.name, "--acknowledge"))) : null);
  }
  const abort = () => confirmPlanned(alias.name, `End the rollout of ${alias.name}`, `${alias.name} goes back to its targets before the rollout.`, cli("alias", "rollout", alias.name, "--abort"), "Roll back",
    async () => ({ alias: alias.name, to: (await getJson(path)).before }), () => request("DELETE", path), `The rollout of ${alias.name} has ended`);
  render(root,
    h("header", { class: "page-head" }, h("h3", {}, "Rollout to ", rollout.target), state("running", `step ${rollout.step} of ${rollout.steps}: ${figure(rollout.percent)} %`)),
    h("ol", { class: "step-list", "aria-label": "Steps" }, Array.from({ length: rollout.steps }, (_, index) => h("li", { class: index + 1 < rollout.step ? "past" : index + 1 === rollout.step ? "current" : "", "aria-current": index + 1 === rollout.step ? "step" : null }, index + 1 < rollout.step ? "✓" : index + 1))),
    h("p", { class: "unit" }, rollout.elapsed_s === null ? "waits for the step to be in force" : `${seconds(rollout.elapsed_s)} of at least ${seconds(rollout.every_s)}; waits for ${rollout.waits_for}; requests ${count(rollout.requests_old)} old and ${count(rollout.requests_new)} new, at least ${count(rollout.minimum)} each`),
    Object.keys(rollout.guards).length ? h("div", { class: "guards" }, Object.entries(rollout.guards).map(([guard, distance]) => guardMeter(guard, distance))) : empty("No guards: only time and an operator stop this rollout."),
    comparison([["old", rollout.old], ["new", rollout.new]]),
    may("operate") ? h("div", { class: "actions" }, h("button", { class: "danger", type: "button", onclick: abort }, "Roll back…"), copyLine(cli("alias", "rollout", alias.name, "--abort"))) : null);
}

function guardMeter(guard, distance) {
  const kind = distance > 0.5 ? "ok" : distance > 0.2 ? "warn" : "bad";
  return h("div", { class: "guard", "data-key": guard },
    h("span", {}, h("strong", {}, guard), h("span", { class: "unit" }, ` ${GUARDS[guard] ?? ""}`)),
    h("div", { class: `meter ${kind}`, role: "meter", "aria-label": `Guard ${guard}: distance to tripping`, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(distance * 100)) }, h("div", { style: { width: `${(distance * 100).toFixed(1)}%` } })),
    h("span", { class: "number" }, distance >= 1 ? "no evidence against it" : `${percent(distance)} left until it trips`));
}

/** Figures of two sides in one table; only the rows that have values. */
function comparison(sides) {
  const rows = [...new Set(sides.flatMap(([, figures]) => Object.keys(figures ?? {})))].filter((key) => sides.some(([, figures]) => typeof figures?.[key] === "number"));
  if (!rows.length) return null;
  const shown = (key, value) => (typeof value !== "number" ? NONE : key.endsWith("_s") && !key.includes("per_s") ? seconds(value) : key.endsWith("_ms") ? milliseconds(value) : /rate|share|ratio|valid/.test(key) ? percent(value) : figure(value));
  return scrolling("Figures", h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Figure"), sides.map(([label]) => h("th", { scope: "col", class: "number" }, label)))),
    h("tbody", {}, rows.map((key) => h("tr", {}, h("th", { scope: "row" }, key.replaceAll("_", " ").replace(/(?<! per) m?s$/, "")), sides.map(([, figures]) => h("td", { class: "number" }, shown(key, figures?.[key]))))))));
}

// Shadow ................................................................................................................

const SHADOW_MS = 5000;

/** The comparison of a shadow, drawn anew as long as the page of this alias is open. */
async function drawShadow(root, name) {
  let report = null;
  try {
    report = await getJson(`/admin/shadows/${segment(name)}`);
  } catch {
    /* the alias has gone, or the gateway does not answer */
  }
  if (!root.isConnected) return;
  setTimeout(() => drawShadow(root, name), SHADOW_MS);
  root.hidden = !report?.candidate;
  if (root.hidden) return;
  const median = (figures) => Object.fromEntries(Object.entries(figures).map(([key, value]) => [key, value?.median ?? value]));
  render(root, h("h3", {}, "Shadow: ", report.candidate), h("p", {}, report.verdict),
    report.compared ? h("p", { class: "unit" }, `${count(report.compared)} compared: same answer ${percent(report.same_answer)}, same finish reason ${percent(report.same_finish_reason)}; medians:`) : null,
    comparison([["target", median(report.target)], ["shadow", median(report.shadow)]]), copyLine(cli("alias", "compare", name)));
}

// Timeline ..............................................................................................................

async function drawTimeline(root, name, attempts = 10) {
  let versions, lines;
  try {
    [{ versions }, { lines }] = await Promise.all([getJson(`/admin/history?alias=${segment(name)}&limit=30`), getJson("/admin/audit?limit=300")]);
  } catch (error) {
    return render(root, h("h3", {}, "Timeline"), h("p", { class: "problem-text" }, error.message));
  }
  const newest = versions.find((version) => version.digest === live.alias.catalogue.digest); // an older one may be the same file
  const { digest, generation } = live.alias.catalogue;
  const isWritten = lines.some((line) => line.file === digest && line.generation === generation); // the audit log comes a moment later
  if (!isWritten && attempts && root.isConnected) setTimeout(() => drawTimeline(root, name, attempts - 1), 500);
  const audited = new Map(lines.map((line) => [`${line.time} ${line.file}`, line]));
  render(root, h("h3", {}, "Timeline"), versions.length ? h("ol", { class: "timeline" }, versions.map((version) => {
    const line = audited.get(`${version.time} ${version.digest}`);
    const changed = [...(line?.diff?.aliases_changed ?? []), ...(line?.diff?.aliases_warming ?? [])].find((each) => each.name === name)?.fields ?? [];
    const diff = () => (changed.length ? changed.map((each) => [h("span", { class: "unit" }, `${each.name}\n`), h("del", {}, `- ${shownValue(each.old)}\n`), h("ins", {}, `+ ${shownValue(each.new)}\n`)]) : version.summary);
    const isCurrent = version === newest;
    return h("li", { "data-key": String(version.number), class: isCurrent ? "current" : "" },
      h("div", { class: "version-head" }, h("strong", {}, `#${version.number}`), timeOf(Date.parse(version.time) / 1000), h("span", { class: "unit" }, version.who), isCurrent ? state("ok", "in force") : null, h("span", { class: "spacer" }),
        may("operate") && version.is_kept && !isCurrent ? h("button", { class: "quiet", type: "button", "aria-label": `Restore version ${version.number}`, onclick: () => restore(name, version) }, "Restore…") : null),
      h("details", { onpointerenter: showPeek }, h("summary", { onfocus: showPeek }, version.summary), h("pre", { class: "diff" }, diff()), line?.command ? h("p", { class: "unit" }, "by ", h("code", {}, line.command)) : null),
      h("pre", { class: "diff peek", "aria-hidden": "true" }, diff())); // while the pointer or the focus is on the line above; Escape hides it
  })) : empty("No change of this alias is recorded."));
}

const showPeek = (event) => event.currentTarget.closest("li").classList.remove("dismissed");

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const each of document.querySelectorAll(".timeline details:is(:hover, :focus-within)")) each.closest("li").classList.add("dismissed");
});

const shownValue = (value) => (Array.isArray(value) && value.every((each) => each?.model) ? value.map((each) => `${each.model}${value.length > 1 ? ` ${each.weight}` : ""}`).join(", ") : JSON.stringify(value));

function restore(name, version) {
  const to = String(version.number);
  const [command, headers] = undoing("alias", "rollback", name, "--to", to);
  confirmPlanned(name, `Restore version ${to} of ${name}`, `${name} becomes what it was in version ${to}.`, command, "Restore",
    async () => ({ alias: name, to }), (body, etag) => request("POST", "/admin/rollback", { body, headers: { ...headers, "if-match": etag } }), `${name} becomes what it was in version ${to}`);
}
