// Pictures as inline SVG; each has a name for those who do not see it, and a table beside it on the page.
import { bytes, count, percent, s } from "./dom.js";

// Imbalance over time. points: [{at: Date, value}], oldest first.
export function history(points, threshold, room) {
  // Drawn at the width it gets, so that its letters are as large as those around it.
  const [width, height, left, bottom, top] = [Math.max(320, room), 190, 46, 24, 10];
  const most = Math.max(threshold * 1.3, ...points.map((p) => p.value), 0.01);
  const [first, last] = [points[0].at.getTime(), points.at(-1).at.getTime()];
  const x = (at) => left + ((width - left - 8) * (at - first)) / Math.max(1, last - first);
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const line = points.map((p, i) => `${i ? "L" : "M"}${x(p.at.getTime()).toFixed(1)} ${y(p.value).toFixed(1)}`).join("");
  const day = last - first > 86400000;
  const label = (at) => (day ? new Date(at).toLocaleDateString("en-GB") : new Date(at).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }));
  const ticks = [0, most / 2, most].map((value) => [
    s("line", { class: "grid", x1: left, x2: width, y1: y(value), y2: y(value) }),
    s("text", { class: "axis", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, percent(value, 0)),
  ]);
  const now = points.at(-1).value;
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Imbalance over ${points.length} checks, now ${percent(now)}, threshold ${percent(threshold)}` },
    ticks,
    s("line", { class: "threshold", x1: left, x2: width, y1: y(threshold), y2: y(threshold) }),
    s("text", { class: "axis strong", x: width - 4, y: y(threshold) - 5, "text-anchor": "end" }, `threshold ${percent(threshold, 0)}`),
    s("path", { class: "area", d: `${line}L${x(last).toFixed(1)} ${y(0)}L${left} ${y(0)}Z` }),
    s("path", { class: "line", d: line }),
    points.length <= 60 && points.map((p) => s("circle", { class: "point", cx: x(p.at.getTime()), cy: y(p.value), r: 3 }, s("title", null, `${p.at.toLocaleString("en-GB")}: ${percent(p.value)}`))),
    s("text", { class: "axis", x: left, y: height - 6 }, label(first)),
    last > first && s("text", { class: "axis", x: width - 4, y: height - 6, "text-anchor": "end" }, label(last)),
  );
}

// How many nodes are how full: counts in equal steps from 0 to 1, over the band inside which nodes are level.
export function spread(counts, [low, high], room) {
  const [width, height, left, bottom, top] = [Math.max(320, room), 130, 46, 22, 8];
  const most = Math.max(...counts, 1);
  const step = (width - left - 8) / counts.length;
  const x = (share) => left + (width - left - 8) * share;
  const y = (n) => top + (height - top - bottom) * (1 - n / most);
  const level = (i) => ((i + 0.5) / counts.length > high ? "above" : (i + 0.5) / counts.length < low ? "below" : "inside");
  const from = (i) => `${percent(i / counts.length, 0)} to ${percent((i + 1) / counts.length, 0)}`;
  const total = counts.reduce((sum, n) => sum + n, 0);
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `How full ${count(total)} nodes are: ${counts.map((n, i) => n && `${count(n)} from ${from(i)}`).filter(Boolean).join(", ")}` },
    s("rect", { class: "level", x: x(low), width: x(high) - x(low), y: top, height: height - top - bottom }),
    [0, most].map((n) => [s("line", { class: "grid", x1: left, x2: width - 8, y1: y(n), y2: y(n) }), s("text", { class: "axis", x: left - 6, y: y(n) + 4, "text-anchor": "end" }, count(n))]),
    counts.map((n, i) => n > 0 && s("rect", { class: `column ${level(i)}`, x: x(i / counts.length) + 1, width: step - 2, y: y(n), height: y(0) - y(n), rx: 2 }, s("title", null, `${count(n)} nodes from ${from(i)}`))),
    [0, 0.25, 0.5, 0.75, 1].map((share) => s("text", { class: "axis", x: x(share), y: height - 5, "text-anchor": share === 1 ? "end" : "middle" }, percent(share, 0))),
  );
}

// More nodes than these on a side are drawn as one: a picture of a thousand ribbons shows nothing.
const MOST = 12;

function sides(flows, side) {
  const sums = new Map();
  for (const flow of flows) sums.set(flow[side], (sums.get(flow[side]) ?? 0) + flow.bytes);
  const order = [...sums].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  const shown = order.length > MOST ? order.slice(0, MOST - 1) : order;
  const rest = order.slice(shown.length);
  const names = new Map(shown.map(([name]) => [name, name]));
  const other = `${count(rest.length)} more`;
  for (const [name] of rest) names.set(name, other);
  const bars = shown.map(([name, size]) => ({ name, size }));
  if (rest.length) bars.push({ name: other, size: rest.reduce((sum, [, size]) => sum + size, 0) });
  return { names, bars };
}

// A name in so many letters: names of nodes mostly differ at their end.
function short(name, most) {
  const tail = Math.floor(most / 2);
  return name.length > most ? `${name.slice(0, most - 1 - tail)}…${name.slice(-tail)}` : name;
}

// Height of a bar's two lines of text: a thin bar gets the room that its words need.
const LABEL = 26;

function place(bars, height, gap) {
  const total = bars.reduce((sum, bar) => sum + bar.size, 0) || 1;
  const room = height - gap * (bars.length - 1);
  let y = 0;
  for (const bar of bars) {
    Object.assign(bar, { y, height: Math.max(2, (room * bar.size) / total), filled: 0 });
    y += Math.max(bar.height, LABEL) + gap;
  }
  return y - gap;
}

// Who gives how much to whom: sources at the left, targets at the right, ribbons as wide as their bytes.
export function flowPicture(flows, room) {
  const from = sides(flows, "source");
  const to = sides(flows, "target");
  const width = Math.max(320, room);
  const [gap, edge] = [14, width < 560 ? 96 : 150];
  const rows = Math.max(from.bars.length, to.bars.length);
  const wanted = Math.max(120, rows * 44);
  const height = Math.max(place(from.bars, wanted, gap), place(to.bars, wanted, gap)) + 8;
  const merged = new Map(); // source, newline (no name holds one), target -> bytes
  for (const flow of flows) {
    const key = `${from.names.get(flow.source)}\n${to.names.get(flow.target)}`;
    merged.set(key, (merged.get(key) ?? 0) + flow.bytes);
  }
  const total = flows.reduce((sum, flow) => sum + flow.bytes, 0) || 1;
  const ribbons = [...merged].map(([key, size]) => {
    const [source, target] = key.split("\n");
    const a = from.bars.find((bar) => bar.name === source);
    const b = to.bars.find((bar) => bar.name === target);
    const [thickA, thickB] = [(a.height * size) / a.size || 1, (b.height * size) / b.size || 1];
    const [x1, x2, y1, y2] = [edge + 12, width - edge - 12, 4 + a.y + a.filled, 4 + b.y + b.filled];
    a.filled += thickA;
    b.filled += thickB;
    const mid = (x1 + x2) / 2;
    const d = `M${x1} ${y1}C${mid} ${y1} ${mid} ${y2} ${x2} ${y2}V${y2 + thickB}C${mid} ${y2 + thickB} ${mid} ${y1 + thickA} ${x1} ${y1 + thickA}Z`;
    return s("path", { class: "ribbon", d }, s("title", null, `${source} → ${target}: ${bytes(size)}`));
  });
  const column = (bars, kind, x, textX, anchor) =>
    bars.map((bar) => [
      s("rect", { class: kind, x, y: 4 + bar.y, width: 12, height: bar.height, rx: 2 }),
      s("text", { class: "axis strong", x: textX, y: 4 + bar.y + Math.max(11, bar.height / 2 - 2), "text-anchor": anchor }, short(bar.name, Math.floor(edge / 9)), s("title", null, bar.name)),
      s("text", { class: "axis", x: textX, y: 4 + bar.y + Math.max(25, bar.height / 2 + 12), "text-anchor": anchor }, bytes(bar.size)),
    ]);
  return s(
    "svg",
    { class: "chart flow", viewBox: `0 0 ${width} ${Math.ceil(height + 18)}`, role: "img", "aria-label": `${bytes(total)} flow from ${from.names.size} nodes to ${to.names.size} nodes; the table below lists them` },
    ribbons,
    column(from.bars, "gives", edge, edge - 8, "end"),
    column(to.bars, "takes", width - edge - 12, width - edge + 8, "start"),
  );
}

// The last minutes of a rate, bytes a second.
export function spark(samples) {
  const [width, height] = [240, 40];
  const most = Math.max(...samples, 1);
  const step = width / Math.max(1, samples.length - 1);
  const line = samples.map((v, i) => `${i ? "L" : "M"}${(i * step).toFixed(1)} ${(height - 2 - (height - 6) * (v / most)).toFixed(1)}`).join("");
  return s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", preserveAspectRatio: "none" }, s("path", { class: "area", d: `${line}L${((samples.length - 1) * step).toFixed(1)} ${height}L0 ${height}Z` }), s("path", { class: "line", d: line }));
}
