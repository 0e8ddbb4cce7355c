// The entry: anywidget calls `render`; a page calls it with a stand-in for the model.

import { Screen } from "./screen.js";
import { STYLE } from "./style.js";
import { Store, html, openTokenizer } from "./values.js";

export async function render({ model, el }) {
  el.insertAdjacentHTML("beforeend", `<div class="lgx-shell"><style>${STYLE}</style>${html`<div class="lgx" tabindex="-1"></div>`}</div>`);
  const root = el.lastElementChild.lastElementChild;
  let screen = null;
  const open = async () => {
    const store = new Store(model.get("meta"), model.get("blob")), former = screen;
    const tokenizers = await Promise.all(store.meta.tokenizers.map((_, m) => openTokenizer(store, m)));
    screen = root.screen = new Screen(model, store, tokenizers, root); // on the element for tests, and for whoever is curious in the console
    if (former) for (const kept of ["view", "layer", "quantity"]) screen.state[kept] = former.state[kept];
    screen.build();
    screen.warm();
    former?.forget();
  };
  const theme = model.get("theme");
  const lab = document.body.dataset.jpThemeLight;
  const dark = theme === "dark" || (theme === "auto" && (lab ? lab === "false" : matchMedia("(prefers-color-scheme: dark)").matches));
  root.classList.toggle("dark", dark);
  await open();

  const heard = (name, act) => model.on(`change:${name}`, () => screen.telling || act(model.get(name)));
  heard("selection", (codes) => {
    const m = Math.min(model.get("tokenizer") ?? 0, screen.tokenizers.length - 1), K = screen.tokenizers[m].K, fine = codes.filter((k) => k >= 0 && k < K);
    if (screen.state.view !== "both" && screen.state.view !== m) screen.setView(m);
    if (fine.length) screen.set({ pin: { code: [m, fine[0]] }, codes: fine.length > 1 ? fine : [], hover: null });
  });
  heard("temperature", (tau) => tau > 0 && screen.state.tau !== tau && screen.setTau(tau));
  heard("photograph", (n) => screen.shown.includes(n) && n !== screen.state.photo && screen.setPhoto(n));
  heard("place", (place) => screen.visit(...place));
  heard("blob", open);
  heard("answer", (answer) => receive(screen, answer));
  root.addEventListener("keydown", (e) => screen.key(e));
  const seen = new ResizeObserver(() => screen.draw());
  seen.observe(root);
  if (model.get("static")) {
    root.focus({ preventScroll: true });
    document.addEventListener("keydown", (e) => root.contains(e.target) || screen.key(e));
  }
  return () => {
    seen.disconnect();
    screen.forget();
  };
}

// What the kernel computed: soft pictures and entropies at any temperature, or a painted picture.
async function receive(screen, { pictures = {}, psnr = {}, painted, noise, problem }) {
  const { store, edits, ui } = screen;
  for (const [name, bytes] of Object.entries(pictures)) await store.load(name, new Blob([bytes], { type: "image/webp" }));
  Object.assign(screen.exact, psnr);
  const edit = edits.get(painted);
  if (edit) {
    edit.canvas.getContext("2d").drawImage(store.pictures.get("painted"), 0, 0);
    screen.measure(edit);
    Object.assign(edit, { psnr: noise, version: edit.version + 1 });
  }
  if (problem) ui.caption.textContent = ui.caption.said = problem;
  else screen.draw();
}

export default { render };
