// Figures as text.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes, with three digits. */
export function size(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Bytes per second. */
export const rate = (bytesPerSecond) => `${size(bytesPerSecond)}/s`;

/** A rate as a person may write it; empty for no limit. */
export function editableRate(bytesPerSecond) {
  if (!bytesPerSecond) return "";
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  let value = bytesPerSecond;
  while (unit < units.length - 1 && value % 1024 === 0) {
    value /= 1024;
    unit += 1;
  }
  return `${value}${units[unit]}/s`;
}

/** Whole percent; 100 only if it is all. */
export const percent = (part, whole) => (whole > 0 ? Math.floor((part / whole) * 100) : 0);

/** `1 file`, `2 files`. */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** Seconds as `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** The first digits of an id. */
export const shortId = (id) => id.slice(0, 10);
