// The screen: one state, the HTML that is built of it, and what each frame shows.

import { assignment, decoderOf, excess, repaint } from "./assigning.js";
import { CURVE, PICK, WHOLE, cellAt, difference, drawCurve, drawMap, drawPhotograph, drawSmall, field, fit, mosaic, overlaid, range, squares, tile } from "./drawing.js";
import { NONE, QUANTITIES, VIRIDIS, atMoment, between, counted, html, number, parseCodes, percent, pixels, put, scope, short, thousands } from "./values.js";

const STEPPING = ", [ and ] the step of training";
const HELP = [
  "Hovering looks, a click keeps, Esc returns. Shift and click, or Shift and drag, on the map selects several codes.",
  "Find: a number, or a list such as 3, 17-20, and Enter. / moves to the box.",
  "Arrows move the kept code or token. Digits choose the picture, M and Shift M the map’s quantity, T goes between τ = 1 and τc, comma and period the temperature" + STEPPING + ". With Shift arrows go eight at a time.",
  "C compares two tokenizers and leaves again. P paints the kept code over 3 × 3 tokens (Space, or drag), Z takes a stroke back. F full screen. The wheel zooms, a drag then moves, 0 shows the whole again.",
  "τ is the temperature of the soft assignment. Its unit is twice the mean squared quantization error of a latent channel (2 D / C in the notebooks): at τ = 1 soft codes are as blurred as hard codes are wrong. τc is where all codes would merge into one.",
];
const LISTED = 400; // unused codes, at most
const RINGS = 150; // on a photograph, at most
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

// A tile of an atlas of w x h tiles, as the background of an element.
const part = (from, x, y, w, h) => html`<i class="tile" style="background:#888 var(--${from}) ${(100 * x) / (w - 1) || 0}% ${(100 * y) / (h - 1) || 0}%/${100 * w}% ${100 * h}% no-repeat"></i>`;
const tileOf = (t, k, sheet = "tiles") => part(sheet + t.m, k % t.about.atlas, Math.floor(k / t.about.atlas), t.about.atlas, t.about.atlas);
const swatch = (t, k, label, { sheet, text = "", title = "" } = {}) =>
  html`<button class="swatch ${t.count[k] ? "" : "dead"}" data-m="${t.m}" data-code="${k}" title="${title}" aria-label="${label} ${k}">
    ${tileOf(t, k, sheet)}<span>${text}</span></button>`;
const choice = (name, value, content) => html`<button data-set="${name}" data-value="${value}">${content}</button>`;
const seg = (label, name, options) => html`<div class="seg" role="group" aria-label="${label}">${options.map(([value, text]) => choice(name, value, text))}</div>`;
const command = (key, text, title) =>
  html`<button class="plain" data-key="${key}" title="${title}" aria-label="${text === "?" ? title : text}">${text}</button>`;
const square = (name, label) =>
  html`<canvas class="square" data-ref="${name}" tabindex="0" role="application" aria-label="${label}"></canvas>`;
const slider = (name, label, most) => html`<input type="range" data-ref="${name}" min="0" max="${most}" aria-label="${label}">`;
const said = (name, of = "", text = "") => html`<p class="${of}" data-ref="${name}">${text}</p>`;
const EIGHT = [0, 1, 2, 3, 4, 5, 6, 7];
const ramp = (colors) => html`<span class="ramp" style="background:linear-gradient(90deg,${colors.join()})"></span>`;
const bar = (content, share, height, name) =>
  html`<span>${percent(share)}</span><i style="height:${Math.max(1, height)}px"></i>${content}<span>${name}</span>`;

export class Screen {
  constructor(model, store, tokenizers, root) {
    Object.assign(this, { model, store, tokenizers, root, meta: store.meta, edits: new Map(), kept: new Map(), exact: {}, excesses: [], images: {} });
    this.shown = this.meta.photographs.flatMap((p, n) => (p.shown ? [n] : []));
    const seen = { view: 0, quantity: "picture", layer: "", tau: model.get("temperature"), photo: model.get("photograph"), step: null };
    this.state = { ...seen, hover: null, pin: null, codes: [], fixed: true, paint: false, brush: null, ...model.get("view") };
    if (!this.shown.includes(this.state.photo)) this.state.photo = this.shown[0];
    this.zooms = { photo: { ...WHOLE }, ...tokenizers.map(() => ({ ...WHOLE })) };
    this.keepLayer();
    this.state.pin ??= this.home();
    this.listen();
  }

