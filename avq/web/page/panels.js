// Everything that is words and numbers: one function per card.

import { $, clock, colour, count, el, ms, percent, render, span, text } from "./dom.js";
import { line, spark, stageClass } from "./strip.js";

const CAUSES = {
  superseded: "a newer frame was there first",
  stride: "left out by the mode",
  stopped: "waiting when the run ended",
  failed: "the engine or decoder failed",
  unreadable: "could not be read",
  repeated: "the camera repeated a picture",
  "no slot": "every buffer was in use",
};
const SHADES = ["var(--n2)", "var(--n3)", "var(--n1)", "var(--n4)"];

/** Fill the card's list, or say why it is empty. */
const empty = (words) => [el("p", { class: "empty" }, words)];

export function stages(rows, status) {
  const table = $("stages");
  const names = ["age", ...Object.keys(status.stages)];
  render(table, names, (all) =>
    all.map((name) =>
      el(
        "tr",
        { class: name === "age" ? "whole" : stageClass(name), "data-stage": name },
        el("th", { scope: "row", class: "swatch" }, name === "age" ? "total" : name),
        el("td", { class: "spark" }, el("canvas", { "aria-hidden": "true" })),
        el("td"),
        el("td"),
        el("td"),
      ),
    ),
  );
  for (const row of table.children) {
    const name = row.dataset.stage;
    const numbers = name === "age" ? status.age : status.stages[name];
    const [, , p50, p99, max] = row.children;
    text(p50, ms(numbers.p50_ms));
    text(p99, ms(numbers.p99_ms));
    text(max, ms(numbers.max_ms));
    const values = rows.map((one) => (name === "age" ? one.age : (one.stages[name] ?? 0)));
    const fill = colour(["queue", "preprocess", "infer", "decode"].includes(name) ? name : "accent");
    spark(row.querySelector("canvas"), values, rows.map((one) => one.late && name === "age"), fill);
  }
}

export function frames(books) {
  const dropped = Object.entries(books.dropped).filter(([, number]) => number > 0);
  const lost = dropped.reduce((sum, [, number]) => sum + number, 0);
  const kept = [["published", books.published, "var(--accent)", ""]];
  const rows = kept.concat(
    dropped.sort((a, b) => b[1] - a[1]).map(([cause, number], index) => [cause, number, SHADES[index % SHADES.length], CAUSES[cause] ?? ""]),
    [["in flight", books.in_flight, "var(--accent-soft)", "on their way now"]],
  );
  const balanced = books.captured === books.published + lost + books.in_flight;
  render($("frames-sum"), [books.captured, balanced], () => [
    `${count(books.captured)} captured`,
    balanced ? ", all accounted for" : el("b", { class: "bad-text" }, ", the books do not balance"),
  ]);
  render($("frames"), [rows, books.captured], () =>
    rows.map(([name, number, shade, why]) => {
      const head = el("th", { scope: "row", class: "swatch" }, name, why && el("small", {}, why));
      head.style.setProperty("--swatch", shade);
      return el("tr", {}, head, el("td", {}, count(number)), el("td", {}, percent(number, books.captured)));
    }),
  );
  bar($("frames-bar"), rows.map(([, number, shade]) => [number, shade]));
}

function bar(node, parts) {
  render(node, parts, () =>
    parts
      .filter(([number]) => number > 0)
      .map(([number, shade, title]) => {
        const part = el("i", { title });
        part.style.flexGrow = number;
        part.style.setProperty("--swatch", shade);
        return part;
      }),
  );
}

export function modes(ladder, status) {
  const total = Object.values(status.mode_frames).reduce((sum, number) => sum + number, 0);
  text("modes-facts", ladder.length > 1 ? `${ladder.length} on the ladder` : "no ladder: one mode");
  render($("ladder"), [ladder, status.mode, status.mode_frames], () =>
    ladder.map((mode, rung) => {
      const row = el(
        "li",
        { "aria-current": mode.name === status.mode ? "true" : null },
        el("span", { class: "rung" }, String(rung + 1)),
        el("b", {}, mode.name),
        el("span", { class: "value" }, `${percent(status.mode_frames[mode.name] ?? 0, total)} of frames`),
        el("span", { class: "sub" }, work(mode)),
      );
      row.style.setProperty("--tone-rung", rung ? "var(--warn)" : "var(--accent)");
      return row;
    }),
  );
  bar(
    $("modes-bar"),
    ladder.map((mode, rung) => [status.mode_frames[mode.name] ?? 0, rung ? "var(--warn-fill)" : "var(--accent)", mode.name]),
  );
  render($("changes"), status.changes, (changes) =>
    changes.length
      ? [...changes].reverse().map((change) => {
          const tone = change.kind === "alert_raised" ? "bad" : change.kind === "alert_cleared" ? "good" : "";
          const what = change.kind === "mode_changed" ? `${change.from} → ${change.mode}` : change.kind.replace("_", " ");
          return entry(change.at, what, change.reason, tone);
        })
      : [el("li", { class: "empty" }, "No change since the run began")],
  );
}

