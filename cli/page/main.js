// Puts the page together: sections, events, and messages.

import { follow } from "./calls.js";
import { setText, show } from "./dom.js";
import * as downloads from "./downloads.js";
import * as find from "./find.js";
import * as library from "./library.js";
import * as limits from "./limits.js";
import * as network from "./network.js";
import * as overview from "./overview.js";
import * as peers from "./peers.js";

const SECTIONS = ["downloads", "find", "library", "network", "limits"];
const TOAST_TIME = 6000;

const byId = (id) => document.getElementById(id);
const banner = byId("banner");
const toast = byId("toast");
let toastTimer = 0;

/** Shows a message for a few seconds; screen readers read it out. */
function announce(text, isProblem = false) {
  setText(toast, text);
  toast.classList.toggle("bad", isProblem);
  toast.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.classList.remove("shown"), TOAST_TIME);
}

/** Announces the result of an action. */
function report(promise, done) {
  promise.then(() => announce(done), (error) => announce(error.message, true));
}

/** Asks before bytes are removed. */
function confirmCancel(transfer) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), "Cancel this download?");
  setText(byId("confirm-text"), `The downloaded bytes of ${transfer.name} are removed.`);
  return new Promise((resolve) => {
    const controller = new AbortController();
    const close = (answer) => {
      controller.abort();
      dialog.close();
      resolve(answer);
    };
    const listen = (target, event, answer) => target.addEventListener(event, () => close(answer), { signal: controller.signal });
    listen(byId("confirm-yes"), "click", true);
    listen(byId("confirm-no"), "click", false);
    listen(dialog, "cancel", false);
    dialog.showModal();
    byId("confirm-no").focus();
  });
}

/** Shows the section that the address names. */
function showSection(hasNavigated) {
  const wanted = location.hash.slice(1);
  const current = SECTIONS.includes(wanted) ? wanted : SECTIONS[0];
  for (const name of SECTIONS) {
    show(byId(name), name === current);
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  library.setVisible(current === "library");
  peers.setVisible(current === "network");
  if (current === "find") find.firstShown();
  if (hasNavigated) {
    byId(`${current}-title`).focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

let isConnected = true;
let problem = null;

function showBanner() {
  const text = isConnected ? problem?.message : "The connection to potluck ui is lost. If it was stopped, run it again and open the new link.";
  setText(banner, text ?? "");
  show(banner, Boolean(text));
  document.body.classList.toggle("stale", Boolean(text));
}

/** The transfers by their numbers, and the numbers, newest first. */
const summaries = new Map();
let numbers = null;
let isSoon = false;

/** Shows the transfers once for all events that have arrived. */
function showTransfersSoon() {
  if (isSoon) return;
  isSoon = true;
  setTimeout(() => {
    isSoon = false;
    if (numbers === null) return;
    for (const number of summaries.keys()) if (!numbers.includes(number)) summaries.delete(number);
    const transfers = numbers.map((number) => summaries.get(number)).filter(Boolean);
    overview.showRates(transfers);
    downloads.showTransfers(transfers, actions);
  });
}

const actions = { announce, report, confirmCancel };
find.start(report);
library.start();
peers.start();
limits.start(report);
addEventListener("hashchange", () => showSection(true));
showSection(false);

follow({
  peer(peer) {
    setText(byId("identity"), peer.listening ?? "only downloads");
    overview.showPeer(peer);
    network.showPeer(peer);
    library.showPeer(peer);
    peers.showPeer(peer);
  },
  limits: limits.showLimits,
  summary(transfer) {
    summaries.set(transfer.transfer, transfer);
    showTransfersSoon();
  },
  transfers(inOrder) {
    numbers = inOrder;
    showTransfersSoon();
  },
  transfer: downloads.showDetail,
  index(index) {
    overview.showIndex(index);
    network.showIndex(index);
  },
  problem(current) {
    problem = current;
    showBanner();
  },
  connection(isUp) {
    isConnected = isUp;
    showBanner();
  },
});
