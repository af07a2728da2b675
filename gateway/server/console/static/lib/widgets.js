// Small parts that several pages use.

import { h, render } from "./dom.js";
import { fullTime, time } from "./format.js";

/** A message that screen readers announce and that goes by itself; an error stays until it is closed. */
export function toast(text, kind = "ok") {
  const box = h("div", { class: `toast ${kind}` }, h("span", { class: "glyph", "aria-hidden": "true" }, kind === "ok" ? "✓" : "✕"), h("span", {}, text),
    h("button", { class: "quiet", type: "button", "aria-label": "Close the message", onclick: () => box.remove() }, "✕"));
  document.getElementById("toasts").append(box);
  if (kind === "ok") setTimeout(() => box.remove(), 5000);
}

/** Run an action of a button; an error becomes a message. Returns whether it succeeded. */
export async function attempt(action, done) {
  try {
    await action();
    if (done) toast(done);
    return true;
  } catch (error) {
    toast(error.message, "bad");
    return false;
  }
}

/** A line to copy: the `cortex …` command that does the same. */
export function copyLine(text, label = "Copy the command") {
  return h("div", { class: "cli" },
    h("code", {}, text),
    h("button", { class: "quiet", type: "button", "aria-label": label, title: label, onclick: (event) => copy(text, event.currentTarget) }, "Copy"));
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "offscreen", value: text }); // http on another host than loopback has no clipboard
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  if (button) {
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1500);
  }
}

export const timeOf = (at) => h("time", { datetime: at ? new Date(at * 1000).toISOString() : null, title: fullTime(at) }, time(at));

const STATES = {
  ok: ["✓", "ok"], healthy: ["✓", "ok"], loaded: ["✓", "ok"], reloading: ["✓", "ok"], done: ["✓", "ok"], answered: ["✓", "ok"],
  open: ["✓", "ok"], running: ["▶", "info"], warming: ["◔", "info"], loading: ["◔", "info"], moving: ["◔", "info"], queued: ["⧖", "warn"],
  arriving: ["▷", "info"], asleep: ["☾", "muted"], unloaded: ["○", "muted"], unloading: ["◔", "muted"], drained: ["‖", "warn"],
  draining: ["‖", "warn"], impaired: ["▲", "warn"], recovering: ["▲", "warn"], swap_failed: ["▲", "bad"], degraded: ["✕", "bad"],
  unservable: ["✕", "bad"], poisoned: ["✕", "bad"], down: ["✕", "bad"], error: ["✕", "bad"], failed: ["✕", "bad"], upstream_error: ["✕", "bad"],
  rolled_back: ["↩", "bad"], aborted: ["↩", "warn"], superseded: ["↩", "muted"], client_disconnected: ["⊘", "muted"], cancelled: ["⊘", "muted"],
  key: ["◇", "muted"], lost: ["⊘", "muted"], refused: ["✕", "bad"],
};

/** A state: a glyph, a word and a colour. */
export function state(name, text) {
  const [glyph, kind] = STATES[name] ?? ["?", "warn"];
  return h("span", { class: `state ${kind}` }, h("span", { class: "glyph", "aria-hidden": "true" }, glyph), text ?? name.replaceAll("_", " "));
}

export const stateKind = (name) => (STATES[name] ?? ["?", "warn"])[1];

/** A modal dialog; `build(close)` returns its content. Escape closes it, and focus goes back to where it was. */
export function dialog(title, build) {
  const box = h("dialog", { "aria-label": title });
  const before = document.activeElement;
  const close = () => box.close();
  box.addEventListener("close", () => {
    box.remove();
    before?.focus?.();
  });
  render(box, h("header", { class: "dialog-head" }, h("h2", {}, title),
    h("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: close }, "✕")), h("div", { class: "dialog-body" }, build(close)));
  document.body.append(box);
  box.showModal();
  return box;
}

/** Ask before an action: what it does, the command that does the same, and the button. */
export function confirmAction(title, text, command, label, action, done) {
  dialog(title, (close) => [
    h("p", {}, text),
    copyLine(command),
    h("div", { class: "actions" },
      h("button", { type: "button", onclick: close }, "Cancel"),
      h("button", { class: "primary", type: "button", onclick: async (event) => {
        event.currentTarget.disabled = true;
        if (await attempt(action, done)) close();
        else event.target.disabled = false;
      } }, label)),
  ]);
}

/** A table that scrolls sideways where it is too wide, also by keyboard. */
export const scrolling = (label, table) => h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, table);

export const empty = (text) => h("p", { class: "empty" }, text);

/** A labelled field. */
export function field(label, control, hint) {
  const id = control.id || `f-${label.toLowerCase().replaceAll(/\W+/g, "-")}-${Math.random().toString(36).slice(2, 7)}`;
  control.id = id;
  return h("div", { class: "field" }, h("label", { for: id }, label), control, hint ? h("small", {}, hint) : null);
}

const palette = new Map();

/** The number of the colour of a model: the same on every page, as long as the page is open. */
export function hue(model) {
  if (!palette.has(model)) palette.set(model, palette.size % 8);
  return palette.get(model);
}
