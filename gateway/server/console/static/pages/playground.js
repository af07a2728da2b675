// One prompt to one or two aliases, side by side, through the admin port with the session: the page has no key.

import { getJson, request, session } from "../lib/api.js";
import { h, render } from "../lib/dom.js";
import { count, figure, milliseconds, NONE } from "../lib/format.js";
import { copy, field, state, toast } from "../lib/widgets.js";

const PATH = "/admin/playground/v1/chat/completions";
const WINDOW_S = 0.02; // in less time, an answer arrives in one piece: its speed is unknown
const IMAGE_BYTES = 8 * 1024 * 1024;
const LANGUAGES = { curl: asCurl, Python: asPython, JavaScript: asJavaScript };

export function open(root) {
  const choices = [0, 1].map((index) => h("select", { id: `model-${index}` }));
  const system = h("input", { id: "system", placeholder: "none" });
  const prompt = h("textarea", { id: "prompt", rows: "4", required: true }, "What is the capital of Georgia?");
  const temperature = h("input", { id: "temperature", type: "number", min: "0", max: "2", step: "0.1", placeholder: "default" });
  const topP = h("input", { id: "top-p", type: "number", min: "0", max: "1", step: "0.05", placeholder: "default" });
  const maxTokens = h("input", { id: "max-tokens", type: "number", min: "1", step: "1", value: "400" });
  const seed = h("input", { id: "seed", type: "number", step: "1", placeholder: "none" });
  const tools = h("textarea", { id: "tools", class: "mono", rows: "5", spellcheck: "false", placeholder: '[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]' });
  const image = h("input", { id: "image", type: "file", accept: "image/*" });
  const preview = h("img", { class: "preview", alt: "The chosen image", hidden: true });
  const send = h("button", { class: "primary", type: "submit" }, "Send");
  const stop = h("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const answers = h("div", { class: "answers" });
  const code = h("section", { class: "panel", "aria-labelledby": "code-title" });
  let imageUrl = null;
  let running = null;
  let language = "curl";

  image.onchange = async () => {
    const file = image.files[0];
    if (preview.src) URL.revokeObjectURL(preview.src);
    preview.hidden = !file;
    imageUrl = null;
    if (!file) return;
    if (file.size > IMAGE_BYTES) {
      image.value = "";
      preview.hidden = true;
      return toast("The image must be smaller than 8 MB", "bad");
    }
    preview.src = URL.createObjectURL(file);
    imageUrl = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    });
    drawCode();
  };

  function bodyFor(model) {
    const content = imageUrl ? [{ type: "text", text: prompt.value }, { type: "image_url", image_url: { url: imageUrl } }] : prompt.value;
    const body = { model, messages: [...(system.value ? [{ role: "system", content: system.value }] : []), { role: "user", content }], stream: true, stream_options: { include_usage: true } };
    for (const [name, input] of [["temperature", temperature], ["top_p", topP], ["max_tokens", maxTokens], ["seed", seed]]) if (input.value !== "") body[name] = Number(input.value);
    if (tools.value.trim()) body.tools = JSON.parse(tools.value);
    return body;
  }

  async function run(event) {
    event.preventDefault();
    const models = choices.map((choice) => choice.value).filter(Boolean);
    let bodies;
    try {
      bodies = models.map(bodyFor);
    } catch {
      return toast("The tools are not valid JSON", "bad");
    }
    running = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    answers.replaceChildren();
    await Promise.all(bodies.map((body) => {
      const panel = h("article", { class: "panel answer", "aria-label": `Answer of ${body.model}` });
      answers.append(panel);
      return ask(panel, body, running.signal);
    }));
    running = null;
    send.disabled = false;
    stop.disabled = true;
  }

  function drawCode() {
    const model = choices[0].value;
    let body;
    try {
      body = bodyFor(model);
    } catch {
      return;
    }
    const whole = LANGUAGES[language](body);
    if (imageUrl) body.messages.at(-1).content[1].image_url.url = `${imageUrl.slice(0, imageUrl.indexOf(",") + 1)}…`; // only the copy has it all
    const text = LANGUAGES[language](body);
    render(code, h("header", { class: "page-head" }, h("h2", { id: "code-title" }, "The same as code"), h("div", { class: "actions", role: "group", "aria-label": "Language" }, Object.keys(LANGUAGES).map((name) => h("button", { type: "button", "aria-pressed": String(name === language), class: name === language ? "primary" : "", onclick: () => { language = name; drawCode(); } }, name))),
      h("span", { class: "spacer" }), h("button", { type: "button", onclick: (event) => copy(whole, event.currentTarget) }, "Copy")), h("pre", { class: "code", tabindex: "0" }, text));
  }

  const form = h("form", { class: "panel playground", onsubmit: run, "aria-label": "Request" },
    h("div", { class: "fields" }, field("Alias or model", choices[0]), field("Beside it", choices[1])),
    field("Prompt", prompt), field("System message", system),
    h("div", { class: "fields" }, field("Temperature", temperature), field("Top p", topP), field("At most, tokens", maxTokens), field("Seed", seed)),
    h("details", {}, h("summary", {}, "Tools and image"), field("Tools, as JSON", tools), h("div", { class: "fields" }, field("Image", image), preview)),
    h("div", { class: "actions" }, send, stop));
  form.addEventListener("input", drawCode);
  root.append(h("h1", {}, "Playground"), session.may_infer ? form : h("p", { class: "panel" }, state("failed", "This key lacks the verb infer, so it cannot send requests to models.")), answers, code);
  if (!session.may_infer) return null;
  getJson("/admin/models").then(({ data }) => {
    const options = [...data.filter((each) => each.alias_of), ...data.filter((each) => !each.alias_of)];
    choices[0].replaceChildren(...options.map((each) => h("option", { value: each.id }, each.id)));
    choices[1].replaceChildren(h("option", { value: "" }, "nothing"), ...options.map((each) => h("option", { value: each.id }, each.id)));
    drawCode();
  }).catch((error) => toast(error.message, "bad"));
  return () => {
    running?.abort();
    if (preview.src) URL.revokeObjectURL(preview.src);
  };
}

