"""The explorer's page in a real Chromium: ten tasks, each with its answer, without a kernel."""

import csv
import json
import math
from contextlib import contextmanager
from urllib.parse import unquote

import numpy as np
import pytest
import torch

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import lab
from playwright.sync_api import expect

from lgqlib import explore
from lgqlib.data import load, whole_images
from lgqlib.explorers.preparing import decoded

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(lab.chromium_path() is None, reason="there is no Chromium"),
]
HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def widget(trained, cache):
    runs = [trained("lgq"), trained("vq")]
    val = load(runs[0].config.data, "val", cache=cache)
    images = whole_images(val, multiple=4, limit=3, largest=128)
    return explore(*runs, images=images, temperatures=5, title=HOSTILE)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=lab.chromium_path(), args=["--no-sandbox"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(widget, tmp_path_factory):
    return widget.save(tmp_path_factory.mktemp("page") / "codebook.html")


@contextmanager
def opened(browser, file, **options):
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("file:", "blob:")) or errors.append(r.url))
    page.goto(f"file://{file}")
    page.wait_for_selector("body[data-ready]")
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
    return [int(t) for t in page.locator(".legend .swatch span").all_inner_texts()]


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


def test_1_the_codes_that_are_used_most_are_listed(page, widget):
    press(page, "Mass")
    state(page)
    counts = widget.tables[0]["count"]
    assert [counts[k] for k in highest(page)] == sorted(counts, reverse=True)[:9]


@pytest.mark.parametrize("way", ["hover", "number"])
def test_2_a_code_shows_itself_and_its_real_patches(page, widget, way):
    code = int(widget.tables[0]["count"].argmax())
    if way == "hover":
        hover_code(page, widget, code)
    else:
        page.fill("input.text", str(code))
        page.press("input.text", "Enter")
    assert state(page)["code"] == code
    head = page.locator(".codebook .head").inner_text()
    assert head.startswith(f"Code {code}: {widget.tables[0]['count'][code]:,} tokens")
    shown = page.locator(".evidence .swatch:visible").count()
    assert shown == 2 + 8 + 8, "code and mean, eight real patches, eight nearest codes"


def test_3_a_code_s_places_in_the_photograph_are_counted(page, widget):
    grid = widget.tokenizers[0].indices[0]
    code = int(grid[5, 5])
    hover_code(page, widget, code)
    state(page)
    caption = page.locator(".caption p").first.inner_text()
    assert caption == f"code {code}: {int((grid == code).sum())} of {grid.numel():,} tokens here"
    absent = next(iter(set(range(64)) - set(grid.flatten().tolist())), None)
    if absent is not None:
        hover_code(page, widget, absent)
        state(page)
        assert "is not in this photograph" in page.locator(".caption p").first.inner_text()
        assert page.locator(".bars.stale").count() == 1, "a stale token grays out"


def test_4_a_pixel_s_code_and_how_sure_it_is(page, widget):
    hover_token(page, widget, 7, 9)
    seen = state(page)
    o = widget.tokenizers[0]
    d = (o.points[0][7, 9] - o.sites).square().sum(1) / o.width
    p = np.exp(-(d - d.min()).numpy())
    p /= p.sum()
    code = int(o.indices[0][7, 9])
    assert seen["code"] == code
    said = page.locator(".token .head").inner_text()
    assert said.startswith(f"Token in row 7, column 9: code {code}, p = ")
    shown = page.locator(".bars .cell span:first-child").all_inner_texts()
    assert float(shown[0]) == pytest.approx(100 * p.max(), abs=0.6)
    bits = float(page.locator(".token .head b").nth(2).inner_text().split()[0])
    assert bits == pytest.approx(-(p * np.log2(p + 1e-30)).sum(), abs=0.02)


def test_5_dead_codes_are_listed(page, widget):
    press(page, "Unused")
    state(page)
    unused = np.flatnonzero(widget.tables[0]["count"] == 0).tolist()
    listed = page.locator(".legend .list").inner_text()
    assert listed == (", ".join(map(str, unused)) or "none")


def test_6_the_codes_that_cause_most_of_the_error_are_listed(page, widget):
    press(page, "Error")
    state(page)
    table = widget.tables[0]
    share = table["count"] * table["mse"]
    assert highest(page)[0] == share.argmax()
    page.locator(".legend .swatch").first.click()
    state(page)
    said = page.locator(".codebook .head").inner_text()
    assert f"{100 * share.max() / share.sum():.2f}"[:3] in said


def test_7_the_photograph_at_tau_c(page, widget):
    layer = state(page)["layer"]
    page.get_by_role("button", name="τc").click()
    seen = state(page)
    about = widget.meta["tokenizers"][0]
    assert seen["tau"] == pytest.approx(about["tau_c"])
    assert seen["layer"] == layer, "the temperature never changes what was chosen"
    soft = page.locator(".thumb span").nth(1)
    expect(soft).to_contain_text(f"{about['soft_psnr'][0][-1]:.2f} dB")


