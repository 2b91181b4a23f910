// The peer and its index.

import { el, keyed, setText } from "./dom.js";
import { count, duration, size } from "./format.js";

const peerCard = facts("peer-card", "This peer");
const indexCard = facts("index-card", "Index");

/** A card with titles and figures. */
function facts(id, title) {
  const list = el("dl");
  const warnings = el("ul", { className: "findings" });
  document.getElementById(id).append(el("h3", { textContent: title }), list, warnings);
  return (pairs, notes = []) => {
    keyed(
      list,
      pairs.filter(([, text]) => text !== null && text !== undefined && text !== ""),
      ([name]) => name,
      ([name]) => el("div", {}, el("dt", { textContent: name }), el("dd")),
      (pair, [, text]) => setText(pair.lastChild, text),
    );
    keyed(warnings, notes, (note) => note, (note) => el("li", { textContent: note }), () => {});
  };
}

export function showPeer(peer) {
  const isHidden = peer.reachable === false ? `The index cannot connect to this peer (${peer.reachability.replaceAll("_", " ")}): open its port in the firewall.` : null;
  const notes = [isHidden, ...peer.warnings].filter(Boolean);
  peerCard(
    [
      ["State", registration(peer)],
      ["Listens on", peer.listening ?? "nothing: it only downloads"],
      ["Known as", peer.advertised === peer.listening ? null : peer.advertised],
      ["Id", peer.peer],
      ["Shares", `${count(peer.items, "item")}, ${count(peer.files, "file")}, ${size(peer.bytes)}`],
      ["Downloads go to", peer.files_folder],
      ["Home", peer.home],
      ["Up for", duration(peer.uptime_seconds)],
      ["Version", peer.version],
    ],
    notes,
  );
}

function registration(peer) {
  if (peer.download_only) return "only downloads";
  if (peer.index === null) return "runs without an index";
  if (peer.registered) return peer.reachable ? "registered, reachable from the index" : "registered";
  return peer.index_message ?? "not registered";
}

export function showIndex(index) {
  if (index === null) return indexCard([["State", "none: the peer runs without an index"]]);
  if (!index.reachable) return indexCard([["Address", index.url], ["State", "does not answer"]], [index.message]);
  indexCard([
    ["Address", index.url],
    ["State", "up"],
    ["Peers", index.peers.toLocaleString("en")],
    ["Files", index.files.toLocaleString("en")],
    ["Registrations", index.registrations.toLocaleString("en")],
    ["Watchers", index.watchers.toLocaleString("en")],
    ["Store", index.store],
    ["Up for", duration(index.uptime_seconds)],
    ["Version", index.version],
  ]);
}
