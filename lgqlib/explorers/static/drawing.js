// Everything that is drawn on a canvas: the map, the photograph, the loupe, the curve.

import { QUANTITIES, diverging, pixels, viridis } from "./values.js";

export const PICK = "#ff2d87";

// A context whose units are CSS pixels, as large as `box`, the canvas's measured size on the page.
function context(canvas) {
  const d = Math.max(1, Math.min(2, window.devicePixelRatio || 1)), [w, h] = canvas.box;
  const size = { width: Math.round(w * d), height: Math.round(h * d) };
  if (canvas.width !== size.width || canvas.height !== size.height) Object.assign(canvas, size);
  const g = canvas.getContext("2d");
  g.setTransform(d, 0, 0, d, 0, 0);
  g.imageSmoothingEnabled = false;
  g.clearRect(0, 0, w, h);
  return { g, w, h, d };
}

function stroke(g, color, width, trace, dash = []) {
  Object.assign(g, { strokeStyle: color, lineWidth: width });
  g.setLineDash(dash);
  g.beginPath();
  trace(g);
  g.stroke();
}

export function tile(g, t, k, x, y, size) {
  const { tile: n, atlas } = t.about;
  g.drawImage(t.tiles, (k % atlas) * n, Math.floor(k / atlas) * n, n, n, x, y, size, size);
}

// A square, at least six pixels wide, around the cell of side `s` at x, y.
function outline(g, x, y, s, color, grow = 1) {
  const size = Math.max(s, 6) * grow, a = x + (s - size) / 2, b = y + (s - size) / 2;
  stroke(g, "#000", 1, () => g.rect(a - 2.5, b - 2.5, size + 5, size + 5));
  stroke(g, color, 2, () => g.rect(a - 1, b - 1, size + 2, size + 2));
  return [a, b, size];
}

// How rows and columns of cells lie on a canvas: the side of a cell, and the corner of the first.
export function fit([w, h], rows, columns, zoom) {
  const s = Math.min(w / columns, h / rows) * zoom.s;
  return { s, x: (w * zoom.s - columns * s) / 2 - zoom.x * w * zoom.s, y: (h * zoom.s - rows * s) / 2 - zoom.y * h * zoom.s };
}
export function cellAt(f, rows, columns, e) {
  const c = Math.floor((e.offsetX - f.x) / f.s), r = Math.floor((e.offsetY - f.y) / f.s);
  return c < 0 || r < 0 || c >= columns || r >= rows ? null : r * columns + c;
}

