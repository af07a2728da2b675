// The frame: sign-in, navigation, and which page is open. A page is a module with `open(root, rest)`, which returns how to close it.

import { loadSession, session, signIn, signOut, whenSignedOut } from "./lib/api.js";
import { h, render } from "./lib/dom.js";
import { time, zone } from "./lib/format.js";
import { live, start, stop, subscribe } from "./lib/live.js";
import { attempt, state, toast } from "./lib/widgets.js";

const PAGES = [
  ["overview", "Overview", () => import("./pages/overview.js")],
  ["aliases", "Aliases", () => import("./pages/aliases.js")],
  ["requests", "Requests", () => import("./pages/requests.js")],
  ["usage", "Usage", () => import("./pages/usage.js")],
  ["playground", "Playground", () => import("./pages/playground.js")],
  ["log", "Log", () => import("./pages/log.js")],
];
const SESSION_ENDED = "The session has ended: it expired, its key was revoked, or the gateway was restarted.";
const ICON = new URL("icon.svg", import.meta.url).pathname;
const app = document.getElementById("app");
let closePage = () => {};
let opened = 0;

// Theme .................................................................................................................

const THEMES = { auto: "System theme", light: "Light theme", dark: "Dark theme" };

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    /* private mode */
  }
  dispatchEvent(new Event("themechange"));
}

function savedTheme() {
  try {
    return localStorage.getItem("theme") ?? "auto";
  } catch {
    return "auto";
  }
}

function nextTheme() {
  const names = Object.keys(THEMES);
  applyTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
  drawFrame();
}

// Sign-in ...............................................................................................................

function showSignIn(message) {
  stop();
  closePage();
  closePage = () => {};
  document.title = "Sign in · cortex console";
  const key = h("input", { type: "password", id: "key", name: "key", autocomplete: "current-password", required: true, spellcheck: "false", "aria-describedby": "key-hint problem" });
  const problem = h("p", { id: "problem", class: "problem-text", role: "alert" }, message ?? "");
  const button = h("button", { class: "primary", type: "submit" }, "Sign in");
  const form = h("form", { class: "panel sign-in", onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    problem.textContent = "";
    try {
      await signIn(key.value);
      showConsole();
    } catch (error) {
      problem.textContent = error.status === 401 ? "This key is not valid here: it is wrong, expired or revoked, or lacks the verb read." : error.message;
      button.disabled = false;
      key.select();
    }
  } },
  h("h1", {}, brand(), "console"),
  h("input", { type: "text", autocomplete: "username", value: "operator", hidden: true }), // password managers want one
  h("label", { for: "key" }, "Key"), key,
  h("small", { id: "key-hint" }, "A key with the verb read: cortex key create NAME --verbs infer,read,operate,keys"),
  problem, button);
  app.replaceChildren(h("main", { id: "main", class: "sign-in-page" }, form));
  key.focus();
}

const brand = () => h("span", { class: "brand" }, h("img", { src: ICON, alt: "", width: "20", height: "20" }), "cortex");

// The frame .............................................................................................................

let frame = null;

function showConsole() {
  frame = { header: h("header", { class: "top" }), nav: h("nav", { class: "pages", "aria-label": "Pages" }), banner: h("div", { role: "status", "aria-live": "polite" }), main: h("main", { id: "main", tabindex: "-1" }) };
  app.replaceChildren(frame.header, frame.nav, h("div", { class: "content" }, frame.banner, frame.main));
  drawFrame();
  start(() => showSignIn(SESSION_ENDED));
  openPage();
}

function drawFrame() {
  if (!frame?.header.isConnected) return;
  const problems = live.problem?.problems.length ?? 0;
  const status = live.problem?.status;
  render(frame.header, brand(),
    status ? h("a", { class: "status-link", href: "#/overview" }, state(status, problems ? `${status} · ${problems} problem${problems > 1 ? "s" : ""}` : status)) : null,
    h("span", { class: "spacer" }),
    connection(),
    h("button", { class: "quiet", type: "button", onclick: nextTheme, title: THEMES[document.documentElement.dataset.theme], "aria-label": `${THEMES[document.documentElement.dataset.theme]}; change` }, { auto: "◐", light: "☀", dark: "☾" }[document.documentElement.dataset.theme]),
    h("span", { class: "user" }, session.name),
    h("button", { class: "quiet", type: "button", onclick: () => attempt(signOut).then(() => showSignIn()) }, "Sign out"));
  const current = pageName();
  render(frame.nav, h("ul", {}, PAGES.map(([name, label]) => h("li", {}, h("a", { href: `#/${name}`, "aria-current": name === current ? "page" : null }, label, badge(name))))));
  const capture = live.problem?.capture;
  render(frame.banner, capture ? h("div", { class: "banner bad capture" }, h("span", { class: "glyph", "aria-hidden": "true" }, "●"), h("strong", {}, "Texts are being captured: "), `${capture.who} keeps the ${capture.redacted ? "redacted " : ""}requests and answers of ${capture.alias} in memory until ${time(capture.until)}; ${capture.kept} kept. `, h("a", { href: "#/requests" }, "Show or stop")) : null, live.connection === "stale" ? h("div", { class: "banner bad" }, h("span", { class: "glyph", "aria-hidden": "true" }, "✕"), `The gateway has sent nothing since ${time(live.heardAt / 1000)}. What you see may be out of date; the page reconnects by itself.`) : null);
}

function connection() {
  const texts = { live: "live", stale: "stale", connecting: "connecting" };
  return h("span", { class: `connection ${live.connection}`, title: `Times are ${zone()}` }, h("span", { class: "dot", "aria-hidden": "true" }), texts[live.connection], h("span", { class: "zone" }, zone()));
}

function badge(name) {
  const shown = { requests: live.liveTotal || null }[name];
  return shown ? h("span", { class: "badge" }, shown, h("span", { class: "offscreen" }, " running")) : null;
}

// Pages .................................................................................................................

const route = () => location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
const pageName = () => (PAGES.some(([name]) => name === route()[0]) ? route()[0] : "overview");

async function openPage() {
  const number = ++opened;
  const [name, label, load] = PAGES.find(([each]) => each === pageName());
  const rest = route().slice(1);
  document.title = `${label} · cortex console`;
  closePage();
  closePage = () => {};
  drawFrame();
  frame.nav.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // of a narrow window
  try {
    const page = await load();
    if (number !== opened || !frame) return;
    frame.main.replaceChildren();
    frame.main.dataset.page = name;
    closePage = page.open(frame.main, rest) ?? (() => {});
  } catch (error) {
    toast(`This page could not be opened: ${error.message}`, "bad");
    throw error;
  }
}

addEventListener("hashchange", () => {
  if (!frame?.main.isConnected) return;
  openPage().then(() => {
    frame.main.focus({ preventScroll: true }); // it would scroll the beginning of the page behind the header
    scrollTo(0, 0);
  });
});
subscribe((kind) => {
  if (kind === "problem" || kind === "connection" || kind === "request") drawFrame();
});
whenSignedOut(() => showSignIn(SESSION_ENDED));
applyTheme(savedTheme());
(await loadSession().catch(() => null)) ? showConsole() : showSignIn();
