"""The report and the table of a study, from run folders as a study leaves them."""

import json
from html.parser import HTMLParser

import nbformat
import pandas
import pytest

from lgqlib.figures.style import figure
from lgqlib.files import write_json
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study.report import build_report, comparison_note, comparison_text, to_html
from lgqlib.study.results import FAILURE_FILE, STUDY_FILE, collect, compare, is_done, write_results

HOSTILE = "<script>alert('x')</script>&\"'"


def finished(study, *, psnr=20.0, more="", failure=None, evaluated=True, **named):
    """Write the files that a finished run leaves, without training it."""
    run = Run.create(study, preset("laptop", **named).override(f"train.num_steps=20 {more}"))
    for step in (10, 20):
        run.log(step, "train", loss=1.0 / step)
        run.log(step, "timing", images_per_second=100.0 + step)
    run.save_checkpoint(20, {}, tau=0.1, tau_c=None)
    if evaluated:
        about = {"num_images": 512, "num_tokens": 32768, "extractor": "lite2", "num_codes": 1024}
        run.save_evaluation({"psnr": psnr, "kid": None, "active": 900, **about}, {})
    if failure is not None:
        write_json(run.path / FAILURE_FILE, failure)
    return run


def notebook(path, *cells):
    node = nbformat.v4.new_notebook(cells=list(cells))
    nbformat.write(node, path)


