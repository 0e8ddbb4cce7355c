// The entry: anywidget calls `render`; a page calls it with a stand-in for the model.

import { Screen, element } from "./screen.js";
import { STYLE } from "./style.js";
import { Store, openTokenizer } from "./values.js";

export async function render({ model, el }) {
  const shell = element("div", { class: "lgx-shell" }), root = element("div", { class: "lgx", tabindex: -1 });
  shell.append(element("style", { text: STYLE }), root);
  el.append(shell);
  let screen = null;
  const open = async () => {
    const store = new Store(model.get("meta"), model.get("blob"));
    const tokenizers = await Promise.all(store.meta.tokenizers.map((_, m) => openTokenizer(store, m)));
    const kept = screen ? { view: screen.state.view, layer: screen.state.layer, quantity: screen.state.quantity } : {};
    const next = new Screen(model, store, tokenizers, root);
    Object.assign(next.state, kept);
    await Promise.all(next.shown.slice(0, 1).map((n) => store.has(`p${n}`) && store.load(`p${n}`)));
    screen = next;
    screen.build();
    screen.warm();
    root.screen = screen; // for tests, and for whoever is curious in the console
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
  heard("place", ([n, row, column]) => {
    if (!screen.shown.includes(n)) return;
    if (n !== screen.state.photo) screen.setPhoto(n);
    const [h, w] = screen.grid();
    if (row >= 0 && row < h && column >= 0 && column < w) screen.keep({ token: row * w + column });
  });
  heard("blob", open);
  heard("answer", (answer) => receive(screen, answer));
  root.addEventListener("keydown", (e) => screen.key(e));
  const seen = new ResizeObserver(() => screen.draw());
  seen.observe(root);
  if (model.get("static")) {
    root.focus({ preventScroll: true });
    document.addEventListener("keydown", (e) => root.contains(e.target) || screen.key(e));
  }
  return () => seen.disconnect();
}

// What the kernel computed: soft pictures and entropies at any temperature, or a painted picture.
async function receive(screen, answer) {
  for (const [name, bytes] of Object.entries(answer.pictures ?? {})) {
    const picture = await createImageBitmap(new Blob([bytes], { type: "image/webp" }), { colorSpaceConversion: "none" });
    screen.store.pictures.set(name, picture);
  }
  Object.assign((screen.exact ??= {}), answer.psnr ?? {});
  if (answer.painted) {
    const edit = screen.edits.get(answer.painted), picture = screen.store.pictures.get("painted");
    if (edit) {
      edit.canvas.getContext("2d").drawImage(picture, 0, 0);
      edit.psnr = answer.noise;
    }
  }
  if (answer.problem) screen.ui.caption.textContent = answer.problem;
  else screen.draw();
}

export default { render };
