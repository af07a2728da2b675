// Vercel's `ai` as its users write it, with `@ai-sdk/openai-compatible`, or with AI_PROVIDER=anthropic `@ai-sdk/anthropic`.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { CALL, LONG, MODEL, UNKNOWN_MODEL, QUESTION, REPORT, URL, caught, play } from "./stage.mjs";

const provider =
  process.env.AI_PROVIDER === "anthropic"
    ? createAnthropic({ baseURL: `${URL}/v1`, apiKey: "none" })
    : createOpenAICompatible({ name: "cortex", baseURL: `${URL}/v1`, apiKey: "none", includeUsage: true });
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => REPORT,
});

async function chat() {
  const pieces = [];
  for await (const piece of streamText({ model: provider(MODEL), prompt: QUESTION }).textStream) pieces.push(piece);
  return { pieces };
}

async function tools() {
  const result = await generateText({
    model: provider(MODEL),
    prompt: CALL,
    tools: { weather },
    stopWhen: stepCountIs(3),
  });
  const [call] = result.steps.flatMap((step) => step.toolCalls);
  return { name: call.toolName, arguments: call.input, text: result.text };
}

async function error() {
  try {
    await generateText({ model: provider(UNKNOWN_MODEL), prompt: QUESTION, maxRetries: 0 });
  } catch (error) {
    if (APICallError.isInstance(error)) return caught(error, error.statusCode);
    throw error;
  }
}

async function abort() {
  const controller = new AbortController();
  const result = streamText({ model: provider(MODEL), prompt: LONG, abortSignal: controller.signal });
  for await (const piece of result.textStream) if (piece) break;
  controller.abort();
}

await play({ chat, tools, error, abort });