// From smallest to largest shown: three decades of an amount, or the whole range of a rate.
export function range(t, quantity) {
  const order = t.order[quantity];
  if (!order?.length) return [0, 1];
  if (quantity === "trust") return [0, 8];
  const top = t.values[quantity][order[0]];
  return [QUANTITIES[quantity].amount ? top / 1000 : t.values[quantity][order.at(-1)], top];
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

// A picture that is kept in `kept` for as long as `key` stays: hovering only adds to it.
function base(kept, key, canvas, make) {
  if (kept.key === key) return kept.canvas;
  kept.key = key;
  kept.canvas ??= document.createElement("canvas");
  Object.assign(kept.canvas, { width: canvas.width, height: canvas.height });
  make(kept.canvas.getContext("2d"));
  return kept.canvas;
}

// `marks`: lists of codes with their color and how much larger than a tile they are drawn.
export function drawMap(canvas, t, { quantity, zoom, kept, marks, dim, band }) {
  const { g, w, d } = context(canvas), f = fit(canvas.box, t.side, t.side, zoom);
  const key = [t.m, t.step, quantity, w, d, f.s, f.x, f.y].join();
  const make = (b) => b.putImageData(rendered(t, quantity, canvas.width, f.s * d, f.x * d, f.y * d), 0, 0);
  g.drawImage(base(kept, key, canvas, make), 0, 0, w, w);
  g.fillStyle = "rgba(10,12,16,.3)";
  if (dim) g.fillRect(0, 0, w, w);
  for (const [codes, color, grow] of marks)
    for (const k of codes) tile(g, t, k, ...outline(g, f.x + (t.cell[k] % t.side) * f.s, f.y + Math.floor(t.cell[k] / t.side) * f.s, f.s, color, f.s > 24 ? 1 : grow));
  if (band) stroke(g, PICK, 1.5, () => g.rect(band[0], band[1], band[2] - band[0], band[3] - band[1]), [4, 3]);
}

// `edits`: how often the picture was painted on, which stays the same canvas.
export function drawPhotograph(canvas, { picture, grid, zoom, token, hits, dim, kept, edits }) {
  const { g, w, h, d } = context(canvas), [rows, columns] = grid, f = fit(canvas.box, rows, columns, zoom);
  if (!picture) return;
  const cell = (i) => [f.x + (i % columns) * f.s, f.y + Math.floor(i / columns) * f.s];
  if (kept.picture !== picture) Object.assign(kept, { picture, key: null });
  g.drawImage(base(kept, [f.s, f.x, f.y, w, h, d, edits].join(), canvas, (b) => {
    b.setTransform(d, 0, 0, d, 0, 0);
    b.imageSmoothingEnabled = f.s * columns < picture.width;
    b.drawImage(picture, f.x, f.y, columns * f.s, rows * f.s);
  }), 0, 0, w, h);
  if (dim) {
    const px = picture.width / columns, r = Math.max(6, f.s * 0.9);
    g.fillStyle = "rgba(10,12,16,.78)";
    g.fillRect(f.x, f.y, columns * f.s, rows * f.s);
    for (const i of hits) g.drawImage(picture, (i % columns) * px, Math.floor(i / columns) * px, px, px, ...cell(i), f.s, f.s);
    const ring = (i, by) => g.arc(cell(i)[0] + f.s / 2, cell(i)[1] + f.s / 2, r + by, 0, 7);
    if (hits.length <= 150) for (const i of hits) {
      stroke(g, "#000", 1.5, () => ring(i, 1.5));
      stroke(g, "#fff", 1.5, () => ring(i, 0));
    }
  }
  if (token !== null) outline(g, ...cell(token), f.s, PICK);
}

// A picture of any layer, whole or 7 x 7 tokens around one; kept where nothing changed.
export function drawSmall(canvas, { picture, grid: [rows, columns], token = null, edits, reach = 3 }) {
  const key = [token, edits, ...canvas.box].join();
  if (canvas.shown === picture && canvas.key === key) return;
  Object.assign(canvas, { shown: picture, key });
  const { g, w, h } = context(canvas), n = 2 * reach + 1;
  if (!picture) return;
  if (token === null) {
    const f = fit(canvas.box, rows, columns, { s: 1, x: 0, y: 0 });
    g.imageSmoothingEnabled = true;
    g.drawImage(picture, f.x, f.y, columns * f.s, rows * f.s);
    return;
  }
  const px = picture.width / columns, r = Math.floor(token / columns), c = token % columns;
  g.drawImage(picture, (c - reach) * px, (r - reach) * px, n * px, n * px, 0, 0, w, h);
  outline(g, (reach * w) / n, (reach * w) / n, w / n, PICK);
}

// A field of numbers as a small picture, a pixel a token.
export function field(values, [rows, columns], color) {
  const canvas = new OffscreenCanvas(columns, rows), data = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) data.data.set([...color(values[i]), 255], 4 * i);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

// The photograph as its tokens' tiles: what is left where nothing decodes.
export function mosaic(t, indices, [rows, columns]) {
  const n = t.about.tile, canvas = document.createElement("canvas");
  Object.assign(canvas, { width: columns * n, height: rows * n });
  const g = canvas.getContext("2d");
  indices.forEach((k, i) => tile(g, t, k, (i % columns) * n, Math.floor(i / columns) * n, n));
  return canvas;
}

// The difference of two error maps averaged over 5 x 5 tokens: negative where the first is better.
export function difference(a, b, [rows, columns], reach = 2) {
  const out = new Float32Array(rows * columns);
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

export const CURVE = { left: 30, right: 30 }; // what its labels take of its width

// Mean entropy of all tokens, and dB of this photograph's soft picture, over the temperature.
export function drawCurve(canvas, { about, psnr, tau }) {
  const { g, w, h } = context(canvas), left = CURVE.left, right = w - CURVE.right, top = 8, bottom = h - 18;
  const { curve, temperatures, tau_c: critical } = about, [low, high] = [temperatures[0], temperatures.at(-1)];
  const most = Math.ceil(Math.log2(about.K)), style = getComputedStyle(canvas), color = (name) => style.getPropertyValue(`--${name}`);
  const x = (t) => left + (Math.log(t / low) / Math.log(high / low)) * (right - left), y = (bits) => bottom - (bits / most) * (bottom - top);
  const line = (points, name, width = 2, dash = []) => stroke(g, color(name), width, () => points.forEach(([a, b]) => g.lineTo(a, b)), dash);
  const text = (said, at, down, name, textAlign = "center") => {
    Object.assign(g, { fillStyle: color(name), textAlign });
    g.fillText(said, at, down);
  };
  g.font = "11px system-ui, sans-serif";
  for (const bits of [0, most / 2, most]) {
    line([[left, y(bits)], [right, y(bits)]], "line", 1);
    text(Math.round(bits * 10) / 10, left - 4, y(bits) + 4, "first", "right");
  }
  for (const [t, said] of [[1, "1"], [critical, "τc"]].filter(([t]) => t)) {
    line([[x(t), top], [x(t), bottom]], "muted", 1, [3, 3]);
    text(said, x(t), h - 4, "fg");
  }
  for (const t of [0.1, 10, 100]) if (t >= low * 0.99 && t < high * 0.6) text(t, x(t), h - 4, "muted");
  if (psnr.every((v) => v !== null)) {
    const floor = 5 * Math.floor(Math.min(...psnr) / 5), ceiling = 5 * Math.ceil(Math.max(...psnr) / 5 + 1e-9);
    line(temperatures.map((t, i) => [x(t), bottom - ((psnr[i] - floor) / (ceiling - floor || 1)) * (bottom - top)]), "second");
    text(floor, right + 4, bottom + 4, "second", "left");
    text(ceiling, right + 4, top + 4, "second", "left");
  }
  line(curve.tau.map((t, i) => [x(t), y(curve.bits[i])]), "first");
  if (curve.one) stroke(g, color("first"), 4, () => g.arc(x(curve.one), y(1), 2, 0, 7));
  line([[x(tau), top], [x(tau), bottom]], "pick");
}
