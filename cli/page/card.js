// One download: its progress, its picture, and its peers.

import * as calls from "./calls.js";
import { cell, el, foreign, keyed, row, setText, show, table } from "./dom.js";
import { count, duration, editableRate, percent, rate, shortId, size } from "./format.js";
import { ContentMap, senderColour } from "./map.js";

const WORDS = {
  preparing: "looking for peers",
  running: "downloading",
  waiting: "waiting",
  paused: "paused",
  finishing: "finishing",
  done: "done",
  failed: "failed",
  cancelled: "cancelled",
};

export const hasEnded = (transfer) => ["done", "failed", "cancelled"].includes(transfer.state);

const COLUMNS = [
  { title: "Peer" },
  { title: "State" },
  { title: "Share" },
  { title: "Sent", className: "number" },
  { title: "Rate", className: "number" },
  { title: "Has", className: "number" },
];

/** What a source is called: the address of a peer, or an origin. */
const label = (source) => source.address ?? source.origin ?? "unknown";

/** A card. `actions.confirmCancel(transfer)` asks the user; `actions.report(promise, text)` shows the result. */
export class Card {
  #actions;
  #transfer;
  #detail = null;
  #parts = {};
  #map;

  constructor(transfer, actions) {
    this.#actions = actions;
    this.#transfer = transfer;
    this.element = this.#build(transfer);
    this.update(transfer);
    this.#open(!hasEnded(transfer));
  }

