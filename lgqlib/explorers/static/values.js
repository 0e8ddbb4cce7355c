// What the blob holds, the numbers made of it, and how they read.

const KINDS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, i16: Int16Array, f32: Float32Array };
export const NONE = 65535;

// Typed views into one blob, and its pictures, decoded when they are first asked for.
export class Store {
  constructor(meta, blob) {
    const buffer = new Uint8Array(blob.buffer, blob.byteOffset, blob.byteLength).slice().buffer; // so that views are aligned
    Object.assign(this, { meta, buffer, views: new Map(), pictures: new Map(), loading: new Map() });
  }
  has(name) {
    return name in this.meta.arrays || this.pictures.has(name);
  }
  array(name) {
    if (!this.views.has(name)) {
      const [offset, bytes, kind] = this.meta.arrays[name], Kind = KINDS[kind];
      this.views.set(name, new Kind(this.buffer, offset, bytes / Kind.BYTES_PER_ELEMENT));
    }
    return this.views.get(name);
  }
  file(name) {
    return new Blob([new Uint8Array(this.buffer, ...this.meta.arrays[name].slice(0, 2))], { type: "image/webp" });
  }
  // Decode what is in the blob, or `file`, once.
  load(name, file = null) {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    if (file || !this.loading.has(name)) this.loading.set(name, createImageBitmap(file ?? this.file(name), options).then((p) => (this.pictures.set(name, p), p)));
    return this.loading.get(name);
  }
  // The picture if it is there; otherwise null now, and `then` once it came.
  picture(name, then) {
    if (!this.pictures.has(name) && this.has(name)) this.load(name).then(then);
    return this.pictures.get(name) ?? null;
  }
}

export const pixels = (picture) => {
  const g = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
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
  const about = store.meta.tokenizers[m], t = { m, about, K: about.K, side: Math.ceil(Math.sqrt(about.K)), codes: null, widths: null };
  for (const name of ["cell", "count", "near", "places", "around", "trust", "sites", "mse", "entropy", "gap", "codes", "widths"])
    if (store.has(`${m}/${name}`)) t[name] = store.array(`${m}/${name}`);
  t.at = new Int32Array(t.side * t.side).fill(-1);
  t.cell.forEach((cell, k) => (t.at[cell] = k));
  t.tiles = await store.load(`${m}/tiles`);
  const whole = t.count.reduce((all, n, k) => all + n * t.mse[k], 0) || 1;
  const values = { mass: (k) => t.count[k], entropy: (k) => t.entropy[k], error: (k) => (100 * t.count[k] * t.mse[k]) / whole, isolation: (k) => t.gap[k], trust: (k) => (8 * t.trust[k]) / Math.max(1, t.around[k]) };
  t.values = mapped(values, (value) => Float32Array.from(t.count, (n, k) => (n ? value(k) : NaN)));
  t.order = mapped(t.values, ranked);
  t.rank = new Uint32Array(t.K);
  t.order.mass.forEach((k, i) => (t.rank[k] = i + 1));
  return Object.assign(t, usage(t.count));
}
const sum = (values) => values.reduce((a, b) => a + b, 0);
const usage = (count) => ({ count, total: sum(count), unused: [...count.keys()].filter((k) => !count[k]) });
const mapped = (object, f) => Object.fromEntries(Object.entries(object).map(([name, value]) => [name, f(value)]));

// Codes from the largest value to the smallest, those without one left out.
const ranked = (v) => [...v.keys()].filter((k) => v[k] === v[k]).sort((a, b) => v[b] - v[a] || a - b);

// A tokenizer's codes as they were at a snapshot of its training: their tiles, and which were used.
export function atMoment(store, t, j, then) {
  const tiles = store.picture(`${t.m}/then${j}`, then), { step, tile } = t.about.moments[j];
  if (!tiles) return null;
  const count = store.array(`${t.m}/uses${j}`), mass = Float32Array.from(count, (n) => n || NaN);
  return { ...t, step, tiles, ...usage(count), sheet: null, about: { ...t.about, tile }, values: { ...t.values, mass }, order: { ...t.order, mass: ranked(mass) } };
}

