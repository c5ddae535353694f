// The fleet: how full and how level, node by node and over time.
import { act, button, get, listen, problem } from "./api.js";
import { history, spread } from "./charts.js";
import { badge, bytes, card, count, draw, duration, h, isOperator, paged, percent, table, tile, when } from "./dom.js";

let fleet = await get("/fleet");
let job = null;
const rows = new Map(); // node id -> update(used)
const tiles = h("dl", { class: "tiles" });
const actions = h("div", { class: "actions" });
const news = h("div");
const chart = h("div");
const columns = h("div");
// Of fewer nodes the bars below tell as much.
const MANY = 20;

// A node inside this band differs from no other inside it by more than the threshold.
const band = () => {
  const mean = fleet.utilisation ?? 0;
  return [Math.max(0, mean - fleet.imbalance_threshold / 2), Math.min(1, mean + fleet.imbalance_threshold / 2)];
};

function level(share) {
  const [low, high] = band();
  if (share === null) return ["none", "capacity unknown"];
  if (share > high) return ["above", "above the band"];
  return share < low ? ["below", "below the band"] : ["inside", "inside the band"];
}
const MARK = { above: "▲", below: "▼", inside: "", none: "" };

function drawTiles() {
  const over = fleet.imbalance !== null && fleet.imbalance > fleet.imbalance_threshold;
  const states = Object.entries(fleet.node_states).filter(([, n]) => n).map(([word, n]) => `${count(n)} ${word}`);
  if (fleet.troubled_nodes.length) states.push(`${fleet.troubled_nodes.length} in trouble`);
  tiles.replaceChildren(
    tile("Imbalance", percent(fleet.imbalance), `threshold ${percent(fleet.imbalance_threshold, 0)}`, { "data-level": fleet.imbalance === null ? null : over ? "above" : "inside" }),
    tile("Used", bytes(fleet.used_bytes), `${percent(fleet.utilisation)} of ${bytes(fleet.capacity_bytes)}`),
    tile("Nodes", count(fleet.nodes), states.join(", "), { "data-level": fleet.troubled_nodes.length ? "above" : "" }),
    jobTile(),
  );
  const paused = fleet.paused_reasons.length > 0;
  const kids = [];
  if (isOperator) {
    kids.push(
      button("Check now", { class: "primary" }, checkNow),
      paused
        ? button("Resume the fleet", null, () => act({ path: "/fleet/resume", done: "The fleet goes on." }))
        : button("Pause the fleet", null, () =>
            act({ title: "Pause the whole fleet?", text: "The running job stops within 100 ms, and no check or job starts until you resume.", yes: "Pause the fleet", path: "/fleet/pause", done: "The fleet is paused." }),
          ),
    );
  }
  if (paused) kids.push(h("span", { class: "muted" }, "paused by ", fleet.paused_reasons.join(", ")));
  // Not while somebody's focus is in there: it would be lost.
  if (!actions.contains(document.activeElement)) actions.replaceChildren(...kids);
}

function drawSpread() {
  if (fleet.nodes >= MANY) columns.replaceChildren(spread(fleet.histogram, band(), columns.clientWidth));
}

function jobTile() {
  const active = fleet.active_job;
  if (!active) return tile("Job", "none", "nothing moves");
  if (!job || job.job_id !== active) return tile("Job", h("a", { href: `/jobs/${active}` }, "running"), active);
  const done = job.total_moves ? (job.completed_moves + job.failed_moves + job.skipped_moves) / job.total_moves : 0;
  const note = job.status === "running" ? `${bytes(job.throughput)}/s, ${duration(job.eta)} left` : job.paused_reasons.join(", ");
  return tile("Job", h("a", { href: `/jobs/${active}` }, `${job.status} ${percent(done, 0)}`), note);
}

async function checkNow() {
  const result = await act({ path: "/checks", body: { force: false } });
  if (!result) return;
  const link = result.plan_id && [" ", h("a", { href: `/plans/${result.plan_id}` }, "Look at the plan")];
  news.replaceChildren(h("p", { class: "note" }, h("strong", null, result.verdict), `: ${result.reason}`, link || ""));
  await refresh();
}

function bar(node) {
  const fillBar = h("span", { class: "fill" });
  const box = h("div", { class: "bar", role: "img" }, h("span", { class: "band" }), fillBar);
  const share = h("span", { class: "share" });
  const used = h("span", { class: "muted size" });
  const update = (bytesUsed) => {
    const [low, high] = band();
    const value = node.capacity_bytes ? bytesUsed / node.capacity_bytes : null;
    const [word, told] = level(value);
    for (const [key, v] of Object.entries({ from: low, width: high - low, fill: Math.min(1, value ?? 0) })) box.style.setProperty(`--${key}`, v);
    box.dataset.level = word;
    box.setAttribute("aria-label", `${node.node_id}: ${percent(value)}, ${told}`);
    share.textContent = `${percent(value)} ${MARK[word]}`;
    used.textContent = `${bytes(bytesUsed)} of ${bytes(node.capacity_bytes)}`;
  };
  update(node.used_bytes);
  rows.set(node.node_id, update);
  return [box, share, used];
}