  // What is looked at ---------------------------------------------------------------------------
  get both() { return this.state.view === "both"; }
  get views() { return this.both ? [0, 1] : [this.state.view]; }
  get active() { return this.tokenizers[this.views[0]]; }
  get focus() { return this.state.hover ?? this.state.pin; }
  get names() { return this.tokenizers.map((t) => t.about.name); }
  // A method's color is the same wherever it is shown; of two runs of one method it says nothing.
  get colors() {
    const own = this.tokenizers.map((t) => t.about.color);
    return own[0] && own[1] && own[0] !== own[1] ? own : ["#0072b2", "#d55e00"];
  }
  get comparable() { return this.tokenizers.length > 1 && this.tokenizers.every((t) => t.about.pixels) && String(this.grid(0)) === String(this.grid(1)); }
  grid(m = this.views[0], n = this.state.photo) { return this.meta.tokenizers[m].grids[n]; }
  edit(m = this.views[0]) { return this.edits.get(`${m},${this.state.photo}`); }
  indices(m) { return this.edit(m)?.indices ?? this.store.array(`${m}/i${this.state.photo}`); }
  // What `make` gives, once it is there: it gives null until a picture came.
  once(key, make) {
    const made = this.kept.get(key) ?? make(() => this.draw());
    if (made !== null) this.kept.set(key, made);
    return made;
  }
  layers() {
    const { images, decodes } = this.active.about, of = (layer, word) => this.names.map((name, m) => [`${layer}${m}`, name + word]);
    const shown = this.both
      ? [[true, ...of("hard", "")], [decodes, ...of("soft", " soft")], [this.comparable, ["difference", "Difference"]]]
      : [[true, ["hard", decodes ? "Hard" : "Tiles"]], [decodes, ["soft", "Soft"]], [true, ["entropy", "Entropy"]], [decodes && images, ["error", "Error"]]];
    return [[images, ["original", "Original"]], ...shown].flatMap(([there, ...found]) => (there ? found : []));
  }
  keepLayer() {
    const there = this.layers().map(([k]) => k);
    if (!there.includes(this.state.layer)) this.state.layer = there.find((k) => k === "difference") ?? there[0];
  }
  get looked() { return this.lastToken ?? this.home().token; }
  home() {
    const [h, w] = this.grid();
    return { token: Math.floor(h * 0.72) * w + Math.floor(w * 0.62) };
  }
  focusCode(m, focus = this.focus) {
    if (!focus) return null;
    if (focus.code?.[0] === m) return focus.code[1];
    const token = focus.token ?? this.typical(...focus.code);
    return token === null ? null : this.indices(m)[token];
  }
  // The token of this photograph that has the code: the one looked at, or the one nearest to it.
  typical(m, k) {
    const { sites, about: { D } } = this.tokenizers[m], z = this.store.array(`${m}/z${this.state.photo}`);
    let best = null, least = Infinity;
    if (this.indices(m)[this.looked] === k) return this.looked;
    this.indices(m).forEach((code, i) => {
      if (code !== k) return;
      let d = 0;
      for (let c = 0; c < D; c++) d += (z[i * D + c] - sites[k * D + c]) ** 2;
      if (d < least) [least, best] = [d, i];
    });
    return best;
  }
  // The token whose assignment and surroundings are shown, and whether it has the focused code.
  token() {
    const found = this.focus.token ?? this.typical(...this.focus.code);
    return { token: found ?? this.looked, stale: found === null };
  }
  assigned(m, token) {
    const key = `${this.state.photo},${token}`;
    if (this.excesses[m]?.key !== key) this.excesses[m] = { key, d: excess(this.tokenizers[m], this.store.array(`${m}/z${this.state.photo}`), token) };
    return assignment(this.excesses[m].d, this.state.tau);
  }
  // The exact temperature where the kernel answered, otherwise the nearest that was prepared.
  prepared(m, kind) {
    const { photo: n, tau } = this.state, exact = `${m}/${kind}${n}@${tau}`, all = this.meta.tokenizers[m].temperatures;
    if (this.store.has(exact)) return [exact, tau];
    const apart = all.map((x) => Math.abs(Math.log(x / tau))), j = apart.indexOf(Math.min(...apart));
    return [`${m}/${kind}${n}/${j}`, all[j], j];
  }
  noise(m, kind) {
    const { psnr, soft_psnr: soft } = this.meta.tokenizers[m], n = this.state.photo;
    if (kind === "hard") return this.edit(m)?.psnr ?? psnr[n];
    return this.exact[`${m}/${n}@${this.state.tau}`] ?? soft[n][this.prepared(m, "soft")[2] ?? 0];
  }
  grays(name) {
    return this.once(`gray ${name}`, (again) => {
      const picture = this.store.picture(name, again);
      return picture && pixels(picture).filter((_, i) => i % 4 === 0);
    });
  }
  errors(m) { return this.edit(m)?.error ?? this.grays(`${m}/error${this.state.photo}`); }
  picture(layer) {
    const n = this.state.photo, [, kind, which] = /^([a-z]+)(\d*)$/.exec(layer), m = +(which || this.views[0]);
    const name = { original: `p${n}`, difference: `difference${n}`, hard: `${m}/hard${n}`, error: `${m}/error${n}` }[kind] ?? this.prepared(m, kind)[0];
    const drawn = (values, colors, low, high) => values && this.once(`field ${name} ${this.edit(m)?.version}`, () => field(values, this.grid(m), colors, low, high));
    if (kind === "difference") return this.once(`over ${name}`, (again) => {
      const photo = this.store.picture(`p${n}`, again), values = this.differences();
      return photo && values && overlaid(field(values, this.grid(m), between(this.colors, "#000000"), -4, 4), photo);
    });
    if (kind === "entropy") return drawn(this.grays(name), VIRIDIS, 0, 252); // sixty-fourths of log2 K bits
    if (kind === "error") return drawn(this.errors(m), VIRIDIS, 0, 128); // half levels
    if (kind === "hard" && this.edit(m)) return this.edit(m).canvas;
    if (kind === "hard" && !this.store.has(name)) return this.once(`tiles${m},${n}`, () => mosaic(this.tokenizers[m], this.indices(m), this.grid(m)));
    return this.store.picture(name, () => this.draw());
  }
  differences() {
    const [a, b] = [0, 1].map((m) => this.grays(`${m}/error${this.state.photo}`));
    return a && b && this.once(`differences${this.state.photo}`, () => difference(a, b, this.grid()));
  }
  // Steps of training of which a tokenizer that is shown has a snapshot.
  steps() {
    return [...new Set(this.views.flatMap((m) => this.meta.tokenizers[m].moments.map((x) => x.step)))].sort((a, b) => a - b);
  }
  // The tokenizer as it was at the step that is looked at, or at its last snapshot before.
  then(t) {
    const j = this.state.step === null ? -1 : t.about.moments.findLastIndex((x) => x.step <= this.state.step);
    return (j >= 0 && this.once(`moment${t.m},${j}`, (again) => atMoment(this.store, t, j, again))) || t;
  }

