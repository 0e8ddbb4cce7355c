// The screen: one state, the DOM that is built of it, and what each frame shows.

import { assignment, excess, LocalDecoder, repaint } from "./assigning.js";
import { CodeMap, context, difference, differenceColor, drawCurve, drawLoupe, drawPhotograph, field, fit, mosaic, range, tile } from "./drawing.js";
import { NONE, QUANTITIES, atMoment, counted, css, number, parseCodes, percent, pixels, scope, short, viridis } from "./values.js";

const HELP = [
  "Hovering looks, a click keeps, Esc returns. Shift and click, or Shift and drag, on the map selects several codes.",
  "Find: a number, or a list such as 3, 17-20, and Enter. / moves to the box.",
  "Arrows move the kept code or token. 1 to 6 choose the picture, M and Shift M the map’s quantity, T goes between τ = 1 and τc, comma and period the temperature, [ and ] the step of training.",
  "C compares two tokenizers and leaves again. P paints the kept code over 3 × 3 tokens (Space, or drag), Z takes a stroke back. F full screen. The wheel zooms, drag with the right button moves.",
  "τ is the temperature of the soft assignment in units of 2D/C, the width of a mixture whose mean squared error a token is D in C channels. τc is where all codes would merge into one.",
];
const LAYERS = { original: "Original", hard: "Hard", soft: "Soft", entropy: "Entropy", error: "Error" };

// An element with attributes and children; text is always text.
export function element(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") e.textContent = value;
    else if (key.startsWith("on")) e[key] = value;
    else if (value !== null && value !== undefined) e.setAttribute(key, value);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  if (["button", "input", "canvas"].includes(tag)) e.setAttribute("data-lm-suppress-shortcuts", "");
  return e;
}
// Text with bold parts: every second argument is bold.
const say = (e, ...parts) => e.replaceChildren(...parts.map((p, i) => (i % 2 ? element("b", { text: p }) : p)));

export class Screen {
  constructor(model, store, tokenizers, root) {
    Object.assign(this, { model, store, tokenizers, root, meta: store.meta });
    this.shown = this.meta.photographs.flatMap((p, n) => (p.shown ? [n] : []));
    const view = model.get("view") ?? {};
    this.state = { view: 0, quantity: "picture", layer: "", tau: model.get("temperature") ?? 1, photo: model.get("photograph") ?? 0, hover: null, pin: null, codes: [], fixed: true, paint: false, brush: null, zoom: { s: 1, x: 0, y: 0 }, step: null, ...view };
    if (!this.shown.includes(this.state.photo)) this.state.photo = this.shown[0];
    this.edits = new Map();
    this.fields = new Map();
    this.typicals = new Map();
    this.excesses = new Map();
    this.moments = new Map();
    this.keepLayer();
    this.wasBoth = this.both;
    this.state.pin ??= this.home();
  }

  // What is looked at ---------------------------------------------------------------------------
  get both() { return this.state.view === "both"; }
  get views() { return this.both ? [0, 1] : [this.state.view]; }
  get active() { return this.tokenizers[this.both ? 0 : this.state.view]; }
  get names() { return this.tokenizers.map((t) => t.about.name); }
  grid(m = this.views[0]) { return this.meta.tokenizers[m].grids[this.state.photo]; }
  indices(m) { return this.edits.get(`${m},${this.state.photo}`)?.indices ?? this.store.array(`${m}/i${this.state.photo}`); }
  layers() {
    const about = this.active.about, images = about.images > 0;
    if (this.both) {
      const pairs = (layer, word) => this.names.map((name, m) => [`${layer}${m}`, name + word]);
      const found = [...(images ? [["original", "Original"]] : []), ...pairs("hard", ""), ...(about.decodes ? pairs("soft", " soft") : [])];
      const same = this.tokenizers.every((t) => t.about.pixels) && String(this.grid(0)) === String(this.grid(1));
      return same ? [...found, ["difference", "Difference"]] : found;
    }
    const there = { original: images, hard: true, soft: about.decodes, entropy: true, error: about.decodes && images };
    return Object.entries(LAYERS).filter(([k]) => there[k]).map(([k, v]) => [k, k === "hard" && !about.decodes ? "Tiles" : v]);
  }
  keepLayer() {
    const there = this.layers().map(([k]) => k);
    if (!there.includes(this.state.layer)) this.state.layer = this.both && there.includes("difference") ? "difference" : there[0];
  }
  home() {
    const [h, w] = this.grid();
    return { token: Math.floor(h * 0.72) * w + Math.floor(w * 0.62) };
  }
  focusToken() {
    const { hover, pin } = this.state;
    return hover ? (hover.token ?? null) : (pin?.token ?? null);
  }
  focusCode(m) {
    const focus = this.state.hover ?? this.state.pin;
    if (!focus) return null;
    if (focus.token !== undefined) return this.indices(m)[focus.token];
    if (focus.code[0] === m) return focus.code[1];
    const token = this.typical(focus.code[0], focus.code[1]);
    return token === null ? null : this.indices(m)[token];
  }
  // The token of this photograph that has the code and is nearest to it.
  typical(m, k) {
    const key = `${m},${this.state.photo},${k}`;
    if (!this.typicals.has(key) || this.edits.size) {
      const t = this.tokenizers[m], D = t.about.D, ids = this.indices(m), z = this.store.array(`${m}/z${this.state.photo}`);
      let best = null, least = Infinity;
      for (let i = 0; i < ids.length; i++) {
        if (ids[i] !== k) continue;
        let d = 0;
        for (let c = 0; c < D; c++) d += (z[i * D + c] - t.sites[k * D + c]) ** 2;
        if (d < least) [least, best] = [d, i];
      }
      this.typicals.set(key, best);
    }
    return this.typicals.get(key);
  }
  // The token whose assignment and surroundings are shown, and whether it has the focused code.
  token() {
    const token = this.focusToken();
    if (token !== null) return { token, stale: false };
    const [m, k] = (this.state.hover ?? this.state.pin).code, found = this.typical(m, k);
    return found === null ? { token: this.lastToken ?? this.home().token, stale: true } : { token: found, stale: false };
  }
  assigned(m, token) {
    const key = `${m},${this.state.photo},${token}`;
    if (!this.excesses.has(key)) {
      if (this.excesses.size > 64) this.excesses.clear();
      this.excesses.set(key, excess(this.tokenizers[m], this.store.array(`${m}/z${this.state.photo}`), token));
    }
    return assignment(this.excesses.get(key), this.state.tau);
  }
  level(t) {
    const at = t.about.temperatures.map((x) => Math.abs(Math.log(x / this.state.tau)));
    return at.indexOf(Math.min(...at));
  }
  // The exact temperature where the kernel answered, otherwise the nearest that was prepared.
  prepared(m, kind) {
    const n = this.state.photo, exact = `${m}/${kind}${n}@${this.state.tau}`;
    if (this.store.has(exact)) return [exact, this.state.tau];
    const t = this.tokenizers[m], j = this.level(t);
    return [`${m}/${kind}${n}/${j}`, t.about.temperatures[j]];
  }
  noise(m, kind) {
    const about = this.meta.tokenizers[m], n = this.state.photo;
    if (kind === "hard") return this.edits.get(`${m},${n}`)?.psnr ?? about.psnr[n];
    return this.exact?.[`${m},${n},${this.state.tau}`] ?? about.soft_psnr[n][this.level(this.tokenizers[m])];
  }
  picture(layer) {
    const n = this.state.photo, again = () => this.draw();
    if (layer === "original") return this.store.picture(`p${n}`, again);
    if (layer === "difference") return this.field(`difference${n}`, this.differences(), this.grid(), differenceColor);
    const [, kind, which] = /^([a-z]+)(\d*)$/.exec(layer), m = which ? +which : this.views[0], t = this.tokenizers[m];
    if (kind === "hard") {
      const edit = this.edits.get(`${m},${n}`);
      if (edit) return edit.canvas;
      if (this.store.has(`${m}/hard${n}`)) return this.store.picture(`${m}/hard${n}`, again);
      if (!this.fields.has(`tiles${m},${n}`)) this.fields.set(`tiles${m},${n}`, mosaic(t, this.indices(m), this.grid(m)));
      return this.fields.get(`tiles${m},${n}`);
    }
    if (kind === "soft") return this.store.picture(this.prepared(m, "soft")[0], again);
    const name = kind === "error" ? `${m}/error${n}` : this.prepared(m, "entropy")[0];
    const most = kind === "error" ? 128 : 252; // half levels; sixty-fourths of log2 K bits
    return this.field(name, this.store.grays(name, again), this.grid(m), (v) => viridis(v / most));
  }
  field(name, values, grid, color) {
    if (!values) return null;
    if (!this.fields.has(name)) this.fields.set(name, field(values, grid, color));
    return this.fields.get(name);
  }
  differences() {
    const n = this.state.photo, key = `values of difference${n}`, again = () => this.draw();
    if (!this.fields.has(key)) {
      const [a, b] = [0, 1].map((m) => this.store.grays(`${m}/error${n}`, again));
      if (!a || !b) return null;
      this.fields.set(key, difference(a, b, this.grid()));
    }
    return this.fields.get(key);
  }