export const number = (x) => {
  if (!Number.isFinite(x)) return "–";
  const a = Math.abs(x);
  return a === 0 ? "0" : a >= 100 ? x.toFixed(0) : a >= 10 ? x.toFixed(1) : a >= 0.095 ? x.toFixed(2) : x.toPrecision(2);
};
export const thousands = (n) => n.toLocaleString("en");
// A temperature: no zeros that say nothing.
export const short = (x) => String(Number(number(x)));
export const percent = (x) => (x >= 0.095 ? (100 * x).toFixed(0) : x >= 0.0005 ? (100 * x).toFixed(1) : x > 0 ? "<0.1" : "0");
const COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
export const counted = (n, one) => `${COUNTS[n] ?? thousands(n)} ${one}${n === 1 ? "" : "s"}`;

// Over what a tokenizer's numbers were taken; a sample says so.
export function scope(t) {
  const { images, tokens, total } = t.about;
  if (t.step !== undefined) return `${thousands(t.total)} tokens of step ${thousands(t.step)}`;
  return `${images ? `${counted(images, "photograph")}, ` : ""}${thousands(tokens)} ${total > tokens ? `sampled of ${thousands(total)} ` : ""}tokens`;
}

// `amount`: drawn as the size of a tile; otherwise a rate, drawn as a color. `column`: in a table.
export const QUANTITIES = {
  picture: { title: "Picture", words: (t) => (t.about.images ? `${thousands(t.K)} codes over ${scope(t)}. A tile is the mean of ${t.about.decodes ? "what the decoder draws for" : "the real patches of"} the code’s tokens; similar codes stand side by side.` : "A tile’s color is the code’s place among the others (three longest axes). Similar codes stand side by side.") },
  mass: { title: "Mass", column: "tokens", amount: true, unit: "tokens", words: (t) => `Mass: how many tokens have the code, over ${scope(t)}.` },
  entropy: { title: "Entropy", column: "entropy_bits", unit: "bits", words: (t) => `Entropy: how undecided the code’s tokens are at τ = 1, from 0 bits (sure) to ${number(Math.log2(t.K))} (all codes alike)${t.about.entropies < t.about.tokens ? `; ${thousands(t.about.entropies)} tokens sampled` : ""}.` },
  error: { title: "Error", column: "error_percent", amount: true, unit: "%", words: (t) => `Error: the code’s share of the whole ${t.about.pixels ? "squared error of the pixels" : "squared distance from latent to code"} of hard codes, over ${scope(t)}.` },
  isolation: { title: "Spacing", column: "spacing_rms_errors", unit: "× RMS", words: () => "Spacing: distance to the nearest other code in use, as a multiple of the RMS quantization error, the typical distance from a latent to its code." },
  trust: { title: "Trust", column: "trust_of_8", unit: "of 8", words: (t) => `Trust: how many of a code’s 8 neighbors on this map are among its 24 nearest codes. Average ${number(sum(t.order.trust.map((k) => t.values.trust[k])) / Math.max(1, t.order.trust.length))} of 8.` },
  unused: { title: "Unused", words: (t) => `${t.unused.length} of ${t.K} codes have no token in ${scope(t)}; they are crossed on every map.` },
};

// "3, 17-20" as numbers below `most`; none where it is something else.
export function parseCodes(text, most) {
  const ranges = text.split(",").map((part) => /^\s*(\d+)\s*(?:[-–]\s*(\d+)\s*)?$/.exec(part)?.slice(1));
  const ends = ranges.map((range) => [+range?.[0], +(range?.[1] ?? range?.[0])]);
  if (!ends.every(([first, last]) => first <= last && last < most)) return [];
  return [...new Set(ends.flatMap(([first, last]) => Array.from({ length: last - first + 1 }, (_, i) => first + i)))];
}

// Colors of a scale, from its lowest value to its highest: of a field, and of two that are compared.
export const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26838f", "#1f9d8a", "#6cce5a", "#b6de2b", "#fee825"];
export const between = ([first, second], middle = "#3c3c3e") => [first, middle, second];
// A scale as 256 colors as ImageData holds them.
export const shades = (colors) =>
  Uint32Array.from({ length: 256 }, (_, b) => {
    const x = (b / 255) * (colors.length - 1), i = Math.min(colors.length - 2, Math.floor(x));
    const [a, z] = [colors[i], colors[i + 1]].map((hex) => [5, 3, 1].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    return a.reduce((all, v, j) => (all << 8) | Math.round(v + (z[j] - v) * (x - i)), 0xff);
  });