  // Changes -------------------------------------------------------------------------------------
  set(changes) {
    Object.assign(this.state, changes);
    this.draw();
  }
  keep(pin, codes = []) {
    const m = this.views[0], [, w] = this.grid(), { token } = pin;
    if (token !== undefined) this.lastToken = token;
    if (this.ui) this.ui.find.value = this.ui.found.textContent = "";
    this.news = true;
    this.set({ pin, hover: null, codes });
    const selection = codes.length ? codes : [pin.code?.[1] ?? this.indices(m)[token]];
    this.tell({ selection, tokenizer: pin.code?.[0] ?? m, place: pin.code ? [] : [this.state.photo, Math.floor(token / w), token % w] });
  }
  tell(values) {
    this.telling = true;
    for (const [key, value] of Object.entries(values)) this.model.set(key, value);
    this.model.save_changes();
    this.telling = false;
  }
  ask(kind, tokenizers, more) {
    if (this.model.get("live")) this.tell({ asked: { kind, tokenizers, photograph: this.state.photo, ...more } });
  }
  setTau(tau) {
    const high = Math.max(...this.meta.tokenizers.map((about) => about.temperatures.at(-1)));
    this.set({ tau: clamp(tau, this.active.about.temperatures[0], high) });
    clearTimeout(this.asking);
    this.asking = setTimeout(() => {
      this.tell({ temperature: this.state.tau });
      const missing = this.views.filter((m) => this.prepared(m, "entropy")[1] !== this.state.tau);
      if (missing.length) this.ask("soft", missing, { tau: this.state.tau, text: String(this.state.tau) });
    }, 200);
  }
  stepTau(by) {
    const all = this.active.about.temperatures, { tau } = this.state;
    const next = by > 0 ? all.find((x) => x > tau * 1.0001) : all.findLast((x) => x < tau / 1.0001);
    if (next) this.setTau(next);
  }
  tauAt(x) {
    const all = this.active.about.temperatures, whole = Math.log(all.at(-1) / all[0]), tau = all[0] * Math.exp(clamp(x, 0, 1) * whole);
    const apart = (a) => Math.abs(Math.log(a / tau)), nearest = all.reduce((a, b) => (apart(b) < apart(a) ? b : a));
    return apart(nearest) < 0.03 * whole ? nearest : tau;
  }
  // Of the steps with a snapshot, and after them the trained codebook.
  setStep(i) {
    const steps = this.steps();
    if (i >= 0 && i <= steps.length) this.set({ step: steps[i] ?? null });
  }
  stepAt() {
    const { step } = this.state, steps = this.steps();
    return step === null ? steps.length : steps.indexOf(step);
  }
  setPhoto(n) {
    this.lastToken = null;
    this.state.photo = n;
    Object.assign(this.zooms.photo, WHOLE);
    this.keepLayer();
    this.set({ pin: this.state.pin?.code ? this.state.pin : this.home(), hover: null });
    this.tell({ photograph: n });
    this.warm();
  }
  setView(view) {
    const { state, both: wasBoth } = this, before = this.grid(), { code } = state.pin, token = code && this.typical(...code);
    if (!wasBoth) this.before = state.view;
    if (code && view !== "both" && code[0] !== view) state.pin = token === null ? this.home() : { token };
    Object.assign(state, { view, step: null, paint: false, codes: [], hover: null });
    if (String(before) !== String(this.grid())) state.pin = this.home();
    if (this.both !== wasBoth) [state.layer, this.otherLayer] = [this.otherLayer ?? "", state.layer];
    this.keepLayer();
    this.build();
    this.warm();
  }
  // While nothing else is to do, one by one: pictures of this photograph are decoded ahead of the slider,
  // and what compares two tokenizers is drawn ahead, their maps as wide as they will be there.
  async warm() {
    const { photo: n } = this.state, { views, both, tokenizers } = this, steps = tokenizers.flatMap(({ m }) => [`${m}/hard${n}`, `${m}/error${n}`]);
    for (const m of views) this.meta.tokenizers[m].temperatures.forEach((_, j) => steps.push(`${m}/soft${n}/${j}`, `${m}/entropy${n}/${j}`));
    if (!both && this.comparable) steps.push("difference", ...tokenizers);
    for (const step of steps) {
      await new Promise((done) => (window.requestIdleCallback ?? setTimeout)(done));
      if (this.state.photo !== n || String(this.views) !== String(views)) return; // another one warms
      if (step === "difference") this.picture(step);
      else if (step.cell) this.drawMap(this.probe(), step, true, { marks: [] });
      else if (this.store.has(step)) await this.store.load(step);
    }
  }
  // A canvas as wide as a map is beside another.
  probe() {
    const there = Object.assign(this.root.cloneNode(), { className: "lgx both", innerHTML: '<div class="columns"><canvas class="square"></canvas></div>' });
    Object.assign(there.style, { height: 0, paddingBottom: 0, overflow: "hidden" });
    this.root.after(there);
    const canvas = there.querySelector("canvas");
    canvas.box = [Math.max(1, canvas.clientWidth), Math.max(1, canvas.clientHeight)];
    there.remove();
    return canvas;
  }
  find(text) {
    const { m, K } = this.active, codes = parseCodes(text, K), help = text.trim() === "?";
    if (help) this.ui.help.hidden = false;
    this.ui.found.textContent = codes.length || help ? "" : `codes are 0 to ${K - 1}: 607, or 3, 17-20`;
    if (codes.length) this.keep({ code: [m, codes[0]] }, codes.length > 1 ? codes : []);
    this.ui.find.value = text;
    return codes.length > 0;
  }

  // Building ------------------------------------------------------------------------------------
  build() {
    const { both, root, meta, views, store } = this, about = this.active.about;
    const quantities = seg("what the map shows", "quantity", Object.entries(QUANTITIES).map(([k, q]) => [k, q.title]));
    const layers = seg("what the photograph shows", "layer", this.layers());
    root.classList.toggle("both", both);
    this.colors.forEach((color, m) => root.style.setProperty(`--one${m}`, color));
    for (const name of ["tiles", "real"]) for (const { m } of this.tokenizers) this.hand(`${name}${m}`, `${m}/${name}`);
    meta.photographs.forEach(({ pixels: size }, n) => (size || this.shown.includes(n)) && this.hand(`p${n}`, `p${n}`));
    const tokenizers = [...meta.tokenizers.map((t, m) => [m, t.name]), ["both", "Compare"]];
    const photos = this.shown.map((n) => {
      const { name } = meta.photographs[n];
      return html`<button class="swatch choice" data-set="photo" data-value="${n}" title="${name}" aria-label="photograph ${name}">
        <i class="tile" style="background:var(--p${n}) center/cover"></i></button>`;
    });
    const { length } = this.steps(), drawn = "the codes at snapshots of the training, each drawn alone by the trained decoder";
    const header = html`<div class="top"><h1 title="${meta.title}">${meta.title || "Codebook"}</h1>
      ${this.tokenizers.length > 1 ? seg("tokenizer", "view", tokenizers) : ""}
      <div class="find">${photos}</div>
      <div class="find"><input class="text" type="text" data-ref="find" placeholder="find code: 607, or 3, 17-20" aria-label="find codes by number">
        <p role="status" data-ref="found"></p></div>
      <div class="end"><p class="hint">hover looks · click keeps · ? for help</p>
        ${command("csv", "CSV", "table of the selected codes, or of all, as CSV")}
        ${command("theme", root.classList.contains("dark") ? "Light" : "Dark", "light or dark")}
        ${command("f", "Full screen", "full screen (F)")} ${command("?", "?", "keys and words")}</div>
      <div class="help" data-ref="help" hidden>${HELP.map((text) => html`<p>${length > 1 ? text : text.replace(STEPPING, "")}</p>`)}</div></div>`;
    const token = (m, head) => html`<div class="token">
      <div class="headline">${said(`told${m}`, "head")}${head}</div><div class="bars" style="--one:var(--one${m})" data-ref="bars${m}"></div></div>`;
    const timeline = length > 1 ? html`<div class="timeline" title="${drawn}">${slider("step", "step of training", length)}${said("stepped")}</div>` : "";
    const codebook = (m) => html`<section class="codebook" aria-label="codebook of ${this.names[m]}">
      <div class="bar"><h2>${both ? `${this.names[m]} codebook` : "Codebook"}</h2>${both ? "" : quantities}</div>
      ${square(`map${m}`, `map of the ${meta.tokenizers[m].K} codes of ${this.names[m]}; arrows move`)}${both ? "" : timeline}
      <div class="legend" data-ref="legend${m}"></div>${said(`words${m}`, "words")}${said(`head${m}`, "head")}
      <div class="evidence" data-ref="evidence${m}"></div>${both ? token(m) : ""}</section>`;
    const scale = html`<label title="bars from 0 to 100 %, or up to the largest"><input type="checkbox" data-ref="fixed">scale to 100 %</label>`;
    const small = (layer) => html`<canvas data-layer="${layer}"></canvas>`, of = (...kinds) => this.layers().filter(([layer]) => kinds.includes(layer));
    const near = of("original", "soft", "difference", "hard", "hard0", "hard1");
    const loupes = html`<div class="loupes">${near.map(([layer, name]) => html`<div data-loupe>${small(layer)}<p>${name}</p></div>`)}</div>`;
    const photograph = (inside) => html`<section class="photograph" aria-label="photograph"><div class="bar"><h2>${both ? "Maps" : "Photograph"}</h2>
      ${both ? quantities : [layers, command("p", "Paint", "paint the kept code over tokens (P)"), command("z", "Undo", "take a stroke back (Z)")]}</div>
      ${square("photo", "photograph; arrows move by a token")}${both ? html`<div class="bar under"><h2>Photograph</h2>${layers}</div>` : ""}
      <div class="caption">${said("caption")}${both ? said("noise") : ""}${said("scale")}</div>
      ${both ? [loupes, timeline] : token(views[0], scale)}${inside}</section>`;
    const jump = (tau, text) => html`<button class="plain" data-set="tau" data-value="${tau}">${text}</button>`;
    const jumps = [about.curve.one ? jump(about.curve.one, `1 bit, τ = ${short(about.curve.one)}`) : "", jump(1, "τ = 1"), about.tau_c ? jump(about.tau_c, `τc = ${short(about.tau_c)}`) : ""];
    const { one, bits, tokens } = about.curve, onset = one ? `1 bit at τ = ${short(one)}, the dot` : `${bits[0] >= 1 ? "above" : "below"} 1 bit at every τ`;
    const unit = `MSE: the mean squared quantization error of a latent channel, ${number(about.width / 2)}. At τ = 1 soft codes are as blurred as hard codes are wrong.`;
    const heading = html`<h2 data-ref="tau" title="${unit}"></h2>`, sliding = slider("range", "temperature", 1000);
    const thumb = ([layer, name]) => html`<button class="thumb" data-set="layer" data-value="${layer}" aria-label="show ${name}">${small(layer)}<span></span></button>`;
    const temperature = both
      ? html`<section class="temperature" aria-label="temperature"><div class="bar">${heading}${sliding}${jumps}</div></section>`
      : html`<section class="temperature" aria-label="temperature"><div class="head-of-it"><div class="bar">${heading}</div>
        <div class="caption"><p class="first">mean entropy, bits</p><p class="second">${about.decodes && about.images ? "soft picture, dB" : ""}</p></div>
        <canvas class="curve" data-ref="curve" role="img" aria-label="mean entropy and dB of the soft picture against temperature"></canvas>${sliding}<div class="bar">${jumps}</div></div>
        <div class="words-of-it"><p>Softness: <b>${onset}</b> (mean entropy of ${thousands(tokens)} tokens).</p><p>${unit}${about.tau_c ? " Above τc free codes would merge into one." : ""}</p></div>
        <div class="thumbs">${of("hard", "soft", "entropy", "error").map(thumb)}</div>
        <div><h2>Loupe, 7 × 7 tokens</h2>${loupes}</div></section>`;
    put(root, html`${header}<div class="columns">${codebook(views[0])}${both ? [photograph(temperature), codebook(1)] : [photograph(""), temperature]}</div><div class="said" aria-live="polite" data-ref="said"></div>`);
    root.said = null;
    this.ui = Object.fromEntries([...root.querySelectorAll("[data-ref]")].map((e) => [e.dataset.ref, e]));
    this.ui.all = [...root.querySelectorAll("canvas")];
    if (!both) this.ui.fixed.checked = this.state.fixed;
    this.wire();
    this.draw();
  }
  // A picture of the blob, or the tiles of a photograph without pixels, to the style.
  hand(variable, name) {
    const n = name.slice(1), drawn = () => mosaic(this.tokenizers[0], this.store.array(`0/i${n}`), this.meta.tokenizers[0].grids[n]).toDataURL();
    this.images[name] ??= Object.assign(new Image(), { src: this.store.has(name) ? URL.createObjectURL(this.store.file(name)) : drawn() });
    this.root.style.setProperty(`--${variable}`, `url(${this.images[name].src})`);
  }
  forget() {
    for (const { src } of Object.values(this.images)) URL.revokeObjectURL(src);
  }

