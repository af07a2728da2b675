// The live state: one EventSource, whose events update `live` and call those who subscribed.

import { getJson } from "./api.js";

const ENDED_KEPT = 1000;
const LOG_KEPT = 2000;
const POINTS_KEPT = 360;
const STALE_MS = 4000; // an event comes each second
const HIDDEN_MS = 15000; // tabs that are hidden for longer have no connection: a browser has six to a host, for all of its tabs

export const live = {
  connection: "connecting", // connecting | live | stale
  heardAt: 0,
  problem: null,
  fleet: null,
  alias: null,
  requests: [],
  liveTotal: 0,
  ended: [], // newest last
  endedLeftOut: 0, // ended too fast to be listed
  rates: null,
  points: [],
  log: [],
};

const subscribers = new Set();
let source = null;
let timer = 0;
let retryMs = 1000;
let started = false;
let hiding = 0; // the timer of a hidden page
let resting = false; // hidden, and without a connection
let signedOut = () => {};

/** Call `callback(kind)` after each change; returns how to stop. `kind` may be `connection`. */
export function subscribe(callback) {
  subscribers.add(callback);
  return () => subscribers.delete(callback);
}

function notify(kind) {
  for (const callback of [...subscribers]) callback(kind);
}

export function start(onSignedOut) {
  signedOut = onSignedOut;
  stop();
  started = true;
  timer = setInterval(checkStale, 1000);
  open();
}

export function stop() {
  started = resting = false;
  clearInterval(timer);
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.visibilityState === "hidden") hiding = setTimeout(rest, HIDDEN_MS);
  else if (resting) open();
});

function rest() {
  if (!started) return;
  resting = true;
  source?.close();
  source = null;
  live.connection = "connecting";
  notify("connection");
}

function open() {
  resting = false;
  source?.close();
  source = new EventSource("/admin/events");
  const on = (kind, take) =>
    source.addEventListener(kind, (event) => {
      heard();
      take(JSON.parse(event.data));
      notify(kind);
    });
  on("resync", () => {
    live.ended = [];
    live.endedLeftOut = 0;
    live.log = [];
    live.points = [];
  });
  on("problem", (data) => (live.problem = data));
  on("fleet", (data) => (live.fleet = data));
  on("alias", (data) => (live.alias = data));
  on("request", takeRequests);
  on("log", takeLog);
  on("signed_out", () => signedOut());
  source.onerror = () => {
    if (source?.readyState === EventSource.CLOSED) reopenLater(); // a status other than 200: the browser gives up
    checkStale();
  };
}

async function reopenLater() {
  source?.close();
  source = null;
  try {
    await getJson("/admin/session");
  } catch (error) {
    if (error.status === 401) return signedOut();
  }
  setTimeout(() => source === null && started && !resting && open(), retryMs);
  retryMs = Math.min(retryMs * 2, 15000);
}

function heard() {
  live.heardAt = Date.now();
  retryMs = 1000;
  if (live.connection !== "live") {
    live.connection = "live";
    notify("connection");
  }
}

function checkStale() {
  if (live.connection === "live" && Date.now() - live.heardAt > STALE_MS) live.connection = "stale";
  if (live.connection !== "live") notify("connection");
}

/** Rows of a table by columns; a column is a list, or the one value that all rows have. */
const rowsOf = ({ count, columns }) => Array.from({ length: count }, (_, row) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, Array.isArray(column) ? column[row] : column])));

const idOf = (request) => `${request.request_id} ${request.received_at}`;

function takeRequests(data) {
  live.requests = rowsOf(data.live);
  live.liveTotal = data.live_total;
  live.rates = data.rates ?? live.rates;
  const known = new Set(live.ended.slice(-300).map(idOf));
  live.ended = [...live.ended, ...rowsOf(data.ended).filter((one) => !known.has(idOf(one)))].slice(-ENDED_KEPT);
  live.endedLeftOut += data.ended_left_out;
  if (data.points) live.points = data.points;
  if (data.point && data.point.at !== live.points.at(-1)?.at) live.points = [...live.points, data.point].slice(-POINTS_KEPT);
}

function takeLog(data) {
  const newest = live.log.at(-1)?.number ?? 0;
  live.log = [...live.log, ...data.events.filter((event) => event.number > newest)].slice(-LOG_KEPT);
}
