// Everything that is drawn on a canvas: tiles, the map, the photograph, the loupe, the curve.

import { QUANTITIES, diverging, pixels, viridis } from "./values.js";

export const PICK = "#ff2d87";

// A context whose units are CSS pixels; the canvas follows its size on the page.
export function context(canvas) {
  const d = Math.max(1, Math.min(2, window.devicePixelRatio || 1)), w = canvas.clientWidth || canvas.width, h = canvas.clientHeight || canvas.height;
  if (canvas.width !== Math.round(w * d) || canvas.height !== Math.round(h * d)) {
    canvas.width = Math.round(w * d);
    canvas.height = Math.round(h * d);
  }
  const g = canvas.getContext("2d");
  g.setTransform(d, 0, 0, d, 0, 0);
  g.imageSmoothingEnabled = false;
  return { g, w, h, d };
}

export function tile(g, t, k, x, y, size, sheet = "tiles") {
  const n = t.about.tile, side = t.about.atlas;
  g.drawImage(t[sheet], (k % side) * n, Math.floor(k / side) * n, n, n, x, y, size, size);
}

export function outline(g, x, y, size, color) {
  g.lineWidth = 1;
  g.strokeStyle = "#000";
  g.strokeRect(x - 2.5, y - 2.5, size + 5, size + 5);
  g.lineWidth = 2;
  g.strokeStyle = color;
  g.strokeRect(x - 1, y - 1, size + 2, size + 2);
}

// From smallest to largest shown: three decades of an amount, or the whole range of a rate.
export function range(t, quantity) {
  const order = t.order[quantity];
  if (!order || !order.length) return [0, 1];
  const top = t.values[quantity][order[0]];
  if (quantity === "trust") return [0, 8];
  return QUANTITIES[quantity].amount ? [top / 1000, top] : [t.values[quantity][order.at(-1)], top];
}

const packed = ([r, g, b]) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0; // as ImageData holds them
const SHADES = Array.from({ length: 256 }, (_, i) => packed(viridis(i / 255)));
const mixed = (a, b, share) => {
  let out = 0xff000000;
  for (const by of [0, 8, 16]) out |= Math.round(((a >> by) & 255) * (1 - share) + ((b >> by) & 255) * share) << by;
  return out >>> 0;
};
const [GROUND, WHITE, CROSS, EDGE, UNKNOWN] = [[16, 18, 21], [255, 255, 255], [104, 110, 118], [138, 144, 153], [85, 88, 94]].map(packed);

// All codes as pixels of a square of side `n`, `s` pixels a code, with the grid's corner at x0, y0:
// tiles, as large as an amount, or one color for a rate. One loop costs the same for any K.
function rendered(t, quantity, n, s, x0, y0) {
  const { amount } = QUANTITIES[quantity], values = t.values[quantity], [low, high] = range(t, quantity);
  const image = new ImageData(n, n), out = new Uint32Array(image.data.buffer).fill(GROUND);
  const size = new Float32Array(t.K).fill(1), color = new Uint32Array(t.K);
  if (values) for (let k = 0; k < t.K; k++) {
    if (amount) size[k] = Math.max(1 / s, 0.08 + (0.9 * Math.max(0, Math.log(Math.max(values[k], low) / low))) / Math.log(high / low));
    else color[k] = Number.isFinite(values[k]) ? SHADES[Math.round((255 * (values[k] - low)) / (high - low || 1))] : UNKNOWN;
  }
  t.sheet ??= new Uint32Array(pixels(t.tiles).buffer);
  const { tile, atlas } = t.about, wide = t.tiles.width, dark = quantity === "unused";
  const veiled = t.step === undefined; // few tokens are counted at a step: a cross is enough there
  const column = new Int32Array(n), across = new Float32Array(n); // of each pixel of a row: its cell, and where in it
  for (let x = 0; x < n; x++) {
    column[x] = Math.floor((x - x0) / s);
    across[x] = (x - x0) / s - column[x];
  }
  for (let y = 0; y < n; y++) {
    const row = Math.floor((y - y0) / s), v = (y - y0) / s - row;
    if (row < 0 || row >= t.side) continue;
    for (let x = 0, i = y * n; x < n; x++, i++) {
      const c = column[x], k = c < 0 || c >= t.side ? -1 : t.at[row * t.side + c];
      if (k < 0) continue;
      const u = across[x], dead = !t.count[k];
      if (dead && Math.abs(u - 0.5) < 0.24 && Math.abs(Math.abs(u - 0.5) - Math.abs(v - 0.5)) * s < 0.6) out[i] = amount ? EDGE : CROSS;
      else if (dead && amount) continue;
      else if (dead && veiled && s > 5 && (u * s < 1 || v * s < 1)) out[i] = EDGE;
      else {
        const a = (u - 0.5) / size[k] + 0.5, b = (v - 0.5) / size[k] + 0.5;
        if (a < 0 || b < 0 || a >= 1 || b >= 1) continue;
        const shown = color[k] || t.sheet[(((k / atlas) | 0) * tile + ((b * tile) | 0)) * wide + (k % atlas) * tile + ((a * tile) | 0)];
        out[i] = dead && veiled ? mixed(shown, WHITE, 0.78) : dark ? mixed(shown, GROUND, 0.72) : shown;
      }
    }
  }
  return image;
}