class _Loads(HTMLParser):
    """Collect what a page would fetch, and the text that it shows."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)

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
    finished(tmp_path, seed=0)
    finished(tmp_path, seed=1, evaluated=False)
    finished(tmp_path, seed=2, failure={"error": "boom"})
    Run.create(tmp_path, preset("laptop", seed=3))
    table = collect(tmp_path).set_index("seed")
    assert table["state"].to_dict() == {0: "done", 1: "partial", 2: "failed", 3: "new"}
    assert table.loc[0, "psnr"] == 20 and pandas.isna(table.loc[2, "psnr"])
    assert table.loc[0, "images_per_second"] == 115
    assert table.loc[0, "train.num_steps"] == 20 and table.loc[0, "method"] == "lgq"


def test_the_table_is_written_whole_in_two_forms(tmp_path):
    finished(tmp_path, seed=0)
    finished(tmp_path, method="fsq", seed=0, psnr=21.0)
    table = write_results(tmp_path)
    parquet = pandas.read_parquet(tmp_path / "results.parquet")
    pandas.testing.assert_frame_equal(parquet, table, check_dtype=False)
    assert list(pandas.read_csv(tmp_path / "results.csv")["run"]) == list(table["run"])
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_evaluation_of_an_earlier_step_is_not_done(tmp_path):
    run = finished(tmp_path)
    evaluation = json.loads((run.path / "evaluation.json").read_text())
    write_json(run.path / "evaluation.json", evaluation | {"step": 10})
    assert not is_done(run)


def test_damaged_metrics_do_not_hide_the_other_runs(tmp_path):
    finished(tmp_path, seed=0)
    damaged = finished(tmp_path, seed=1, evaluated=False)
    (damaged.path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    assert sorted(collect(tmp_path)["state"]) == ["done", "new"]


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        collect(tmp_path / "nowhere")
    assert len(collect(tmp_path)) == 0


def test_only_runs_that_the_study_names_are_compared_in_its_order(tmp_path):
    runs = [finished(tmp_path, method=m) for m in ("vq", "fsq", "lgq")]
    names = [[runs[2].name, "ours"], [runs[0].name, ""]]
    write_json(tmp_path / STUDY_FILE, {"name": "s", "runs": names})
    groups = compare(collect(tmp_path))
    assert [(g.method, g.variant) for g in groups] == [("lgq", "ours"), ("vq", "")]


def test_seeds_are_averaged_with_their_spread(tmp_path):
    for seed, psnr in enumerate((20.0, 21.0, 22.0)):
        finished(tmp_path, seed=seed, psnr=psnr)
    (group,) = compare(collect(tmp_path))
    assert group.seeds == (0, 1, 2)
    assert group.mean["psnr"] == 21 and group.spread["psnr"] == 1
    assert "kid" not in group.mean, "a number that nobody has is left out"
    assert "21.00 ± 1.00" in comparison_text([group])


def test_one_seed_has_no_spread(tmp_path):
    finished(tmp_path)
    (group,) = compare(collect(tmp_path))
    assert "±" not in comparison_text([group]) and "20.00" in comparison_text([group])


def test_runs_of_different_configs_are_never_averaged(tmp_path):
    for lr in ("0.001", "0.002"):
        for seed in (0, 1):
            finished(tmp_path, seed=seed, more=f"train.lr={lr}")
    groups = compare(collect(tmp_path))
    assert sorted(group.settings["train.lr"] for group in groups) == [0.001, 0.002]
    assert all(group.seeds == (0, 1) for group in groups)
    assert "train.lr" in comparison_text(groups)


def test_the_recipes_of_methods_are_not_columns(tmp_path):
    finished(tmp_path, method="lgq")
    finished(tmp_path, method="fsq")
    assert [group.settings for group in compare(collect(tmp_path))] == [{}, {}]


def test_the_comparison_says_what_its_numbers_are_of(tmp_path):
    finished(tmp_path)
    note = comparison_note(compare(collect(tmp_path)))
    for part in ("512 held-out images", "32,768 tokens", "lite2", "standard deviation"):
        assert part in note


def test_the_page_has_the_table_on_top_and_a_link_to_each_notebook(tmp_path):
    run = finished(tmp_path)
    notebook(run.notebooks / "01_train.ipynb", nbformat.v4.new_markdown_cell("# Curves"))
    page = build_report(tmp_path)
    assert page == tmp_path / "report" / "index.html"
    read = _Loads(page.read_text())
    assert read.tags.index("table") < read.tags.index("a", read.tags.index("table"))
    assert "LGQ" in read.text and "20.00" in read.text
    assert set(read.links) == {"results.csv", f"{run.name}/01_train.html"}
    for link in read.links:
        assert (page.parent / link).is_file()
    assert read.loads == []


def test_failures_are_listed_with_their_traceback_and_notebook(tmp_path):
    finished(tmp_path, seed=0)
    failure = {"notebook": "01_train.ipynb", "error": HOSTILE, "traceback": f"line 1\n{HOSTILE}"}
    run = finished(tmp_path, seed=1, failure=failure, evaluated=False)
    notebook(run.notebooks / "01_train.ipynb", nbformat.v4.new_code_cell("1 / 0"))
    read = _Loads(build_report(tmp_path).read_text())
    assert "script" not in read.tags
    assert read.text.count(HOSTILE) == 2
    assert f"{run.name}/01_train.html" in read.links
    assert "20.00" in read.text, "the rest is compared all the same"


def test_a_hostile_variant_is_shown_as_text(tmp_path):
    run = finished(tmp_path)
    write_json(tmp_path / STUDY_FILE, {"name": "s", "runs": [[run.name, HOSTILE]]})
    read = _Loads(build_report(tmp_path).read_text())
    assert "script" not in read.tags and HOSTILE in read.text


def test_a_study_without_a_finished_run_has_a_page_too(tmp_path):
    assert "nothing to compare" in build_report(tmp_path).read_text()
    finished(tmp_path, evaluated=False)
    assert "nothing to compare" in build_report(tmp_path).read_text()


def test_a_converted_notebook_loads_nothing(tmp_path):
    picture = nbformat.v4.new_output(
        "display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "f"}
    )
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Bar()"}
    cell = nbformat.v4.new_code_cell("show()")
    cell.outputs = [
        picture,
        nbformat.v4.new_output("display_data", widget),
        nbformat.v4.new_output("stream", text="<b>plain</b>"),
    ]
    notebook(tmp_path / "a.ipynb", nbformat.v4.new_markdown_cell("# $x^2$ and `code`"), cell)
    text = to_html(tmp_path / "a.ipynb")
    read = _Loads(text)
    assert all(source.startswith(("data:", "#")) for source in read.loads), read.loads
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert "<b>plain</b>" in read.text and "show" in read.text
    assert "Bar()" not in read.text, "a live widget without its kernel"
    assert "@import" not in text and "url(http" not in text


def test_a_torn_notebook_is_a_page_that_says_so(tmp_path):
    run = finished(tmp_path)
    (run.notebooks / "01_train.ipynb").write_text('{"cells": [')
    build_report(tmp_path)
    page = tmp_path / "report" / run.name / "01_train.html"
    assert "could not be read" in page.read_text()


def test_only_newer_notebooks_are_converted(tmp_path):
    run = finished(tmp_path)
    source = run.notebooks / "01_train.ipynb"
    notebook(source, nbformat.v4.new_markdown_cell("first"))
    build_report(tmp_path)
    page = tmp_path / "report" / run.name / "01_train.html"
    before = page.stat().st_mtime_ns
    build_report(tmp_path)
    assert page.stat().st_mtime_ns == before
    notebook(source, nbformat.v4.new_markdown_cell("second"))
    build_report(tmp_path)
    assert "second" in page.read_text()


def test_hostile_names_of_studies_and_folders_are_shown_as_text(tmp_path):
    study = tmp_path / "<img src=x onerror=alert(1)>&'\""
    run = finished(study, more='data.name=imagefolder data.root="<script>alert(1)<script>"')
    finished(study, seed=1, more="data.name=imagefolder data.root=plain")
    said = nbformat.v4.new_output("stream", text=HOSTILE)
    cell = nbformat.v4.new_code_cell("print(names)")
    cell.outputs = [said]
    notebook(run.notebooks / "<b>01_train.ipynb", cell)
    page = build_report(study)
    read = _Loads(page.read_text())
    assert not {"img", "script", "b"} & set(read.tags)
    assert study.name in read.text and "<script>alert(1)<script>" in read.text
    (converted,) = [link for link in read.links if link.endswith(".html")]
    assert (page.parent / converted).is_file()

    shown = _Loads((page.parent / converted).read_text())
    plain = tmp_path / "plain.ipynb"
    empty = nbformat.v4.new_code_cell("print(names)")
    empty.outputs = [nbformat.v4.new_output("stream", text="names")]
    notebook(plain, empty)
    expected = _Loads(to_html(plain))
    assert shown.tags.count("script") == expected.tags.count("script")
    assert "img" not in shown.tags and HOSTILE in shown.text


def test_hostile_text_in_a_figure_is_data_and_never_markup():
    fig = figure(titles=[HOSTILE])
    fig.add_scatter(x=[0], y=[0], text=[HOSTILE], name=HOSTILE, hovertemplate=HOSTILE)
    for text in (fig.to_html(include_plotlyjs=False, full_html=False), fig.to_json()):
        assert "<script>alert" not in text, "a script in a script would end it"
    read = _Loads(fig.to_html(include_plotlyjs=False, full_html=False))
    assert read.tags.count("script") == 1
