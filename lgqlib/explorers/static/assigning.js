// What the tokenizer computes, again in the page: one token's assignment, and the decoder.

const PAD = 5;

// Energies of one latent to all codes, relative to the lowest, in units of 2 D / C.
export function excess(t, z, token) {
  const { K, about, sites, widths } = t, { D, energy, scale } = about, d = new Float32Array(K), o = token * D;
  for (let k = 0; k < K; k++) {
    let sum = 0;
    const e = k * D;
    if (energy === "dot") for (let i = 0; i < D; i++) sum -= z[o + i] * sites[e + i];
    else for (let i = 0; i < D; i++) sum += (z[o + i] - sites[e + i]) ** 2;
    sum *= scale * scale;
    d[k] = (energy === "norm" ? Math.sqrt(sum) : sum) / (widths ? widths[k] : 1);
  }
  const lowest = d.reduce((a, b) => Math.min(a, b));
  return d.map((x) => (x - lowest) / about.width);
}

// The twelve likeliest codes of a token at tau, what is left for others, and its entropy in bits.
export function assignment(d, tau, most = 12) {
  let total = 0, mean = 0;
  const top = [], p = d.map((x) => (x < 80 * tau ? Math.exp(-x / tau) : 0));
  for (let k = 0; k < p.length; k++) {
    total += p[k];
    mean += (p[k] * d[k]) / tau;
    if (top.length === most && p[k] <= p[top[most - 1]]) continue;
    let i = top.length;
    while (i > 0 && p[top[i - 1]] < p[k]) i--;
    top.splice(i, 0, k);
    if (top.length > most) top.pop();
  }
  const shares = top.map((k) => p[k] / total);
  return { codes: top, shares, others: Math.max(0, 1 - shares.reduce((a, b) => a + b, 0)), bits: (Math.log(total) + mean / total) / Math.LN2 };
}

// The steps of our patch decoder; the statistics of its norms stay the unedited photograph's.
export function decoderOf(store, m, n) {
  let used = 0;
  return store.meta.tokenizers[m].network.map((step, i) => {
    const affine = step.norm ? store.array(`${m}/norms${n}`).subarray(used, (used += 2 * step.inside)) : null;
    return { ...step, affine, weight: store.array(`${m}/weight${i}`), bias: store.array(`${m}/bias${i}`) };
  });
}

// A convolution of [h, w, inside] to [h, w, out], on top of what is in `onto`, if anything is.
function convolved(x, w, h, { weight, scale, bias, out, inside, side }, onto) {
  const y = onto?.slice() ?? new Float32Array(w * h * out), reach = (side - 1) / 2;
  for (let r = 0; r < h; r++)
    for (let q = 0; q < w; q++) {
      const at = (r * w + q) * out, sum = y.subarray(at, at + out);
      for (let c = 0; c < out; c++) sum[c] += bias[c];
      for (let a = Math.max(-reach, -r); a <= Math.min(reach, h - 1 - r); a++)
        for (let b = Math.max(-reach, -q); b <= Math.min(reach, w - 1 - q); b++) {
          const from = ((r + a) * w + q + b) * inside, tap = ((a + reach) * side + b + reach) * inside * out;
          for (let i = 0; i < inside; i++) {
            const v = x[from + i] * scale, row = tap + i * out;
            for (let c = 0; c < out; c++) sum[c] += v * weight[row + c];
          }
        }
    }
  return y;
}

const silu = (x, affine, inside) =>
  x.map((v, i) => {
    const normed = affine[i % inside] * v + affine[inside + (i % inside)];
    return normed / (1 + Math.exp(-normed));
  });

// Vectors [h, w, C] to channels [h, w, 3 f f] in [-1, 1]; a step takes what another one gave.
function decode(steps, z, w, h) {
  const given = [z];
  for (const step of steps) {
    const x = given[step.of], onto = step.onto ? given[step.onto] : null;
    given.push(convolved(step.norm ? silu(x, step.affine, step.inside) : x, w, h, step, onto));
  }
  return given.at(-1);
}

// Decode the tokens of `box` and what they reach, and put them into the picture's context.
export function repaint(steps, t, indices, [h, w], box, g) {
  const margin = steps.reduce((all, { side }) => all + (side - 1) / 2, 0); // tokens that a token's pixels depend on, each side
  const { C, factor: f, scale } = t.about, near = Math.min(margin, PAD);
  const grown = (by) => ({ x: Math.max(0, box.x - by), y: Math.max(0, box.y - by), X: Math.min(w, box.X + by), Y: Math.min(h, box.Y + by) });
  const seen = grown(near), all = grown(near + margin), iw = all.X - all.x, ih = all.Y - all.y;
  const z = new Float32Array(iw * ih * C), codes = t.codes ?? t.sites, unit = t.codes ? 1 : scale;
  for (let i = 0; i < z.length; i++) {
    const token = Math.floor(i / C), k = indices[(all.y + Math.floor(token / iw)) * w + all.x + (token % iw)];
    z[i] = codes[k * C + (i % C)] * unit;
  }
  const made = decode(steps, z, iw, ih), width = (seen.X - seen.x) * f, data = new ImageData(width, (seen.Y - seen.y) * f);
  for (let i = 0; i < data.data.length; i++) {
    const p = i >> 2, x = p % width, y = Math.floor(p / width), token = (seen.y - all.y + Math.floor(y / f)) * iw + seen.x - all.x + Math.floor(x / f);
    data.data[i] = i % 4 === 3 ? 255 : (made[(token * 3 + (i % 4)) * f * f + (y % f) * f + (x % f)] + 1) * 127.5 + 0.5;
  }
  g.putImageData(data, seen.x * f, seen.y * f);
}
