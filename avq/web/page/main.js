// The state received from the daemon, and the page that shows it.

import { $, calm, clock, count, ms, percent, render, span, text, unit } from "./dom.js";
import { follow } from "./live.js";
import * as panels from "./panels.js";
import { Pictures } from "./picture.js";
import { KEPT, STAGES, Strip, legend, percentile } from "./strip.js";

const EVENTS_KEPT = 200;
const CALM_MS = 1000;

const run = { boot: "", facts: {}, status: null, rows: [], events: [], up: null, lostAt: 0, heard: 0 };
let paused = false;
let drawnMs = 0;
let due = false;

const strip = new Strip();
const pictures = new Pictures(() => run.up && !paused && !document.hidden);
pictures.chosenChanged = () => draw();

const handlers = {
  hello(facts) {
    const again = run.boot && run.boot !== facts.boot;
    if (run.boot !== facts.boot) Object.assign(run, { rows: [], events: [], status: null });
    Object.assign(run, { boot: facts.boot, facts });
    if (again) run.events.push({ kind: "the daemon was restarted", at: Date.now() / 1000 });
    if (again) pictures.forget();
  },
  status(status) {
    run.status = status;
    run.heard = Date.now();
  },
  frames(rows) {
    const newest = run.rows.at(-1)?.i ?? 0;
    run.rows.push(...rows.filter((row) => row.i > newest));
    run.rows.splice(0, run.rows.length - 4 * KEPT);
  },
  events(list) {
    const known = new Set(run.events.map(key));
    run.events.push(...list.filter((event) => !known.has(key(event))));
    run.events.splice(0, run.events.length - EVENTS_KEPT);
  },
};
const key = (event) => `${event.kind} ${event.at} ${event.camera}`;

follow(
  (kind, data) => {
    handlers[kind](data);
    draw();
  },
  (up) => {
    run.up = up;
    if (!up) run.lostAt = Date.now() / 1000;
    draw(true);
  },
);

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  text("pause", paused ? "Paused" : "Pause");
  draw(true);
});
setInterval(() => !paused && draw(), 1000);

/** Draw with the next picture of the screen; once a second where motion is not wanted. */
function draw(now = false) {
  if (due || (paused && !now)) return;
  due = true;
  const wait = now || !calm.matches ? 0 : Math.max(0, drawnMs + CALM_MS - Date.now());
  setTimeout(() => requestAnimationFrame(show), wait);
}

function show() {
  due = false;
  drawnMs = Date.now();
  const { status, facts } = run;
  const [state, name, why] = stateOf(run);
  document.body.dataset.state = state;
  text("state", name);
  text("state-why", why);
  text("run-name", [facts.bundle?.name, facts.host].filter(Boolean).join(" on "));
  document.title = [name, facts.bundle?.name, "avq"].filter(Boolean).join(" · ");
  gone();
  if (!status) return;
  pictures.cameras(status.cameras.map((camera) => camera.id));
  const rows = run.rows.filter((row) => status.cameras.length < 2 || row.camera === pictures.chosen).slice(-KEPT);
  const ladder = facts.modes ?? [];
  text("uptime", span(status.uptime_s + (run.up ? (Date.now() - run.heard) / 1000 : 0)));
  const deadline = facts.deadlines_ms?.[pictures.chosen] ?? status.budget.deadline_ms ?? 0;
  figures(status, rows, ladder, deadline);
  strip.show(rows, deadline * 1000, ladder);
  legend($("strip-legend"), Object.keys(status.stages).length ? Object.keys(status.stages) : STAGES);
  text("strip-facts", rows.length ? `last ${count(rows.length)} frames${status.cameras.length > 1 ? ` of ${pictures.chosen}` : ""}` : "");
  panels.stages(rows, status);
  panels.frames(status.frames);
  panels.modes(ladder, status);
  panels.cameras(status.cameras);
  panels.sinks(status.sinks, status.viewers);
  panels.drift(status.drift);
  panels.shadow(status.shadow);
  panels.bundle(facts);
  panels.machine(facts, status.machine);
  panels.events(run.events);
  text("foot", `avq ${facts.version ?? ""} · run ${run.boot.slice(0, 8)} since ${new Date(facts.started * 1000).toLocaleString("en-GB")}`);
}

/** [state for the style sheet, its name, why] */
function stateOf({ up, status, facts }) {
  if (up === false) return ["gone", "Gone", "the daemon does not answer"];
  if (!status) return ["connecting", "Connecting", ""];
  const waits = status.reason;
  if (!status.ready && /over/.test(waits)) return ["over", "Over", waits];
  if (!status.ready && /opened|published yet/.test(waits)) return ["starting", "Starting", waits];
  if (!status.ready) return ["silent", "Silent", waits];
  if (status.alert) return ["alert", "Late", "more frames miss the deadline than tolerated"];
  const rung = (facts.modes ?? []).findIndex((mode) => mode.name === status.mode);
  if (rung > 0) return ["degraded", "Degraded", `cheaper work keeps the deadline: ${status.mode}`];
  return ["live", "Live", status.frames.misses ? "" : "every deadline kept"];
}

function gone() {
  const node = $("gone");
  node.hidden = run.up !== false;
  if (run.up !== false) return;
  text(node, run.status
    ? `The daemon has not answered since ${clock(run.lostAt)}. What you see is its last word; this page asks again every second.`
    : "No daemon answers here. This page asks again every second.");
}

function figures(status, rows, ladder, deadline) {
  const rung = ladder.findIndex((mode) => mode.name === status.mode);
  const since = status.changes.filter((change) => change.kind === "mode_changed").at(-1)?.at;
  figure("now-mode", status.mode || "–", rung > 0 ? "warn" : "", ladder.length > 1 ? `rung ${rung + 1} of ${ladder.length}${since ? ` since ${clock(since)}` : ""}` : "the only mode");
  const recent = rows.slice(-120).map((row) => row.age / 1000);
  const p99 = percentile(recent, 0.99);
  const tone = p99 > deadline ? "bad" : p99 > 0.8 * deadline ? "warn" : "";
  figure("now-age", recent.length ? unit(ms(p99), "ms") : "–", tone, deadline ? `of ${ms(deadline)} ms allowed, p50 ${ms(percentile(recent, 0.5))}` : "");
  const fps = status.cameras.reduce((sum, camera) => sum + camera.fps, 0);
  figure("now-fps", fps.toFixed(1), "", `${status.cameras.length === 1 ? "one camera" : `${status.cameras.length} cameras`}, ${count(status.frames.published)} so far`);
  const lateNow = rows.slice(-120).filter((row) => row.late).length;
  figure("now-late", count(status.frames.misses), status.alert ? "bad" : lateNow ? "warn" : "", `${percent(status.frames.misses, status.frames.published)} of all, ${lateNow} of the last ${Math.min(120, rows.length)}`);
}

function figure(id, value, tone, below) {
  const node = $(id);
  node.className = [id === "now-mode" ? "word" : "", tone].join(" ").trim();
  render(node, Array.isArray(value) ? value[0] : value, () => (Array.isArray(value) ? value : [value]));
  text(`${id}-sub`, below);
}
