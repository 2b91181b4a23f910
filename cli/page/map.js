// The picture of a download: a cell for each piece, or for several, that fills as they are verified.
// The colour of a cell names the peer that sent it.

/** Colours of peers in style.css: `--peer-1` to `--peer-8`. */
const COLOURS = 8;

const GAP = 2;
const SMALLEST = 7;
const LARGEST = 16;
const HEIGHT = 150;

/** The custom property with the colour of the sender at this position, which counts from 1. */
export const senderColour = (position) => (position >= 1 && position <= COLOURS ? `--peer-${position}` : "--peer-other");

export class ContentMap {
  #canvas;
  #map = null;
  #columns = 1;
  #pitch = LARGEST;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#draw()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    canvas.addEventListener("pointermove", (event) => {
      const text = this.#describe(event.offsetX, event.offsetY);
      if (canvas.title !== text) canvas.title = text;
    });
  }

  /** Shows a map as the server sends it, and what it says in words. */
  show(map) {
    this.#map = map;
    this.#canvas.hidden = map.verified.length === 0;
    this.#canvas.setAttribute("aria-label", this.#summary());
    this.#draw();
  }

  #summary() {
    const { verified, in_flight: inFlight, providers, senders } = this.#map;
    const full = verified.filter((part) => part === 255).length;
    const moving = inFlight.filter(Boolean).length;
    const orphaned = providers.filter((peers, cell) => peers === 0 && verified[cell] < 255).length;
    const parts = [`Map of the content: ${full} of ${verified.length} parts verified`, `${moving} on the way`];
    if (orphaned > 0) parts.push(`${orphaned} that no connected peer has`);
    parts.push(`sent by ${senders.length} ${senders.length === 1 ? "peer" : "peers"}`);
    return parts.join(", ");
  }

  #describe(x, y) {
    const column = Math.floor(x / this.#pitch);
    const cell = Math.floor(y / this.#pitch) * this.#columns + column;
    const map = this.#map;
    if (!map || column >= this.#columns || cell >= map.verified.length) return "";
    const part = `Part ${cell + 1} of ${map.verified.length}: `;
    const sender = map.sender[cell];
    const from = sender === 0 ? "" : sender === 255 ? ", from another peer" : `, from ${map.senders[sender - 1]}`;
    if (map.verified[cell] === 255) return `${part}verified${from || ", before this run"}`;
    const state = map.in_flight[cell] ? "on the way" : "missing";
    const peers = map.providers[cell];
    return `${part}${Math.round((map.verified[cell] * 100) / 255)} % verified${from}; ${state}, ${peers} ${peers === 1 ? "peer has" : "peers have"} it`;
  }

  /** Sizes the cells so that all fit into the width, in as few rows as look well. */
  #lay(width, cells) {
    let pitch = LARGEST + GAP;
    const fits = (size) => Math.ceil(cells / Math.max(1, Math.floor((width + GAP) / size))) * size <= HEIGHT;
    while (pitch > SMALLEST && !fits(pitch)) pitch -= 1;
    this.#pitch = pitch;
    this.#columns = Math.max(1, Math.floor((width + GAP) / pitch));
    return Math.ceil(cells / this.#columns) * pitch - GAP;
  }

  #draw() {
    const map = this.#map;
    const width = this.#canvas.parentElement.clientWidth;
    if (!map || width === 0 || map.verified.length === 0) return;
    const height = this.#lay(width, map.verified.length);
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    // Setting the size clears the canvas.
    this.#canvas.width = w;
    this.#canvas.height = h;
    this.#canvas.style.height = `${height}px`;
    const context = this.#canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(this.#canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const [missing, orphaned, kept, moving] = ["--cell-missing", "--cell-orphaned", "--cell-kept", "--cell-moving"].map(colour);
    const senders = Array.from({ length: COLOURS + 2 }, (_, position) => (position === 0 ? kept : colour(senderColour(position))));
    const size = this.#pitch - GAP;
    map.verified.forEach((part, cell) => {
      const x = (cell % this.#columns) * this.#pitch;
      const y = Math.floor(cell / this.#columns) * this.#pitch;
      if (part < 255) {
        context.fillStyle = map.providers[cell] === 0 ? orphaned : missing;
        context.fillRect(x, y, size, size);
      }
      if (part > 0) {
        const filled = part === 255 ? size : Math.max(1, (size * part) / 255);
        context.fillStyle = senders[Math.min(map.sender[cell], COLOURS + 1)];
        context.fillRect(x, y + size - filled, size, filled);
      }
      if (map.in_flight[cell]) {
        context.strokeStyle = moving;
        context.lineWidth = 1.5;
        context.strokeRect(x + 0.75, y + 0.75, size - 1.5, size - 1.5);
      }
    });
  }
}