  #build({ transfer: number }) {
    const bodyId = `transfer-${number}`;
    const button = (text, action) => el("button", { type: "button", textContent: text, onclick: action });
    const parts = (this.#parts = {
      name: el("h3"),
      state: el("span", { className: "state" }),
      facts: el("p", { className: "facts" }),
      problem: el("p", { className: "problem", hidden: true }),
      findings: el("ul", { className: "findings", hidden: true }),
      bar: el("progress", { max: 100 }),
      pause: button("Pause", () => this.#change("pause")),
      resume: button("Resume", () => this.#change("resume")),
      cancel: button("Cancel", () => this.#cancel()),
      toggle: button("Details", () => this.#open(this.#parts.body.hidden)),
      body: el("div", { className: "body", id: bodyId, hidden: true }),
      canvas: el("canvas", { role: "img" }),
      legend: el("p", { className: "legend muted" }),
      path: el("p", { className: "path muted" }),
      limits: this.#buildLimits(number),
    });
    parts.toggle.setAttribute("aria-controls", bodyId);
    const peers = table("Peers of this download", COLUMNS);
    parts.peers = peers;
    parts.body.append(el("div", { className: "map" }, parts.canvas), parts.legend, parts.findings, peers.wrapper, parts.path, parts.limits);
    this.#map = new ContentMap(parts.canvas);
    const buttons = el("div", { className: "buttons" }, parts.pause, parts.resume, parts.cancel, parts.toggle);
    const head = el("div", { className: "head" }, el("div", { className: "grow" }, parts.name, parts.facts), buttons);
    return el("article", { className: "card transfer" }, head, parts.bar, parts.problem, parts.body);
  }

  #buildLimits(number) {
    const limit = el("input", { id: `limit-${number}`, autocomplete: "off", spellcheck: false, placeholder: "no limit", size: 12 });
    const priority = el("input", { id: `priority-${number}`, type: "number", min: "1", max: "100", step: "1" });
    const form = el(
      "form",
      { className: "row", onsubmit: (event) => this.#adjust(event, limit, priority) },
      el("label", { for: limit.id }, el("span", { textContent: "Rate limit, such as 10MiB/s" }), limit),
      el("label", { for: priority.id }, el("span", { textContent: "Priority, 1 to 100" }), priority),
      el("button", { type: "submit", textContent: "Apply" }),
    );
    const details = el("details", {}, el("summary", { textContent: "Limit and priority" }), form);
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      limit.value = editableRate(this.#transfer.max_bytes_per_second);
      priority.value = this.#transfer.priority;
    });
    return details;
  }

  /** Shows a newer state, as the list of transfers has it. */
  update(transfer) {
    this.#transfer = transfer;
    const parts = this.#parts;
    const name = transfer.name || shortId(transfer.id);
    setText(parts.name, name);
    parts.name.title = name;
    this.element.setAttribute("data-state", transfer.state);
    setText(parts.state, transfer.seeding ? "seeding" : WORDS[transfer.state]);
    const done = percent(transfer.bytes, transfer.total ?? 0);
    if (transfer.total === null) parts.bar.removeAttribute("value");
    else if (parts.bar.value !== done) parts.bar.value = done;
    parts.bar.setAttribute("aria-label", `Progress of ${name}`);
    show(parts.bar, transfer.state !== "done" && transfer.state !== "cancelled");
    parts.facts.replaceChildren(parts.state, ...facts(transfer, done).map((fact) => el("span", { textContent: fact })));
    const problem = transfer.message ?? transfer.sharing_message;
    setText(parts.problem, problem ?? "");
    show(parts.problem, Boolean(problem));
    const isEnded = hasEnded(transfer);
    show(parts.pause, ["preparing", "running", "waiting"].includes(transfer.state));
    show(parts.resume, ["paused", "failed"].includes(transfer.state));
    show(parts.cancel, !isEnded || transfer.state === "failed");
    for (const [button, verb] of [["pause", "Pause"], ["resume", "Resume"], ["cancel", "Cancel"], ["toggle", "Details of"]]) {
      parts[button].setAttribute("aria-label", `${verb} ${name}`);
    }
    setText(parts.path, transfer.path);
    show(parts.limits, !isEnded);
    if (!this.#detail) this.#showPeers(transfer);
  }

  /** Shows all peers, the findings and the picture. */
  updateDetail(detail) {
    this.#detail = detail;
    const parts = this.#parts;
    this.#map.show(detail.map);
    show(parts.canvas.parentElement, detail.map.verified.length > 0);
    const problem = this.#transfer.message;
    const findings = detail.findings.filter((finding) => finding !== problem);
    keyed(parts.findings, findings, (finding) => finding, (finding) => el("li", { textContent: finding }), () => {});
    show(parts.findings, findings.length > 0);
    this.#showLegend(detail);
    this.#showPeers(detail);
  }

  #showLegend({ map }) {
    const entries = [];
    if (map.verified.some((part, at) => part === 255 && map.sender[at] === 0)) entries.push(["--cell-kept", "was here before"]);
    if (map.in_flight.some(Boolean)) entries.push(["--cell-moving", "on the way"]);
    if (map.verified.some((part) => part < 255)) entries.push(["--cell-missing", "missing"]);
    if (map.verified.some((part, at) => part < 255 && map.providers[at] === 0)) entries.push(["--cell-orphaned", "no connected peer has it"]);
    keyed(
      this.#parts.legend,
      entries,
      ([colour]) => colour,
      ([colour, text]) => el("span", {}, swatch(colour), text),
      () => {},
    );
    show(this.#parts.legend, map.verified.length > 0 && entries.length > 0);
  }

  #showPeers({ sources, units_total: units, map }) {
    const sent = sources.reduce((sum, peer) => sum + peer.bytes, 0);
    const position = new Map((map?.senders ?? []).map((address, at) => [address, at + 1]));
    show(this.#parts.peers.wrapper, sources.length > 0);
    keyed(
      this.#parts.peers.body,
      sources,
      label,
      (peer) => new PeerRow(label(peer)).element,
      (shown, peer) => shown.peerRow.update(peer, { sent, units, position: position.get(label(peer)) ?? 0 }),
    );
  }

  #open(isOpen) {
    const { body, toggle } = this.#parts;
    show(body, isOpen);
    toggle.setAttribute("aria-expanded", String(isOpen));
    // Ended transfers are not sent with their picture.
    if (isOpen && !this.#detail && hasEnded(this.#transfer)) {
      calls.get(`api/transfers/${this.#transfer.transfer}`).then((detail) => this.updateDetail(detail), () => {});
    }
  }

  #change(action, body) {
    const done = { pause: "Paused", resume: "Resumed", cancel: "Cancelled", adjust: "Changed the limits of" }[action];
    const path = `api/transfers/${this.#transfer.transfer}/${action}`;
    const isFocused = document.activeElement === this.#parts[action];
    const changed = calls.post(path, body).then((transfer) => {
      this.update(transfer);
      // The button of the opposite takes the place of one that disappears.
      if (isFocused) (this.#parts[{ pause: "resume", resume: "pause" }[action]] ?? this.#parts.toggle).focus();
    });
    this.#actions.report(changed, `${done} ${this.#transfer.name}`);
    return changed;
  }

  async #cancel() {
    if (await this.#actions.confirmCancel(this.#transfer)) this.#change("cancel");
  }

  #adjust(event, limit, priority) {
    event.preventDefault();
    this.#change("adjust", { limit: limit.value.trim() || "0", priority: Number(priority.value) });
  }
}

