// One job: how far, how fast, what failed and why, what happened; and pause, resume, cancel, retry.
import { act, button, get, listen, problem } from "./api.js";
import { spark } from "./charts.js";
import { badge, bytes, card, count, draw, duration, h, isOperator, pageName, percent, table, tile, when } from "./dom.js";

let job = await get(`/jobs/${pageName}`).catch((error) => {
  draw([h("h1", null, "Job"), h("p", { class: "note" }, error.message)]);
  throw error;
});
const rates = [];
const parts = Object.fromEntries(["heading", "actions", "notes", "progress", "tiles", "rate", "failures", "timeline"].map((name) => [name, h("div", { class: name })]));
const base = `/jobs/${pageName}`;

const VERBS = {
  pause: () => button("Pause", null, () => act({ path: `${base}/pause`, done: "Paused: no byte moves." })),
  resume: () => button("Resume", { class: "primary" }, () => act({ path: `${base}/resume`, done: "Resumed." })),
  cancel: () =>
    button("Cancel", { class: "danger" }, () =>
      act({ title: "Cancel this job?", text: "What has been moved stays where it is now; half-made copies are removed; the rest counts as skipped. A cancelled job cannot go on.", yes: "Cancel the job", path: `${base}/cancel`, done: "Cancel asked for: what is in flight is being wound up." }),
    ),
  retry: (skipped) =>
    button(skipped ? "Retry what was skipped" : "Retry what failed", null, async () => {
      const made = await act({ title: "Start a retry?", text: `A new job tries ${skipped ? "the moves that failed, or were skipped for a cause that passes," : "the moves that failed"} once more. This job stays as it ended.`, yes: "Retry", path: `${base}/retry`, body: { skipped } });
      if (made) location.assign(`/jobs/${made.job_id}`);
    }),
};

let verbsShown = "";
function drawActions() {
  const verbs = [];
  if (isOperator && !job.terminal && !job.cancel_requested) {
    verbs.push(job.paused_reasons.includes("operator") ? "resume" : "pause", "cancel");
  }
  if (isOperator && job.terminal) {
    if (job.failed_moves) verbs.push("retry");
    if (job.skipped_moves) verbs.push("retry-skipped");
  }
  if (String(verbs) === verbsShown) return;
  verbsShown = String(verbs);
  const had = parts.actions.contains(document.activeElement);
  parts.actions.replaceChildren(...verbs.map((verb) => (verb === "retry-skipped" ? VERBS.retry(true) : VERBS[verb](false))));
  if (had) parts.actions.querySelector("button")?.focus();
}

function drawProgress() {
  const total = job.total_moves || 1;
  const done = (job.completed_moves + job.failed_moves + job.skipped_moves) / total;
  const pieces = [["completed", job.completed_moves], ["failed", job.failed_moves], ["skipped", job.skipped_moves]];
  const text = job.total_moves ? `${percent(done)} done` : "nothing to do";
  parts.progress.replaceChildren(
    h("div", { class: "progress", role: "progressbar", "aria-label": "Moves done", "aria-valuemin": 0, "aria-valuemax": job.total_moves, "aria-valuenow": Math.round(done * job.total_moves), "aria-valuetext": text },
      pieces.map(([word, n]) => n > 0 && h("span", { "data-word": word, vars: { part: n / total } }))),
    h("p", { class: "legend" }, h("strong", null, text), pieces.map(([word, n]) => h("span", null, h("i", { class: "swatch", "data-word": word }), ` ${count(n)} ${word}`)), h("span", { class: "muted" }, `of ${count(job.total_moves)}`)),
  );
}

function drawJob() {
  parts.heading.replaceChildren(h("h1", null, "Job ", badge(job.status)), h("p", { class: "muted" }, h("code", null, job.job_id), " by ", job.requested_by || "unknown", ", plan ", h("a", { href: `/plans/${job.plan_id}` }, job.plan_id)));
  const notes = [];
  if (job.paused_reasons.length) notes.push(`Paused by ${job.paused_reasons.join(", ")}.`);
  if (job.cancel_requested && !job.terminal) notes.push("A cancel was asked for; what is in flight is being wound up.");
  for (const [node, groups] of Object.entries(job.held_groups)) notes.push(`${groups} groups wait for ${node}.`);
  if (job.error) notes.push(job.error);
  parts.notes.replaceChildren(...notes.map((text) => h("p", { class: "note" }, text)));
  drawActions();
  drawProgress();
  parts.tiles.replaceChildren(
    h("dl", { class: "tiles" },
      tile("Rate", `${bytes(job.throughput)}/s`, job.terminal ? "over the whole run" : "of the last minute"),
      tile("Time left", job.terminal ? "–" : duration(job.eta), job.started_utc ? ["since ", when(job.started_utc)] : "not started"),
      tile("Bytes", bytes(job.bytes_moved), `of ${bytes(job.total_bytes)}`),
      tile("Groups", `${job.groups_done} of ${job.groups_total}`, "source → target pairs"),
      tile("Imbalance", `${percent(job.imbalance_before)} → ${percent(job.imbalance_after)}`, "before → after"),
    ),
  );
  if (job.status === "running") {
    rates.push(job.throughput);
    if (rates.length > 300) rates.shift();
  }
  if (rates.length > 1) parts.rate.replaceChildren(spark(rates), h("p", { class: "muted" }, h("small", null, "The rate since this page was opened.")));
}

let failuresShown = null;
async function drawFailures() {
  const now = JSON.stringify(job.failures);
  if (now === failuresShown) return;
  failuresShown = now;
  const { items } = await get(`${base}/failures`);
  parts.failures.replaceChildren(
    items.length
      ? table("Failed or skipped, by cause", [["cause"], ["moves", "number"], ["for example", "key"], ["what to do", "wide"]], items.map((group) => [badge(group.cause), count(group.moves), [group.object_key, group.detail && h("small", { class: "muted block" }, group.detail)], group.hint]))
      : h("p", { class: "muted" }, "Nothing failed."),
  );
}

async function drawTimeline() {
  const { items } = await get(`${base}/timeline`);
  parts.timeline.replaceChildren(h("ol", { class: "events" }, items.map((entry) => h("li", null, when(entry.at), h("span", null, badge(entry.what), " ", entry.text)))));
}

drawJob();
await draw([
  h("div", { class: "title" }, parts.heading, parts.actions),
  parts.notes,
  h("section", { class: "card" }, h("h2", null, "Progress"), parts.progress, parts.tiles, parts.rate),
  card("Failures by cause", parts.failures),
  card("Timeline", parts.timeline),
], () => Promise.all([drawFailures(), drawTimeline()]));

async function refresh() {
  job = await get(base);
  drawJob();
  await Promise.all([drawFailures(), drawTimeline()]);
}

listen({
  job(data) {
    if (data.job_id !== pageName) return;
    const begun = data.started_utc && !job.started_utc;
    job = data;
    drawJob();
    drawFailures().catch(problem);
    if (begun) drawTimeline().catch(problem); // the one step that is no event
  },
  open: () => drawTimeline().catch(problem), // what happened since it was drawn
  timeline: (data) => data.job_id === pageName && drawTimeline().catch(problem),
  resync: () => refresh().catch(problem),
});
