// Jobs, newest first.
import { get, listen, problem } from "./api.js";
import { badge, bytes, card, count, draw, h, paged, percent, table, when } from "./dom.js";

const COLUMNS = [["job"], ["status"], ["asked for"], ["moved", "number"], ["failed", "number"], ["skipped", "number"], ["bytes", "number"], ["imbalance", "number"]];
const list = paged({
  label: "Jobs",
  limit: 25,
  load: (offset, limit) => get("/jobs", { offset, limit }),
  draw: (items) =>
    items.length
      ? table("Jobs", COLUMNS, items.map((job) => [h("a", { href: `/jobs/${job.job_id}` }, job.job_id), badge(job.status), when(job.created_utc), `${count(job.completed_moves)} of ${count(job.total_moves)}`, count(job.failed_moves), count(job.skipped_moves), bytes(job.bytes_moved), `${percent(job.imbalance_before)} → ${percent(job.imbalance_after)}`]))
      : h("p", { class: "muted" }, "No job yet. A job is a plan that was started."),
});
await draw([h("div", { class: "title" }, h("h1", null, "Jobs")), card("", list.element)], () => list.show());

let last = "";
listen({
  // Not at each step of a running job: only when one begins, ends or is held.
  job(job) {
    const now = `${job.job_id} ${job.status}`;
    if (now !== last) list.show().catch(problem);
    last = now;
  },
  resync: () => list.show().catch(problem),
});