function facts(transfer, done) {
  const facts = [];
  const { total, bytes } = transfer;
  if (transfer.state === "done") {
    facts.push(size(total ?? bytes));
    const received = bytes - transfer.resumed_bytes - transfer.copied_bytes;
    if (received > 0 && transfer.seconds >= 1) facts.push(`in ${duration(transfer.seconds)}`, rate(received / transfer.seconds));
    const peers = transfer.sources.filter((peer) => peer.bytes > 0).length;
    if (peers > 0) facts.push(`from ${count(peers, "peer")}`);
    return facts;
  }
  if (total !== null) facts.push(`${done} %`, `${size(bytes)} of ${size(total)}`);
  if (transfer.state === "running") {
    facts.push(rate(transfer.bytes_per_second));
    const left = total - bytes - transfer.unverified_bytes;
    if (transfer.bytes_per_second > 0) facts.push(`${duration(left / transfer.bytes_per_second)} left`);
    const peers = transfer.sources.filter((peer) => peer.bytes_per_second > 0).length;
    if (peers > 0) facts.push(count(peers, "peer"));
  }
  if (!hasEnded(transfer) && transfer.max_bytes_per_second > 0) facts.push(`limit ${rate(transfer.max_bytes_per_second)}`);
  if (transfer.chosen_files !== null) facts.push(`${transfer.chosen_files} of ${count(transfer.collection_files, "file")}`);
  return facts;
}

function swatch(colour) {
  const mark = el("span", { className: "swatch", "aria-hidden": "true" });
  mark.style.setProperty("--colour", `var(${colour})`);
  return mark;
}

/** The row of a peer, whose cells are kept. */
class PeerRow {
  constructor(address) {
    this.swatch = swatch("--cell-missing");
    this.labels = el("span", { className: "muted" });
    this.share = el("span", { className: "share" }, el("span"));
    this.texts = Object.fromEntries(["state", "part", "bytes", "rate", "has"].map((name) => [name, el("span")]));
    const { state, part, bytes, rate: speed, has } = this.texts;
    const [peer, ...others] = COLUMNS.map((column) => column.title);
    const contents = [state, [this.share, part], bytes, speed, has];
    this.element = row(
      peer,
      [this.swatch, foreign(address, "mono"), this.labels],
      ...contents.map((content, at) => cell(others[at], content, COLUMNS[at + 1].className)),
    );
    this.element.peerRow = this;
  }

  update(peer, { sent, units, position }) {
    const colour = position > 0 ? senderColour(position) : "--cell-missing";
    this.swatch.style.setProperty("--colour", `var(${colour})`);
    const { zone, rack } = peer.labels ?? {};
    setText(this.labels, [zone, rack].filter(Boolean).map((name) => ` ${name}`).join(""));
    const part = percent(peer.bytes, sent);
    this.share.firstChild.style.width = `${part}%`;
    this.share.firstChild.style.background = `var(${colour})`;
    setText(this.texts.state, peer.reason ? `${peer.state.replace("_", " ")}: ${peer.reason}` : peer.state.replace("_", " "));
    this.element.classList.toggle("bad", peer.state === "banned" || peer.state === "unreachable");
    setText(this.texts.part, `${part} %`);
    setText(this.texts.bytes, size(peer.bytes));
    setText(this.texts.rate, peer.bytes_per_second > 0 ? rate(peer.bytes_per_second) : "–");
    setText(this.texts.has, units > 0 ? `${percent(peer.units, units)} %` : "–");
  }
}
