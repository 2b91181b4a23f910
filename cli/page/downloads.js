// The list of downloads.

import { Card, hasEnded } from "./card.js";
import { keyed, setText, show } from "./dom.js";
import { percent } from "./format.js";

const list = document.getElementById("transfers");
const empty = document.getElementById("downloads-empty");
const badge = document.getElementById("active-count");
const cards = new Map();
const details = new Map();
/** States of the last look, to say when a download ends. */
let states = null;

/** Shows the list of all transfers, newest first. `actions` as for a card, and `announce(text)`. */
export function showTransfers(transfers, actions) {
  show(empty, transfers.length === 0);
  keyed(
    list,
    transfers,
    (transfer) => transfer.transfer,
    (transfer) => {
      const card = new Card(transfer, actions);
      cards.set(transfer.transfer, card);
      const detail = details.get(transfer.transfer);
      if (detail) card.updateDetail(detail);
      return card.element;
    },
    (_, transfer) => cards.get(transfer.transfer).update(transfer),
  );
  const numbers = new Set(transfers.map((transfer) => transfer.transfer));
  for (const known of [cards, details]) {
    for (const number of known.keys()) if (!numbers.has(number)) known.delete(number);
  }
  showTitle(transfers.filter((transfer) => !hasEnded(transfer)));
  announceEnds(transfers, actions.announce);
}

/** Shows the details of a transfer. */
export function showDetail(detail) {
  details.set(detail.transfer, detail);
  cards.get(detail.transfer)?.updateDetail(detail);
}

function showTitle(active) {
  setText(badge, active.length);
  show(badge, active.length > 0);
  const running = active.filter((transfer) => transfer.state === "running" && transfer.total);
  const sum = (field) => running.reduce((total, transfer) => total + transfer[field], 0);
  const title = running.length > 0 ? `${percent(sum("bytes"), sum("total"))} % – Potluck` : "Potluck";
  if (document.title !== title) document.title = title;
}

function announceEnds(transfers, announce) {
  const now = new Map(transfers.map((transfer) => [transfer.transfer, transfer.state]));
  for (const transfer of transfers) {
    const before = states?.get(transfer.transfer);
    if (!before || before === transfer.state) continue;
    if (transfer.state === "done") announce(`${transfer.name} is downloaded and verified`);
    if (transfer.state === "failed") announce(`${transfer.name} failed: ${transfer.message}`);
  }
  states = now;
}