function nodeRow(node) {
  const words = [node.state !== "active" && node.state, node.status !== "ok" && node.status !== node.state && node.status, ...node.held_by.map((who) => `held: ${who}`)];
  return h(
    "li",
    { class: "node" },
    h("a", { href: `/nodes/${node.node_id}`, title: node.detail || node.url }, node.node_id),
    ...bar(node),
    h("span", { class: "words" }, words.filter(Boolean).map(badge)),
  );
}

function drawNodes(items) {
  rows.clear();
  if (!items.length) return h("p", { class: "muted" }, "No node matches.");
  if (sort.value !== "place") return h("ul", { class: "nodes" }, items.map(nodeRow));
  const places = new Map();
  for (const node of items) {
    const where = [node.pool !== "default" && `pool ${node.pool}`, node.zone && `zone ${node.zone}`, node.rack && `rack ${node.rack}`].filter(Boolean).join(" · ") || "no zone";
    places.set(where, [...(places.get(where) ?? []), node]);
  }
  return h("div", null, [...places].map(([where, nodes]) => h("div", { class: "place" }, h("h3", null, where), h("ul", { class: "nodes" }, nodes.map(nodeRow)))));
}

async function drawChecks() {
  const { items } = await get("/checks", { limit: 200 });
  const points = items.filter((check) => check.imbalance !== null).map((check) => ({ at: new Date(check.at), value: check.imbalance })).reverse();
  if (points.length < 2) chart.replaceChildren(h("p", { class: "muted" }, "The curve begins with the second check."));
  else chart.replaceChildren(history(points, fleet.imbalance_threshold, chart.clientWidth));
  if (!items.length) return;
  chart.append(
    h("details", { open: points.length < 2 }, h("summary", null, "The last checks"),
      table("Checks", [["when"], ["verdict"], ["imbalance", "number"], ["why", "wide"], ["plan"]], items.slice(0, 20).map((c) => [when(c.at), badge(c.verdict), percent(c.imbalance), c.reason, c.plan_id && h("a", { href: `/plans/${c.plan_id}` }, "plan")]))),
  );
}

const search = h("input", { type: "search", id: "q", placeholder: "id, zone, rack, state …", maxlength: 128 });
const sort = h("select", { id: "sort" }, [["place", "by zone and rack"], ["fullest", "fullest first"], ["emptiest", "emptiest first"], ["name", "by name"]].map(([value, text]) => h("option", { value }, text)));
const nodes = paged({
  label: "Nodes",
  limit: 100,
  load: (offset, limit) => get("/nodes", { offset, limit, q: search.value, sort: sort.value }),
  draw: drawNodes,
});
let typing = 0;
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => nodes.show(0).catch(problem), 150);
});
sort.addEventListener("change", () => nodes.show(0).catch(problem));

async function refresh() {
  fleet = await get("/fleet");
  drawTiles();
  drawSpread();
  await Promise.all([nodes.show(), drawChecks()]);
}

drawTiles();
await draw([
  h("div", { class: "title" }, h("h1", null, "Fleet"), actions),
  news,
  !fleet.surveyed && h("p", { class: "note" }, "Nobody has looked at this fleet yet, so its nodes seem empty. ", isOperator ? "“Check now” surveys it." : "The first check surveys it."),
  tiles,
  card("Utilisation", h("p", { class: "muted" }, h("span", { class: "swatch band" }), ` The band around the mean, as wide as the threshold (${percent(fleet.imbalance_threshold, 0)}): nodes inside it are level. ▲ above, ▼ below.`),
    columns,
    h("div", { class: "filters" }, h("label", { for: "q" }, "Find"), search, h("label", { for: "sort" }, "Order"), sort), nodes.element),
  card("Imbalance over time", chart),
], () => (drawSpread(), Promise.all([nodes.show(), drawChecks()])));

const shape = (value) => JSON.stringify([value.node_states, value.troubled_nodes, value.nodes, value.surveyed]);
listen({
  fleet(data) {
    const changed = shape(data) !== shape(fleet);
    fleet = data;
    drawTiles();
    drawSpread();
    if (changed) nodes.show().catch(problem);
  },
  usage(data) {
    for (const [node, used] of Object.entries(data)) rows.get(node)?.(used);
  },
  job(data) {
    job = data;
    drawTiles();
  },
  check: () => drawChecks().catch(problem),
  resync: () => refresh().catch(problem),
});
