// Elements, numbers and times. Whatever comes from the fleet (keys, node names, reasons) is put in as text: markup in it is inert.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) element.style.setProperty(`--${key}`, v);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);
export const byId = (id) => document.getElementById(id);

export const isOperator = document.body.dataset.role === "operator";
export const pageName = document.body.dataset.name;

// -- words -----------------------------------------------------------------------------------------------------------
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  let size = Number(value);
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size < 10 && unit ? size.toFixed(1) : Math.round(size)} ${UNITS[unit]}`;
}

export const percent = (value, digits = 1) =>
  value === null || value === undefined ? "–" : `${(value * 100).toFixed(digits)}\u00a0%`;
export const count = (value) => Number(value).toLocaleString("en");
export const money = (value) => Number(value).toFixed(2);

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const total = Math.round(seconds);
  if (total < 60) return `${total} s`;
  const [hours, minutes] = [Math.floor(total / 3600), Math.floor((total % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${total % 60} s`;
}

export function when(text) {
  if (!text) return "–";
  const at = new Date(text);
  const sameDay = at.toDateString() === new Date().toDateString();
  const shown = sameDay ? at.toLocaleTimeString("en-GB") : at.toLocaleString("en-GB");
  return h("time", { datetime: text, title: at.toISOString() }, shown);
}

export const badge = (word) => h("span", { class: "badge", "data-word": word }, word.replaceAll("_", " "));

// -- pieces ----------------------------------------------------------------------------------------------------------
export const tile = (label, value, note, props) =>
  h("div", { class: "tile", ...props }, h("dt", null, label), h("dd", null, value, note && h("small", null, note)));

export const card = (title, ...children) =>
  h("section", { class: "card" }, title && h("h2", null, title), ...children);

export function table(caption, columns, rows) {
  const head = h("tr", null, columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)));
  const body = rows.map((row) => h("tr", null, row.map((cell, i) => h("td", { class: columns[i][1] }, cell ?? ""))));
  const made = h("table", null, h("caption", { class: "hidden" }, caption), h("thead", null, head), h("tbody", null, body));
  // A table that scrolls sideways has to be reachable by keyboard.
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

// A list of any length, a page at a time. load(offset, limit) -> {total, items}; draw(items) -> node.
export function paged({ label, limit = 50, load, draw }) {
  const body = h("div", { "aria-live": "off" });
  const where = h("span", { class: "muted", role: "status" });
  const back = h("button", { type: "button", onclick: () => show(offset - limit) }, "‹ Back");
  const next = h("button", { type: "button", onclick: () => show(offset + limit) }, "Next ›");
  const bar = h("nav", { class: "pager", "aria-label": `${label}, page by page` }, back, where, next);
  let offset = 0;
  async function show(start = offset) {
    const { total, items } = await load(Math.max(0, start), limit);
    if (start > 0 && !items.length && total) return show(0);
    offset = Math.max(0, start);
    body.replaceChildren(draw(items));
    back.disabled = offset === 0;
    next.disabled = offset + items.length >= total;
    where.textContent = total ? `${count(offset + 1)}–${count(offset + items.length)} of ${count(total)}` : "nothing";
    bar.hidden = total <= limit;
  }
  return { element: h("div", null, body, bar), show };
}

// Put a page's pieces in, and say that it is there once what they load is. A piece that takes long to make is a function:
// what stands before it is shown first, and a key or a click gets its turn.
export async function draw(pieces, loading) {
  const main = byId("main");
  main.replaceChildren();
  for (const piece of pieces.filter(Boolean)) {
    if (typeof piece === "function") await new Promise((turn) => setTimeout(turn));
    main.append(typeof piece === "function" ? piece() : piece);
  }
  await loading?.();
  main.setAttribute("aria-busy", "false");
}