/** Send one request and show its answer as it comes. */
async function ask(panel, body, signal) {
  const view = { content: "", thinking: "", calls: [], usage: null, model: null, node: null, status: "running", error: null, startedAt: performance.now(), firstAt: null, lastAt: null, deltas: 0 };
  let due = false;
  const show = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      drawAnswer(panel, body.model, view);
    });
  };
  show();
  const clock = setInterval(show, 200);
  try {
    const response = await request("POST", PATH, { body, signal });
    view.model = response.headers.get("x-cortex-model");
    view.node = response.headers.get("x-cortex-node");
    await readEvents(response, (data) => {
      takeChunk(view, data);
      show();
    });
    if (view.status === "running") view.status = "done";
  } catch (error) {
    view.status = error.name === "AbortError" ? "cancelled" : "failed";
    view.error = error.name === "AbortError" ? "stopped" : error.message;
  }
  clearInterval(clock);
  view.endedAt = performance.now();
  drawAnswer(panel, body.model, view);
}

async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:") && line.slice(5).trim() !== "[DONE]") take(JSON.parse(line.slice(5)));
  }
}

function takeChunk(view, data) {
  if (data.error) {
    view.status = "failed";
    view.error = data.error.message;
    return;
  }
  if (data.usage) view.usage = data.usage;
  const delta = data.choices?.[0]?.delta;
  if (!delta) return;
  const thinking = delta.reasoning_content ?? delta.reasoning;
  if (!delta.content && !thinking && !delta.tool_calls) return;
  view.lastAt = performance.now();
  view.firstAt ??= view.lastAt;
  view.deltas += 1;
  view.content += delta.content ?? "";
  view.thinking += thinking ?? "";
  for (const call of delta.tool_calls ?? []) {
    const one = (view.calls[call.index ?? 0] ??= { name: "", arguments: "" });
    one.name += call.function?.name ?? "";
    one.arguments += call.function?.arguments ?? "";
  }
}

function drawAnswer(panel, name, view) {
  const tokens = view.usage?.completion_tokens ?? (view.deltas || null);
  const window = view.firstAt ? (view.lastAt - view.firstAt) / 1000 : 0;
  const speed = window >= WINDOW_S && tokens > 1 ? (tokens - 1) / window : null; // the first token is where the window begins
  const facts = [["First token", view.firstAt ? milliseconds(view.firstAt - view.startedAt) : NONE], ["Speed", `${figure(speed)} tokens/s`], ["Tokens", `${count(view.usage?.prompt_tokens)} in, ${count(tokens)} out`],
    ["Total", milliseconds((view.endedAt ?? performance.now()) - view.startedAt)], ["Model", view.model ?? NONE], ["Node", view.node ?? NONE]];
  render(panel, h("header", { class: "page-head" }, h("h2", {}, name), state(view.status)),
    h("dl", { class: "facts" }, facts.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))),
    view.thinking ? h("details", {}, h("summary", {}, "Thinking"), h("p", { class: "text unit" }, view.thinking)) : null,
    h("p", { class: "text" }, view.content || (view.status === "running" ? "…" : "")),
    view.calls.filter(Boolean).map((call) => h("pre", { class: "code" }, `${call.name}(${call.arguments})`)),
    view.error ? h("p", { class: "problem-text", role: "alert" }, view.error) : null);
}

// Code ..................................................................................................................

const baseUrl = () => `${session.api_is_tls ? "https" : "http"}://${location.hostname}:${session.api_port ?? 31313}`;
const without = ({ stream_options: _, ...body }) => body;

function asCurl(body) {
  const json = JSON.stringify(without(body), null, 2);
  const hasImage = body.messages.some(({ content }) => Array.isArray(content)); // too long for one argument of a command
  const data = hasImage ? `--data-binary @- <<'END'\n${json}\nEND` : `-d '${json.replaceAll("'", "'\\''")}'`;
  return `curl -N ${baseUrl()}/v1/chat/completions \\\n  -H "authorization: Bearer $CORTEX_KEY" \\\n  -H 'content-type: application/json' \\\n  ${data}`;
}

/** As a literal of Python, whose strings are those of JSON. */
function pythonValue(value, indent = "") {
  const inner = `${indent}    `;
  const listed = (open, parts, close) => (parts.length ? `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return listed("[", value.map((each) => pythonValue(each, inner)), "]");
  if (typeof value === "object") return listed("{", Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonValue(each, inner)}`), "}");
  return JSON.stringify(value);
}

function asPython(body) {
  const arguments_ = Object.entries(without(body)).map(([name, value]) => `    ${name}=${pythonValue(value, "    ")},`).join("\n");
  return `import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${baseUrl()}/v1", api_key=os.environ.get("CORTEX_KEY") or "none")\nstream = client.chat.completions.create(\n${arguments_}\n)\nfor chunk in stream:\n    if chunk.choices and chunk.choices[0].delta.content:\n        print(chunk.choices[0].delta.content, end="", flush=True)`;
}

function asJavaScript(body) {
  const json = JSON.stringify(without(body), null, 2);
  return `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: "${baseUrl()}/v1", apiKey: process.env.CORTEX_KEY || "none" });\nconst stream = await client.chat.completions.create(${json});\nfor await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`;
}