  // Pointer -------------------------------------------------------------------------------------
  // Buttons say in `data-` what they do; what is hovered in the evidence leaves it as it is.
  listen() {
    const { root } = this, act = {
      view: (view) => this.setView(view === "both" ? view : +view),
      photo: (n) => this.setPhoto(+n),
      tau: (tau) => this.setTau(+tau),
      quantity: (quantity) => this.set({ quantity }),
      layer: (layer) => this.set({ layer, paint: this.state.paint && layer === "hard" }),
    };
    root.onclick = (e) => {
      const b = e.target.closest("button"), { m, code, key, set, value, at } = b?.dataset ?? {};
      if (set) act[set](b.matches(".thumb[aria-pressed=true]") ? this.layers()[0][0] : value);
      if (key) this.commands[key](e);
      if (code) this.keep({ code: [+m, +code] });
      if (at) this.visit(...at.split(",").map(Number), m && +m);
    };
    root.onpointermove = root.onpointerout = (e) => {
      const b = e.target.closest(".swatch[data-code]"), { m, code } = b?.dataset ?? {};
      if (b) this.set({ hover: e.type === "pointermove" ? { code: [+m, +code], inside: b.closest(".evidence") !== null } : null });
    };
    root.oninput = (e) => {
      const { fixed, range, step } = this.ui, value = +e.target.value;
      if (e.target === fixed) this.set({ fixed: fixed.checked });
      if (e.target === range) this.setTau(this.tauAt(value / 1000));
      if (e.target === step) this.setStep(value);
    };
    root.ondragover = (e) => this.model.get("live") && e.preventDefault();
    root.ondrop = async (e) => {
      const file = e.dataTransfer?.files[0];
      if (!file || !this.model.get("live")) return;
      e.preventDefault();
      this.ask("photograph", [], { name: file.name, data: new DataView(await file.arrayBuffer()) });
    };
  }
  wire() {
    const { ui } = this;
    for (const m of this.views) this.wireMap(ui[`map${m}`], this.tokenizers[m]);
    const tokenAt = (e) => cellAt(fit(ui.photo.box, ...this.grid(), this.zooms.photo), ...this.grid(), e);
    this.wireCanvas(ui.photo, this.zooms.photo, {
      down: (e) => this.state.paint && tokenAt(e) !== null && this.beginStroke(tokenAt(e)),
      move: (e) => {
        const token = tokenAt(e);
        if (this.stroke && token !== null && token !== this.lastBrushed) this.brush(token);
        this.set({ hover: token === null ? null : { token } });
      },
      up: (e) => {
        if (this.state.paint) this.endStroke();
        else if (tokenAt(e) !== null) this.keep({ token: tokenAt(e) });
      },
    });
    const slide = (e) => { if (e.buttons) this.setTau(this.tauAt((e.offsetX - CURVE.left) / (ui.curve.box[0] - CURVE.left - CURVE.right))); };
    if (ui.curve) Object.assign(ui.curve, { onpointermove: slide, onpointerdown: (e) => { ui.curve.setPointerCapture(e.pointerId); slide(e); } });
  }
  // The wheel zooms; a drag then moves, with the first button only where it neither paints nor selects.
  wireCanvas(canvas, zoom, { down, move, up }) {
    const moved = (s, x, y) => { Object.assign(zoom, { s, x: clamp(x, 0, 1 - 1 / s), y: clamp(y, 0, 1 - 1 / s) }); this.draw(); };
    canvas.onwheel = (e) => {
      e.preventDefault();
      const s = clamp(zoom.s * Math.exp(-e.deltaY / 400), 1, 32), by = 1 / zoom.s - 1 / s, [w, h] = canvas.box;
      moved(s, zoom.x + (e.offsetX / w) * by, zoom.y + (e.offsetY / h) * by);
    };
    canvas.oncontextmenu = (e) => e.preventDefault();
    let dragged = null;
    canvas.onpointerdown = (e) => {
      dragged = e.button || (zoom.s > 1 && !e.shiftKey && !this.state.paint) ? 0 : null;
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(e.pointerId);
      if (!e.button) down(e);
    };
    canvas.onpointermove = (e) => {
      const [w, h] = canvas.box;
      if (!e.buttons || dragged === null) return move(e);
      dragged += Math.abs(e.movementX) + Math.abs(e.movementY);
      if (dragged > 4) moved(zoom.s, zoom.x - e.movementX / w / zoom.s, zoom.y - e.movementY / h / zoom.s);
    };
    canvas.onpointerleave = () => this.set({ hover: null });
    canvas.onpointerup = (e) => e.button || dragged > 4 || up(e);
  }
  wireMap(canvas, t) {
    const { m, side } = t, place = () => fit(canvas.box, side, side, this.zooms[m]);
    const codeAt = (e) => { const k = t.at[cellAt(place(), side, side, e) ?? -1] ?? -1; return k < 0 ? null : k; };
    let from = null; // where a drag with Shift began
    this.wireCanvas(canvas, this.zooms[m], {
      down: (e) => (from = e.shiftKey ? [e.offsetX, e.offsetY] : null),
      move: (e) => {
        const k = codeAt(e);
        if (from && e.buttons) this.set({ band: [...from, e.offsetX, e.offsetY] });
        else this.set({ hover: k === null ? null : { code: [m, k] } });
      },
      up: (e) => {
        const k = codeAt(e), { band, codes: kept } = this.state, f = place();
        this.set({ band: null });
        if (band && Math.hypot(band[2] - band[0], band[3] - band[1]) > 6) {
          const within = (x, a, b) => (x - a) * (x - b) <= 0;
          const x = (c) => f.x + ((t.cell[c] % side) + 0.5) * f.s, y = (c) => f.y + (Math.floor(t.cell[c] / side) + 0.5) * f.s;
          const inside = [...t.cell.keys()].filter((c) => within(x(c), band[0], band[2]) && within(y(c), band[1], band[3]));
          if (inside.length) this.keep({ code: [m, inside[0]] }, inside);
        } else if (k !== null && from) {
          const before = kept.length ? kept : [this.focusCode(m, this.state.pin)].filter((c) => c !== null);
          const codes = before.includes(k) ? before.filter((c) => c !== k) : [...before, k];
          if (codes.length) this.keep({ code: [m, codes.includes(k) ? k : codes[0]] }, codes);
        } else if (k !== null) this.keep({ code: [m, k] });
        from = null;
      },
    });
  }
  // A token of any photograph that is shown here: of a real patch, or what Python sets.
  visit(n, row, column, m = this.views[0]) {
    if (!this.shown.includes(n)) return;
    if (n !== this.state.photo) this.setPhoto(n);
    const [h, w] = this.grid(m);
    if (row >= 0 && row < h && column >= 0 && column < w) this.keep({ token: row * w + column });
  }

