// Small words for building the page; text only ever enters as text.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function text(id, value) {
  const node = typeof id === "string" ? $(id) : id;
  if (node.textContent !== value) node.textContent = value;
}

const shown = new WeakMap();

/** Build the children of a node again, but only when `data` changed: selections and scroll positions stay. */
export function render(node, data, build) {
  const key = JSON.stringify(data);
  if (shown.get(node) === key) return;
  shown.set(node, key);
  node.replaceChildren(...build(data));
}

const whole = new Intl.NumberFormat("en");
export const count = (value) => whole.format(Math.round(value));
export const percent = (part, of) => {
  const share = of > 0 ? (100 * part) / of : 0;
  if (share === 0 || share === 100) return `${share} %`;
  if (share < 0.01) return "< 0.01 %";
  if (share > 99.99) return "> 99.99 %";
  return `${share < 10 ? share.toFixed(2) : share.toFixed(1)} %`;
};
export const ms = (value) => {
  if (value === undefined || value === null) return "–";
  if (value >= 100) return count(value);
  return value.toFixed(value >= 10 ? 1 : 2);
};
export const span = (seconds) => {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
};
export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");
export const unit = (value, name) => [value, el("small", {}, name)];

const sheetColours = getComputedStyle(document.documentElement);
const colours = new Map();
/** A colour of the style sheet, for canvases. */
export function colour(name) {
  if (!colours.has(name)) colours.set(name, sheetColours.getPropertyValue(`--${name}`).trim());
  return colours.get(name);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colours.clear());

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** A canvas at the resolution of the screen: its context in CSS pixels, wiped, and its size. */
export function sheet(canvas) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

export const font = (size_px, weight = 400) =>
  `${weight} ${size_px}px ${getComputedStyle(document.body).fontFamily}`;
export const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);
