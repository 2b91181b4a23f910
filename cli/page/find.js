// Finding files at the index, and starting their download.

import * as calls from "./calls.js";
import { cell, el, foreign, row, setText, show, table } from "./dom.js";
import { count, shortId, size } from "./format.js";

const form = document.getElementById("find-form");
const words = document.getElementById("words");
const status = document.getElementById("find-status");
const more = document.getElementById("more-results");
const columns = [{ title: "Name" }, { title: "Size", className: "number" }, { title: "Peers", className: "number" }, { title: "Id" }, { title: "Download" }];
const results = table("Files that match", columns);
document.getElementById("results").append(results.wrapper);
show(results.wrapper, false);

let next = null;
let shown = 0;
/** The latest search; answers of earlier ones are dropped. */
let search = 0;
let report = () => {};

/** Enables the section; `reportTo(promise, text)` shows the result of an action. */
export function start(reportTo) {
  report = reportTo;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    find(null);
  });
  more.addEventListener("click", () => find(next));
}

/** Lists all files when the section is first shown. */
export function firstShown() {
  if (search === 0) find(null);
}

async function find(page) {
  const current = (search += 1);
  setText(status, "Searching …");
  let answer;
  try {
    answer = await calls.get("api/search", { words: words.value, page: page ?? "" });
  } catch (error) {
    if (current === search) setText(status, error.message);
    return;
  }
  if (current !== search) return;
  if (page === null) {
    results.body.replaceChildren();
    shown = 0;
  }
  results.body.append(...answer.files.map(result));
  shown += answer.files.length;
  next = answer.next_page;
  show(results.wrapper, shown > 0);
  show(more, next !== null);
  const none = words.value.trim() === "" ? "The index has no files yet." : "No name matches. Every word must begin a word of the name.";
  setText(status, shown > 0 ? `${count(shown, "file")}${next === null ? "" : ", and more"}` : none);
}

function result(file) {
  const name = file.names[0] ?? shortId(file.id);
  const others = file.names.length - 1;
  const get = el("button", { type: "button", textContent: "Get", "aria-label": `Get ${name}`, onclick: () => begin(get, file, name) });
  const also = others > 0 ? el("span", { className: "muted", textContent: ` and ${count(others, "other name")}` }) : null;
  return row(
    "Name",
    [foreign(name), also],
    cell("Size", file.kind === "collection" ? "folder" : size(file.size), "number"),
    cell("Peers", String(file.providers), "number"),
    cell("Id", el("code", { textContent: shortId(file.id), title: file.id })),
    cell("Download", get, "end"),
  );
}

function begin(button, file, name) {
  button.disabled = true;
  const started = calls.post("api/transfers", { id: file.id, name: file.names[0] ?? null });
  report(started, `Getting ${name}`);
  started.then(
    () => {
      const link = el("a", { href: "#downloads", textContent: "See Downloads" });
      const isFocused = document.activeElement === button || document.activeElement === document.body;
      button.replaceWith(link);
      if (isFocused) link.focus();
    },
    () => (button.disabled = false),
  );
}