  // The tokenizer at the step of training that is looked at.
  then(t) {
    const { step } = this.state, key = `${t.m},${step}`;
    if (step === null || this.both || !t.about.moments.length) return t;
    if (!this.moments.has(key)) {
      const found = atMoment(this.store, t, step, () => this.draw());
      if (found === t) return t;
      this.moments.set(key, found);
    }
    return this.moments.get(key);
  }

  // Changes -------------------------------------------------------------------------------------
  set(changes) {
    Object.assign(this.state, changes);
    this.draw();
  }
  keep(pin, codes = null) {
    const m = this.views[0], list = codes ?? (pin.code ? [pin.code[1]] : [this.indices(m)[pin.token]]);
    if (pin.token !== undefined) this.lastToken = pin.token;
    this.set({ pin, hover: null, codes: codes ?? [] });
    const w = this.grid()[1];
    this.tell({ selection: list, tokenizer: pin.code ? pin.code[0] : m, place: pin.token === undefined ? [] : [this.state.photo, Math.floor(pin.token / w), pin.token % w] });
    this.announce();
  }
  tell(values) {
    this.telling = true;
    for (const [key, value] of Object.entries(values)) this.model.set(key, value);
    this.model.save_changes();
    this.telling = false;
  }
  setTau(tau) {
    const all = this.active.about.temperatures, low = all[0], high = Math.max(...this.tokenizers.map((t) => t.about.temperatures.at(-1)));
    this.set({ tau: Math.min(high, Math.max(low, tau)) });
    clearTimeout(this.asking);
    this.asking = setTimeout(() => {
      this.tell({ temperature: this.state.tau });
      const missing = this.views.filter((m) => this.prepared(m, "entropy")[1] !== this.state.tau);
      if (missing.length && this.model.get("live")) this.tell({ asked: { kind: "soft", tokenizers: missing, photograph: this.state.photo, tau: this.state.tau } });
    }, 200);
  }
  stepTau(by) {
    const all = this.active.about.temperatures, eps = 1.0001, { tau } = this.state;
    const next = by > 0 ? all.find((x) => x > tau * eps) : all.findLast((x) => x < tau / eps);
    if (next) this.setTau(next);
  }
  setPhoto(n) {
    this.lastToken = null;
    this.excesses.clear();
    this.state.photo = n;
    const pin = this.state.pin?.code ? this.state.pin : this.home();
    this.keepLayer();
    this.set({ pin, hover: null, zoom: { s: 1, x: 0, y: 0 } });
    this.tell({ photograph: n });
    this.warm();
  }
  setView(view) {
    const { pin, photo } = this.state, before = this.grid(), m = view === "both" ? 0 : view;
    if (pin?.code && view !== "both" && pin.code[0] !== view) this.state.pin = this.typical(...pin.code) === null ? this.home() : { token: this.typical(...pin.code) };
    Object.assign(this.state, { view, step: null });
    if (String(before) !== String(this.meta.tokenizers[m].grids[photo])) this.state.pin = this.home();
    if (this.both !== this.wasBoth) [this.state.layer, this.otherLayer] = [this.otherLayer ?? "", this.state.layer];
    this.wasBoth = this.both;
    Object.assign(this.state, { paint: false, codes: [], hover: null });
    this.keepLayer();
    this.build();
    this.warm();
  }
  // Pictures of this photograph are decoded ahead of the slider.
  warm() {
    for (const m of this.views) for (let j = 0; j < this.tokenizers[m].about.temperatures.length; j++) for (const kind of ["soft", "entropy"]) if (this.store.has(`${m}/${kind}${this.state.photo}/${j}`)) this.store.load(`${m}/${kind}${this.state.photo}/${j}`);
  }
  find(text) {
    const m = this.views[0], codes = parseCodes(text, this.tokenizers[m].K);
    if (text.trim() === "?") return this.toggleHelp(true);
    const fine = codes?.length > 0;
    this.ui.found.textContent = fine ? "" : `codes are 0 to ${this.tokenizers[m].K - 1}: 607, or 3, 17-20`;
    if (fine) this.keep({ code: [m, codes[0]] }, codes.length > 1 ? codes : null);
    return fine;
  }
  toggleHelp(open) {
    this.ui.help.hidden = open === undefined ? !this.ui.help.hidden : !open;
  }

