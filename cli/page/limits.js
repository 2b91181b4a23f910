// The limits of the peer.

import * as calls from "./calls.js";
import { editableRate } from "./format.js";

const form = document.getElementById("limits-form");
const fields = {
  download: document.getElementById("download-limit"),
  upload: document.getElementById("upload-limit"),
  slots: document.getElementById("slots"),
};

/** Enables the form; `report(promise, text)` shows the result. */
export function start(report) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const limits = {
      download: fields.download.value.trim() || "0",
      upload: fields.upload.value.trim() || "0",
      slots: Number(fields.slots.value || 0),
    };
    report(calls.post("api/limits", limits).then(fill), "Changed the limits");
  });
}

/** Shows the limits in force, unless somebody is changing them here. */
export function showLimits(limits) {
  if (!form.contains(document.activeElement)) fill(limits);
}

function fill(limits) {
  fields.download.value = editableRate(limits.download_bytes_per_second);
  fields.upload.value = editableRate(limits.upload_bytes_per_second);
  fields.slots.value = limits.upload_slots || "";
}
