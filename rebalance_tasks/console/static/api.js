// Calls of the HTTP API, the stream of events, and asking before acting.
import { byId, h } from "./dom.js";

const csrf = document.querySelector("meta[name=csrf]").content;

async function call(method, path, body) {
  const response = await fetch(`/api/v1${path}`, {
    method,
    headers: method === "GET" ? {} : { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.status === 401) location.reload(); // the session is over: the page answers with the login
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { cause: answer.cause, status: response.status });
  return answer;
}

export const get = (path, query) => call("GET", query ? `${path}?${new URLSearchParams(query)}` : path);
export const post = (path, body = {}) => call("POST", path, body);

export function toast(text, kind = "done") {
  const note = h("div", { class: `toast ${kind}` }, text);
  byId("toasts").append(note);
  setTimeout(() => note.remove(), kind === "problem" ? 12000 : 5000);
}

export function problem(error) {
  toast(error.message, "problem");
}

// Ask, act, tell; true when it was done.
export async function act({ title, text, yes, path, body, done }) {
  if (title && !(await confirmed(title, text, yes))) return false;
  try {
    const answer = await post(path, body);
    if (done) toast(typeof done === "function" ? done(answer) : done);
    return answer;
  } catch (error) {
    problem(error);
    return false;
  }
}

function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true }));
}

// A button that is disabled while what it starts is under way.
export function button(text, props, action) {
  const made = h("button", { type: "button", ...props }, text);
  made.addEventListener("click", async () => {
    made.disabled = true;
    made.setAttribute("aria-busy", "true");
    try {
      await action();
    } catch (error) {
      problem(error);
    } finally {
      made.disabled = false;
      made.removeAttribute("aria-busy");
    }
  });
  return made;
}

// -- events ----------------------------------------------------------------------------------------------------------
function state(word, text, banner = "") {
  byId("live").dataset.state = word;
  byId("live-text").textContent = text;
  byId("banner").hidden = !banner;
  byId("banner").textContent = banner;
}

// handlers: topic -> function(data); `open` when the stream begins, `resync` when something may have been missed.
export function listen(handlers) {
  const source = new EventSource("/api/v1/events");
  let lost = false;
  source.onopen = () => {
    state("live", "live");
    if (lost) handlers.resync?.();
    else handlers.open?.();
    lost = false;
  };
  source.onerror = () => {
    lost = true;
    state("lost", "reconnecting", "The console does not answer; what is shown may be old.");
  };
  source.addEventListener("offline", (event) => state("lost", "no data", JSON.parse(event.data).error));
  for (const topic of ["fleet", "usage", "job", "timeline", "check", "resync"]) {
    source.addEventListener(topic, (event) => {
      if (byId("live").dataset.state !== "live") state("live", "live");
      handlers[topic]?.(JSON.parse(event.data));
    });
  }
  addEventListener("pagehide", () => source.close());
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).getPropertyValue("--is-dark").trim() === "1";
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
byId("logout").addEventListener("click", async () => {
  await fetch("/logout", { method: "POST", headers: { "X-CSRF-Token": csrf } });
  location.assign("/");
});
