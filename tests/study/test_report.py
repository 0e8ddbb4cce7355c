"""The table and the report of a study, from run folders as a study leaves them."""

from html import escape
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pandas
import pytest
from builders import finished_run, folder_of, study_of

from lgqlib.figures.style import panels, show
from lgqlib.files import write_json
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study import results
from lgqlib.study.report import _converted, build_report, notebook_css, to_html
from lgqlib.study.results import STUDY_FILE, collect, finished

HOSTILE = "<script>alert('x')</script>&\"'"


def notebook(path, *outputs, text="# $x^2$ and `code`"):
    cell = nbformat.v4.new_code_cell("print(names)", outputs=list(outputs))
    cells = [nbformat.v4.new_markdown_cell(text), cell]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def output(**data):
    return nbformat.v4.new_output("display_data", data)


class Page(HTMLParser):
    """What a page would fetch, and the text that it shows."""

    def __init__(self, path):
        super().__init__()
        self.path, self.loads, self.links, self.tags, self.text = path, [], [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        else:
            self.loads += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        self.text += data


def test_a_table_has_one_row_a_run_and_says_its_state(tmp_path):
    done = finished_run(tmp_path, seed=0)
    finished_run(tmp_path, seed=1, evaluated=False)
    finished_run(tmp_path, seed=2, failure={"error": "boom"})
    Run.create(tmp_path, preset("laptop", seed=3))
    table = results.write_results(tmp_path).set_index("seed")
    assert table["state"].to_dict() == {0: "done", 1: "partial", 2: "failed", 3: "new"}
    assert table.loc[0, "psnr"] == 20 and pandas.isna(table.loc[2, "psnr"])
    assert table.loc[0, "images_per_second"] == 115 and table.loc[0, "train.num_steps"] == 20
    for read, name in ((pandas.read_parquet, "results.parquet"), (pandas.read_csv, "results.csv")):
        assert list(read(tmp_path / name)["run"]) == list(table["run"])
    for wrong in ({"step": 10}, {"step": None}, {}):  # only of the last step it is done
        write_json(done.path / "evaluation.json", wrong)
        assert results.state_of(done.path) == "partial"


def test_a_damaged_file_does_not_hide_the_other_runs(tmp_path):
    finished_run(tmp_path, seed=0)
    for seed, name in enumerate(("metrics.jsonl", "checkpoints/step-00000020.safetensors"), 1):
        file = finished_run(tmp_path, seed=seed, evaluated=False).path / name
        file.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    assert sorted(collect(tmp_path)["state"])[0] == "done" and len(finished(tmp_path)) == 1


def test_a_study_is_the_runs_that_its_file_names_in_their_order(tmp_path):
    study = tmp_path / "runs" / "made"
    runs = [finished_run(study, method=m) for m in ("vq", "fsq", "lgq")]
    study_of(study, [(runs[2], "ours"), (runs[0], "")])
    assert {results.newest_study(study.parent, name) for name in ("", "made")} == {study}
    assert list(finished(study)["name"]) == ["lgq ours", "vq"]
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        results.newest_study(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no finished run.*lgqlib.study"):
        finished(tmp_path)


def test_the_page_opens_from_any_path_and_its_links_lead_to_pages(tmp_path):
    """Also where folders and notebooks have spaces, signs and markup in their names."""
    study = tmp_path / "a study & <img src=x onerror=alert(1)>'"
    root = folder_of(tmp_path / "<script>alert(1)<script>", "0.png")
    run = finished_run(study, more=f"data.name=imagefolder data.root='{root}'")
    write_json(study / STUDY_FILE, {"name": "s", "runs": [[run.name, HOSTILE], [HOSTILE, ""]]})
    notebook(run.notebooks / "<b>01 train#.ipynb")
    (run.notebooks / "02_torn.ipynb").write_text('{"cells": [')
    page = Page(build_report(study))
    assert page.path == study / "report" / "index.html"
    assert "20.00" in page.text and page.text.count(HOSTILE) == 2 and study.name in page.text
    assert not {"img", "script", "b"} & set(page.tags) and page.loads == []
    assert page.links[0] == "results.csv" and len(page.links) == 3
    assert not set("<# ") & set("".join(page.links)), "a browser would take # for a fragment"
    pages = [page.path.parent / unquote(link) for link in page.links]
    assert all(path.is_file() for path in pages)
    assert "could not be read" in pages[1].read_text()
    (script,) = [load for load in Page(pages[2]).loads if "plotly" in load]
    assert (pages[2].parent / script).is_file(), "plotly's code lies beside the pages"


def test_failures_are_listed_with_their_traceback_and_notebook(tmp_path):
    failure = {"notebook": "01_train.ipynb", "error": HOSTILE, "traceback": f"line 1\n{HOSTILE}"}
    run = finished_run(tmp_path, seed=1, failure=failure, evaluated=False)
    notebook(run.notebooks / "01_train.part.ipynb")
    page = Page(build_report(tmp_path))
    assert "script" not in page.tags and page.text.count(HOSTILE) == 2
    assert f"{run.name}/01_train.part.html" in page.links and "nothing to compare" in page.text
    finished_run(tmp_path, seed=0)
    assert "20.00" in Page(build_report(tmp_path)).text, "the rest is compared all the same"


def test_a_converted_notebook_loads_only_what_lies_beside_it(tmp_path, monkeypatch):
    fig, _ = panels(titles=[HOSTILE])
    fig.add_scatter(x=[0], y=[0], text=[HOSTILE], name=HOSTILE, hovertemplate=HOSTILE)
    shown = {}
    monkeypatch.setattr("lgqlib.figures.style.display", lambda data, raw: shown.update(data))
    show(fig)
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Bar()"}
    picture = output(**{"image/png": "iVBORw0KGgo=", "text/plain": "f"})
    stream = nbformat.v4.new_output("stream", text=f"<b>plain</b>{HOSTILE}")
    notebook(tmp_path / "a.ipynb", picture, output(**shown), output(**widget), stream)
    text = to_html(tmp_path / "a.ipynb")
    (tmp_path / "a.html").write_text(text)
    page = Page(tmp_path / "a.html")
    loads = [load for load in page.loads if not load.startswith(("data:", "#"))]
    assert loads == ["../plotly.min.js", "../notebook.css"]
    assert "Plotly.newPlot" in text and "<script>alert" not in text, "markup in a figure is data"
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert f"<b>plain</b>{HOSTILE}" in page.text and "Bar()" not in page.text
    assert not any(
        part in css for css in (text, notebook_css()) for part in ("@import", "url(http")
    )


def test_what_an_explorer_shows_lies_beside_its_page_until_it_shows_something_else(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for blob in ("AAAA", "BBBB"):
        page = f"content='' id=\"blob\">{blob}</script>"  # with both kinds of quotes
        frame = f'<iframe srcdoc="{escape(page)}"></iframe>'
        notebook(tmp_path / "notebooks" / "a.ipynb", output(**{"text/html": frame}))
        _converted(tmp_path, tmp_path / "pages")
        (shown,) = (tmp_path / "pages").glob("explorer-*.js")
        assert blob in shown.read_text() and shown.name in (tmp_path / "pages/a.html").read_text()