  // Painting ------------------------------------------------------------------------------------
  togglePaint() {
    const paint = !this.state.paint, brush = this.focusCode(this.views[0], this.state.pin);
    if (this.both) return;
    const pin = paint ? { token: this.token().token } : this.beforePaint; // a token, that arrows move
    this.beforePaint = this.state.pin;
    this.set({ paint, brush, pin, layer: paint ? "hard" : this.state.layer });
  }
  beginStroke(token) {
    const m = this.views[0], key = `${m},${this.state.photo}`, base = this.picture("hard");
    if (!base) return;
    if (!this.edits.has(key)) {
      const canvas = Object.assign(document.createElement("canvas"), { width: base.width, height: base.height });
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(base, 0, 0);
      this.edits.set(key, { m, n: this.state.photo, base, indices: this.indices(m).slice(), canvas, strokes: [], psnr: null, version: 0 });
    }
    this.stroke = this.edits.get(key);
    const { canvas, indices, psnr, error, strokes } = this.stroke;
    strokes.push({ indices: indices.slice(), image: canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), psnr, error });
    this.brush(token);
  }
  brush(token) {
    const t = this.active, n = this.state.photo, edit = this.stroke, grid = this.grid(), [h, w] = grid, k = this.state.brush;
    this.lastBrushed = token;
    const r = Math.floor(token / w), c = token % w, box = { x: Math.max(0, c - 1), y: Math.max(0, r - 1), X: Math.min(w, c + 2), Y: Math.min(h, r + 2) };
    const g = edit.canvas.getContext("2d"), px = edit.canvas.width / w;
    g.imageSmoothingEnabled = false;
    for (let y = box.y; y < box.Y; y++)
      for (let x = box.x; x < box.X; x++) {
        edit.indices[y * w + x] = k;
        if (!t.about.network.length) tile(g, t, k, x * px, y * px, px);
      }
    if (t.about.network.length) repaint(this.once(`decoder${t.m},${n}`, () => decoderOf(this.store, t.m, n)), t, edit.indices, grid, box, g);
    edit.version++;
    this.draw();
  }
  endStroke() {
    const edit = this.stroke, { m, about } = this.active;
    this.stroke = this.lastBrushed = null;
    if (!edit) return;
    this.measure(edit);
    if (!about.network.length) this.ask("paint", [m], { indices: new DataView(Uint16Array.from(edit.indices).buffer) });
    this.draw();
  }
  // By how much painting changed each token's squared error, as the page holds the pictures, is added
  // to what the tokenizer's own pictures gave.
  measure(edit) {
    const { m, n, canvas, base } = edit, original = this.store.pictures.get(`p${n}`), grid = this.grid(m, n), about = this.meta.tokenizers[m];
    if (original?.width !== canvas.width || about.psnr[n] === null) return;
    const [now, before] = [canvas, base].map((picture) => squares(original, picture, grid)), more = now.map((x, i) => x - before[i]);
    const mse = 255 ** 2 / 10 ** (about.psnr[n] / 10) + more.reduce((a, b) => a + b) / more.length;
    const error = this.grays(`${m}/error${n}`)?.map((x, i) => 2 * Math.sqrt(Math.max(0, (x / 2) ** 2 + more[i])));
    Object.assign(edit, { psnr: 10 * Math.log10(255 ** 2 / Math.max(mse, 1e-9)), error, version: edit.version + 1 });
  }
  undo() {
    const edit = this.edit(), { image, ...last } = edit?.strokes.pop() ?? {};
    if (!image) return;
    edit.canvas.getContext("2d").putImageData(image, 0, 0);
    Object.assign(edit, last, { version: edit.version + 1 });
    if (!edit.strokes.length) this.edits.delete(`${this.views[0]},${this.state.photo}`);
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
  // Text is written first, then all sizes are read, then canvases drawn: the page is laid out once.
  paint() {
    const { state, ui, root, views } = this, { token, stale } = this.token(), found = views.map((m) => this.assigned(m, token)), edits = this.edit()?.version;
    const hits = this.hits();
    views.forEach((m, i) => this.tellSide(m, found[i], token, stale));
    this.tellPhoto(hits.length);
    this.tellTemperature();
    for (const b of root.querySelectorAll("[data-set]")) b.setAttribute("aria-pressed", String(state[b.dataset.set]) === b.dataset.value);
    if (!root.clientWidth) return; // not on the page yet, or folded: its observer draws then
    for (const c of ui.all) c.box = [Math.max(1, c.clientWidth), Math.max(1, c.clientHeight)];
    views.forEach((m, i) => this.paintMap(m, found[i]));
    this.paintPhoto(token, hits);
    for (const c of ui.all.filter((c) => c.dataset.layer)) {
      const at = c.closest("[data-loupe]") ? token : null;
      drawSmall(c, { picture: this.picture(c.dataset.layer), grid: this.grid(), token: at, edits });
    }
    if (ui.curve) this.paintCurve();
    const { view, quantity, layer, tau, photo: photograph, pin, codes } = state, head = ui[`head${views[0]}`].textContent;
    const one = pin.code ? head : `${this.place(token)}. ${head}`;
    if (this.news) ui.said.textContent = codes.length > 1 ? `${counted(codes.length, "code")} selected: ${codes.join(", ")}` : one;
    this.news = false;
    const shown = { view, quantity, layer, tau, photograph, pin, code: this.focusCode(views[0]), token: this.focus.token ?? null, codes };
    root.dataset.state = JSON.stringify(shown);
    this.model.remember?.(shown);
  }
  place(token) { return `row ${Math.floor(token / this.grid()[1])}, column ${token % this.grid()[1]}`; }
  paintMap(m, { codes, shares }) {
    const { state, ui } = this, t = this.tokenizers[m], k = this.focusCode(m), onToken = this.focus.token !== undefined;
    const related = onToken ? codes.filter((_, i) => i && shares[i] > 0.01) : k === null ? [] : this.near(t, k);
    const marks = [[related, "#fff", 1], [m === this.views[0] ? state.codes : [], PICK, 1], [k === null ? [] : [k], PICK, 1.8]];
    this.drawMap(ui[`map${m}`], t, this.both, { marks, band: m === this.views[0] && state.band, dim: state.hover?.token !== undefined });
  }
  drawMap(canvas, t, both, more) {
    const kept = this.once(`map${t.m},${both}`, () => ({}));
    drawMap(canvas, this.then(t), { quantity: this.state.quantity, zoom: this.zooms[t.m], kept, ...more });
  }
  near(t, k) { return [...t.near.subarray(8 * k, 8 * k + 8)].filter((c) => c !== NONE); }
  paintPhoto(token, hits) {
    const { state, ui, focus } = this, dim = hits.length > 0 && this.selected().size > 0 && !state.paint && state.layer !== "difference";
    const outlined = focus.token ?? (hits.length ? token : null), ringed = hits.length > RINGS ? [] : hits;
    drawPhotograph(ui.photo, { picture: this.picture(state.layer), grid: this.grid(), zoom: this.zooms.photo, token: outlined, hits, ringed, dim });
  }
  // The tokens of the photograph that have one of the codes it is searched for, or the kept token's.
  hits() {
    const { focus, state } = this, indices = this.indices(focus.code?.[0] ?? this.views[0]), codes = this.selected();
    if (!codes.size && !state.hover && !state.paint) codes.add(indices[focus.token]);
    return codes.size ? [...indices.keys()].filter((i) => codes.has(indices[i])) : [];
  }
  // The codes that the photograph is searched for: hovered, selected, or kept.
  selected() {
    const { hover, codes } = this.state;
    return new Set(hover || !codes.length ? [this.focus.code?.[1]].filter((k) => k !== undefined) : codes);
  }
  paintCurve() {
    const { ui, state } = this, { about, m } = this.active, key = [m, state.photo, state.tau, ...ui.curve.box].join();
    if (ui.curve.key !== key) drawCurve(ui.curve, { about, psnr: about.soft_psnr[state.photo], tau: Math.min(state.tau, about.temperatures.at(-1)) });
    ui.curve.key = key;
  }
  tellSide(m, found, token, stale) {
    const { ui, state } = this, t = this.tokenizers[m], k = this.focusCode(m);
    this.tellLegend(this.then(t), ui[`legend${m}`], ui[`words${m}`]);
    put(ui[`head${m}`], k === null ? html`no code of this tokenizer is in focus` : this.describe(t, k));
    const evidence = ui[`evidence${m}`];
    evidence.style.visibility = k === null ? "hidden" : "";
    if (k !== null && !state.hover?.inside) put(evidence, this.evidence(t, k));
    put(ui[`told${m}`], this.tellToken(t, found, token, stale));
    ui[`bars${m}`].classList.toggle("stale", stale);
    const most = state.fixed ? 1 : Math.max(...found.shares, 1e-6), full = this.both ? 42 : 64, others = html`<i class="others"></i>`;
    const cell = (k, i) => {
      const p = found.shares[i];
      return html`<button class="cell" data-m="${m}" data-code="${k}" aria-label="code ${k}, ${percent(p)} percent">${bar(tileOf(t, k), p, (full * p) / most, k)}</button>`;
    };
    const rest = bar(others, found.others, Math.min(full, (full * found.others) / most), this.both ? "rest" : "others");
    put(ui[`bars${m}`], html`${found.codes.map(cell)}<div class="cell">${rest}</div>`);
  }
  tellLegend(t, legend, words) {
    const q = this.state.quantity, marked = this.focus.token === undefined ? "its nearest codes" : "its codes above 1 %", key = `${t.m},${q},${t.step},${marked}`, shown = q === "picture" ? "mass" : q, { amount, unit, title } = QUANTITIES[shown];
    if (legend.key === key) return;
    legend.key = key;
    put(words, html`${QUANTITIES[q].words(t)}`);
    const numbers = t.unused.slice(0, LISTED).map((k) => html`<button class="plain" data-m="${t.m}" data-code="${k}">${k}</button>`);
    if (q === "unused") return put(legend, html`<p><b>${thousands(t.unused.length)}</b> unused: </p><p class="list">${numbers.length ? numbers : "none"}${t.unused.length > LISTED ? " …" : ""}</p>`);
    const [low, high] = range(t, shown), most = this.both ? 5 : 9, order = t.order[shown];
    const note = q === "picture" ? html`crossed: <b>${counted(t.unused.length, "unused code")}</b>. Most used:`
      : amount ? html`tile size: up to <b>${number(high)} ${unit}</b>, log scale. Highest, by code:`
      : html`${short(low)}${ramp(VIRIDIS)}${short(high)} ${unit}. ${q === "trust" ? "Lowest" : "Highest"}:`;
    const listed = q === "trust" ? order.slice(-most).reverse() : order.slice(0, most); // many share the highest
    const value = (k) => `${number(t.values[shown][k])} ${unit}`;
    put(legend, html`<p>white: ${marked}; ${note}</p>${listed.map((k) => swatch(t, k, `${title} ${value(k)}, code`, { text: this.both ? k : html`${k}<em>${number(t.values[shown][k])}</em>`, title: `code ${k}: ${value(k)}` }))}`);
  }
  describe(t, k) {
    const v = (q) => number(t.values[q][k]);
    if (!t.count[k]) return html`Code <b>${k}</b>: never used, in ${scope(t)}`;
    return html`Code <b>${k}</b>: <b>${thousands(t.count[k])}</b> tokens (${number((100 * t.count[k]) / t.total)} %, rank ${t.rank[k]}${this.both ? "" : ` of ${thousands(t.order.mass.length)}`})
      · <b>${v("entropy")} bits</b> at τ = 1 · <b>${v("error")} %</b> of the error
      · <span title="${QUANTITIES.isolation.words()}">nearest code in use <b>${v("isolation")}</b> × RMS error away</span>`;
  }
  evidence(t, k) {
    const { images, decodes, factor } = t.about, patch = (i) => {
      const [n, row, column] = t.places.subarray(24 * k + 3 * i, 24 * k + 3 * i + 3);
      if (n === NONE) return html`<i></i>`;
      const { name, shown, pixels: [h, w] } = this.meta.photographs[n], side = 4 * factor; // a token more, and a half, to all sides
      const title = `${name}, row ${row}, column ${column}${shown ? "" : " (a photograph that is not shown here)"}`;
      const picture = part(`p${n}`, (column - 1.5) / 4, (row - 1.5) / 4, w / side, h / side);
      if (!shown) return html`<span class="swatch patch" title="${title}">${picture}</span>`;
      return html`<button class="swatch patch" data-m="${t.m}" data-at="${n},${row},${column}" title="${title}" aria-label="real patch: ${title}">${picture}</button>`;
    };
    const real = images && decodes && t.count[k] ? html`${swatch(t, k, "mean real patch of code", { sheet: "real" })}<p title="mean of the code’s real patches">real mean</p>` : "";
    return html`<div class="rows">${swatch(t, k, "code")}<p>code</p>${real}</div>
      <div class="grid">${!t.count[k] ? html`<p>no token has it${decodes ? "; the tile is what the decoder draws for it" : ""}</p>` : images ? html`${EIGHT.map(patch)}<p>real patches, nearest first</p>` : ""}</div>
      <div class="grid">${this.near(t, k).map((other) => swatch(t, other, "nearest code", { text: other }))}
        <p>nearest codes</p>
        <p title="neighbors on the map that are among its 24 nearest codes">${this.both ? "near on the map:" : "of its neighbors on the map, among its 24 nearest:"} <b>${t.trust[k]} of ${t.around[k]}</b></p></div>`;
  }
  tellToken(t, { codes, shares, bits }, token, stale) {
    const place = this.place(token), focus = this.focusCode(t.m), k = this.indices(t.m)[token], i = codes.indexOf(k);
    const sure = html`<b>${number(bits)} bits</b> at τ = ${short(this.state.tau)}`;
    if (stale) return html`${focus === null ? "That code" : `Code ${focus}`} is not here; below, in gray, the token looked at before: ${place}`;
    if (k !== this.store.array(`${t.m}/i${this.state.photo}`)[token]) return html`${place} is painted with code <b>${k}</b>; the latent’s own code is <b>${codes[0]}</b>, ${sure}`;
    return html`${this.both ? `${t.about.name}, ${place}` : `Token in ${place}`}: code <b>${k}</b>, ${this.both ? "p =" : "probability"} <b>${i < 0 ? "below the twelve" : `${percent(shares[i])} %`}</b>, ${sure}`;
  }
  tellPhoto(hits) {
    const { state, ui, focus } = this, codes = this.selected(), [h, w] = this.grid(), name = this.meta.photographs[state.photo].name;
    const many = codes.size > 1, what = html`${many ? "" : "code "}<b>${many ? counted(codes.size, "code") : [...codes][0]}</b>`;
    const missing = () => html` ${many ? "are" : "is"} not in this photograph${this.elsewhere(focus.code[0], codes)}`;
    put(ui.caption, state.paint ? html`painting code <b>${state.brush}</b> over 3 × 3 tokens: drag, or Space; Z undoes, Esc ends`
      : codes.size ? html`${what}${hits ? html`: <b>${thousands(hits)} of ${thousands(h * w)} tokens here</b>` : missing()}`
      : html`${this.both ? name : `${name}, ${w} × ${h} tokens`}${this.under(focus.token)}${this.both || state.hover ? "" : hits > 1 ? html` · <b>${thousands(hits)} with its code</b>${hits > RINGS ? "; click its bar to see them" : ", ringed"}` : " · the only one with its code"}`);
    const dB = (m) => this.noise(m, "hard")?.toFixed(2), m = this.views[0];
    if (this.both) put(ui.noise, html`<b>${this.views.filter(dB).map((m) => `${this.names[m]} ${dB(m)} dB`).join(" | ")}</b>`);
    const scales = {
      difference: () => html`${this.best(0)}${ramp(between(this.colors))}${this.best(1)} <span title="root mean squares over 5 × 5 tokens; colors end at 4">gray levels</span>`,
      error: () => html`hard error 0${ramp(VIRIDIS)}64 gray levels (root mean square)`,
      entropy: () => html`0${ramp(VIRIDIS)}${number(Math.log2(this.active.K))} bits at τ = ${short(this.prepared(m, "entropy")[1])}`,
      hard: () => (dB(m) ? html`hard codes: <b>${dB(m)} dB</b>` : ""),
      soft: () => `soft codes at τ = ${short(this.prepared(+state.layer.slice(4) || m, "soft")[1])}`,
    };
    put(ui.scale, html`${scales[state.layer.replace(/^soft./, "soft")]?.()}`);
  }
  // Where one of two tokenizers is better than the other by most.
  best(m) {
    const found = this.once(`best${m},${this.state.photo}`, () => {
      const d = this.differences(), sign = m ? 1 : -1;
      return d && d.reduce((at, x, i) => (sign * x > sign * d[at] ? i : at), 0);
    }), of = this.names[m], w = this.grid()[1];
    if (found === null) return html`${of} better`;
    const by = number(Math.abs(this.differences()[found]));
    return html`<button class="plain" data-at="${this.state.photo},${Math.floor(found / w)},${found % w}" title="go there">${of} better by up to ${by}</button>`;
  }
  // Which of the photographs at hand has one of the codes.
  elsewhere(m, codes) {
    const found = this.shown.filter((n) => this.store.array(`${m}/i${n}`).some((k) => codes.has(k)));
    const links = found.map((n) => html` ${choice("photo", n, this.meta.photographs[n].name)}`);
    return found.length ? html`, but in${links}` : ", nor in the others that are shown";
  }
  // The value of the layer under the pointer.
  under(token) {
    const { layer } = this.state, m = this.views[0], d = this.both && this.comparable && this.differences()?.[token];
    if (Number.isFinite(d)) return ` · ${this.names[d < 0 ? 0 : 1]} better here by ${number(Math.abs(d))} gray levels`;
    if (layer === "error") return ` · ${number((this.errors(m)?.[token] ?? 0) / 2)} gray levels`;
    return layer === "entropy" ? ` · ${number(this.assigned(m, token).bits)} bits` : "";
  }
  tellTemperature() {
    const { state, ui, root } = this, { m, about } = this.active, [low, high] = [about.temperatures[0], about.temperatures.at(-1)];
    put(ui.tau, html`Temperature τ = <b>${short(state.tau)}</b>${this.both ? "" : ", in units of 2 MSE"}`);
    ui.range.value = Math.round((1000 * Math.log(state.tau / low)) / Math.log(high / low));
    ui.range.setAttribute("aria-valuetext", `${number(state.tau)} times twice the mean squared error`);
    const tau = (kind) => short(this.prepared(m, kind)[1]), dB = (kind) => { const v = this.noise(m, kind); return v === null ? "" : `${v.toFixed(2)} dB`; };
    const texts = {
      hard: () => html`${about.decodes ? "hard " : "tiles of the tokens"}<b>${dB("hard")}</b>`,
      soft: () => html`soft <b>${dB("soft")}</b>`,
      entropy: () => html`entropy, τ = ${tau("entropy")}`,
      error: () => html`hard error`,
    };
    for (const b of root.querySelectorAll(".thumb")) put(b.lastChild, texts[b.dataset.value]());
    root.querySelector("[data-key=p]")?.setAttribute("aria-pressed", state.paint);
    root.querySelector("[data-key=z]")?.toggleAttribute("hidden", !this.edit());
    if (!ui.step) return;
    const of = (t) => {
      const { step, unused, total } = this.then(t), used = thousands(t.K - unused.length), { name } = t.about;
      if (step === undefined) return t.about.moments.length ? "…" : `${name} trained`; // its picture is on the way
      if (this.both) return `${name} ${used} codes used`;
      return `${used} of ${thousands(t.K)} codes used by ${thousands(total)} tokens`;
    };
    const text = state.step === null ? "trained" : `step ${thousands(state.step)}: ${this.views.map((v) => of(this.tokenizers[v])).join(", ")}`;
    ui.step.value = this.stepAt();
    ui.step.setAttribute("aria-valuetext", text);
    put(ui.stepped, html`Training: <b>${text}</b>`);
  }

  // Keyboard and commands -----------------------------------------------------------------------
  commands = {
    Escape: () => {
      if (!this.ui.help.hidden) this.ui.help.hidden = true;
      else if (this.state.paint) this.togglePaint();
      else if (!document.fullscreenElement) this.keep(this.home());
    },
    m: (e) => {
      const all = Object.keys(QUANTITIES), at = all.indexOf(this.state.quantity) + (e.shiftKey ? -1 : 1);
      this.set({ quantity: all.at(at % all.length) });
    },
    t: () => this.setTau(this.state.tau === 1 ? (this.active.about.tau_c ?? 1) : 1),
    c: () => {
      if (this.tokenizers.length > 1) this.setView(this.both ? (this.before ?? 0) : "both");
    },
    ",": () => this.stepTau(-1),
    ".": () => this.stepTau(1),
    "[": () => this.setStep(this.stepAt() - 1),
    "]": () => this.setStep(this.stepAt() + 1),
    0: () => {
      for (const zoom of Object.values(this.zooms)) Object.assign(zoom, WHOLE);
      this.draw();
    },
    f: () => (document.fullscreenElement ? document.exitFullscreen() : this.root.parentElement.requestFullscreen?.()),
    p: () => this.togglePaint(),
    z: () => this.undo(),
    "?": () => (this.ui.help.hidden = !this.ui.help.hidden),
    "/": () => this.ui.find.select(),
    " ": () => {
      this.beginStroke(this.token().token);
      this.endStroke();
    },
    theme: () => {
      this.root.classList.toggle("dark");
      this.build();
    },
    csv: () => this.csv(),
  };
  key(e) {
    const { state, ui } = this, name = e.key.length === 1 ? e.key.toLowerCase() : e.key, layer = this.layers()[+name - 1];
    const leave = () => this.root.focus({ preventScroll: true }); // to where keys are commands again
    if (e.target === ui.find && name !== "Tab") {
      e.stopPropagation();
      if (name === "Escape" || (name === "Enter" && this.find(ui.find.value))) leave();
      return;
    }
    const undo = (e.ctrlKey || e.metaKey) && name === "z" && this.edit();
    if ((!undo && (e.ctrlKey || e.metaKey)) || e.altKey || (name === " " && (!state.paint || e.target.tagName === "BUTTON"))) return;
    if (layer) this.set({ layer: layer[0] });
    else if (name.startsWith("Arrow")) this.arrow(name, e.target, e.shiftKey ? 8 : 1);
    else if (this.commands[name]) this.commands[name](e);
    else return;
    e.preventDefault();
    e.stopPropagation();
  }
  arrow(key, target, by) {
    const { ui } = this, { pin, paint } = this.state, right = (key === "ArrowRight") - (key === "ArrowLeft"), down = (key === "ArrowDown") - (key === "ArrowUp");
    if (target === ui.range) return this.stepTau(right - down);
    if (target === ui.step) return this.setStep(this.stepAt() + right - down);
    const m = this.views.find((m) => target === ui[`map${m}`]) ?? (target === ui.photo ? undefined : pin.code?.[0]);
    const onMap = m !== undefined && !paint, t = this.tokenizers[m], k = onMap && (this.focusCode(m, pin) ?? t.order.mass[0] ?? 0);
    const [h, w] = onMap ? [t.side, t.side] : this.grid(), at = onMap ? t.cell[k] : (pin.token ?? this.token().token), r = clamp(Math.floor(at / w) + by * down, 0, h - 1), c = clamp((at % w) + by * right, 0, w - 1);
    if (r * w + c === at || (onMap && t.at[r * w + c] < 0)) return;
    this.keep(onMap ? { code: [m, t.at[r * w + c]] } : { token: r * w + c });
  }
  csv() {
    const { codes, pin } = this.state, t = this.active, chosen = codes.length ? codes : pin.code ? [pin.code[1]] : [...t.count.keys()];
    const columns = Object.entries(t.values), head = ["code", ...columns.map(([q]) => QUANTITIES[q].column)];
    const rows = chosen.map((k) => [k, ...columns.map(([q, v]) => (q === "mass" ? t.count[k] : Number.isFinite(v[k]) ? v[k] : ""))]);
    const href = URL.createObjectURL(new Blob([[head, ...rows].map((row) => row.join()).join("\n")], { type: "text/csv" }));
    Object.assign(document.createElement("a"), { href, download: `${t.about.name} codes.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }
}