const work = (mode) =>
  [mode.engine, mode.precision, mode.input_px?.join(" × "), mode.stride > 1 && `one of ${mode.stride} frames`]
    .filter(Boolean)
    .join(" · ");

const entry = (at, what, why, tone) =>
  el(
    "li",
    { class: tone },
    el("time", { datetime: new Date(at * 1000).toISOString() }, clock(at)),
    el("b", {}, what),
    why && el("span", { class: "sub" }, why),
  );

const TONES = [
  [/dead|raised|failed|missed|rolled_back|refused|alarm/, "bad"],
  [/stalled|restarted|drift|mode_changed/, "warn"],
  [/resumed|cleared|swapped|recovered/, "good"],
];

export function events(list) {
  text("events-facts", list.length ? `last ${clock(list[list.length - 1].at)}` : "");
  render($("events"), list.slice(-100), (all) =>
    all.length
      ? [...all].reverse().map((event) => {
          const kind = String(event.kind ?? "event");
          const tone = TONES.find(([pattern]) => pattern.test(kind))?.[1] ?? "";
          const which = kind === "alert" ? ` ${event.alert}` : "";
          const where = event.camera ? ` · ${event.camera}` : "";
          return entry(event.at, kind.replaceAll("_", " ") + which + where, event.reason ?? rest(event), tone);
        })
      : [el("li", { class: "empty" }, "Nothing happened yet")],
  );
}