def test_8_from_where_on_assignments_are_soft_is_said(page, widget):
    one = widget.meta["tokenizers"][0]["curve"]["one"]
    said = page.locator(".temperature").inner_text()
    assert ("1 bit at τ = " if one else "1 bit at every τ") in said


def test_9_where_two_tokenizers_differ(page, widget):
    press(page, "Compare")
    assert state(page)["layer"] == "difference"
    expect(page.locator(".caption")).to_contain_text("better by")
    both = [about["psnr"][0] for about in widget.meta["tokenizers"]]
    said = page.locator(".caption").inner_text()
    assert f"LGQ {both[0]:.2f} dB | VQ {both[1]:.2f} dB" in said
    hover_token(page, widget, 7, 9)
    seen = state(page)
    assert seen["code"] == int(widget.tokenizers[0].indices[0][7, 9])
    second = page.locator(".codebook").nth(1).locator(".token .head").inner_text()
    assert f"code {int(widget.tokenizers[1].indices[0][7, 9])}," in second
    page.keyboard.press("c")
    assert state(page)["view"] == 0, "C leaves again"


def test_10_whether_neighbors_on_the_map_are_neighbors_in_the_codebook(page, widget):
    press(page, "Trust")
    state(page)
    assert "of 8" in page.locator(".words").inner_text()
    code = int(widget.tables[0]["count"].argmax())
    hover_code(page, widget, code)
    state(page)
    table = widget.tables[0]
    expected = f"trust {table['trust'][code]} of {table['around'][code]}"
    assert expected in page.locator(".evidence").inner_text()


def test_the_keyboard_alone_reaches_layers_quantities_temperature_and_tokens(page, widget):
    page.keyboard.press("ArrowRight")
    w = widget.tokenizers[0].indices[0].shape[1]
    before = state(page)["token"]
    page.keyboard.press("ArrowDown")
    assert state(page)["token"] == before + w
    page.keyboard.press("4")
    page.keyboard.press("m")
    page.keyboard.press(".")
    seen = state(page)
    assert (seen["layer"], seen["quantity"]) == ("entropy", "mass")
    assert seen["tau"] > 1
    page.keyboard.press("/")
    page.keyboard.type("3, 17-20")
    page.keyboard.press("Enter")
    assert state(page)["codes"] == [3, 17, 18, 19, 20]
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert state(page)["codes"] == []


def test_painting_decodes_and_is_taken_back_by_strokes(page, widget):
    page.fill("input.text", str(int(widget.tables[0]["count"].argmax())))
    page.press("input.text", "Enter")
    press(page, "Paint")
    before = page.locator(".thumb span").first.inner_text()
    hover_token(page, widget, 12, 12)
    page.mouse.down()
    page.mouse.up()
    state(page)
    after = page.locator(".thumb span").first.inner_text()
    assert after != before, "dB follows"
    box = page.evaluate(
        "[...document.querySelector('.lgx').screen.edits.values()][0].canvas"
        ".getContext('2d').getImageData(40, 40, 24, 24).data.join()"
    )
    painted = np.array(box.split(","), dtype=float).reshape(24, 24, 4)[..., :3]
    o = widget.tokenizers[0]
    indices = o.indices[0].clone()
    indices[11:14, 11:14] = int(widget.tables[0]["count"].argmax())
    with torch.no_grad():
        exact = decoded(o, o.codebook[indices])[:, 40:64, 40:64].movedim(0, -1).numpy()
    assert np.abs(painted - exact).mean() < 1.5, "the page decodes as the product does"
    press(page, "Undo")
    state(page)
    assert page.locator(".thumb span").first.inner_text() == before


def test_a_selection_is_taken_away_as_csv_and_as_a_link(page, browser, file, widget):
    page.fill("input.text", "3, 5")
    page.press("input.text", "Enter")
    with page.expect_download() as download:
        press(page, "CSV")
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [int(row["code"]) for row in rows] == [3, 5]
    assert [int(float(row["mass"] or 0)) for row in rows] == widget.tables[0]["count"][
        [3, 5]
    ].tolist()
    page.wait_for_url(lambda url: '"codes":[3,5]' in unquote(url))
    with opened(browser, file) as other:
        other.goto(page.url)
        other.reload()
        other.wait_for_selector("body[data-ready]")
        assert state(other)["codes"] == [3, 5]


def test_names_are_text_whatever_is_in_them(page):
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.title() == HOSTILE


@pytest.mark.parametrize("width", [1400, 968, 700])
@pytest.mark.parametrize("compare", [False, True])
def test_nothing_is_wider_than_the_window(browser, file, width, compare):
    with opened(browser, file, viewport={"width": width, "height": 900}) as page:
        if compare:
            press(page, "Compare")
        state(page)
        clipped = page.evaluate(
            "[...document.querySelectorAll('.lgx p, .lgx span, .lgx button, .lgx h2')]"
            ".filter(e => e.offsetParent && !e.closest('.said') && e.clientWidth"
            " && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText.slice(0, 40))"
        )
        assert not clipped
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate(
            "Math.min(...[...document.querySelectorAll('.lgx *')].filter(e => e.innerText)"
            ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert small >= 11