// The map is drawn once for its size and quantity, and kept: hovering only adds to it.
export class CodeMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.zoom = { s: 1, x: 0, y: 0 };
  }
  place(t, k) {
    const s = this.cell, cell = t.cell[k];
    return [this.x0 + (cell % t.side) * s, this.y0 + Math.floor(cell / t.side) * s, s];
  }
  codeAt(t, x, y) {
    const c = Math.floor((x - this.x0) / this.cell), r = Math.floor((y - this.y0) / this.cell);
    const k = c < 0 || r < 0 || c >= t.side || r >= t.side ? -1 : t.at[r * t.side + c];
    return k < 0 ? null : k;
  }
  draw(t, { quantity, focus, chosen, likely, near, dim, band }) {
    const { g, w, d } = context(this.canvas), { zoom } = this;
    this.cell = (w / t.side) * zoom.s;
    this.x0 = -zoom.x * w * zoom.s;
    this.y0 = -zoom.y * w * zoom.s;
    const key = [t.m, t.step, quantity, w, d, zoom.s, zoom.x, zoom.y].join();
    if (this.key !== key) {
      this.key = key;
      this.base ??= document.createElement("canvas");
      this.base.width = this.base.height = Math.round(w * d);
      this.base.getContext("2d").putImageData(rendered(t, quantity, this.base.width, this.cell * d, this.x0 * d, this.y0 * d), 0, 0);
    }
    g.drawImage(this.base, 0, 0, w, w);
    if (dim) {
      g.fillStyle = "rgba(10,12,16,.3)";
      g.fillRect(0, 0, w, w);
    }
    const mark = (k, color, grow) => {
      const [x, y, s] = this.place(t, k), size = Math.max(s, 6) * grow, at = (s - size) / 2;
      tile(g, t, k, x + at, y + at, size);
      outline(g, x + at, y + at, size, color);
    };
    for (const k of near) mark(k, "#fff", 1);
    for (const k of likely) mark(k, "#fff", 1);
    for (const k of chosen) mark(k, PICK, 1);
    if (focus !== null) mark(focus, PICK, this.cell > 24 ? 1 : 1.8);
    if (band) {
      g.setLineDash([4, 3]);
      g.lineWidth = 1.5;
      g.strokeStyle = PICK;
      g.strokeRect(band[0], band[1], band[2] - band[0], band[3] - band[1]);
      g.setLineDash([]);
    }
  }
}

