// What must hold of every view of the page, for screen readers and for eyes. Returns the violations.

const violations = [];
const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
const name = (one) =>
  one.getAttribute("aria-label") || (one.labels?.[0]?.textContent ?? "") || (one.matches("button, a, summary") ? one.textContent : "");

if (document.documentElement.lang !== "en") violations.push("the page has no language");
if (shown.filter((one) => one.matches("h1")).length !== 1) violations.push("the page has not exactly one h1");
const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
if (new Set(ids).size !== ids.length) violations.push("an id is used twice");
let level = 0;
for (const heading of shown.filter((one) => one.matches("h1, h2, h3, h4"))) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) violations.push(`a heading is skipped before ${heading.textContent}`);
  level = next;
}
for (const one of shown.filter((it) => it.matches("button, a, input, summary, progress, [role=img]"))) {
  if (!name(one).trim()) violations.push(`no name: ${one.outerHTML.slice(0, 120)}`);
}
for (const one of shown.filter((it) => it.matches("img"))) if (!one.hasAttribute("alt")) violations.push("an image without alt");
for (const one of shown.filter((it) => it.tabIndex > 0)) violations.push(`the order of Tab is changed by ${one.outerHTML.slice(0, 80)}`);
if (document.documentElement.scrollWidth > innerWidth) violations.push(`wider than the window: ${document.documentElement.scrollWidth} > ${innerWidth}`);

// Contrast, as WCAG 2.2 defines it: 4.5 to 1 for text.
const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
const background = (one) => {
  for (let at = one; at; at = at.parentElement) {
    const [r, g, b, alpha = 1] = channels(getComputedStyle(at).backgroundColor);
    if (alpha === 1) return [r, g, b];
  }
  return [255, 255, 255];
};
const luminance = (colour) => {
  const [r, g, b] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
for (const one of shown) {
  const hasText = [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  if (!hasText || one.matches(":disabled, .hidden-text, .skip") || one.closest("#toast, .hidden-text")) continue;
  const [a, b] = [luminance(channels(getComputedStyle(one).color).slice(0, 3)), luminance(background(one))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) violations.push(`contrast ${contrast.toFixed(2)}: ${one.outerHTML.slice(0, 100)}`);
}
return violations;
