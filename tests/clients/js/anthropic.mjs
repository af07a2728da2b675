// The `@anthropic-ai/sdk` package as its users write it.

import Anthropic from "@anthropic-ai/sdk";
import { CALL, LONG, MODEL, UNKNOWN_MODEL, QUESTION, REPORT, URL, WEATHER_SCHEMA, caught, play } from "./stage.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: "none", maxRetries: 0 });
const tools_ = [{ name: "weather", input_schema: WEATHER_SCHEMA }];
const ask = (content, model = MODEL) => ({ model, max_tokens: 5000, messages: [{ role: "user", content }] });

async function chat() {
  const pieces = [];
  const stream = client.messages.stream(ask(QUESTION)).on("text", (piece) => pieces.push(piece));
  await stream.finalMessage();
  return { pieces };
}

async function tools() {
  const asked = { ...ask(CALL), tools: tools_ };
  const first = await client.messages.stream(asked).finalMessage();
  const [call] = first.content.filter((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: call.id, content: REPORT };
  asked.messages.push({ role: "assistant", content: first.content }, { role: "user", content: [result] });
  const second = await client.messages.create(asked);
  return { name: call.name, arguments: call.input, text: second.content[0].text };
}

async function error() {
  try {
    await client.messages.create(ask(QUESTION, UNKNOWN_MODEL));
  } catch (error) {
    if (error instanceof Anthropic.NotFoundError) return caught(error);
    throw error;
  }
}

async function abort() {
  const stream = client.messages.stream(ask(LONG));
  for await (const event of stream) if (event.type === "content_block_delta") break;
  stream.abort();
}

await play({ chat, tools, error, abort });