// How the photograph lies on its square canvas: pixels of the page a pixel of it, and the corner.
export function fit(w, h, high, wide, zoom) {
  const s = Math.min(w / wide, h / high) * zoom.s;
  return { s, x: w / 2 - (zoom.x + 0.5) * wide * s, y: h / 2 - (zoom.y + 0.5) * high * s };
}

// `kept`: an object in which the scaled picture stays, so that hovering only adds to it; `fresh`
// draws it again, as painting changes a picture that stays the same canvas.
export function drawPhotograph(canvas, { picture, grid, zoom, token, hits, dim, kept, fresh }) {
  const { g, w, h } = context(canvas), [rows, columns] = grid;
  g.clearRect(0, 0, w, h);
  const f = fit(w, h, rows, columns, zoom);
  if (!picture) return;
  const d = canvas.width / w, key = [f.s, f.x, f.y, w, h, d].join();
  if (kept.picture !== picture || kept.key !== key || fresh) {
    kept.base ??= document.createElement("canvas");
    Object.assign(kept, { picture, key });
    Object.assign(kept.base, { width: canvas.width, height: canvas.height });
    const b = kept.base.getContext("2d");
    b.setTransform(d, 0, 0, d, 0, 0);
    b.imageSmoothingEnabled = f.s * columns < picture.width;
    b.drawImage(picture, f.x, f.y, columns * f.s, rows * f.s);
  }
  g.drawImage(kept.base, 0, 0, w, h);
  const px = picture.width / columns;
  if (dim) {
    g.fillStyle = "rgba(10,12,16,.78)";
    g.fillRect(f.x, f.y, columns * f.s, rows * f.s);
    const shown = (i) => [f.x + (i % columns) * f.s, f.y + Math.floor(i / columns) * f.s];
    for (const i of hits) {
      const [x, y] = shown(i);
      g.drawImage(picture, (i % columns) * px, Math.floor(i / columns) * px, px, px, x, y, f.s, f.s);
    }
    if (hits.length <= 150) {
      g.lineWidth = 1.5;
      for (const i of hits) {
        const [x, y] = shown(i), r = Math.max(6, f.s * 0.9);
        g.strokeStyle = "#000";
        g.beginPath();
        g.arc(x + f.s / 2, y + f.s / 2, r + 1.5, 0, 7);
        g.stroke();
        g.strokeStyle = "#fff";
        g.beginPath();
        g.arc(x + f.s / 2, y + f.s / 2, r, 0, 7);
        g.stroke();
      }
    }
  }
  if (token !== null) {
    const s = Math.max(f.s, 6), at = (f.s - s) / 2;
    outline(g, f.x + (token % columns) * f.s + at, f.y + Math.floor(token / columns) * f.s + at, s, PICK);
  }
}

// 7 x 7 tokens around one, of any layer.
export function drawLoupe(canvas, { picture, grid, token, reach = 3 }) {
  const { g, w, h } = context(canvas), [, columns] = grid;
  g.clearRect(0, 0, w, h);
  if (!picture || token === null) return;
  const n = 2 * reach + 1, px = picture.width / columns, s = w / n, r = Math.floor(token / columns), c = token % columns;
  g.drawImage(picture, (c - reach) * px, (r - reach) * px, n * px, n * px, 0, 0, w, w);
  outline(g, reach * s, reach * s, s, PICK);
}

