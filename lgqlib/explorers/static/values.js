// What the blob holds, the numbers made of it, and how they read.

const KINDS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, i16: Int16Array, f32: Float32Array, f16: Uint16Array };
export const NONE = 65535;

// Typed views into one blob, and its pictures, decoded when they are first asked for.
export class Store {
  constructor(meta, blob) {
    this.meta = meta;
    const aligned = blob.buffer && blob.byteOffset % 8 === 0;
    this.buffer = aligned ? blob.buffer : new Uint8Array(blob.buffer ? new Uint8Array(blob.buffer, blob.byteOffset, blob.byteLength) : blob).buffer.slice(0);
    this.base = aligned ? blob.byteOffset : 0;
    this.views = new Map();
    this.pictures = new Map();
    this.loading = new Map();
  }
  has(name) {
    return name in this.meta.arrays || this.pictures.has(name);
  }
  array(name) {
    if (!this.views.has(name)) {
      const [offset, bytes, kind] = this.meta.arrays[name];
      const Kind = KINDS[kind];
      const view = new Kind(this.buffer, this.base + offset, bytes / Kind.BYTES_PER_ELEMENT);
      this.views.set(name, kind === "f16" ? Float32Array.from(view, half) : view);
    }
    return this.views.get(name);
  }
  file(name) {
    const [offset, bytes] = this.meta.arrays[name];
    return new Blob([new Uint8Array(this.buffer, this.base + offset, bytes)], { type: "image/webp" });
  }
  // Decode what is in the blob, or `file`, once.
  load(name, file = null) {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    if (file || !this.loading.has(name)) this.loading.set(name, createImageBitmap(file ?? this.file(name), options).then((p) => (this.pictures.set(name, p), p)));
    return this.loading.get(name);
  }
  // The picture if it is there; otherwise null now, and `then` once it came.
  picture(name, then) {
    if (this.pictures.has(name)) return this.pictures.get(name);
    if (this.has(name)) this.load(name).then(then);
    return null;
  }
}

const half = (h) => {
  const sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : (sign * fraction) / 2 ** 24;
};

export const pixels = (picture) => {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const g = canvas.getContext("2d", { willReadFrequently: true });
  g.drawImage(picture, 0, 0);
  return g.getImageData(0, 0, picture.width, picture.height).data;
};

// HTML of a template: values are escaped, what is HTML already and lists of it are not. Keys pressed
// on what can be focused stay here: JupyterLab takes them as commands otherwise.
const escaped = (x) => String(x).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
class Html extends String {}
export const html = (parts, ...values) => {
  const raw = parts.map((part) => part.replace(/<(button|input|canvas)/g, "$& data-lm-suppress-shortcuts"));
  return new Html(String.raw({ raw }, ...values.map((v) => [v ?? ""].flat().map((x) => (x instanceof Html ? x : escaped(x))).join(""))));
};
// Write HTML where it is not there yet; what had the focus keeps it by its place.
export function put(e, content) {
  const said = String(content);
  if (e.said === said) return;
  const buttons = () => [...e.querySelectorAll("button")], had = document.activeElement, at = buttons().indexOf(had), inside = e !== had && e.contains(had);
  e.innerHTML = e.said = said;
  if (inside) (buttons()[at] ?? e.closest(".lgx")).focus({ preventScroll: true });
}

// One tokenizer: its arrays, the value of each code by quantity, and the used codes in order.
export async function openTokenizer(store, m) {
  const about = store.meta.tokenizers[m], of = (name) => store.array(`${m}/${name}`), t = { m, about, K: about.K, side: Math.ceil(Math.sqrt(about.K)) };
  for (const name of ["cell", "count", "near", "places", "around", "trust", "sites", "mse", "entropy", "gap"]) t[name] = of(name);
  t.codes = store.has(`${m}/codes`) ? of("codes") : null;
  t.widths = store.has(`${m}/widths`) ? of("widths") : null;
  t.at = new Int32Array(t.side * t.side).fill(-1);
  t.cell.forEach((cell, k) => (t.at[cell] = k));
  t.tiles = await store.load(`${m}/tiles`);
  t.total = sum(t.count);
  const whole = t.count.reduce((all, n, k) => all + n * t.mse[k], 0) || 1;
  const values = { mass: (k) => t.count[k], entropy: (k) => t.entropy[k], error: (k) => (100 * t.count[k] * t.mse[k]) / whole, isolation: (k) => t.gap[k], trust: (k) => (8 * t.trust[k]) / Math.max(1, t.around[k]) };
  t.values = mapped(values, (value) => Float32Array.from(t.count, (n, k) => (n ? value(k) : NaN)));
  t.order = mapped(t.values, ranked);
  t.rank = new Uint32Array(t.K);
  t.order.mass.forEach((k, i) => (t.rank[k] = i + 1));
  t.unused = [...t.count.keys()].filter((k) => !t.count[k]);
  return t;
}
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mapped = (object, f) => Object.fromEntries(Object.entries(object).map(([name, value]) => [name, f(value)]));

// Codes from the largest value to the smallest, those without one left out.
const ranked = (v) => [...v.keys()].filter((k) => v[k] === v[k]).sort((a, b) => v[b] - v[a] || a - b);

