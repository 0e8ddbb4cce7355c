// Everything that is drawn on a canvas: the map, the photograph, the loupe, the curve.

import { QUANTITIES, VIRIDIS, pixels, shades } from "./values.js";

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
export const WHOLE = { s: 1, x: 0, y: 0 };
export function fit([w, h], rows, columns, zoom = WHOLE) {
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

const GROUND = 0xff151210, WHITE = 0xffffffff, CROSS = 0xff766e68, EDGE = 0xff99908a, UNKNOWN = 0xff5e5855; // as ImageData holds them
const SHADES = shades(VIRIDIS);
const shade = (of, x, low, high) => (Number.isFinite(x) ? of[Math.max(0, Math.min(255, Math.round((255 * (x - low)) / (high - low || 1))))] : UNKNOWN);
// `share` of 256 of a second color, red and blue in one multiplication.
const blend = (a, b, share, mask) => (((a & mask) * (256 - share) + (b & mask) * share) >>> 8) & mask;
const mixed = (a, b, share) => 0xff000000 | blend(a, b, share, 0xff00ff) | blend(a, b, share, 0xff00);

// All codes as pixels of a square of side `n`, `s` pixels a code, with the grid's corner at x0, y0:
// tiles, as large as an amount, or one color for a rate. A pixel costs the same for any K.
function rendered(t, quantity, n, s, x0, y0) {
  const { amount } = QUANTITIES[quantity], values = t.values[quantity], [low, high] = range(t, quantity), trained = t.step === undefined;
  const image = new ImageData(n, n), out = new Uint32Array(image.data.buffer).fill(GROUND), { tile, atlas } = t.about, wide = t.tiles.width;
  const edge = (x) => Math.max(0, Math.min(n, Math.ceil(x))); // where the pixels of a cell begin, and those of the one before end
  const sheet = (t.sheet ??= new Uint32Array(pixels(t.tiles).buffer));
  for (let k = 0; k < t.K; k++) {
    const dead = !t.count[k], column = t.cell[k] % t.side, row = Math.floor(t.cell[k] / t.side), x = x0 + column * s, y = y0 + row * s;
    const size = !amount ? 1 : dead ? 0 : Math.max(1 / s, 0.08 + (0.9 * Math.log(Math.max(values[k] / low, 1))) / Math.log(high / low));
    const solid = values && !amount ? shade(SHADES, values[k], low, high) : 0, at = Math.floor(k / atlas) * tile * wide + (k % atlas) * tile;
    const framed = dead && trained && !amount && s > 5; // few tokens are counted at a step: a cross is enough there
    const [over, share] = dead && trained ? [WHITE, 200] : quantity === "unused" ? [GROUND, 184] : [GROUND, 0];
    const left = edge(x), right = edge(x0 + (column + 1) * s), bottom = edge(y0 + (row + 1) * s);
    for (let j = edge(y); j < bottom; j++) {
      const v = (j - y) / s - 0.5, b = Math.floor((v / size + 0.5) * tile), from = at + b * wide;
      if (!dead && (b < 0 || b >= tile)) continue;
      for (let i = left; i < right; i++) {
        const u = (i - x) / s - 0.5, a = Math.floor((u / size + 0.5) * tile);
        if (dead && Math.abs(u) < 0.24 && Math.abs(Math.abs(u) - Math.abs(v)) * s < 0.6) out[j * n + i] = amount ? EDGE : CROSS;
        else if (framed && (i - x < 1 || j - y < 1)) out[j * n + i] = EDGE;
        else if (a >= 0 && a < tile && b >= 0 && b < tile) out[j * n + i] = mixed(solid || sheet[from + a], over, share);
      }
    }
  }
  return image;
}

// `marks`: lists of codes with their color and how much larger than a tile they are drawn. What is
// below them is kept in `kept`: hovering only adds to it.
export function drawMap(canvas, t, { quantity, zoom, kept, marks, dim, band }) {
  const { g, w, d } = context(canvas), f = fit(canvas.box, t.side, t.side, zoom);
  const key = [t.m, t.step, quantity, w, d, f.s, f.x, f.y].join();
  if (kept.key !== key) Object.assign(kept, { key, image: rendered(t, quantity, canvas.width, f.s * d, f.x * d, f.y * d) });
  g.putImageData(kept.image, 0, 0);
  g.fillStyle = "rgba(10,12,16,.3)";
  if (dim) g.fillRect(0, 0, w, w);
  for (const [codes, color, grow] of marks)
    for (const k of codes) tile(g, t, k, ...outline(g, f.x + (t.cell[k] % t.side) * f.s, f.y + Math.floor(t.cell[k] / t.side) * f.s, f.s, color, f.s > 24 ? 1 : grow));
  if (band) stroke(g, PICK, 1.5, () => g.rect(band[0], band[1], band[2] - band[0], band[3] - band[1]), [4, 3]);
}

function spread(g, picture, f, rows, columns, smooth) {
  g.imageSmoothingEnabled = smooth;
  g.drawImage(picture, f.x, f.y, columns * f.s, rows * f.s);
  g.imageSmoothingEnabled = false;
}

export function drawPhotograph(canvas, { picture, grid, zoom, token, hits, ringed, dim }) {
  const { g } = context(canvas), [rows, columns] = grid, f = fit(canvas.box, rows, columns, zoom);
  if (!picture) return;
  const cell = (i) => [f.x + (i % columns) * f.s, f.y + Math.floor(i / columns) * f.s];
  spread(g, picture, f, rows, columns, f.s * columns < picture.width);
  if (dim) {
    const px = picture.width / columns;
    g.fillStyle = "rgba(10,12,16,.78)";
    g.fillRect(f.x, f.y, columns * f.s, rows * f.s);
    for (const i of hits) g.drawImage(picture, (i % columns) * px, Math.floor(i / columns) * px, px, px, ...cell(i), f.s, f.s);
  }
  const ring = (i, by) => g.arc(cell(i)[0] + f.s / 2, cell(i)[1] + f.s / 2, Math.max(6, f.s * 0.9) + by, 0, 7);
  for (const i of ringed) {
    stroke(g, "#000", 1.5, () => ring(i, 1.5));
    stroke(g, "#fff", 1.5, () => ring(i, 0));
  }
  if (token !== null) outline(g, ...cell(token), f.s, PICK);
}

// A picture of any layer, whole or 7 x 7 tokens around one; kept where nothing changed.
export function drawSmall(canvas, { picture, grid: [rows, columns], token = null, edits }) {
  const key = [token, edits, ...canvas.box].join();
  if (canvas.shown === picture && canvas.key === key) return;
  Object.assign(canvas, { shown: picture, key });
  const { g, w, h } = context(canvas), s = w / 7, around = { s, x: w / 2 - ((token % columns) + 0.5) * s, y: h / 2 - (Math.floor(token / columns) + 0.5) * s };
  if (!picture) return;
  spread(g, picture, token === null ? fit(canvas.box, rows, columns) : around, rows, columns, token === null);
  if (token !== null) outline(g, 3 * s, 3 * s, s, PICK);
}

// A field of numbers as a small picture, a pixel a token, in colors from `low` to `high`.
export function field(values, [rows, columns], colors, low, high) {
  const canvas = new OffscreenCanvas(columns, rows), data = new ImageData(columns, rows), of = shades(colors);
  new Uint32Array(data.data.buffer).set(Array.from(values, (x) => shade(of, x, low, high)));
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

// The mean squared difference of two pictures of one size over the pixels of each token, in gray levels.
export function squares(one, other, [rows, columns]) {
  const [a, b] = [one, other].map(pixels), { width, height } = one, out = new Float32Array(rows * columns), w = width / columns, h = height / rows;
  for (let i = 0; i < a.length; i++) {
    const x = (i >> 2) % width, y = Math.floor((i >> 2) / width);
    if (i % 4 < 3) out[Math.floor(y / h) * columns + Math.floor(x / w)] += (a[i] - b[i]) ** 2 / (3 * w * h);
  }
  return out;
}

// A field over a photograph without its colors.
export function overlaid(field, photograph) {
  const { width, height } = photograph, canvas = new OffscreenCanvas(width, height), g = canvas.getContext("2d");
  const layer = (how, alpha, draw) => (Object.assign(g, { globalCompositeOperation: how, globalAlpha: alpha }), draw());
  layer("source-over", 0.4, () => g.drawImage(photograph, 0, 0));
  layer("saturation", 1, () => g.fillRect(0, 0, width, height));
  g.imageSmoothingEnabled = false;
  layer("lighter", 1, () => g.drawImage(field, 0, 0, width, height));
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
