// The latency strip: one bar per frame, stacked by stage, with the deadline drawn in and the mode below.

import { $, colour, count, el, font, ms, rem, render, sheet, text } from "./dom.js";

export const STAGES = ["queue", "preprocess", "infer", "decode"];
export const KEPT = 480;
const RIBBON = 1.15; // rem
const KNOWN = new Set(STAGES);

export const stageClass = (name) => (KNOWN.has(name) ? name : "other");

/** Nearest-rank percentile of numbers. */
export function percentile(values, share) {
  if (!values.length) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
}

export class Strip {
  constructor() {
    this.canvas = $("strip");
    this.chosen = null; // index of a frame
    this.state = { rows: [], deadline: 0, modes: [] };
    for (const kind of ["pointerdown", "pointermove"])
      this.canvas.addEventListener(kind, (event) => this.choose(this.at(event.offsetX)));
    this.canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.choose(null));
    this.canvas.addEventListener("blur", () => this.choose(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  show(rows, deadline, modes) {
    this.state = { rows, deadline, modes };
    this.draw();
  }

  choose(index) {
    this.chosen = index;
    this.draw();
  }

  key(event) {
    const rows = this.state.rows;
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") return this.choose(null);
    if (step === undefined || !rows.length) return;
    event.preventDefault();
    const last = rows.length - 1;
    const here = rows.findIndex((row) => row.i === this.chosen);
    const next = Math.min(last, Math.max(0, (here < 0 ? last + (step < 0 ? 1 : 0) : here) + step));
    this.choose(rows[next].i);
  }

  at(x) {
    const { first, pitch } = this.layout ?? {};
    if (!pitch) return null;
    return this.state.rows[first + Math.floor((x - this.layout.left) / pitch)]?.i ?? null;
  }

  draw() {
    const [pen, width, height] = sheet(this.canvas);
    const { rows, deadline, modes } = this.state;
    if (width < 40 || !deadline) return;
    const small = 0.75 * rem();
    const ribbon = RIBBON * rem();
    const pitch = width > 900 ? 4 : 3;
    const capacity = Math.floor(width / pitch);
    const first = Math.max(0, rows.length - capacity);
    const seen = rows.slice(first);
    const left = Math.max(0, width - seen.length * pitch);
    this.layout = { first, pitch, left };
    const floor = height - ribbon - 6;
    const worst = Math.max(...seen.map((row) => row.age), 0);
    const top = Math.max(deadline * 1.3, Math.min(worst * 1.12, deadline * 4));
    const y = (value) => floor - (floor - small - 6) * (Math.min(value, top) / top);

    this.grid(pen, width, y, top, small, deadline);
    seen.forEach((row, index) => this.bar(pen, row, left + index * pitch, pitch - 1, y, top));
    this.limit(pen, width, y(deadline), deadline, small);
    this.ribbon(pen, seen, left, pitch, height - ribbon, ribbon, modes, small);
    this.read();
  }

  grid(pen, width, y, top, small, deadline) {
    const raw = top / 3;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.8);
    pen.font = font(small);
    pen.textBaseline = "bottom";
    for (let value = step; value < top; value += step) {
      if (Math.abs(y(value) - y(deadline)) < small) continue; // the deadline says it better
      pen.fillStyle = colour("line");
      pen.fillRect(0, Math.round(y(value)), width, 1);
      pen.fillStyle = colour("soft");
      pen.fillText(`${step >= 1000 ? value / 1000 : (value / 1000).toFixed(1)} ms`, 2, y(value) - 1);
    }
    pen.fillStyle = colour("line");
    pen.fillRect(0, Math.round(y(0)), width, 1);
  }

  bar(pen, row, x, width, y, top) {
    const chosen = row.i === this.chosen;
    let reached = 0;
    let shade = 0;
    for (const [stage, spent] of Object.entries(row.stages)) {
      const next = Math.min(top, reached + spent);
      if (row.late) pen.fillStyle = colour(shade++ % 2 ? "late-b" : "late-a");
      else pen.fillStyle = colour(KNOWN.has(stage) ? stage : "soft");
      if (next > reached) pen.fillRect(x, y(next), width, Math.max(0.5, y(reached) - y(next)));
      reached = next;
    }
    if (row.age > top) {
      pen.fillStyle = colour("late-a");
      pen.beginPath();
      pen.moveTo(x - 1, y(top) - 1);
      pen.lineTo(x + width + 1, y(top) - 1);
      pen.lineTo(x + width / 2, y(top) - 5);
      pen.fill();
    }
    if (chosen) {
      pen.strokeStyle = colour("ink");
      pen.lineWidth = 1;
      pen.strokeRect(x - 1.5, y(reached) - 1.5, width + 3, y(0) - y(reached) + 3);
    }
  }

  limit(pen, width, at, deadline, small) {
    pen.strokeStyle = colour("bad");
    pen.lineWidth = 1.5;
    pen.setLineDash([6, 4]);
    pen.beginPath();
    pen.moveTo(0, at);
    pen.lineTo(width, at);
    pen.stroke();
    pen.setLineDash([]);
    const label = `deadline ${ms(deadline / 1000)} ms`;
    pen.font = font(small, 600);
    const wide = pen.measureText(label).width;
    pen.fillStyle = colour("card");
    pen.fillRect(width - wide - 10, at - small - 5, wide + 8, small + 3);
    pen.fillStyle = colour("bad");
    pen.textBaseline = "alphabetic";
    pen.fillText(label, width - wide - 6, at - 5);
  }

  ribbon(pen, seen, left, pitch, y, height, modes, small) {
    pen.font = font(small);
    pen.textBaseline = "middle";
    let from = 0;
    for (let index = 1; index <= seen.length; index++) {
      if (index < seen.length && seen[index].mode === seen[from].mode) continue;
      const rung = Math.max(0, modes.findIndex((mode) => mode.name === seen[from].mode));
      const x = left + from * pitch;
      const wide = (index - from) * pitch - 1;
      pen.fillStyle = colour(rung ? "warn-fill" : "accent-soft");
      pen.fillRect(x, y, wide, height);
      if (wide > pen.measureText(seen[from].mode).width + 12) {
        pen.fillStyle = colour("ink");
        pen.fillText(seen[from].mode, x + 6, y + height / 2 + 0.5);
      }
      from = index;
    }
  }

  read() {
    const row = this.state.rows.find((one) => one.i === this.chosen);
    if (!row) {
      text("strip-read", "Point at a frame or tap it, or focus the chart and use the arrow keys.");
      return;
    }
    const stages = Object.entries(row.stages).map(([name, spent]) => `${name} ${ms(spent / 1000)}`);
    text(
      "strip-read",
      `${row.camera} frame ${count(row.seq)}: ${ms(row.age / 1000)} ms old${row.late ? ", late" : ""} ` +
        `(${stages.join(", ")}), mode ${row.mode}`,
    );
  }
}

export function legend(node, names) {
  render(node, names, (all) => [
    ...all.map((name) => el("span", { class: stageClass(name) }, name)),
    el("span", { class: "late" }, "late"),
    el("span", { class: "rule" }, "deadline"),
  ]);
}

/** A small line of bars for one stage, on its own scale. */
export function spark(canvas, values, late, fill) {
  const [pen, width, height] = sheet(canvas);
  const pitch = 3;
  const seen = values.slice(-Math.floor(width / pitch));
  const marks = late.slice(-seen.length);
  const top = Math.max(percentile(seen, 0.98) * 1.25, 1);
  const left = width - seen.length * pitch;
  seen.forEach((value, index) => {
    const tall = Math.max(1, height * Math.min(1, value / top));
    pen.fillStyle = marks[index] ? colour("late-a") : fill;
    pen.fillRect(left + index * pitch, height - tall, pitch - 1, tall);
  });
}

/** A line over time, for slow things such as memory. */
export function line(canvas, values) {
  const [pen, width, height] = sheet(canvas);
  if (values.length < 2) return;
  const low = Math.min(...values);
  const high = Math.max(...values, low + 1);
  pen.strokeStyle = colour("accent");
  pen.lineWidth = 1.5;
  pen.beginPath();
  values.forEach((value, index) =>
    pen.lineTo((width * index) / (values.length - 1), height - 2 - ((height - 4) * (value - low)) / (high - low)),
  );
  pen.stroke();
}
