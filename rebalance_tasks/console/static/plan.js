// One plan: what flows where, what it costs, why this move, why not this object, and starting it.
import { act, button, get, listen, problem } from "./api.js";
import { flowPicture } from "./charts.js";
import { badge, byId, bytes, card, count, draw, duration, h, isOperator, money, paged, pageName, percent, table, tile, when } from "./dom.js";

const plan = await get(`/plans/${pageName}`).catch((error) => {
  draw([h("h1", null, "Plan"), h("p", { class: "note" }, error.message)]);
  throw error;
});

async function start() {
  const job = await act({
    title: "Start this plan?",
    text: `${count(plan.moves)} objects, ${bytes(plan.estimated_egress_bytes)}, will move in the background. You can pause or cancel at any moment.`,
    yes: "Start",
    path: "/jobs",
    body: { plan_id: plan.plan_id },
  });
  if (job) location.assign(`/jobs/${job.job_id}`);
}

function budget({ what, option, used, limit }) {
  const share = limit === null ? 0 : Number(used) / Math.max(Number(limit), 1e-9);
  const shown = what === "egress" ? bytes : what === "cost" ? money : count;
  const text = limit === null ? `${shown(used)}, no limit` : `${shown(used)} of ${shown(limit)}`;
  const box = h("div", { class: "bar", role: "img", "aria-label": `${what}: ${text}`, "data-level": share >= 0.999 ? "above" : "inside", vars: { fill: Math.min(1, share) } }, h("span", { class: "fill" }));
  return h("li", null, h("span", null, what), box, h("span", { class: "size" }, text), h("code", { class: "muted" }, option));
}

// -- moves -----------------------------------------------------------------------------------------------------------
const search = h("input", { type: "search", id: "q", placeholder: "part of a key", maxlength: 1024 });
const pick = (id, side) => h("select", { id }, h("option", { value: "" }, "any"), [...new Set(plan.flows.map((flow) => flow[side]))].sort().map((name) => h("option", { value: name }, name)));
const source = pick("source", "source");
const target = pick("target", "target");
const moves = paged({
  label: "Moves",
  limit: 25,
  load: (offset, limit) => get(`/plans/${pageName}/moves`, { offset, limit, q: search.value, source: source.value, target: target.value }),
  draw: (items) =>
    items.length === 0 ? h("p", { class: "muted" }, plan.moves ? "No move matches." : "Nothing would move.") : table("Moves", [["object", "key"], ["from"], ["to"], ["size", "number"], ["gravity", "number"], ["cost", "number"], ["why this move", "wide"]], items.map((move) => [move.object_key, move.source_node, move.target_node, bytes(move.size_bytes), move.gravity.toFixed(2), money(move.cost), move.reason])),
});
let typing = 0;
search.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => moves.show(0).catch(problem), 150);
});
for (const select of [source, target]) select.addEventListener("change", () => moves.show(0).catch(problem));

// -- why (not) this object -------------------------------------------------------------------------------------------
const key = h("input", { id: "key", required: true, maxlength: 1024, placeholder: "photos/2024/cat.jpg", autocomplete: "off" });
const told = h("div", { role: "status" });
const ask = h("form", { class: "filters" }, h("label", { for: "key" }, "Object key"), key, h("button", null, "Explain"));
ask.addEventListener("submit", async (event) => {
  event.preventDefault();
  told.replaceChildren(h("p", { class: "muted" }, "Looking at the fleet …"));
  try {
    const found = await get(`/plans/${pageName}/explain`, { key: key.value });
    const way = found.moves ? `${found.node_id} → ${found.target_node}` : `stays on ${found.node_id}`;
    told.replaceChildren(h("p", { class: "note" }, badge(found.moves ? "moves" : "stays"), " ", h("strong", null, found.object_key), ` ${way}: `, found.sentence));
  } catch (error) {
    told.replaceChildren(h("p", { class: "problem" }, error.message));
  }
});

// Its rows are made when somebody opens it.
function pairs() {
  const rows = plan.flows.slice(0, 200).map((flow) => [flow.source, flow.target, count(flow.moves), bytes(flow.bytes)]);
  const box = h("details", null, h("summary", null, `The ${count(plan.flows.length)} pairs as a table`));
  const fillIn = () => box.append(table("Flows", [["from"], ["to"], ["moves", "number"], ["bytes", "number"]], rows));
  box.addEventListener("toggle", fillIn, { once: true });
  return box;
}

const left = Object.entries(plan.not_moved).sort((a, b) => b[1] - a[1]);
await draw([
  h("div", { class: "title" }, h("div", null, h("h1", null, "Plan"), h("p", { class: "muted" }, h("code", null, plan.plan_id), " made ", when(plan.created_utc))),
    isOperator && plan.moves > 0 && h("div", { class: "actions" }, button("Start this plan", { class: "primary" }, start))),
  plan.undo_of && h("p", { class: "note" }, "This plan takes job ", h("a", { href: `/jobs/${plan.undo_of}` }, plan.undo_of), " back."),
  h("dl", { class: "tiles" },
    tile("Imbalance", `${percent(plan.imbalance_before)} → ${percent(plan.imbalance_after)}`, "before → after"),
    tile("Moves", count(plan.moves), bytes(plan.estimated_egress_bytes)),
    tile("Cost", money(plan.estimated_cost), "for egress"),
    tile("Takes about", duration(plan.estimated_duration_seconds), "at the throttle"),
  ),
  plan.cannot.length > 0 && card("Why the target is out of reach", plan.cannot.map((reason) => h("p", { class: "note" }, reason))),
  plan.flows.length > 0 && (() => card("What flows where", flowPicture(plan.flows, byId("main").clientWidth - 82), pairs())),
  card("Budgets of a cycle", h("ul", { class: "budgets" }, plan.budgets.map(budget)), plan.limits_reached.length > 0 && h("p", { class: "note" }, "Bound by ", plan.limits_reached.join(", "), ": the next cycle goes on.")),
  card("Moves", h("div", { class: "filters" }, h("label", { for: "q" }, "Find"), search, h("label", { for: "source" }, "From"), source, h("label", { for: "target" }, "To"), target), moves.element),
  card("Why not this object?", h("p", { class: "muted" }, "Any object of the fleet: why it moves by this plan, or why it stays."), ask, told,
    left.length > 0 && table("Left where they are", [["left where they are, by reason"], ["objects", "number"]], left.map(([reason, n]) => [reason.replaceAll("_", " "), count(n)]))),
], () => moves.show());
listen({});
