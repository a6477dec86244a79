// What the cameras see, with the boxes that belong to exactly that picture.

import { $, calm, count, el, font, ms, rem, text } from "./dom.js";

const OFTEN_MS = 60;
const CALM_MS = 1000;
const THUMB_MS = 1500;
const pause = (time_ms) => new Promise((done) => setTimeout(done, time_ms));

export class Pictures {
  constructor(awake) {
    this.awake = awake; // whether pictures are wanted now
    this.names = [];
    this.chosen = null;
    this.last = null;
    this.shrunkMs = 0;
    this.numbers = new Map();
    new ResizeObserver(() => this.draw()).observe($("picture"));
    this.watch();
    this.glance();
  }

  /** The cameras there are. */
  cameras(names) {
    if (names.join() === this.names.join()) return;
    this.names = names;
    if (!names.includes(this.chosen)) this.choose(names[0] ?? null);
    const thumbs = $("thumbs");
    thumbs.hidden = names.length < 2;
    thumbs.replaceChildren(
      ...names.map((name) => {
        const button = el("button", { type: "button", role: "radio", "data-camera": name }, el("canvas"), el("span", {}, name));
        button.addEventListener("click", () => this.choose(name));
        button.addEventListener("keydown", (event) => this.key(event));
        return button;
      }),
    );
    this.mark();
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (this.names.indexOf(this.chosen) + step + this.names.length) % this.names.length;
    this.choose(this.names[next]);
    $("thumbs").children[next].focus();
  }

  choose(name) {
    this.chosen = name;
    this.last?.picture.close();
    this.last = null;
    text("h-camera", name ? `Camera ${name}` : "Camera");
    this.draw();
    this.mark();
    this.chosenChanged?.();
  }

  mark() {
    for (const button of $("thumbs").children) {
      const here = button.dataset.camera === this.chosen;
      button.setAttribute("aria-checked", here);
      button.tabIndex = here ? 0 : -1;
    }
  }

  forget() {
    this.numbers.clear();
  }

  async take(name) {
    const after = this.numbers.get(name) ?? 0;
    const answer = await fetch(`/camera/${encodeURIComponent(name)}.jpg?after=${after}`, { cache: "no-store" });
    if (answer.status !== 200) return null;
    const facts = JSON.parse(answer.headers.get("avq-frame"));
    this.numbers.set(name, facts.number);
    return { facts, picture: await createImageBitmap(await answer.blob()) };
  }

  async watch() {
    for (;;) {
      const name = this.chosen;
      if (!name || !this.awake()) {
        await pause(200);
        continue;
      }
      const got = await this.take(name).catch(() => undefined);
      if (name === this.chosen && this.awake()) this.got(got);
      else got?.picture.close();
      await pause(got ? (calm.matches ? CALM_MS : OFTEN_MS) : 500);
    }
  }

  /** The other cameras, one after the other. */
  async glance() {
    for (let turn = 0; ; turn++) {
      const others = this.names.filter((name) => name !== this.chosen);
      const name = others[turn % Math.max(1, others.length)];
      if (name && this.awake()) {
        const got = await this.take(name).catch(() => null);
        const canvas = this.thumb(name);
        if (got && canvas) this.paint(canvas, got, false);
        got?.picture.close();
      }
      await pause(THUMB_MS / Math.max(1, others.length));
    }
  }

  got(got) {
    if (!got) {
      text("picture-note", this.last ? "No new picture for some seconds" : "Waiting for a picture");
      $("picture").parentElement.classList.toggle("stale", Boolean(this.last));
      return;
    }
    this.last?.picture.close();
    this.last = got;
    this.shrink(got);
    text("picture-note", "");
    $("picture").parentElement.classList.remove("stale");
    this.draw();
  }

  /** The small picture of the camera that is shown large. */
  shrink(got) {
    if (this.names.length < 2 || Date.now() - this.shrunkMs < THUMB_MS) return;
    this.shrunkMs = Date.now();
    this.paint(this.thumb(this.chosen), got, false);
  }

  thumb(name) {
    return [...$("thumbs").children].find((one) => one.dataset.camera === name)?.firstChild;
  }

  draw() {
    const canvas = $("picture");
    if (!this.last) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      return;
    }
    const { facts } = this.last;
    canvas.parentElement.style.setProperty("--ratio", `${facts.width_px} / ${facts.height_px}`);
    this.paint(canvas, this.last, true);
    const kinds = new Map();
    for (const box of facts.boxes) kinds.set(box[5], (kinds.get(box[5]) ?? 0) + 1);
    const seen = [...kinds].sort((a, b) => b[1] - a[1]).map(([kind, number]) => `${number} ${kind}`);
    const more = facts.count - facts.boxes.length;
    const objects = (seen.join(", ") || "nothing detected") + (more > 0 ? `, ${more} more` : "");
    const caption = $("picture-caption");
    caption.replaceChildren(el("b", {}, objects), ` · ${ms(facts.age_ms)} ms old when published${facts.late ? ", late" : ""}`);
    text("picture-facts", `frame ${count(facts.seq)} · ${facts.width_px} × ${facts.height_px}`);
    const sentence = `Camera ${facts.camera}: ${objects}`;
    if (canvas.getAttribute("aria-label") !== sentence) canvas.setAttribute("aria-label", sentence);
  }

  paint(canvas, { facts, picture }, labelled) {
    const scale = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = labelled ? (width * facts.height_px) / facts.width_px : canvas.clientHeight;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.scale(scale, scale);
    pen.drawImage(picture, 0, 0, width, height);
    const k = width / facts.width_px;
    const narrow = width < 520;
    const size = narrow ? 10 : 0.6875 * rem();
    const taken = [];
    for (const [x0, y0, x1, y1, score, kind] of facts.boxes) {
      const box = [x0 * k, y0 * k, (x1 - x0) * k, (y1 - y0) * k];
      pen.strokeStyle = "rgb(0 0 0 / .55)";
      pen.lineWidth = labelled ? 4 : 2.5;
      pen.strokeRect(...box);
      pen.strokeStyle = "#8ec5ff";
      pen.lineWidth = labelled ? 2 : 1.25;
      pen.strokeRect(...box);
      if (labelled) chip(pen, narrow ? kind : `${kind} ${score.toFixed(2)}`, box, size, width, taken);
    }
  }
}

/** The name above its box, or inside where there is no room; not on top of another name. */
function chip(pen, words, [x, y, , tall], size, width, taken) {
  pen.font = font(size, 500);
  const wide = pen.measureText(words).width + 8;
  const high = size + 5;
  const left = Math.max(0, Math.min(x - 1, width - wide));
  const places = [y - high, y, y + tall].filter((top) => top >= 0);
  const free = places.find((top) => !taken.some((t) => left < t[0] + t[2] && t[0] < left + wide && top < t[1] + high && t[1] < top + high));
  if (free === undefined) return;
  taken.push([left, free, wide]);
  pen.fillStyle = "rgb(12 24 36 / .82)";
  pen.fillRect(left, free, wide, high);
  pen.fillStyle = "#d9ecff";
  pen.textBaseline = "middle";
  pen.fillText(words, left + 4, free + high / 2 + 0.5);
}