// A tokenizer's codes as they were at a snapshot of its training: their tiles, and which were used.
export function atMoment(store, t, j, then) {
  const tiles = store.picture(`${t.m}/then${j}`, then);
  if (!tiles) return null;
  const count = store.array(`${t.m}/uses${j}`), mass = Float32Array.from(count, (n) => n || NaN), { step, tile } = t.about.moments[j];
  const unused = [...count.keys()].filter((k) => !count[k]);
  return { ...t, step, tiles, count, unused, sheet: null, about: { ...t.about, tile }, total: sum(count), values: { ...t.values, mass }, order: { ...t.order, mass: ranked(mass) } };
}

export const number = (x) => {
  if (!Number.isFinite(x)) return "–";
  const a = Math.abs(x);
  return a === 0 ? "0" : a >= 100 ? x.toFixed(0) : a >= 10 ? x.toFixed(1) : a >= 0.095 ? x.toFixed(2) : x.toPrecision(2);
};
// A temperature: no zeros that say nothing.
export const short = (x) => String(Number(number(x)));
export const percent = (x) => (x >= 0.095 ? (100 * x).toFixed(0) : x >= 0.0005 ? (100 * x).toFixed(1) : x > 0 ? "<0.1" : "0");
const COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
export const counted = (n, one) => `${COUNTS[n] ?? n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

// Over what a tokenizer's numbers were taken; a sample says so.
export function scope(t) {
  if (t.step !== undefined) return `${t.total.toLocaleString("en")} tokens of step ${t.step.toLocaleString("en")}`;
  const { images, tokens, total } = t.about;
  const where = images ? `${counted(images, "photograph")}, ` : "";
  return total > tokens ? `${where}${tokens.toLocaleString("en")} sampled of ${total.toLocaleString("en")} tokens` : `${where}${tokens.toLocaleString("en")} tokens`;
}

const errorOf = (t) => (t.about.pixels ? "squared error of the pixels" : "squared distance from latent to code");

// `amount`: drawn as the size of a tile; otherwise a rate, drawn as a color. `column`: in a table.
export const QUANTITIES = {
  picture: { title: "Picture", words: (t) => (t.about.images ? `${t.K.toLocaleString("en")} codes over ${scope(t)}. A tile is the mean of ${t.about.decodes ? "what the decoder draws for" : "the real patches of"} the code’s tokens; similar codes stand side by side.` : "A tile’s color is the code’s place among the others (three longest axes). Similar codes stand side by side.") },
  mass: { title: "Mass", column: "tokens", amount: true, unit: "tokens", words: (t) => `Mass: how many tokens have the code, over ${scope(t)}.` },
  entropy: { title: "Entropy", column: "entropy_bits", unit: "bits", words: (t) => `Entropy: how undecided the code’s tokens are at τ = 1, from 0 bits (sure) to ${number(Math.log2(t.K))} (all codes alike)${t.about.entropies < t.about.tokens ? `; ${t.about.entropies.toLocaleString("en")} tokens sampled` : ""}.` },
  error: { title: "Error", column: "error_percent", amount: true, unit: "%", words: (t) => `Error: the code’s share of the whole ${errorOf(t)} of hard codes, over ${scope(t)}.` },
  isolation: { title: "Spacing", column: "spacing_rms_errors", unit: "× RMS", words: () => "Spacing: distance to the nearest other code in use, as a multiple of the RMS quantization error, the typical distance from a latent to its code." },
  trust: { title: "Trust", column: "trust_of_8", unit: "of 8", words: (t) => `Trust: how many of a code’s 8 neighbors on this map are among its 24 nearest codes. Average ${number(sum(t.order.trust.map((k) => t.values.trust[k])) / Math.max(1, t.order.trust.length))} of 8.` },
  unused: { title: "Unused", words: (t) => `${t.unused.length} of ${t.K} codes have no token in ${scope(t)}; they are crossed on every map.` },
};

// "3, 17-20" as numbers below `most`; null where it is something else.
export function parseCodes(text, most) {
  const found = new Set();
  for (const part of text.split(",")) {
    const match = /^\s*(\d+)\s*(?:[-–]\s*(\d+)\s*)?$/.exec(part);
    if (!match) return null;
    const first = +match[1], last = +(match[2] ?? match[1]);
    if (first > last || last >= most) return null;
    for (let k = first; k <= last; k++) found.add(k);
  }
  return [...found];
}

const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26838f", "1f9d8a", "6cce5a", "b6de2b", "fee825"].map((h) => [0, 2, 4].map((i) => parseInt(h.slice(i, i + 2), 16)));
const RAMP = Array.from({ length: 256 }, (_, b) => {
  const x = (b / 255) * 8, i = Math.min(7, Math.floor(x));
  return VIRIDIS[i].map((a, j) => Math.round(a + (VIRIDIS[i + 1][j] - a) * (x - i)));
});
export const viridis = (x) => RAMP[Math.max(0, Math.min(255, Math.round(255 * x)))];
export const css = ([r, g, b]) => `rgb(${r},${g},${b})`;
// From gray at 0 to the first color at -1 and the second at 1; colors are #rrggbb.
export const diverging = (x, colors) => {
  const hex = colors[x < 0 ? 0 : 1], a = Math.min(1, Math.abs(x));
  return [60, 60, 62].map((c, i) => Math.round(c + (parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16) - c) * a));
};
