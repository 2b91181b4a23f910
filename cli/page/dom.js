// Builds elements. Text is always text, never markup: nothing here parses HTML.

/** An element with properties, attributes (keys with a dash, or `role`), and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.includes("-") || ["role", "for", "colspan", "scope"].includes(key)) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Changes the text only if it differs, so that selections and screen readers are left alone. */
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

/** Hides or shows an element. */
export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

/**
 * Makes the children of `parent` follow `items`: the child of an item is created once and updated
 * later, so that its focus and state stay.
 */
export function keyed(parent, items, keyOf, create, update) {
  const known = (parent.keyedChildren ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of known) {
    if (!wanted.has(key)) {
      child.remove();
      known.delete(key);
    }
  }
  let next = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    if (!child) {
      child = create(item);
      known.set(key, child);
    }
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
    update(child, item);
  }
}

/** A name or path of others: isolated, so that it cannot reorder the text around it. */
export function foreign(text, className) {
  return el("bdi", { textContent: text, className: className ?? "" });
}

/**
 * A table with these column titles; returns the wrapper and the body. The roles stay when a phone
 * shows the rows as blocks.
 */
export function table(caption, columns) {
  const head = columns.map(({ title, className }) => el("th", { scope: "col", role: "columnheader", className: className ?? "" }, title));
  const body = el("tbody", { role: "rowgroup" });
  const rows = [
    el("caption", { textContent: caption, className: "hidden-text" }),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)),
    body,
  ];
  return { wrapper: el("div", { className: "table" }, el("table", { role: "table" }, ...rows)), body };
}

/** A row, which begins with what it is about. */
export const row = (title, head, ...cells) =>
  el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader", "data-title": title }, ...[head].flat()), ...cells);

/** A cell; on a phone, its title is shown before its content. */
export const cell = (title, content, className = "") =>
  el("td", { role: "cell", className, "data-title": title }, ...[content].flat());
