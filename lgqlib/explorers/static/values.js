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
  async load(name) {
    if (this.pictures.has(name)) return this.pictures.get(name);
    if (!this.loading.has(name)) {
      const [offset, bytes] = this.meta.arrays[name];
      const data = new Blob([new Uint8Array(this.buffer, this.base + offset, bytes)], { type: "image/webp" });
      const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
      this.loading.set(name, createImageBitmap(data, options).then((p) => (this.pictures.set(name, p), p)));
    }
    return this.loading.get(name);
  }
  // The picture if it is there; otherwise null now, and `then` once it came.
  picture(name, then) {
    if (this.pictures.has(name)) return this.pictures.get(name);
    if (this.has(name)) this.load(name).then(then);
    return null;
  }
  // The bytes of a gray picture.
  grays(name, then) {
    const key = `gray ${name}`;
    if (!this.views.has(key)) {
      const picture = this.picture(name, then);
      if (!picture) return null;
      this.views.set(key, pixels(picture).filter((_, i) => i % 4 === 0));
    }
    return this.views.get(key);
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

// One tokenizer: its arrays, the value of each code by quantity, and the used codes in order.
export async function openTokenizer(store, m) {
  const about = store.meta.tokenizers[m], of = (name) => store.array(`${m}/${name}`);
  const t = { m, about, K: about.K, side: Math.ceil(Math.sqrt(about.K)), cell: of("cell"), count: of("count"), near: of("near"), places: of("places"), around: of("around"), kept: of("trust"), sites: of("sites") };
  t.codes = store.has(`${m}/codes`) ? of("codes") : null;
  t.widths = store.has(`${m}/widths`) ? of("widths") : null;
  t.at = new Int32Array(t.side * t.side).fill(-1);
  t.cell.forEach((cell, k) => (t.at[cell] = k));
  [t.tiles, t.real] = await Promise.all([store.load(`${m}/tiles`), store.load(`${m}/real`)]);
  const mse = of("mse"), entropy = of("entropy"), gap = of("gap");
  t.total = t.count.reduce((a, b) => a + b, 0);
  const whole = t.count.reduce((sum, n, k) => sum + n * mse[k], 0) || 1;
  const used = (f) => Float32Array.from(t.count, (n, k) => (n ? f(k) : NaN));
  t.values = { mass: used((k) => t.count[k]), entropy: used((k) => entropy[k]), error: used((k) => (100 * t.count[k] * mse[k]) / whole), isolation: used((k) => gap[k]), trust: used((k) => (8 * t.kept[k]) / Math.max(1, t.around[k])) };
  t.order = Object.fromEntries(Object.entries(t.values).map(([name, v]) => [name, ranked(v)]));
  t.rank = new Uint32Array(t.K);
  t.order.mass.forEach((k, i) => (t.rank[k] = i + 1));
  t.unused = [...t.count.keys()].filter((k) => !t.count[k]);
  const trusted = t.order.trust;
  t.trust = trusted.reduce((sum, k) => sum + t.values.trust[k], 0) / Math.max(1, trusted.length);
  return t;
}

// Codes from the largest value to the smallest, those without one left out.
const ranked = (v) => [...v.keys()].filter((k) => v[k] === v[k]).sort((a, b) => v[b] - v[a] || a - b);

// A tokenizer's codes as they were at a snapshot of its training: their tiles, and which were used.
export function atMoment(store, t, j, then) {
  const tiles = store.picture(`${t.m}/then${j}`, then);
  if (!tiles) return t;
  const count = store.array(`${t.m}/uses${j}`), mass = Float32Array.from(count, (n) => n || NaN), moment = t.about.moments[j];
  const changed = { step: moment.step, tiles, count, sheet: null, about: { ...t.about, tile: moment.tile }, used: count.filter((n) => n).length, unused: [...count.keys()].filter((k) => !count[k]), total: count.reduce((a, b) => a + b, 0) };
  return Object.assign(Object.create(t), changed, { values: { ...t.values, mass }, order: { ...t.order, mass: ranked(mass) } });
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

// `amount`: drawn as the size of a tile; otherwise a rate, drawn as a color.
export const QUANTITIES = {
  picture: { title: "Picture", words: (t) => (t.about.images ? `${t.K.toLocaleString("en")} codes over ${scope(t)}. A tile is the mean of ${t.about.decodes ? "what the decoder draws for" : "the real patches of"} the code’s tokens; similar codes stand side by side.` : "A tile’s color is the code’s place among the others (three longest axes). Similar codes stand side by side.") },
  mass: { title: "Mass", amount: true, unit: "tokens", words: (t) => `Mass: how many tokens have the code, over ${scope(t)}.` },
  entropy: { title: "Entropy", unit: "bits", words: (t) => `Entropy: how undecided the code’s tokens are at τ = 1 (× 2D/C), from 0 bits (sure) to ${number(Math.log2(t.K))} (all codes alike)${t.about.entropies < t.about.tokens ? `; ${t.about.entropies.toLocaleString("en")} tokens sampled` : ""}.` },
  error: { title: "Error", amount: true, unit: "%", words: (t) => `Error: the code’s share of the whole ${errorOf(t)} of hard codes, over ${scope(t)}.` },
  isolation: { title: "Isolation", unit: "√D", words: () => "Isolation: distance to the nearest used code, in units of √D, the root mean squared distance from a latent to its code." },
  trust: { title: "Trust", unit: "of 8", words: (t) => `Trust: how many of a code’s 8 neighbors on this map are among its 24 nearest codes. Average ${number(t.trust)} of 8.` },
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
