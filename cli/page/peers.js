// The peers of the index.

import * as calls from "./calls.js";
import { cell, el, foreign, keyed, row, setText, show, table } from "./dom.js";
import { count, duration, shortId } from "./format.js";

const REFRESH = 5000;

const status = document.getElementById("peers-status");
const more = document.getElementById("more-peers");
const columns = [{ title: "Address" }, { title: "Files", className: "number" }, { title: "Seen" }, { title: "Version" }, { title: "Id" }];
const list = table("Peers of the index", columns);
document.getElementById("peers").append(list.wrapper);

/** The tokens of the pages that are shown. */
let pages = [""];
let next = null;
let isVisible = false;
/** The id of the peer whose page this is. */
let own = "";

export function start() {
  more.addEventListener("click", () => {
    pages.push(next);
    load();
  });
  setInterval(load, REFRESH);
}

/** Reads the list while the section is visible. */
export function setVisible(isShown) {
  if (isShown && !isVisible) pages = [""];
  isVisible = isShown;
  load();
}

export function showPeer(peer) {
  own = peer.peer;
}

async function load() {
  if (!isVisible) return;
  const shown = new Map();
  try {
    for (const page of pages) {
      const answer = await calls.get("api/peers", { page });
      for (const peer of answer.peers) shown.set(peer.peer, peer);
      next = answer.next_page;
    }
  } catch (error) {
    setText(status, error.message);
    return;
  }
  keyed(list.body, [...shown.values()], (peer) => peer.peer, (peer) => new Row(peer).element, (element, peer) => element.peer.update(peer));
  show(list.wrapper, shown.size > 0);
  show(more, next !== null);
  setText(status, `${count(shown.size, "peer")}${next === null ? "" : ", and more"}`);
}

class Row {
  constructor({ peer }) {
    this.address = foreign("", "mono");
    this.note = el("span", { className: "muted", textContent: " this peer", hidden: true });
    this.texts = Array.from({ length: 3 }, () => el("span"));
    const [address, ...others] = columns;
    const id = el("code", { textContent: shortId(peer), title: peer });
    this.element = row(address.title, [this.address, this.note], ...[...this.texts, id].map((content, at) => cell(others[at].title, content, others[at].className)));
    this.element.peer = this;
  }

  update(peer) {
    setText(this.address, peer.address);
    show(this.note, peer.peer === own);
    const [files, seen, version] = this.texts;
    setText(files, peer.files.toLocaleString("en"));
    setText(seen, `${duration(peer.seconds_since_seen)} ago`);
    setText(version, peer.version || "unknown");
  }
}
