// Calls of the admin API with the session's cookie.

export const session = { name: null, verbs: [], csrf: "", may_infer: false, api_port: null };

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let onSignedOut = () => {};

/** Have `callback` called when the session has ended. */
export function whenSignedOut(callback) {
  onSignedOut = callback;
}

/** The response of a request. Throws ApiError for an error, and calls the page's sign-out for a 401. */
export async function request(method, path, { body, headers = {}, signal, cache = "no-store" } = {}) {
  const all = { ...headers };
  if (method !== "GET") all["x-cortex-csrf"] = session.csrf;
  if (body !== undefined) all["content-type"] ??= "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: all,
      body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body),
      signal,
      credentials: "same-origin",
      cache,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "the gateway does not answer");
  }
  if (response.ok) return response;
  const text = await response.text();
  let detail = {};
  try {
    detail = JSON.parse(text).error ?? {};
  } catch {
    /* not JSON: a proxy in between */
  }
  if (response.status === 401 && path !== "/admin/session") onSignedOut();
  throw new ApiError(response.status, detail.code, detail.message ?? `HTTP ${response.status}`);
}

export async function getJson(path, options) {
  return (await request("GET", path, options)).json();
}

/** The present session, or null. */
export async function loadSession() {
  try {
    Object.assign(session, await getJson("/admin/session", { cache: "default" })); // index.html preloads it
    return session;
  } catch (error) {
    if (error.status === 401) return null;
    throw error;
  }
}

export async function signIn(key) {
  const response = await request("POST", "/admin/session", { body: { key } });
  Object.assign(session, await response.json());
}

export async function signOut() {
  await request("DELETE", "/admin/session");
}

export const may = (verb) => session.verbs.includes(verb);

/** A name as one segment of a path. */
export const segment = (name) => encodeURIComponent(name);
