"""The explorer's page in a real Chromium: ten tasks, each with its answer, without a kernel."""

import csv
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import lab
import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from lgqlib import explore
from lgqlib.data import load, whole_images
from lgqlib.explorers.preparing import decoded, upright
from lgqlib.measure.images import psnr_bytes

pytestmark = lab.marks(300)
TABLE = "EXPLORER_TABLE"
"""Environment variable that asks for docs/results/explorer.md."""
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "explorer.md"
SPENT = """
    window.spent = [];  // milliseconds from each event to the end of the frame that answers it
    for (const kind of ["pointermove", "pointerup", "keydown"])
        addEventListener(kind, (e) => requestAnimationFrame(() => {
            const { port1, port2 } = new MessageChannel();
            port1.onmessage = () => spent.push(performance.now() - e.timeStamp);
            port2.postMessage(0);
        }), true);
"""
HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def widget(trained, cache):
    runs = [trained("lgq"), trained("vq")]
    val = load(runs[0].config.data, "val", cache=cache)
    images = whole_images(val, multiple=4, limit=3, largest=128)
    return explore(*runs, images=images, temperatures=5, title=HOSTILE)


@pytest.fixture(scope="module")
def browser():
    with lab.browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def table():
    """Note actions and milliseconds; write them as a page where it is asked for."""
    rows = []

    def note(task, way, actions, page, *, spent=None):
        state(page)
        spent = page.evaluate("spent") if spent is None else spent
        times = f"{np.median(spent):.0f} | {max(spent):.0f}" if spent else "– | –"
        rows.append(f"| {task} | {way} | {actions} | {times} |\n")

    yield note
    if os.environ.get(TABLE):
        head = "\n| task | way | actions | ms, median | ms, most |\n" + "|---" * 5 + "|\n"
        before = RESULTS.read_text().split("\n| task")[0]
        RESULTS.write_text(before + head + "".join(rows))


@pytest.fixture(scope="module")
def file(widget, tmp_path_factory):
    return widget.save(tmp_path_factory.mktemp("page") / "codebook.html")


@contextmanager
def opened(browser, file):
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.add_init_script(SPENT)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("file:", "blob:")) or errors.append(r.url))
    page.goto(f"file://{file}")
    page.wait_for_selector("body[data-ready]")
    page.wait_for_timeout(1500 if os.environ.get(TABLE) else 0)  # a person is no faster
    yield page
    context.close()
    assert not errors


@pytest.fixture
def page(browser, file):
    with opened(browser, file) as page:
        yield page