  // Building ------------------------------------------------------------------------------------
  seg(label, options, get, set) {
    const group = element("div", { class: "seg", role: "group", "aria-label": label });
    for (const [key, text] of options) group.append(element("button", { text, "data-key": key, onclick: () => set(key) }));
    group.sync = () => { for (const b of group.children) b.setAttribute("aria-pressed", b.dataset.key === String(get())); };
    this.ui.syncs.push(group.sync);
    return group;
  }
  swatch(label, m, pick, hovers = true) {
    const canvas = element("canvas", { width: 64, height: 64, tabindex: -1 }), span = element("span"), b = element("button", { class: "swatch", "aria-label": label }, canvas, span);
    b.show = (k, sheet, text = "") => {
      b.hidden = k === null;
      b.code = k;
      if (k === null) return;
      const g = canvas.getContext("2d");
      g.imageSmoothingEnabled = false;
      tile(g, this.tokenizers[m], k, 0, 0, 64, sheet);
      span.textContent = text;
      b.setAttribute("aria-label", `${label} ${k}`);
    };
    b.onclick = () => pick(b);
    if (hovers) {
      b.onpointerenter = () => this.set({ hover: { code: [m, b.code] } });
      b.onpointerleave = () => this.set({ hover: null });
    }
    return b;
  }
  build() {
    const t = this.active, { both, root, state } = this;
    this.ui = { syncs: [], sides: {}, loupes: [], thumbs: [] };
    root.classList.toggle("both", both);
    const style = getComputedStyle(root), color = (name) => style.getPropertyValue(`--${name}`).trim();
    const columns = element("div", { class: "columns" });
    root.replaceChildren(this.header(), columns, (this.ui.said = element("div", { class: "said", "aria-live": "polite" })));
    this.ui.colors = { line: color("line"), text: color("fg"), muted: color("muted"), first: color("first"), second: color("second") };
    columns.append(this.codebook(this.views[0]));
    const photograph = this.photograph(), temperature = this.temperature(t);
    columns.append(photograph);
    if (both) {
      photograph.append(temperature);
      columns.append(this.codebook(1));
    } else columns.append(temperature);
    this.draw();
  }
  header() {
    const { meta, ui } = this;
    const views = this.tokenizers.map((t, m) => [m, t.about.name]);
    if (views.length > 1) views.push(["both", "Compare"]);
    const photos = this.shown.map((n) => {
      const { name, pixels: size } = meta.photographs[n], canvas = element("canvas", { width: 72, height: 72 });
      const b = element("button", { class: "swatch choice", title: name, "aria-label": `photograph ${name}`, onclick: () => this.setPhoto(n) }, canvas);
      const paint = (p) => {
        const q = Math.min(p.width, p.height);
        canvas.getContext("2d").drawImage(p, (p.width - q) / 2, (p.height - q) / 2, q, q, 0, 0, 72, 72);
      };
      if (size) this.store.load(`p${n}`).then(paint);
      else paint(mosaic(this.tokenizers[0], this.store.array(`0/i${n}`), meta.tokenizers[0].grids[n]));
      ui.syncs.push(() => b.setAttribute("aria-pressed", n === this.state.photo));
      return b;
    });
    const input = element("input", { class: "text", type: "text", placeholder: "find code: 607, or 3, 17-20", "aria-label": "find codes by number" });
    input.onkeydown = (e) => {
      const done = e.key === "Escape" || (e.key === "Enter" && this.find(input.value));
      if (done) this.root.focus({ preventScroll: true }); // where keys are commands again
      if (e.key !== "Tab") e.stopPropagation();
    };
    ui.input = input;
    ui.found = element("p", { role: "status" });
    ui.help = element("div", { class: "help" }, ...HELP.map((text) => element("p", { text })));
    ui.help.hidden = true;
    const plain = (text, label, onclick) => element("button", { class: "plain", text, title: label, "aria-label": text === "?" ? label : null, onclick });
    return element(
      "div", { class: "top" },
      element("h1", { text: meta.title || "Codebook", title: meta.title }),
      this.tokenizers.length > 1 ? this.seg("tokenizer", views, () => this.state.view, (v) => this.setView(v === "both" ? v : +v)) : null,
      element("div", { class: "find" }, ...photos),
      element("div", { class: "find" }, input, ui.found),
      element("div", { class: "end" }, element("p", { class: "hint", text: "hover looks · click keeps · ? for help" }), plain("CSV", "table of the selected codes, or of all, as CSV", () => this.csv()), plain("Dark", "light or dark", () => this.theme()), plain("Full screen", "full screen (F)", () => this.fullscreen()), plain("?", "keys and words", () => this.toggleHelp())),
      ui.help,
    );
  }
  codebook(m) {
    const { ui } = this, t = this.tokenizers[m], u = (ui.sides[m] = {});
    const canvas = element("canvas", { class: "square", tabindex: 0, role: "application", "aria-label": `map of the ${t.K} codes of ${t.about.name}; arrows move` });
    u.map = this.maps?.[m] ?? new CodeMap(canvas);
    u.map.canvas = canvas;
    u.map.key = null;
    (this.maps ??= {})[m] = u.map;
    this.wireMap(u.map, t);
    const quantities = Object.entries(QUANTITIES).map(([k, q]) => [k, q.title]);
    u.legend = element("div", { class: "legend" });
    u.words = element("p", { class: "words" });
    u.head = element("p", { class: "head" });
    const choose = (b) => this.keep({ code: [m, b.code] });
    u.code = this.swatch("code", m, choose, false);
    u.mean = this.swatch("mean real patch of code", m, choose, false);
    u.near = Array.from({ length: 8 }, () => this.swatch("nearest code", m, choose));
    u.trust = element("p");
    u.patches = Array.from({ length: 8 }, () => {
      const c = element("canvas", { width: 72, height: 72 }), b = element("button", { class: "swatch", "aria-label": "real patch" }, c);
      b.onclick = () => this.visit(m, b);
      return b;
    });
    const images = t.about.images > 0;
    const evidence = element(
      "div", { class: "evidence" },
      element("div", { class: "rows" }, u.code, element("p", { text: "code" }), ...(images && t.about.decodes ? [u.mean, element("p", { text: "real mean", title: "mean of the code’s real patches" })] : [])),
      element("div", { class: "grid" }, ...(images ? [...u.patches, element("p", { text: "real patches, nearest to farthest" })] : [])),
      element("div", { class: "grid" }, ...u.near, u.trust),
    );
    const bar = element("div", { class: "bar" }, element("h2", { text: this.both ? `${t.about.name} codebook` : "Codebook" }));
    if (!this.both) bar.append(this.seg("what the map shows", quantities, () => this.state.quantity, (q) => this.set({ quantity: q })));
    const side = element("section", { class: "codebook", "aria-label": `codebook of ${t.about.name}` }, bar, canvas, this.timeline(t), u.legend, u.words, u.head, evidence);
    if (this.both) side.append(this.bars(m));
    return side;
  }
  // A slider over the snapshots of training; its right end is the trained codebook.
  timeline(t) {
    const { moments } = t.about, last = moments.length;
    if (this.both || last < 2) return null;
    const range = element("input", { type: "range", min: 0, max: last, "aria-label": "step of training" }), said = element("p");
    range.oninput = () => this.set({ step: +range.value === last ? null : +range.value });
    range.onkeydown = (e) => { if (e.key.startsWith("Arrow")) e.stopPropagation(); };
    this.ui.syncs.push(() => {
      const now = this.then(t), text = now.step === undefined ? "trained" : `step ${now.step.toLocaleString("en")}: ${now.used.toLocaleString("en")} of ${t.K.toLocaleString("en")} codes used by ${now.total.toLocaleString("en")} tokens`;
      range.value = this.state.step ?? last;
      range.setAttribute("aria-valuetext", text);
      say(said, "Training: ", text);
    });
    return element("div", { class: "timeline", title: "the codes at snapshots of the training, each drawn alone by the trained decoder" }, range, said);
  }
  stepTime(t, by) {
    const last = t.about.moments.length, next = (this.state.step ?? last) + by;
    if (last > 1 && next >= 0 && next <= last) this.set({ step: next === last ? null : next });
  }
  bars(m) {
    const u = this.ui.sides[m];
    u.said = element("p", { class: "head" });
    u.bars = element("div", { class: `bars${m ? " second" : ""}` });
    u.cells = Array.from({ length: 12 }, () => {
      const share = element("span"), rod = element("i"), canvas = element("canvas", { width: 64, height: 64 }), name = element("span");
      canvas.style.cssText = "width:100%;aspect-ratio:1";
      const b = element("button", { class: "cell" }, share, rod, canvas, name);
      b.onclick = () => this.keep({ code: [m, b.code] });
      return Object.assign(b, { share, rod, canvas, label: name });
    });
    const share = element("span"), rod = element("i"), name = element("span", { text: this.both ? "rest" : "others" }), box = element("div");
    box.style.cssText = "width:100%;aspect-ratio:1;border:1px dashed var(--line)";
    u.others = Object.assign(element("div", { class: "cell" }, share, rod, box, name), { share, rod });
    u.bars.append(...u.cells, u.others);
    return element("div", { class: "token" }, u.said, u.bars);
  }
  photograph() {
    const { ui } = this, m = this.views[0];
    const canvas = element("canvas", { class: "square", tabindex: 0, role: "application", "aria-label": "photograph; arrows move by a token" });
    ui.photo = canvas;
    this.wirePhoto(canvas);
    const bar = element("div", { class: "bar" }, element("h2", { text: this.both ? "" : "Photograph" }));
    if (this.both) bar.append(this.seg("what the maps show", Object.entries(QUANTITIES).map(([k, q]) => [k, q.title]), () => this.state.quantity, (q) => this.set({ quantity: q })));
    const layers = this.seg("what the photograph shows", this.layers(), () => this.state.layer, (layer) => this.set({ layer, paint: this.state.paint && layer === "hard" }));
    ui.caption = element("p");
    ui.scale = element("p");
    ui.noise = element("p");
    const caption = element("div", { class: "caption" }, ui.caption, this.both ? ui.noise : null, ui.scale);
    if (this.both) ui.scale.style.flexBasis = "100%";
    const section = element("section", { class: "photograph", "aria-label": "photograph" }, bar, canvas);
    if (this.both) {
      const under = element("div", { class: "bar" }, layers);
      under.style.marginTop = "6px";
      section.append(under, caption, this.loupes());
    } else {
      ui.undo = element("button", { class: "plain", text: "Undo", title: "take a stroke back (Z)", onclick: () => this.undo() });
      const paint = element("button", { class: "plain", text: "Paint", title: "paint the kept code over tokens (P)", onclick: () => this.togglePaint() });
      ui.syncs.push(() => {
        paint.setAttribute("aria-pressed", this.state.paint);
        ui.undo.hidden = !this.edits.get(`${m},${this.state.photo}`)?.strokes.length;
      });
      bar.append(layers, paint, ui.undo);
      const box = element("input", { type: "checkbox", onchange: () => this.set({ fixed: box.checked }) });
      box.checked = this.state.fixed;
      const bars = this.bars(m);
      bars.prepend(element("div", { class: "headline" }, ui.sides[m].said, element("label", { title: "bars from 0 to 100 %, or up to the largest" }, box, "0–100 %")));
      section.append(caption, bars);
    }
    return section;
  }
  loupes() {
    const { ui } = this, there = new Map(this.layers());
    const wanted = this.both ? ["original", "hard0", "hard1", "difference"] : ["original", "hard", "soft"];
    const row = element("div", { class: "loupes" });
    for (const layer of wanted.filter((l) => there.has(l))) {
      const canvas = element("canvas"), p = element("p", { text: there.get(layer).toLowerCase() === layer ? layer : there.get(layer) });
      ui.loupes.push([layer, canvas]);
      row.append(element("div", {}, canvas, p));
    }
    return row;
  }
  temperature(t) {
    const { ui } = this, about = t.about;
    ui.tau = element("h2");
    ui.curve = element("canvas", { class: "curve", role: "img", "aria-label": "mean entropy and dB of the soft picture against temperature" });
    ui.range = element("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": "temperature" });
    ui.range.oninput = () => this.setTau(this.tauAt(ui.range.value / 1000));
    ui.range.onkeydown = (e) => {
      const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[e.key];
      if (by) { e.preventDefault(); e.stopPropagation(); this.stepTau(by); }
    };
    const drag = (e) => {
      const box = ui.curve.getBoundingClientRect();
      this.setTau(this.tauAt((e.clientX - box.left - 30) / (box.width - 60)));
    };
    ui.curve.onpointerdown = (e) => { ui.curve.setPointerCapture(e.pointerId); drag(e); };
    ui.curve.onpointermove = (e) => { if (e.buttons) drag(e); };
    ui.onset = element("p");
    say(ui.onset, "soft from: ", about.curve.one ? `1 bit at τ = ${short(about.curve.one)}` : about.curve.bits[0] >= 1 ? "above 1 bit at every τ" : "below 1 bit at every τ", ` (mean entropy of ${about.curve.tokens.toLocaleString("en")} tokens). `);
    ui.meaning = element("p", { text: "τ = 1 is the mixture’s own width 2D/C." + (about.tau_c ? " At τc and above all codes could merge into one." : "") });
    const jump = (tau, text) => element("button", { class: "plain", text, onclick: () => this.setTau(tau) });
    const bar = element("div", { class: "bar" }, ui.tau);
    const jumps = element("div", { class: "bar" }, jump(1, "τ = 1"), about.tau_c ? jump(about.tau_c, `τc = ${short(about.tau_c)}`) : null);
    const axes = element("div", { class: "caption" }, element("p", { class: "first", text: "mean entropy, bits" }), element("p", { class: "second", text: about.decodes && about.images ? "soft picture, dB" : "" }));
    axes.children[0].style.color = "var(--first)";
    axes.children[1].style.color = "var(--second)";
    const section = element("section", { class: "temperature", "aria-label": "temperature" });
    if (this.both) {
      bar.append(...jumps.children);
      return section.append(bar, ui.range), section;
    }
    const head = element("div", { class: "head-of-it" }, bar, axes, ui.curve, ui.range, jumps);
    const words = element("div", { class: "words-of-it" }, ui.onset, ui.meaning);
    const thumbs = element("div", { class: "thumbs" });
    for (const [layer, name] of this.layers()) {
      if (layer === "original") continue;
      const canvas = element("canvas"), p = element("span"), b = element("button", { class: "thumb", "aria-label": `show ${name}`, onclick: () => this.set({ layer: this.state.layer === layer ? this.layers()[0][0] : layer }) }, canvas, p);
      ui.thumbs.push([layer, canvas, p]);
      ui.syncs.push(() => b.setAttribute("aria-pressed", this.state.layer === layer));
      thumbs.append(b);
    }
    const loupe = element("div", {}, element("h2", { text: "Loupe, 7 × 7 tokens" }), this.loupes());
    section.append(head, words, thumbs, loupe);
    return section;
  }
  tauAt(x) {
    const all = this.active.about.temperatures, low = Math.log(all[0]), high = Math.log(all.at(-1));
    const tau = Math.exp(low + Math.max(0, Math.min(1, x)) * (high - low));
    const near = all.find((a) => Math.abs(Math.log(a / tau)) < 0.03 * (high - low));
    return near ?? tau;
  }

  // Pointer -------------------------------------------------------------------------------------
  wheel(canvas, get, changed) {
    const at = (e) => { const b = canvas.getBoundingClientRect(); return [(e.clientX - b.left) / b.width, (e.clientY - b.top) / b.height]; };
    canvas.onwheel = (e) => {
      e.preventDefault();
      const z = get(), [x, y] = at(e), s = Math.max(1, Math.min(24, z.s * Math.exp(-e.deltaY / 400)));
      z.x += x / z.s - x / s;
      z.y += y / z.s - y / s;
      z.s = s;
      changed(z);
    };
    canvas.oncontextmenu = (e) => e.preventDefault();
    return (e) => { // a drag with the right or middle button moves
      const z = get();
      z.x -= e.movementX / canvas.clientWidth / z.s;
      z.y -= e.movementY / canvas.clientHeight / z.s;
      changed(z);
    };
  }
  wireMap(map, t) {
    const canvas = map.canvas, m = t.m;
    const clamp = (z) => { z.x = Math.max(0, Math.min(1 - 1 / z.s, z.x)); z.y = Math.max(0, Math.min(1 - 1 / z.s, z.y)); this.draw(); };
    const move = this.wheel(canvas, () => map.zoom, clamp);
    const at = (e) => map.codeAt(t, e.offsetX, e.offsetY);
    let from = null;
    canvas.onpointerdown = (e) => {
      canvas.focus({ preventScroll: true });
      from = e.button === 0 && e.shiftKey ? [e.offsetX, e.offsetY] : null;
      if (e.button) canvas.setPointerCapture(e.pointerId);
    };
    canvas.onpointermove = (e) => {
      if (e.buttons & 6) return move(e);
      if (from && e.buttons) return this.set({ band: [...from, e.offsetX, e.offsetY] });
      const k = at(e);
      this.set({ hover: k === null ? null : { code: [m, k] } });
    };
    canvas.onpointerleave = () => this.set({ hover: null });
    canvas.onpointerup = (e) => {
      const k = at(e);
      this.state.band = null;
      if (e.button || k === null) return;
      if (from && Math.hypot(e.offsetX - from[0], e.offsetY - from[1]) > 6) {
        const [a, b] = [from, [e.offsetX, e.offsetY]], inside = [];
        for (let c = 0; c < t.K; c++) {
          const [x, y, s] = map.place(t, c), cx = x + s / 2, cy = y + s / 2;
          if ((cx - a[0]) * (cx - b[0]) <= 0 && (cy - a[1]) * (cy - b[1]) <= 0) inside.push(c);
        }
        if (inside.length) this.keep({ code: [m, inside[0]] }, inside);
      } else if (e.shiftKey) {
        const before = this.state.codes.length ? this.state.codes : [this.focusPinned(m)].filter((c) => c !== null);
        const codes = before.includes(k) ? before.filter((c) => c !== k) : [...before, k];
        if (codes.length) this.keep({ code: [m, codes.includes(k) ? k : codes[0]] }, codes);
      } else this.keep({ code: [m, k] });
      from = null;
    };
  }
  focusPinned(m) {
    const { hover } = this.state;
    this.state.hover = null;
    const k = this.focusCode(m);
    this.state.hover = hover;
    return k;
  }
  tokenAt(x, y) {
    const c = this.ui.photo, [rows, columns] = this.grid(), f = fit(c.clientWidth, c.clientHeight, rows, columns, this.state.zoom);
    const col = Math.floor((x - f.x) / f.s), row = Math.floor((y - f.y) / f.s);
    return col < 0 || row < 0 || col >= columns || row >= rows ? null : row * columns + col;
  }
  wirePhoto(canvas) {
    const bound = (z) => { const far = 0.5 - 0.5 / z.s; z.x = Math.max(-far, Math.min(far, z.x)); z.y = Math.max(-far, Math.min(far, z.y)); this.draw(); };
    canvas.onwheel = (e) => {
      e.preventDefault();
      const z = this.state.zoom, b = canvas.getBoundingClientRect(), x = (e.clientX - b.left) / b.width - 0.5, y = (e.clientY - b.top) / b.height - 0.5;
      const s = Math.max(1, Math.min(32, z.s * Math.exp(-e.deltaY / 400)));
      z.x += x / z.s - x / s;
      z.y += y / z.s - y / s;
      z.s = s;
      bound(z);
    };
    canvas.oncontextmenu = (e) => e.preventDefault();
    canvas.onpointerdown = (e) => {
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(e.pointerId);
      const token = this.tokenAt(e.offsetX, e.offsetY);
      if (e.button || token === null) return;
      if (this.state.paint) { this.stroke = this.beginStroke(); this.brush(token); }
    };
    canvas.onpointermove = (e) => {
      const z = this.state.zoom;
      if (e.buttons & 6) { z.x -= e.movementX / canvas.clientWidth / z.s; z.y -= e.movementY / canvas.clientHeight / z.s; return bound(z); }
      const token = this.tokenAt(e.offsetX, e.offsetY);
      if (this.state.paint && e.buttons && token !== null && token !== this.lastBrushed) this.brush(token);
      this.set({ hover: token === null ? null : { token } });
    };
    canvas.onpointerleave = () => this.set({ hover: null });
    canvas.onpointerup = (e) => {
      const token = this.tokenAt(e.offsetX, e.offsetY);
      if (this.state.paint) return this.endStroke();
      if (!e.button && token !== null) this.keep({ token });
    };
    canvas.ondragover = (e) => { if (this.model.get("live")) e.preventDefault(); };
    canvas.ondrop = async (e) => {
      const file = e.dataTransfer?.files[0];
      if (!file || !this.model.get("live")) return;
      e.preventDefault();
      this.tell({ asked: { kind: "photograph", name: file.name, data: new DataView(await file.arrayBuffer()) } });
    };
  }
  // A real patch: its photograph first, where that is shown here; otherwise its name.
  visit(m, b) {
    const [n, row, column] = b.at, [, w] = this.meta.tokenizers[m].grids[n] ?? [0, 0];
    if (!this.meta.photographs[n].shown) return;
    if (n !== this.state.photo) this.setPhoto(n);
    this.keep({ token: row * w + column });
  }

  // Painting ------------------------------------------------------------------------------------
  togglePaint() {
    const m = this.views[0], paint = !this.state.paint;
    if (this.both) return;
    this.set({ paint, brush: paint ? this.focusPinned(m) : null, layer: paint ? "hard" : this.state.layer });
  }
  beginStroke() {
    const m = this.views[0], n = this.state.photo, key = `${m},${n}`, base = this.picture("hard");
    if (!base) return null;
    if (!this.edits.has(key)) {
      const canvas = element("canvas", { width: base.width, height: base.height });
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(base, 0, 0);
      this.edits.set(key, { indices: this.indices(m).slice(), canvas, strokes: [], psnr: null });
    }
    const edit = this.edits.get(key), g = edit.canvas.getContext("2d");
    edit.strokes.push({ indices: edit.indices.slice(), image: g.getImageData(0, 0, edit.canvas.width, edit.canvas.height), psnr: edit.psnr });
    return edit;
  }
  brush(token) {
    const m = this.views[0], n = this.state.photo, t = this.tokenizers[m], edit = this.stroke, grid = this.grid(), [h, w] = grid;
    if (!edit || this.state.brush === null) return;
    this.lastBrushed = token;
    const r = Math.floor(token / w), c = token % w, box = { x: Math.max(0, c - 1), y: Math.max(0, r - 1), X: Math.min(w, c + 2), Y: Math.min(h, r + 2) };
    for (let y = box.y; y < box.Y; y++) for (let x = box.x; x < box.X; x++) edit.indices[y * w + x] = this.state.brush;
    const g = edit.canvas.getContext("2d");
    if (t.about.network) repaint((this.decoders ??= {})[`${m},${n}`] ??= new LocalDecoder(this.store, m, n), t, edit.indices, grid, box, g);
    else {
      const px = edit.canvas.width / w;
      g.imageSmoothingEnabled = false;
      for (let y = box.y; y < box.Y; y++) for (let x = box.x; x < box.X; x++) tile(g, t, this.state.brush, x * px, y * px, px);
    }
    this.set({});
  }
  endStroke() {
    const edit = this.stroke, m = this.views[0], n = this.state.photo;
    this.stroke = this.lastBrushed = null;
    if (!edit) return;
    this.measure(edit);
    if (!this.tokenizers[m].about.network && this.model.get("live")) this.tell({ asked: { kind: "paint", tokenizers: [m], photograph: n, indices: new DataView(Uint16Array.from(edit.indices).buffer) } });
    this.draw();
  }
  // dB of the painted picture against the original, as the page holds both.
  measure(edit) {
    const original = this.store.pictures.get(`p${this.state.photo}`);
    if (!original || original.width !== edit.canvas.width) return;
    const a = (this.originals ??= {})[this.state.photo] ??= pixels(original), b = edit.canvas.getContext("2d").getImageData(0, 0, original.width, original.height).data;
    let sum = 0;
    for (let i = 0; i < a.length; i++) if (i % 4 !== 3) sum += (a[i] - b[i]) ** 2;
    edit.psnr = 10 * Math.log10(255 ** 2 / (sum / ((a.length / 4) * 3) || 1e-9));
  }
  undo() {
    const key = `${this.views[0]},${this.state.photo}`, edit = this.edits.get(key), last = edit?.strokes.pop();
    if (!last) return;
    if (!edit.strokes.length) this.edits.delete(key);
    else {
      edit.indices = last.indices;
      edit.psnr = last.psnr;
      edit.canvas.getContext("2d").putImageData(last.image, 0, 0);
    }
    this.typicals.clear();
    this.draw();
  }

  // Drawing -------------------------------------------------------------------------------------
  draw() {
    if (this.pending || !this.ui) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }
  paint() {
    const { state, ui } = this, { token, stale } = this.token(), onToken = (state.hover ?? state.pin).token !== undefined;
    for (const m of this.views) this.paintSide(m, token, stale, onToken);
    this.paintPhoto(token);
    for (const [layer, canvas] of ui.loupes) drawLoupe(canvas, { picture: this.picture(layer), grid: this.grid(), token });
    this.paintTemperature();
    for (const sync of ui.syncs) sync();
    const m = this.views[0];
    const said = { view: state.view, quantity: state.quantity, layer: state.layer, tau: state.tau, photograph: state.photo, pin: state.pin, code: this.focusCode(m), token: this.focusToken(), codes: state.codes };
    this.root.dataset.state = JSON.stringify(said);
    this.root.dataset.painted = performance.now();
    this.model.remember?.(said);
  }
  paintSide(m, token, stale, onToken) {
    const { state, ui } = this, t = this.tokenizers[m], u = ui.sides[m], k = this.focusCode(m);
    const a = this.assigned(m, token), likely = onToken ? a.codes.filter((_, i) => a.shares[i] > 0.01 && i > 0) : [];
    const near = k !== null && !onToken ? [...t.near.subarray(8 * k, 8 * k + 8)].filter((c) => c !== NONE) : [];
    u.map.draw(this.then(t), { quantity: state.quantity, focus: k, chosen: m === this.views[0] ? state.codes : [], likely, near, dim: state.hover?.token !== undefined, band: state.band });
    this.paintLegend(t, u);
    if (u.shown !== k) this.paintCode(t, u, k);
    u.shown = k;
    this.paintBars(t, u, a, token, stale);
  }
  paintLegend(t, u) {
    const q = this.state.quantity;
    if (u.legend.of === q) return;
    u.legend.of = q;
    u.words.textContent = QUANTITIES[q].words(t);
    const note = element("p");
    u.legend.replaceChildren(note);
    if (q === "unused") {
      say(note, "", String(t.unused.length), " unused: ");
      u.legend.append(element("p", { class: "list", tabindex: 0, text: t.unused.join(", ") || "none" }));
      return;
    }
    const shown = q === "picture" ? "mass" : q, [low, high] = range(t, shown), { amount, unit, title } = QUANTITIES[shown];
    if (q === "picture") say(note, "crossed: ", counted(t.unused.length, "unused code"), ". Most used:");
    else if (amount) say(note, `tile size: up to `, `${number(high)} ${unit}`, ", log scale. Highest, by code:");
    else {
      const ramp = element("span", { class: "ramp" });
      ramp.style.background = `linear-gradient(90deg,${[0, 0.25, 0.5, 0.75, 1].map((x) => css(viridis(x))).join()})`;
      note.append(short(low), ramp, `${short(high)} ${unit}. ${q === "trust" ? "Lowest" : "Highest"}:`);
    }
    const most = this.both ? 5 : 9; // of trust many share the highest value
    for (const k of q === "trust" ? t.order[q].slice(-most).reverse() : t.order[shown].slice(0, most)) {
      const said = `${number(t.values[shown][k])} ${unit}`, b = this.swatch(`${title} ${said}, code`, t.m, (s) => this.keep({ code: [t.m, s.code] }));
      b.show(k, "tiles", k);
      b.title = `code ${k}: ${said}`;
      if (t.K > 9999) b.style.width = "33px"; // five digits
      u.legend.append(b);
    }
  }
  describe(t, k) {
    const v = (q) => number(t.values[q][k]);
    if (!t.count[k]) return ["Code ", String(k), `: no token, in ${scope(t)}`];
    return ["Code ", String(k), ": ", t.count[k].toLocaleString("en"), ` tokens (${number((100 * t.count[k]) / t.total)} %, rank ${t.rank[k]}) · `, `${v("entropy")} bits`, " at τ = 1 · ", `${v("error")} %`, " of the error · isolation ", `${v("isolation")} √D`];
  }
  paintCode(t, u, k) {
    if (k === null) {
      say(u.head, "no code of this tokenizer is in focus");
      return;
    }
    say(u.head, ...this.describe(t, k));
    u.head.title = u.head.textContent;
    u.code.show(k, "tiles");
    u.mean.show(k, "real");
    u.near.forEach((b, i) => b.show(t.near[8 * k + i] === NONE ? null : t.near[8 * k + i], "tiles", t.near[8 * k + i]));
    say(u.trust, "nearest codes · trust ", `${t.kept[k]} of ${t.around[k]}`);
    u.trust.title = "of its neighbors on the map, how many are among its 24 nearest codes";
    const factor = t.about.factor, around = 4 * factor;
    u.patches.forEach((b, i) => {
      const [n, row, column] = t.places.subarray(24 * k + 3 * i, 24 * k + 3 * i + 3), there = n !== NONE;
      b.style.visibility = there ? "" : "hidden";
      if (!there) return;
      b.at = [n, row, column];
      const { name, shown } = this.meta.photographs[n];
      b.title = `${name}, row ${row}, column ${column}${shown ? "" : " (a photograph that is not shown here)"}`;
      b.setAttribute("aria-label", `real patch: ${b.title}`);
      const g = b.firstChild.getContext("2d"), s = 72 / around;
      const put = (p) => {
        if (b.at[0] !== n || b.at[1] !== row || b.at[2] !== column) return;
        g.fillStyle = "#888";
        g.fillRect(0, 0, 72, 72);
        g.imageSmoothingEnabled = false;
        g.drawImage(p, (column - 1.5) * factor, (row - 1.5) * factor, around, around, 0, 0, 72, 72);
        g.strokeStyle = "#ff2d87";
        g.lineWidth = 1.5;
        g.strokeRect(1.5 * factor * s, 1.5 * factor * s, factor * s, factor * s);
      };
      const p = this.store.picture(`p${n}`, put);
      if (p) put(p);
    });
  }
  paintBars(t, u, a, token, stale) {
    const [, w] = this.grid(t.m), most = this.state.fixed ? 1 : Math.max(...a.shares, 1e-6);
    const k = this.indices(t.m)[token], place = `row ${Math.floor(token / w)}, column ${token % w}`, i = a.codes.indexOf(k), p = i < 0 ? null : a.shares[i];
    const focus = this.focusCode(t.m), at = ` at τ = ${short(this.state.tau)}`;
    if (stale) say(u.said, `Code ${focus} is not here; below, in gray, the token looked at before: ${place}`);
    else if (this.edits.get(`${t.m},${this.state.photo}`) && k !== this.store.array(`${t.m}/i${this.state.photo}`)[token]) say(u.said, `${place} is painted with code `, String(k), "; the latent’s own code is ", String(a.codes[0]), ", ", `${number(a.bits)} bits`, at);
    else say(u.said, this.both ? `${t.about.name}, ${place}: code ` : `Token in ${place}: code `, String(k), ", p = ", p === null ? "below the twelve" : `${percent(p)} %`, ", ", `${number(a.bits)} bits`, at);
    u.said.title = u.said.textContent;
    u.bars.classList.toggle("stale", stale);
    const full = 64;
    u.cells.forEach((b, j) => {
      const code = a.codes[j];
      b.style.visibility = code === undefined ? "hidden" : "";
      if (code === undefined) return;
      b.code = code;
      b.share.textContent = percent(a.shares[j]);
      b.rod.style.height = `${Math.max(1, (full * a.shares[j]) / most)}px`;
      b.label.textContent = code;
      b.setAttribute("aria-label", `code ${code}, ${percent(a.shares[j])} percent`);
      if (b.drawn === code) return;
      b.drawn = code;
      const g = b.canvas.getContext("2d");
      g.imageSmoothingEnabled = false;
      tile(g, t, code, 0, 0, 64);
    });
    u.others.share.textContent = percent(a.others);
    u.others.rod.style.height = `${Math.max(1, Math.min(full, (full * a.others) / most))}px`;
  }
  paintPhoto(token) {
    const { state, ui } = this, m = this.views[0], focus = state.hover ?? state.pin, [h, w] = this.grid();
    const codes = state.codes.length && !state.hover ? state.codes : focus.code ? [focus.code[1]] : [];
    const of = focus.code && !state.codes.length ? focus.code[0] : m, chosen = new Set(codes), hits = [];
    if (chosen.size) this.indices(of).forEach((k, i) => { if (chosen.has(k)) hits.push(i); });
    const picture = this.picture(state.layer);
    drawPhotograph(ui.photo, { picture, kept: (this.kept ??= {}), fresh: this.edits.size > 0, grid: [h, w], zoom: state.zoom, token: focus.token !== undefined ? focus.token : hits.length ? token : null, hits, dim: chosen.size > 0 && hits.length > 0 && !state.paint });
    const n = h * w, name = this.meta.photographs[state.photo].name;
    if (state.paint) say(ui.caption, "painting code ", String(state.brush), " over 3 × 3 tokens: drag, or Space; Z undoes, Esc ends");
    else if (chosen.size) say(ui.caption, codes.length > 1 ? "" : "code ", codes.length > 1 ? counted(codes.length, "code") : String(codes[0]), hits.length ? ": " : " is not in this photograph (", hits.length ? `${hits.length.toLocaleString("en")} of ${n.toLocaleString("en")} tokens here` : `0 of ${n.toLocaleString("en")} tokens`, hits.length ? "" : ")");
    else say(ui.caption, this.both ? name : `${name}, ${w} × ${h} tokens`, this.under(focus.token));
    this.paintScale();
  }
  // The value of the layer under the pointer.
  under(token) {
    const { state } = this, n = state.photo;
    if (token === undefined || token === null) return "";
    if (state.layer === "difference") {
      const d = this.differences()?.[token];
      return d === undefined ? "" : ` · ${this.names[d < 0 ? 0 : 1]} better by ${number(Math.abs(d))} gray levels`;
    }
    if (state.layer === "error") return ` · ${number((this.store.grays(`${this.views[0]}/error${n}`, () => this.draw())?.[token] ?? 0) / 2)} gray levels`;
    if (state.layer === "entropy") return ` · ${number(this.assigned(this.views[0], token).bits)} bits`;
    return "";
  }
  paintScale() {
    const { state, ui } = this, dB = (m) => this.noise(m, "hard"), key = JSON.stringify([state.layer, state.photo, state.tau, this.views.map(dB)]);
    if (ui.scale.key === key) return;
    ui.scale.key = key;
    const ramp = element("span", { class: "ramp" }), noise = this.views.map((m) => (dB(m) === null ? "" : `${this.names[m]} ${dB(m).toFixed(2)} dB`)).join(" | ");
    const scale = (color, from, to) => {
      ramp.style.background = `linear-gradient(90deg,${[0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1].map((x) => css(color(x))).join()})`;
      return [from, ramp, to];
    };
    ui.noise.replaceChildren(element("b", { text: noise }));
    let parts = [];
    if (state.layer === "difference") parts = [...scale((x) => differenceColor(8 * x - 4), `${this.names[0]} better by 4`, `${this.names[1]} better by 4 gray levels (5 × 5 tokens)`)];
    else if (state.layer === "error") parts = [...scale(viridis, "hard error 0", "64 gray levels (root mean square)")];
    else if (state.layer === "entropy") parts = [...scale(viridis, "0", `${number(Math.log2(this.active.K))} bits at τ = ${short(this.prepared(this.views[0], "entropy")[1])}`)];
    else if (state.layer === "hard" && dB(this.views[0]) !== null) parts = ["hard codes: ", element("b", { text: `${dB(this.views[0]).toFixed(2)} dB` })];
    else if (state.layer.startsWith("soft")) parts = [`soft codes at τ = ${short(this.prepared(+state.layer.slice(4) || this.views[0], "soft")[1])}`];
    ui.scale.replaceChildren(...parts);
  }
  paintTemperature() {
    const { state, ui } = this, m = this.views[0], t = this.tokenizers[m], about = t.about, n = state.photo;
    say(ui.tau, `Temperature τ = `, short(state.tau), " × 2D/C");
    const shown = [n, state.tau, ui.curve.clientWidth].join();
    if (!this.both && ui.curve.shown !== shown) drawCurve(ui.curve, { about, psnr: about.soft_psnr[n], tau: Math.min(state.tau, about.temperatures.at(-1)), colors: ui.colors });
    ui.curve.shown = shown;
    const low = Math.log(about.temperatures[0]), high = Math.log(about.temperatures.at(-1));
    ui.range.value = Math.round((1000 * (Math.log(state.tau) - low)) / (high - low));
    ui.range.setAttribute("aria-valuetext", `${number(state.tau)} times 2D over C`);
    for (const [layer, canvas, p] of ui.thumbs) {
      const picture = this.picture(layer);
      const tau = short(layer === "hard" || layer === "error" ? 0 : this.prepared(m, layer)[1]);
      const noise = layer === "hard" || layer === "soft" ? this.noise(m, layer) : null, dB = noise === null ? "" : `${noise.toFixed(2)} dB`;
      if (layer === "hard") say(p, about.decodes ? "hard " : "tiles of the tokens", dB);
      if (layer === "soft") say(p, `soft, τ = ${tau}: `, dB);
      if (layer === "entropy") say(p, `entropy, τ = ${tau}`);
      if (layer === "error") say(p, "hard error");
      if (canvas.shown === picture && canvas.wide === canvas.clientWidth && !this.edits.size) continue;
      const { g, w, h } = context(canvas);
      Object.assign(canvas, { shown: picture, wide: w });
      g.clearRect(0, 0, w, h);
      if (!picture) continue;
      const [rows, columns] = this.grid(), s = Math.min(w / columns, h / rows);
      g.imageSmoothingEnabled = true;
      g.drawImage(picture, (w - columns * s) / 2, (h - rows * s) / 2, columns * s, rows * s);
    }
  }
  // Said to screen readers: what is kept now.
  announce() {
    const m = this.views[0], { codes, pin } = this.state, k = this.focusCode(m), w = this.grid()[1];
    const place = pin.token === undefined ? "" : `row ${Math.floor(pin.token / w)}, column ${pin.token % w}. `;
    if (codes.length > 1) this.ui.said.textContent = `${counted(codes.length, "code")} selected: ${codes.join(", ")}`;
    else if (k !== null) this.ui.said.textContent = place + this.describe(this.tokenizers[m], k).join("");
  }

  // Keyboard and commands -----------------------------------------------------------------------
  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const { state } = this, layers = this.layers(), lower = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    const commands = {
      Escape: () => {
        this.toggleHelp(false);
        if (document.fullscreenElement && !state.paint) return;
        state.paint = false;
        this.keep(this.home());
      },
      m: () => { const all = Object.keys(QUANTITIES), by = e.shiftKey ? all.length - 1 : 1; this.set({ quantity: all[(all.indexOf(state.quantity) + by) % all.length] }); },
      t: () => this.setTau(state.tau === 1 ? (this.active.about.tau_c ?? 1) : 1),
      c: () => this.tokenizers.length > 1 && this.setView(this.both ? (this.before ?? 0) : ((this.before = state.view), "both")),
      ",": () => this.stepTau(-1),
      ".": () => this.stepTau(1),
      "[": () => this.stepTime(this.active, -1),
      "]": () => this.stepTime(this.active, 1),
      f: () => this.fullscreen(),
      p: () => this.togglePaint(),
      z: () => this.undo(),
      "?": () => this.toggleHelp(),
      "/": () => (this.ui.input.focus(), this.ui.input.select()),
    };
    if (layers[+lower - 1]) this.set({ layer: layers[+lower - 1][0] });
    else if (commands[lower]) commands[lower]();
    else if (lower.startsWith("Arrow")) this.arrow(lower, e.target);
    else if (lower === " " && state.paint && e.target.tagName !== "BUTTON") {
      this.stroke = this.beginStroke();
      this.brush(this.focusToken() ?? this.home().token);
      this.endStroke();
    } else return;
    e.preventDefault();
    e.stopPropagation();
  }
  arrow(key, target) {
    const onMap = this.views.find((m) => target === this.ui.sides[m].map.canvas), { pin } = this.state;
    const m = onMap ?? (pin.code && target !== this.ui.photo ? pin.code[0] : null);
    if (m !== null && m !== undefined) {
      const t = this.tokenizers[m], k = this.focusPinned(m) ?? t.order.mass[0] ?? 0, step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -t.side, ArrowDown: t.side }[key];
      const cell = t.cell[k] + step, wraps = Math.abs(step) === 1 && Math.floor(cell / t.side) !== Math.floor(t.cell[k] / t.side);
      if (!wraps && t.at[cell] >= 0) this.keep({ code: [m, t.at[cell]] });
      return;
    }
    const [h, w] = this.grid(), at = pin.token ?? this.token().token, r = Math.floor(at / w) + (key === "ArrowDown") - (key === "ArrowUp"), c = (at % w) + (key === "ArrowRight") - (key === "ArrowLeft");
    if (r >= 0 && c >= 0 && r < h && c < w) this.keep({ token: r * w + c });
  }
  fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.parentElement.requestFullscreen?.();
  }
  theme() {
    this.root.classList.toggle("dark");
    this.build();
  }
  csv() {
    const m = this.views[0], t = this.tokenizers[m], codes = this.state.codes.length ? this.state.codes : this.state.pin.code ? [this.state.pin.code[1]] : [...t.count.keys()];
    const quantities = Object.keys(t.values), rows = codes.map((k) => [k, ...quantities.map((q) => (Number.isFinite(t.values[q][k]) ? t.values[q][k] : ""))].join());
    const link = element("a", { href: URL.createObjectURL(new Blob([[["code", ...quantities].join(), ...rows].join("\n")], { type: "text/csv" })), download: "codes.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
