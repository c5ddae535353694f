// The newest plans, and making one.
import { act, button, get, listen, problem } from "./api.js";
import { bytes, card, count, draw, h, isOperator, money, paged, percent, table, when } from "./dom.js";

const COLUMNS = [["plan"], ["made"], ["moves", "number"], ["bytes", "number"], ["cost", "number"], ["imbalance", "number"]];
const list = paged({
  label: "Plans",
  limit: 20,
  load: (offset, limit) => get("/plans", { offset, limit }),
  draw: (items) =>
    items.length
      ? table("Plans", COLUMNS, items.map((plan) => [h("a", { href: `/plans/${plan.plan_id}` }, plan.plan_id), when(plan.created_utc), count(plan.moves), bytes(plan.estimated_egress_bytes), money(plan.estimated_cost), `${percent(plan.imbalance_before)} → ${percent(plan.imbalance_after)}`]))
      : h("p", { class: "muted" }, "No plan is kept. A check makes one when the imbalance passes the threshold; they are kept for a week."),
});

async function make() {
  const plan = await act({ path: "/plans" });
  if (plan) location.assign(`/plans/${plan.plan_id}`);
}

await draw([
  h("div", { class: "title" }, h("h1", null, "Plans"), isOperator && h("div", { class: "actions" }, button("Make a plan", { class: "primary" }, make))),
  card("", h("p", { class: "muted" }, "A plan is a list of moves and what they achieve. Nothing has happened yet: it is started here, or by a check in mode auto."), list.element),
], () => list.show());
listen({ check: () => list.show().catch(problem), resync: () => list.show().catch(problem) });
