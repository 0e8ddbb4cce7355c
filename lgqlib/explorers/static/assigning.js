// What the tokenizer computes, again in the page: one token's assignment, and the decoder.

const PAD = 5;

// Energies of one latent to all codes, relative to the lowest, in units of 2 D / C.
export function excess(t, z, token) {
  const { K, about, sites, widths } = t, D = about.D, scale = about.scale, o = token * D;
  const d = new Float32Array(K);
  let lowest = Infinity;
  let length = 0;
  for (let i = 0; i < D; i++) length += (z[o + i] * scale) ** 2;
  for (let k = 0; k < K; k++) {
    let sum = 0;
    const e = k * D;
    if (about.energy === "dot") for (let i = 0; i < D; i++) sum -= z[o + i] * sites[e + i] * scale * scale;
    else for (let i = 0; i < D; i++) sum += ((z[o + i] - sites[e + i]) * scale) ** 2;
    if (about.energy === "norm") sum = Math.sqrt(sum);
    d[k] = widths ? sum / widths[k] : sum;
    if (d[k] < lowest) lowest = d[k];
  }
  for (let k = 0; k < K; k++) d[k] = (d[k] - lowest) / about.width;
  return d;
}

// The twelve likeliest codes of a token at tau, what is left for others, and its entropy in bits.
export function assignment(d, tau, most = 12) {
  let total = 0, mean = 0;
  const p = new Float32Array(d.length);
  for (let k = 0; k < d.length; k++) {
    const x = d[k] / tau;
    p[k] = x < 80 ? Math.exp(-x) : 0;
    total += p[k];
    mean += p[k] * x;
  }
  const top = [];
  for (let k = 0; k < d.length; k++) {
    if (top.length === most && p[k] <= p[top[most - 1]]) continue;
    let i = top.length;
    while (i > 0 && p[top[i - 1]] < p[k]) i--;
    top.splice(i, 0, k);
    if (top.length > most) top.pop();
  }
  const shares = top.map((k) => p[k] / total);
  return { codes: top, shares, others: Math.max(0, 1 - shares.reduce((a, b) => a + b, 0)), bits: (Math.log(total) + mean / total) / Math.LN2 };
}

// Our patch decoder around an edit; the statistics of its norms stay the unedited photograph's.
export class LocalDecoder {
  constructor(store, m, n) {
    const { layers, groups, eps } = store.meta.tokenizers[m].network, depth = (groups.length - 1) / 2;
    this.depth = depth;
    this.margin = groups.length ? 1 + 2 * depth : 0; // tokens that a token's pixels depend on, each side
    this.layers = {};
    for (const name in layers) {
      const [out, inside, side] = layers[name];
      this.layers[name] = { w: store.array(`${m}/w/${name}`), bias: store.array(`${m}/w/${name}/bias`), out, inside, side };
    }
    this.norms = groups.map((count, j) => {
      const affine = store.array(`${m}/w/norm${j}`), width = affine.length / 2, start = groups.slice(0, j).reduce((a, b) => a + b, 0);
      const statistics = store.array(`${m}/gn${n}`), scale = new Float32Array(width), shift = new Float32Array(width);
      for (let c = 0; c < width; c++) {
        const at = 2 * (start + Math.floor((c * count) / width));
        scale[c] = affine[c] / Math.sqrt(statistics[at + 1] + eps[j]);
        shift[c] = affine[width + c] - statistics[at] * scale[c];
      }
      return { scale, shift };
    });
  }
  conv(x, w, h, name) {
    const { w: k, bias, out, inside, side } = this.layers[name], y = new Float32Array(w * h * out), reach = (side - 1) / 2;
    for (let r = 0; r < h; r++)
      for (let q = 0; q < w; q++) {
        const at = (r * w + q) * out, sum = y.subarray(at, at + out);
        sum.set(bias);
        for (let a = -reach; a <= reach; a++)
          for (let b = -reach; b <= reach; b++) {
            if (r + a < 0 || r + a >= h || q + b < 0 || q + b >= w) continue;
            const from = ((r + a) * w + q + b) * inside, tap = ((a + reach) * side + b + reach) * inside * out;
            for (let i = 0; i < inside; i++) {
              const v = x[from + i], row = tap + i * out;
              for (let c = 0; c < out; c++) sum[c] += v * k[row + c];
            }
          }
      }
    return y;
  }
  active(x, j) {
    const { scale, shift } = this.norms[j], width = scale.length, y = new Float32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      const v = scale[i % width] * x[i] + shift[i % width];
      y[i] = v / (1 + Math.exp(-v));
    }
    return y;
  }
  // Vectors [h, w, C] to channels [h, w, 3 f f] in [-1, 1].
  decode(z, w, h) {
    const out = this.layers.linear ? this.conv(z, w, h, "linear") : null;
    if (!this.norms.length) return out;
    let x = this.conv(z, w, h, 0);
    for (let b = 0; b < this.depth; b++) {
      let y = this.conv(this.active(x, 2 * b), w, h, 2 * b + 1);
      y = this.conv(this.active(y, 2 * b + 1), w, h, 2 * b + 2);
      for (let i = 0; i < x.length; i++) x[i] += y[i];
    }
    const made = this.conv(this.active(x, 2 * this.depth), w, h, 2 * this.depth + 1);
    if (out) for (let i = 0; i < made.length; i++) made[i] += out[i];
    return made;
  }
}

// Decode the tokens of `box` and what they reach, and put them into the picture's context.
export function repaint(decoder, t, indices, grid, box, g) {
  const [h, w] = grid, margin = decoder.margin, C = t.about.C, f = t.about.factor;
  const grown = (by) => ({ x: Math.max(0, box.x - by), y: Math.max(0, box.y - by), X: Math.min(w, box.X + by), Y: Math.min(h, box.Y + by) });
  const near = Math.min(margin, PAD), seen = grown(near), all = grown(near + margin), iw = all.X - all.x, ih = all.Y - all.y;
  const z = new Float32Array(iw * ih * C);
  for (let y = 0; y < ih; y++)
    for (let x = 0; x < iw; x++) {
      const k = indices[(all.y + y) * w + all.x + x];
      for (let c = 0; c < C; c++) z[(y * iw + x) * C + c] = t.codes ? t.codes[k * C + c] : t.sites[k * C + c] * t.about.scale;
    }
  const made = decoder.decode(z, iw, ih), width = (seen.X - seen.x) * f, data = new ImageData(width, (seen.Y - seen.y) * f);
  for (let y = seen.y; y < seen.Y; y++)
    for (let x = seen.x; x < seen.X; x++)
      for (let p = 0; p < f * f; p++) {
        const from = ((y - all.y) * iw + x - all.x) * 3 * f * f + p;
        const to = (((y - seen.y) * f + Math.floor(p / f)) * width + (x - seen.x) * f + (p % f)) * 4;
        for (let c = 0; c < 3; c++) data.data[to + c] = (made[from + c * f * f] + 1) * 127.5 + 0.5;
        data.data[to + 3] = 255;
      }
  g.putImageData(data, seen.x * f, seen.y * f);
}
