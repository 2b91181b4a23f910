// Calls of the server of this page, and its stream of events. All paths are relative to the page.

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", redirect: "error", ...options });
  } catch {
    throw new Error("potluck ui does not answer: is it still running?");
  }
  if (response.status === 401) throw new Error("the session has ended: open the link that potluck ui prints");
  const text = await response.text();
  let answer = {};
  try {
    answer = JSON.parse(text);
  } catch {
    // Not an object: refused before any call.
  }
  if (!response.ok) throw new Error(answer.message ?? text.trim());
  return answer;
}

/** Asks for an object. */
export const get = (path, parameters = {}) => call(`${path}?${new URLSearchParams(parameters)}`);

/** Requests a change. */
export const post = (path, body = {}) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

/** Follows the events: `handlers` by name, each with the data; `connection` with whether it is up. */
export function follow(handlers) {
  const source = new EventSource("events");
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  }
  source.onopen = () => handlers.connection(true);
  source.onerror = () => handlers.connection(false);
}
