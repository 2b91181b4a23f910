// What the peer shares.

import * as calls from "./calls.js";
import { cell, el, foreign, row, setText, show, table } from "./dom.js";
import { count, shortId, size } from "./format.js";

const status = document.getElementById("library-status");
const more = document.getElementById("more-items");
const columns = [{ title: "Name" }, { title: "Size", className: "number" }, { title: "Kind" }, { title: "Id" }, { title: "Path" }];
const items = table("Shared files and folders", columns);
document.getElementById("items").append(items.wrapper);

let next = null;
let shown = 0;
let isVisible = false;
/** What the list was read for; it is read again when the peer reports something else. */
let read = "";
let reported = "";

export function start() {
  more.addEventListener("click", () => load(next));
}

/** Reads the list again if it changed while the section is visible. */
export function setVisible(isShown) {
  isVisible = isShown;
  refresh();
}

/** What the peer reports of its library. */
export function showPeer(peer) {
  reported = [peer.items, peer.files, peer.bytes, peer.damaged_items].join();
  refresh();
}

function refresh() {
  if (isVisible && read !== reported) {
    read = reported;
    load(null);
  }
}

async function load(page) {
  let answer;
  try {
    answer = await calls.get("api/library", { page: page ?? "" });
  } catch (error) {
    setText(status, error.message);
    read = "";
    return;
  }
  if (page === null) {
    items.body.replaceChildren();
    shown = 0;
  }
  items.body.append(...answer.items.map(entry));
  shown += answer.items.length;
  next = answer.next_page;
  show(items.wrapper, shown > 0);
  show(more, next !== null);
  setText(status, shown > 0 ? `${count(shown, "item")}${next === null ? "" : ", and more"}` : "Nothing is shared yet. Share something with: potluck share PATH");
}

function entry(item) {
  const kind = item.kind === "collection" ? `folder, ${count(item.file_count, "file")}` : "file";
  const isDamaged = item.damaged_paths.length > 0;
  const damage = isDamaged ? el("span", { className: "problem", textContent: " damaged, not offered", title: item.damaged_paths.join("\n") }) : null;
  const shownRow = row(
    "Name",
    foreign(item.name),
    cell("Size", size(item.content_size), "number"),
    cell("Kind", [kind, damage]),
    cell("Id", el("code", { textContent: shortId(item.id), title: item.id })),
    cell("Path", foreign(item.path, "path")),
  );
  shownRow.classList.toggle("bad", isDamaged);
  return shownRow;
}
