// The figures at the top: rates with their last minute, the library, and the index.

import { el, setText } from "./dom.js";
import { count, rate, size } from "./format.js";

const SAMPLES = 60;
const WIDTH = 120;
const HEIGHT = 28;
const SVG = "http://www.w3.org/2000/svg";

/** A curve of the last rates. */
class Curve {
  #line;
  #area;
  #samples = [];

  constructor() {
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.#area = document.createElementNS(SVG, "path");
    this.#area.setAttribute("class", "area");
    this.#line = document.createElementNS(SVG, "path");
    this.#line.setAttribute("class", "line");
    this.element.append(this.#area, this.#line);
  }

  push(value) {
    this.#samples.push(value);
    if (this.#samples.length > SAMPLES) this.#samples.shift();
    const top = Math.max(...this.#samples, 1);
    const step = WIDTH / (SAMPLES - 1);
    const start = WIDTH - (this.#samples.length - 1) * step;
    const y = (sample) => (HEIGHT - 1.5 - (sample / top) * (HEIGHT - 3)).toFixed(1);
    const points = this.#samples.map((sample, at) => `${(start + at * step).toFixed(1)} ${y(sample)}`);
    const line = `M${points.join("L")}`;
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", `${line}L${WIDTH} ${HEIGHT}L${start.toFixed(1)} ${HEIGHT}Z`);
  }
}

/** A figure with its title. */
class Tile {
  constructor(title, curve) {
    this.curve = curve;
    this.figure = el("strong", { textContent: "–" });
    this.note = el("span", { className: "muted" });
    this.element = el("div", { className: "tile" }, el("span", { className: "muted", textContent: title }), this.figure, this.note, curve?.element);
  }

  set(figure, note = "") {
    setText(this.figure, figure);
    setText(this.note, note);
  }
}

const tiles = {
  download: new Tile("Download", new Curve()),
  upload: new Tile("Upload", new Curve()),
  library: new Tile("Library"),
  index: new Tile("Index"),
};
document.getElementById("overview").append(...Object.values(tiles).map((tile) => tile.element));

let downloadRate = 0;
let uploadRate = 0;
/** The bytes sent at the last report, and when it came. */
let last = null;

/** The rate of all transfers together. */
export function showRates(transfers) {
  downloadRate = transfers.reduce((sum, transfer) => sum + transfer.bytes_per_second, 0);
}

export function showPeer(peer) {
  const note = (peer.damaged_items > 0 && `${count(peer.damaged_items, "item")} damaged`) || size(peer.bytes);
  tiles.library.set(count(peer.files, "file"), note);
  const now = performance.now();
  // The bytes start again at 0 when the peer does.
  if (last) uploadRate = (Math.max(0, peer.uploaded_bytes - last.sent) * 1000) / (now - last.at);
  last = { sent: peer.uploaded_bytes, received: peer.downloaded_bytes, at: now };
}

export function showIndex(index) {
  if (index === null) tiles.index.set("none", "the peer runs without an index");
  else if (index.reachable) tiles.index.set(count(index.peers, "peer"), count(index.files, "file"));
  else tiles.index.set("down", "see Network");
}

// The curves have a sample for each second.
setInterval(() => {
  if (!last) return;
  tiles.download.curve.push(downloadRate);
  tiles.upload.curve.push(uploadRate);
  tiles.download.set(rate(downloadRate), `${size(last.received)} received`);
  tiles.upload.set(rate(uploadRate), `${size(last.sent)} sent`);
}, 1000);
