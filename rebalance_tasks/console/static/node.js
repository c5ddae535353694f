// One node: its state, and draining or activating it after a look at what fits.
import { act, button, get, listen, problem } from "./api.js";
import { badge, bytes, card, count, draw, h, isOperator, money, pageName, percent, table, tile } from "./dom.js";

const base = `/nodes/${pageName}`;
let node = await get(base).catch((error) => {
  draw([h("h1", null, "Node"), h("p", { class: "note" }, error.message)]);
  throw error;
});
const heading = h("div");
const facts = h("div");
const actions = h("div", { class: "actions" });
const outcome = h("div", { class: "stack", role: "status" });

function drawNode() {
  const words = [node.state, node.status !== "ok" && node.status !== node.state && node.status, ...node.held_by.map((who) => `held: ${who}`)];
  heading.replaceChildren(h("h1", null, node.node_id, " ", words.filter(Boolean).map(badge)), h("p", { class: "muted" }, node.url));
  const place = [["zone", node.zone], ["rack", node.rack], ["host", node.host], ["region", node.region], ["pool", node.pool]].filter(([, value]) => value);
  facts.replaceChildren(
    node.detail ? h("p", { class: "note" }, node.detail) : "",
    h("dl", { class: "tiles" },
      tile("Utilisation", percent(node.utilisation), `${bytes(node.used_bytes)} of ${bytes(node.capacity_bytes)}`),
      tile("In the trash", bytes(node.awaiting_bytes), "freed, not yet purged"),
      tile("Place", `${place[0][0]} ${place[0][1]}`, place.slice(1).map(([name, value]) => `${name} ${value}`).join(", ")),
    ),
  );
  if (!isOperator) return;
  const held = node.held_by.includes("operator");
  actions.replaceChildren(
    ...[
      node.state !== "active" && button("Activate", { class: "primary" }, activate),
      node.state !== "maintenance" && button("Maintenance", null, () => change("maintenance", [`Take ${pageName} into maintenance?`, "It neither gives nor takes, and checks do not look at it.", "Take it into maintenance"], `${pageName} is in maintenance.`)),
      held ? button("Resume the node", null, () => change("resume", null, `${pageName} is let go.`)) : button("Pause the node", null, () => change("pause", null, `${pageName} is paused: its groups wait.`)),
    ].filter(Boolean),
  );
}

async function change(verb, question, done, body) {
  const [title, text, yes] = question ?? [];
  if (await act({ title, text, yes, path: `${base}/${verb}`, body, done })) await refresh();
}

async function activate() {
  const done = `${pageName} gives and takes again.`;
  const { fits, check } = await get(`${base}/activation-check`);
  if (fits) return change("activate", null, done);
  const why = check.blocked.map((entry) => `${entry.reason.replaceAll("_", " ")} (${bytes(entry.bytes)})`).join(", ");
  const text = `It holds ${bytes(check.bytes)} of ${bytes(check.capacity_bytes)}; what is too much fits nowhere else: ${why}.`;
  return change("activate", [`Activate ${pageName} although not everything fits?`, text, "Activate the node"], done, { force: true });
}

async function refresh() {
  node = await get(base);
  drawNode();
}

const held = (title, items) =>
  items.length > 0 && table(title, [[title], ["objects", "number"], ["bytes", "number"], ["for example", "key"]], items.map((entry) => [entry.reason.replaceAll("_", " "), count(entry.objects), bytes(entry.bytes), entry.example]));

async function preCheck() {
  outcome.replaceChildren(h("p", { class: "muted" }, "Looking at the fleet …"));
  let found;
  try {
    found = await get(`${base}/drain-check`);
  } catch (error) {
    outcome.replaceChildren(h("p", { class: "problem" }, error.message));
    return;
  }
  const check = found.check;
  const drain = (force) =>
    change("drain", [force ? `Drain what fits of ${pageName}?` : `Drain ${pageName}?`, `${count(check.fits_objects)} objects, ${bytes(check.fits_bytes)}, leave it with the next checks. The node takes nothing any more.`, "Drain the node"], `${pageName} is draining.`, { force });
  outcome.replaceChildren(
    h("p", { class: "note" }, badge(found.fits ? "fits" : "does_not_fit"), " ", found.fits ? "Everything on this node finds a place elsewhere." : "Not everything on this node finds a place elsewhere."),
    h("dl", { class: "tiles" },
      tile("Holds", count(check.objects), bytes(check.bytes)),
      tile("Fits elsewhere", count(check.fits_objects), bytes(check.fits_bytes)),
      tile("Room in the pool", bytes(check.room_bytes), `pool ${check.pool}`),
      tile("Cost", money(check.cost), "for egress"),
      tile("Fewest cycles", check.fewest_cycles ?? "never", check.bound_by || ""),
    ),
    held("will not fit, because", check.blocked) || "",
    held("goes later, because", check.waits) || "",
    isOperator && node.state !== "draining" ? h("div", { class: "actions" }, button(found.fits ? "Drain the node" : "Drain what fits", { class: found.fits ? "primary" : "danger" }, () => drain(!found.fits))) : "",
  );
}

drawNode();
await draw([h("div", { class: "title" }, heading, actions), facts, card("Drain", h("p", { class: "muted" }, "A draining node only gives: the next checks plan its objects away. First see whether they fit elsewhere; that changes nothing."), button("Check what fits", null, preCheck), outcome)]);
let before = "";
listen({
  fleet(data) {
    const now = JSON.stringify([data.node_states, data.troubled_nodes]);
    if (before && now !== before) refresh().catch(problem);
    before = now;
  },
  usage(data) {
    if (!(pageName in data)) return;
    node.used_bytes = data[pageName];
    node.utilisation = node.capacity_bytes ? node.used_bytes / node.capacity_bytes : null;
    drawNode();
  },
  resync: () => refresh().catch(problem),
});