// A field of numbers as a small picture, a pixel a token.
export function field(values, grid, color) {
  const [rows, columns] = grid, canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const data = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const [r, g, b] = color(values[i]);
    data.data.set([r, g, b, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

// The photograph as its tokens' tiles: what is left where nothing decodes.
export function mosaic(t, indices, grid) {
  const [rows, columns] = grid, n = t.about.tile, canvas = document.createElement("canvas");
  canvas.width = columns * n;
  canvas.height = rows * n;
  const g = canvas.getContext("2d");
  for (let i = 0; i < indices.length; i++) tile(g, t, indices[i], (i % columns) * n, Math.floor(i / columns) * n, n);
  return canvas;
}

// The difference of two error maps averaged over 5 x 5 tokens: negative where the first is better.
export function difference(a, b, grid, reach = 2) {
  const [rows, columns] = grid, out = new Float32Array(rows * columns);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) {
      let sum = 0, n = 0;
      for (let y = Math.max(0, r - reach); y <= Math.min(rows - 1, r + reach); y++)
        for (let x = Math.max(0, c - reach); x <= Math.min(columns - 1, c + reach); x++, n++) sum += a[y * columns + x] - b[y * columns + x];
      out[r * columns + c] = sum / n / 2; // bytes are half levels
    }
  return out;
}
export const differenceColor = (colors) => (x) => diverging(x / 4, colors);

// Mean entropy of all tokens, and dB of this photograph's soft picture, over the temperature.
export function drawCurve(canvas, { about, psnr, tau, colors }) {
  const { g, w, h } = context(canvas), left = 30, right = w - 30, top = 8, bottom = h - 18;
  const { curve, temperatures, tau_c: critical } = about, low = Math.log(temperatures[0]), high = Math.log(temperatures.at(-1));
  const x = (t) => left + ((Math.log(t) - low) / (high - low)) * (right - left), most = Math.ceil(Math.log2(about.K));
  const y = (bits) => bottom - (bits / most) * (bottom - top);
  g.clearRect(0, 0, w, h);
  g.font = "11px system-ui, sans-serif";
  g.strokeStyle = colors.line;
  for (const bits of [0, most / 2, most]) {
    g.beginPath();
    g.moveTo(left, y(bits));
    g.lineTo(right, y(bits));
    g.stroke();
    g.fillStyle = colors.first;
    g.textAlign = "right";
    g.fillText(String(Math.round(bits * 10) / 10), left - 4, y(bits) + 4);
  }
  const vertical = (t, text, color) => {
    g.setLineDash([3, 3]);
    g.strokeStyle = color;
    g.lineWidth = 1;
    g.beginPath();
    g.moveTo(x(t), top);
    g.lineTo(x(t), bottom);
    g.stroke();
    g.setLineDash([]);
    g.fillStyle = colors.text;
    g.textAlign = "center";
    g.fillText(text, x(t), h - 4);
  };
  vertical(1, "1", colors.muted);
  if (critical) vertical(critical, "τc", colors.muted);
  g.fillStyle = colors.muted;
  g.textAlign = "center";
  for (const t of [0.1, 10, 100]) if (t >= temperatures[0] * 0.99 && t < temperatures.at(-1) * 0.6) g.fillText(String(t), x(t), h - 4);
  const line = (xs, ys, color) => {
    g.strokeStyle = color;
    g.lineWidth = 2;
    g.beginPath();
    xs.forEach((t, i) => g.lineTo(x(t), ys[i]));
    g.stroke();
  };
  const known = psnr && psnr.every((v) => v !== null);
  if (known) {
    const floor = 5 * Math.floor(Math.min(...psnr) / 5), ceiling = 5 * Math.ceil(Math.max(...psnr) / 5 + 1e-9);
    const dB = (v) => bottom - ((v - floor) / (ceiling - floor || 1)) * (bottom - top);
    line(temperatures, psnr.map(dB), colors.second);
    g.fillStyle = colors.second;
    g.textAlign = "left";
    g.fillText(floor, right + 4, bottom + 4);
    g.fillText(ceiling, right + 4, top + 4);
  }
  line(curve.tau, curve.bits.map(y), colors.first);
  if (curve.one) {
    g.fillStyle = colors.first;
    g.strokeStyle = "#fff";
    g.lineWidth = 1;
    g.beginPath();
    g.arc(x(curve.one), y(1), 4, 0, 7);
    g.fill();
    g.stroke();
  }
  g.strokeStyle = PICK;
  g.lineWidth = 2;
  g.beginPath();
  g.moveTo(x(tau), top);
  g.lineTo(x(tau), bottom);
  g.stroke();
  return { left, right };
}