const rest = ({ kind, at, t_ns, camera, ...facts }) =>
  Object.entries(facts)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value))
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`)
    .join(", ");

export function cameras(list) {
  render($("cameras"), list, (all) =>
    all.map((camera) => {
      const silent = camera.silent_s > 2;
      const tone = !camera.running ? "idle" : silent || camera.silent_s === undefined ? "bad" : "";
      const now = !camera.running ? "ended" : camera.silent_s === undefined ? "no frame yet" : silent ? `silent for ${span(camera.silent_s)}` : `${camera.fps.toFixed(1)} per second`;
      return el(
        "li",
        {},
        el("span", { class: `dot ${tone}` }, camera.id),
        el("span", { class: "value" }, now),
        el("span", { class: "sub" }, camera.source),
        el("span", { class: "sub value" }, camera.misses === undefined ? "" : `${count(camera.misses)} late`),
      );
    }),
  );
}

/** What a sink tells of itself, in words; what is zero is not worth one. */
const NUMBERS = {
  waiting: "waiting for the broker",
  unsaved: "not on disk",
  dropped: "given up",
  lost: "lost",
  deleted: "old files deleted",
};

function sinkState(sink) {
  const notes = Object.entries(NUMBERS).filter(([name]) => sink[name] > 0).map(([name, words]) => `${count(sink[name])} ${words}`);
  if (sink.queued > 0) notes.unshift(`${count(sink.queued)} queued`);
  if (sink.connected === 0) notes.unshift("not connected");
  const poor = sink.connected === 0 || sink.missed || sink.dropped || sink.lost || sink.unsaved || sink.queued > 8;
  return [sink.error ? "bad" : sink.cause || poor ? "warn" : "", [sink.error, sink.cause, notes.join(", ")].filter(Boolean).join("; ")];
}

export function sinks(list, viewers) {
  render($("sinks"), [list, viewers], () => [
    ...list.map((sink) => {
      const [tone, notes] = sinkState(sink);
      const below = [sink.address && el("span", {}, sink.address), notes && el("b", { class: `${tone || "good"}-text` }, notes)];
      return row(tone, sink.name, `${count(sink.written)} written`, below, `${count(sink.missed)} missed`);
    }),
    row(viewers.now ? "" : "idle", "Event stream", `${viewers.now} watching`, viewers.dropped ? `${viewers.dropped} were too slow` : "", `${count(viewers.missed)} missed`),
  ]);
}

const row = (tone, name, value, below, right) =>
  el(
    "li",
    {},
    el("span", { class: `dot ${tone}` }, name),
    el("span", { class: "value" }, value),
    el("span", { class: "sub" }, ...[below ?? ""].flat()),
    el("span", { class: "sub value" }, right ?? ""),
  );

const pairs = (rows) =>
  rows.filter(([, value]) => value !== undefined && value !== null && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]);

export function bundle(facts) {
  const served = facts.bundle ?? {};
  render($("bundle"), [served, facts.labels], () =>
    pairs([
      ["name", served.name],
      ["digest", served.digest && el("code", { title: served.digest }, served.digest.slice(0, 12))],
      ["engine", served.engine],
      ["precision", served.precision],
      ["input", served.input_px?.join(" × ")],
      ["classes", facts.labels && `${facts.labels.length}: ${facts.labels.slice(0, 6).join(", ")}${facts.labels.length > 6 ? " …" : ""}`],
    ]),
  );
}

const memory = [];

export function machine(facts, now) {
  memory.push(now.memory_mb);
  if (memory.length > 300) memory.shift();
  const hottest = Object.entries(now.temperatures_c).sort((a, b) => b[1] - a[1])[0];
  const clocks = Object.values(now.clocks_mhz);
  const node = $("machine");
  render(node, [facts.host, facts.system, facts.version, facts.pid, now], () =>
    pairs([
      ["host", facts.host],
      ["system", facts.system],
      ["avq", facts.version && `${facts.version}, process ${facts.pid}`],
      ["memory", el("span", {}, el("canvas", { "aria-hidden": "true" }), ` ${count(now.memory_mb)} MB`)],
      ["load", `${now.load.toFixed(2)} on ${now.cpus} ${now.cpus === 1 ? "processor" : "processors"}`],
      ["temperature", hottest ? `${hottest[1].toFixed(0)} °C (${hottest[0]})` : "not available"],
      ["clock", clocks.length ? `${count(Math.min(...clocks.map((c) => c[0])))} of ${count(Math.max(...clocks.map((c) => c[1])))} MHz` : "not available"],
    ]),
  );
  line(node.querySelector("canvas"), memory);
}

const big = (value, words, tone = "") => el("p", { class: `big ${tone}` }, value, el("small", {}, words));

export function drift(facts) {
  const state = !facts ? "" : !facts.available ? "unavailable" : facts.drifting ? "drifting" : "usual";
  text("drift-facts", state);
  render($("drift"), facts ?? null, () => {
    if (!facts) return empty("Not watched: [drift] in the configuration turns it on.");
    if (!facts.available) return empty(facts.why);
    if (facts.share === null) return empty("No picture was looked at yet.");
    const rows = Object.entries(facts.cameras).map(([camera, row]) =>
      el(
        "li",
        {},
        el("span", { class: `dot ${row.drifting ? "bad" : ""}` }, camera),
        el("span", { class: "value" }, `${row.unusual_pictures} of ${row.pictures} unusual`),
        el("span", { class: "sub" }, row.unusual.length ? `most unusual: ${row.unusual[0]}` : ""),
        el("span", { class: "sub value" }, `drift from ${row.limit} on`),
      ),
    );
    const tone = facts.drifting ? "bad-text" : "";
    return [big(percent(facts.share, 1), "of activations outside the calibrated ranges", tone), el("ul", { class: "rows" }, ...rows)];
  });
}

export function shadow(facts) {
  text("shadow-facts", facts ? `${count(facts.frames)} frames compared` : "");
  render($("shadow"), facts ?? null, () => {
    if (!facts) return empty("No candidate: [shadow] in the configuration names one.");
    if (facts.agreement === null) return empty("No box was compared yet.");
    const shift = facts.confidence_shift;
    return [
      big(percent(facts.agreement, 1), "of boxes agree", facts.agreement < 0.95 ? "warn-text" : ""),
      el(
        "dl",
        { class: "facts" },
        ...pairs([
          ["candidate", el("code", { title: facts.candidate }, facts.candidate.slice(0, 12))],
          ["boxes lost", `${count(facts.lost)} of ${count(facts.boxes)}`],
          ["boxes added", count(facts.added)],
          ["confidence shift", shift === null ? "" : `${shift > 0 ? "+" : ""}${shift.toFixed(3)}`],
          ["service, p50", `${ms(facts.service_p50_ms)} ms`],
        ]),
      ),
    ];
  });
}