def state(page) -> dict:
    """Wait for the next painted frame, and give what it shows."""
    page.evaluate("() => new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
    return json.loads(page.get_attribute(".lgx", "data-state"))


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()


def highest(page) -> list[int]:
    return [int(t.split()[0]) for t in page.locator(".legend .swatch span").all_inner_texts()]


def hover_code(page, widget, code: int, m: int = 0) -> None:
    side = math.ceil(math.sqrt(widget.meta["tokenizers"][m]["K"]))
    row, column = divmod(int(widget.tables[m]["cell"][code]), side)
    box = page.locator(".codebook canvas.square").nth(m).bounding_box()
    size = box["width"] / side
    page.mouse.move(box["x"] + (column + 0.5) * size, box["y"] + (row + 0.5) * size)


def hover_token(page, widget, row: int, column: int) -> None:
    h, w = widget.tokenizers[0].indices[0].shape
    box = page.locator(".photograph canvas.square").first.bounding_box()
    size = box["width"] / max(h, w)
    left = box["x"] + (box["width"] - w * size) / 2
    top = box["y"] + (box["height"] - h * size) / 2
    page.mouse.move(left + (column + 0.5) * size, top + (row + 0.5) * size)


class Hand:
    """Acts on a page by mouse or by keyboard alone, and counts what it did."""

    def __init__(self, page, widget, way):
        self.page, self.widget, self.way, self.actions = page, widget, way, 0
        page.evaluate("spent.length = 0")

    def key(self, *names):
        for name in names:
            self.page.keyboard.press(name)
            self.actions += 1

    def choose(self, button, *keys):
        if self.way == "keyboard":
            self.key(*keys)
        else:
            press(self.page, button)
            self.actions += 1
        return state(self.page)

    def code(self, code):
        if self.way == "keyboard":
            self.key("/")
            self.page.keyboard.type(str(code))
            self.key("Enter")
        else:
            hover_code(self.page, self.widget, code)
            self.actions += 1
        return state(self.page)

    def says(self, selector):
        return self.page.locator(selector).first.inner_text()


def most_used(hand):
    hand.choose("Mass", "m")
    counts = hand.widget.tables[0]["count"]
    assert [counts[k] for k in highest(hand.page)] == sorted(counts, reverse=True)[:9]


def what_a_code_looks_like(hand):
    counts = hand.widget.tables[0]["count"]
    code = int(counts.argmax())
    assert hand.code(code)["code"] == code
    assert hand.says(".codebook .head").startswith(f"Code {code}: {counts[code]:,} tokens")
    shown = hand.page.locator(".evidence .swatch:visible").count()
    assert shown == 2 + 8 + 8, "code and mean, eight real patches, eight nearest codes"


def where_a_code_is(hand):
    grid = hand.widget.tokenizers[0].indices[0]
    code = int(grid[5, 5])
    hand.code(code)
    used = int((grid == code).sum())
    assert hand.says(".caption p") == f"code {code}: {used} of {grid.numel():,} tokens here"


def a_pixel_and_how_sure_it_is(hand):
    o = hand.widget.tokenizers[0]
    h, w = o.indices[0].shape
    row, column = int(h * 0.72) + 1, int(w * 0.62)  # below the token at which the page opens
    if hand.way == "keyboard":
        hand.key("ArrowDown")
    else:
        hover_token(hand.page, hand.widget, row, column)
        hand.actions += 1
    code = int(o.indices[0][row, column])
    assert state(hand.page)["code"] == code
    d = (o.points[0][row, column] - o.sites).square().sum(1) / o.width
    p = np.exp(-(d - d.min()).numpy())
    p /= p.sum()
    assert hand.says(".token .head").startswith(f"Token in row {row}, column {column}: code {code}")
    assert float(hand.says(".bars .cell span")) == pytest.approx(100 * p.max(), abs=0.6)
    bits = float(hand.page.locator(".token .head b").nth(2).inner_text().split()[0])
    assert bits == pytest.approx(-(p * np.log2(p + 1e-30)).sum(), abs=0.02)


def dead_codes(hand):
    hand.choose("Unused", "Shift+M")
    unused = [str(k) for k in np.flatnonzero(hand.widget.tables[0]["count"] == 0)]
    assert hand.says(".legend .list").split() == (unused or ["none"])


def most_of_the_error(hand):
    hand.choose("Error", *"mmm")
    table = hand.widget.tables[0]
    share = table["count"] * table["mse"]
    assert highest(hand.page)[0] == share.argmax()
    title = hand.page.locator(".legend .swatch").first.get_attribute("title")
    assert f"{100 * share.max() / share.sum():.2f}"[:3] in title


def the_photograph_at_tau_c(hand):
    layer, about = state(hand.page)["layer"], hand.widget.meta["tokenizers"][0]
    seen = hand.choose(f"τc = {hand.page.get_by_role('button', name='τc').inner_text()[5:]}", "t")
    assert seen["tau"] == pytest.approx(about["tau_c"])
    assert seen["layer"] == layer, "the temperature never changes what was chosen"
    soft = hand.page.locator(".thumb span").nth(1)
    expect(soft).to_contain_text(f"{about['soft_psnr'][0][-1]:.2f} dB")


def from_where_on_assignments_are_soft(hand):
    one = hand.widget.meta["tokenizers"][0]["curve"]["one"]
    assert ("1 bit at τ = " if one else "1 bit at every τ") in hand.says(".temperature")


def where_two_tokenizers_differ(hand):
    assert hand.choose("Compare", "c")["layer"] == "difference"
    both = [about["psnr"][0] for about in hand.widget.meta["tokenizers"]]
    expect(hand.page.locator(".caption")).to_contain_text("better by")
    assert f"LGQ {both[0]:.2f} dB | VQ {both[1]:.2f} dB" in hand.says(".caption")
    second = hand.page.locator(".codebook").nth(1).locator(".token .head").inner_text()
    code = hand.widget.tokenizers[1].indices[0].flatten()[state(hand.page)["pin"]["token"]]
    assert f"code {int(code)}," in second
    best = hand.page.locator(".caption button").nth(1)
    best.click()
    expect(hand.page.locator(".caption p").first).to_contain_text(best.inner_text().split()[-1])


def neighbors_on_the_map(hand):
    hand.choose("Trust", "Shift+M", "Shift+M")
    assert "Average" in hand.says(".words") and "of 8" in hand.says(".words")
    token, table = state(hand.page)["pin"]["token"], hand.widget.tables[0]
    code = hand.widget.tokenizers[0].indices[0].flatten()[token]
    assert f"nearest: {table['trust'][code]} of {table['around'][code]}" in hand.says(".evidence")


TASKS = {
    "which codes are used most?": (most_used, 2),
    "what does code k look like in real images?": (what_a_code_looks_like, 1),
    "where in this photograph is it?": (where_a_code_is, 1),
    "which code has this pixel, and how sure?": (a_pixel_and_how_sure_it_is, 1),
    "which codes are dead?": (dead_codes, 1),
    "which codes cause most of the error?": (most_of_the_error, 2),
    "what happens to this photograph at tau_c?": (the_photograph_at_tau_c, 1),
    "from which temperature on are assignments soft?": (from_where_on_assignments_are_soft, 0),
    "where do LGQ and VQ differ on this photograph?": (where_two_tokenizers_differ, 1),
    "are neighbors on the map neighbors in the codebook?": (neighbors_on_the_map, 1),
}


@pytest.mark.parametrize("way", ["mouse", "keyboard"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_answered_within_its_actions(task, way, page, widget, table):
    act, most = TASKS[task]
    hand = Hand(page, widget, way)
    act(hand)
    assert way == "keyboard" or hand.actions <= most
    table(task, way, hand.actions, page)


def test_sixteen_thousand_codes_answer_quickly(browser, tmp_path, table):
    random = np.random.default_rng(0)
    sizes = {"codebook": (16384, 4), "latents": (2, 4, 64, 64)}
    given = {name: random.normal(size=size) for name, size in sizes.items()}
    given["images"] = random.integers(0, 256, (2, 3, 256, 256), dtype=np.uint8)
    widget = explore(**given, temperatures=3)
    with opened(browser, widget.save(tmp_path / "codebook.html")) as page:
        first = page.evaluate("performance.getEntriesByType('paint')[0].startTime")
        state(page)
        for what, act in {
            "hover a code": lambda i: hover_code(page, widget, 1000 + 37 * i),
            "hover a token": lambda i: hover_token(page, widget, 20 + i, 30),
            "another quantity": lambda i: page.keyboard.press("m"),
        }.items():
            page.evaluate("spent.length = 0")
            for i in range(7):
                act(i)
                page.wait_for_timeout(120)
            table(f"K = 16,384: {what}", "mouse" if "hover" in what else "keyboard", 1, page)
            assert np.median(page.evaluate("spent")) < 400, "a loaded machine takes four times"
        table("K = 16,384: first paint after loading", "", 0, page, spent=[first])


def test_training_is_gone_back_in_and_through(page, widget):
    page.get_by_role("slider", name="step of training").focus()
    page.keyboard.press("Home")
    used = len(np.unique(widget.tokenizers[0].snapshots[0].indices))
    said, drawn = page.locator(".timeline p"), "document.querySelector('canvas.square').toDataURL()"
    expect(said).to_have_text(f"Training: step 0: {used} of 64 codes used by 1,024 tokens")
    state(page)
    before = page.evaluate(drawn)
    page.keyboard.press("End")
    expect(said).to_have_text("Training: trained")
    state(page)
    assert page.evaluate(drawn) != before
    page.keyboard.press("c")
    page.get_by_role("slider", name="step of training").focus()
    page.keyboard.press("Home")
    each = [f"{o.name} {len(np.unique(o.snapshots[0].indices))}" for o in widget.tokenizers]
    expect(said).to_have_text(f"Training: step 0: {' codes used, '.join(each)} codes used")


def test_painting_decodes_and_is_taken_back_by_strokes(page, widget):
    o, code = widget.tokenizers[0], int(widget.tables[0]["count"].argmax())
    page.fill("input.text", str(code))
    page.press("input.text", "Enter")
    press(page, "Paint")
    quality, field = page.locator(".thumb span").first, "screen.picture('error').getContext('2d')"
    drawn = f"document.querySelector('.lgx').{field}.getImageData(12, 12, 1, 1).data.join()"
    before = quality.inner_text(), page.evaluate(drawn)
    hover_token(page, widget, 12, 12)
    page.mouse.down()
    page.mouse.up()
    state(page)
    assert page.evaluate(drawn) != before[1], "the error layer follows"
    edit = "[...document.querySelector('.lgx').screen.edits.values()][0]"
    box = page.evaluate(f"{edit}.canvas.getContext('2d').getImageData(40, 40, 24, 24).data.join()")
    painted = np.array(box.split(","), dtype=float).reshape(24, 24, 4)[..., :3]
    indices = o.indices[0].clone()
    indices[11:14, 11:14] = code
    with torch.no_grad():
        exact = decoded(o, o.codebook[indices])
    there = exact[:, 40:64, 40:64].movedim(0, -1).numpy()
    assert np.abs(painted - there).mean() < 1.5, "the page decodes as the product does"
    dB = psnr_bytes(upright(o.images[0]), upright(exact))
    assert float(quality.inner_text().split()[1]) == pytest.approx(dB, abs=0.05)
    error = (exact.float() - o.images[0])[:, 48:52, 48:52].square().mean().sqrt().item()
    token = indices.shape[1] * 12 + 12
    assert page.evaluate(f"{edit}.error[{token}] / 2") == pytest.approx(error, abs=2)
    press(page, "Undo")
    state(page)
    assert (quality.inner_text(), page.evaluate(drawn)) == before


def test_a_selection_is_taken_away_as_csv_and_as_a_link(page, browser, file, widget):
    chosen = [3, 5]
    page.fill("input.text", "3, 5")
    page.press("input.text", "Enter")
    with page.expect_download() as download:
        press(page, "CSV")
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [int(row["code"]) for row in rows] == chosen
    units = ["tokens", "entropy_bits", "error_percent", "spacing_rms_errors", "trust_of_8"]
    assert list(rows[0]) == ["code", *units], "each column says its unit"
    counts = widget.tables[0]["count"][chosen].tolist()
    assert [int(row["tokens"] or 0) for row in rows] == counts
    page.wait_for_url(lambda url: '"codes":[3,5]' in unquote(url))
    with opened(browser, file) as other:
        other.goto(page.url)
        other.reload()
        other.wait_for_selector("body[data-ready]")
        assert state(other)["codes"] == chosen


def test_nothing_is_wider_than_the_window_and_a_name_is_text(page):
    assert page.locator("h1").inner_text() == page.title() == HOSTILE
    for way in (state, lambda page: press(page, "Compare")):
        way(page)
        for width in (1400, 968, 700):
            page.set_viewport_size({"width": width, "height": 900})
            state(page)
            clipped = page.evaluate(
                "[...document.querySelectorAll('.lgx p, .lgx span, .lgx button, .lgx h2')]"
                ".filter(e => e.offsetParent && !e.closest('.said') && e.clientWidth"
                " && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText.slice(0, 40))"
            )
            assert not clipped
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_several_codes_are_selected_by_shift_and_by_a_rectangle_and_read_out(page, widget):
    cells = widget.tables[0]["cell"]
    corner = [int(np.flatnonzero(cells == cell)[0]) for cell in (0, 1, 8, 9)]
    hover_code(page, widget, corner[0])
    page.keyboard.down("Shift")
    page.mouse.down()
    hover_code(page, widget, corner[3])
    page.mouse.up()
    assert sorted(state(page)["codes"]) == sorted(corner)
    page.mouse.down()  # the last again, with Shift: it leaves
    page.mouse.up()
    page.keyboard.up("Shift")
    assert sorted(state(page)["codes"]) == sorted(corner[:3])
    assert "three codes selected" in page.locator(".said").inner_text()
