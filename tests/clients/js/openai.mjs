// The `openai` package as its users write it.

import OpenAI from "openai";
import { CALL, LONG, MODEL, UNKNOWN_MODEL, QUESTION, REPORT, URL, WEATHER_SCHEMA, caught, play } from "./stage.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0 });
const tools_ = [{ type: "function", function: { name: "weather", parameters: WEATHER_SCHEMA } }];
const user = (content) => [{ role: "user", content }];

async function chat() {
  const stream = await client.chat.completions.create({ model: MODEL, messages: user(QUESTION), stream: true });
  const pieces = [];
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
  return { pieces };
}

async function responses() {
  const stream = client.responses.stream({ model: MODEL, input: QUESTION });
  const pieces = [];
  stream.on("response.output_text.delta", (event) => pieces.push(event.delta));
  await stream.finalResponse();
  return { pieces };
}

async function tools() {
  const messages = user(CALL);
  const first = await client.chat.completions.create({ model: MODEL, messages, tools: tools_ });
  const [call] = first.choices[0].message.tool_calls;
  messages.push(first.choices[0].message, { role: "tool", tool_call_id: call.id, content: REPORT });
  const second = await client.chat.completions.create({ model: MODEL, messages, tools: tools_ });
  return { name: call.function.name, arguments: call.function.arguments, text: second.choices[0].message.content };
}

async function error() {
  try {
    await client.chat.completions.create({ model: UNKNOWN_MODEL, messages: user(QUESTION) });
  } catch (error) {
    if (error instanceof OpenAI.NotFoundError) return caught(error);
    throw error;
  }
}

async function abort() {
  const stream = await client.chat.completions.create({ model: MODEL, messages: user(LONG), stream: true });
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
  stream.controller.abort();
}

await play({ chat, responses, tools, error, abort });
