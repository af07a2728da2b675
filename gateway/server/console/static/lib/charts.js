// Time charts with uPlot (vendored; https://github.com/leeoniya/uPlot, MIT).

import { h } from "./dom.js";

/** Wait for uPlot: a classic script of index.html that defines `uPlot`. */
function chartsLoaded() {
  if (window.uPlot) return Promise.resolve();
  const script = document.getElementById("uplot");
  return new Promise((resolve, reject) => {
    script.addEventListener("load", resolve);
    script.addEventListener("error", reject);
  });
}

/** Wait until the browser has painted: a chart takes longer than everything else, and the rest is shown before. */
const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

const colours = new Map(); // of the present theme: to ask for one makes the browser compute styles

const scheme = matchMedia("(prefers-color-scheme: dark)");
scheme.addEventListener("change", () => colours.clear());
addEventListener("themechange", () => colours.clear());

function colour(name) {
  if (!colours.has(name)) colours.set(name, colourOf(name));
  return colours.get(name);
}

function colourOf(name) {
  const probe = h("span", { style: { color: `var(--${name})`, display: "none" } });
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

const translucent = (value, alpha) => value.replace(/rgba?\(([^)]+)\)/, (_, parts) => `rgba(${parts.split(",").slice(0, 3).join(",")}, ${alpha})`);

/**
 * A chart of `series` [{ label, colour, value(point) }] in an element that keeps its size; `show(points)` draws them.
 * The width is `spanS`; less, but at least five minutes, as long as there are points of a shorter time only.
 */
export function timeChart({ label, series, format, height = 84, spanS = 3600 }) {
  const element = h("div", { class: "chart", "data-opaque": true, role: "img", "aria-label": label });
  let plot = null;
  let points = [];
  let width = 0; // as the browser laid it out: to ask the element for it makes the browser do that at once
  const fill = (index) => (index === 0 ? (u) => {
    const gradient = u.ctx.createLinearGradient(0, 0, 0, u.bbox.height);
    gradient.addColorStop(0, translucent(colour(series[0].colour), 0.25));
    gradient.addColorStop(1, translucent(colour(series[0].colour), 0.02));
    return gradient;
  } : undefined);
  const isAlone = (values, index) => values[index] != null && values[index - 1] == null && values[index + 1] == null; // no line is drawn to it
  const data = () => [points.map((point) => point.at), ...series.map((one) => points.map((point) => one.value(point) ?? null))];
  const range = () => {
    const now = Date.now() / 1000;
    const since = points.length ? now - points[0].at : 0;
    return [now - Math.min(spanS, Math.max(since, 300)), now];
  };

  function draw() {
    plot?.destroy();
    const axis = { stroke: colour("muted"), font: "10px system-ui", grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
    plot = new window.uPlot({
      width,
      height,
      padding: [6, 4, 0, 0],
      cursor: { y: false, points: { size: 5 }, drag: { x: false, y: false } },
      legend: { show: false },
      scales: { x: { time: true, range }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1e-9) > 1e-9 ? high * 1.12 : 1] } },
      axes: [
        { ...axis, size: 18, space: 60, gap: 2, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toTimeString().slice(0, 5)) },
        { ...axis, size: 46, space: 28, gap: 4, values: (_, ticks) => ticks.map(format) },
      ],
      series: [{}, ...series.map((one, index) => ({
        label: one.label, stroke: colour(one.colour), width: 1.5, fill: fill(index), spanGaps: false, dash: one.dash, points: { show: true, size: 4, filter: (u, number) => u.data[number].flatMap((_, place) => (isAlone(u.data[number], place) ? [place] : [])) },
      }))],
      hooks: { setCursor: [showTip] },
    }, data(), element);
    plot.root.append(tip);
  }

  const tip = h("div", { class: "chart-tip", hidden: true });
  function showTip(u) {
    const index = u.cursor.idx;
    if (index === null || index === undefined || !points[index]) {
      tip.hidden = true;
      return;
    }
    tip.hidden = false;
    const at = new Date(points[index].at * 1000).toTimeString().slice(0, 8);
    tip.textContent = `${at}  ${series.map((one) => `${one.label} ${format(one.value(points[index]))}`).join("  ")}`;
    tip.style.left = `${Math.min(Math.max(u.cursor.left, 0), u.over.clientWidth - 150) + 46}px`;
  }

  const resized = new ResizeObserver(([{ contentRect }]) => {
    width = Math.max(contentRect.width, 120);
    if (plot) plot.setSize({ width, height });
    else show();
  });
  resized.observe(element);
  const redraw = () => plot && draw();
  scheme.addEventListener("change", redraw);
  addEventListener("themechange", redraw);

  async function show() {
    await chartsLoaded();
    if (!plot) await painted();
    if (!element.isConnected || !width) return;
    if (plot && points.length > 2) plot.setData(data());
    else draw();
  }

  return {
    element,
    show(newPoints) {
      points = newPoints;
      return show();
    },
    close() {
      resized.disconnect();
      scheme.removeEventListener("change", redraw);
      removeEventListener("themechange", redraw);
      plot?.destroy();
      plot = null;
    },
  };
}
