// Start of every scene: `node SCENE.mjs NAME` runs one of its functions and prints the result as one line of
// JSON. Then it waits until its standard input ends, so that the effect of an abort is not confused with the effect of the
// process ending. The gateway's address is in CORTEX_URL.

export const URL = process.env.CORTEX_URL;
export const MODEL = "helexa/small";
export const QUESTION = "What is the capital of Georgia?";
export const CALL = "Please call weather.";
export const WEATHER_SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
export const REPORT = "sunny";
export const LONG = "Write 4000 words";
export const UNKNOWN_MODEL = "nobody/has-it";

export async function play(scenes) {
  const result = await scenes[process.argv[2]]();
  console.log(JSON.stringify(result ?? null));
  process.stdin.resume();
  await new Promise((ended) => process.stdin.on("end", ended));
  process.exit(0);
}

export function caught(error, status = error.status) {
  return { type: error.constructor.name, status, message: error.message };
}
