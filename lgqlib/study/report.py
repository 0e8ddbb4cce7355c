"""The report of a study: one HTML page with the comparison on top, and each notebook behind a link.

Nothing in it is loaded from a network, so the folder can be read, moved and sent as it is.
"""

import html
from collections.abc import Iterable
from pathlib import Path

import nbformat
import pandas
from jinja2 import DictLoader
from nbconvert import HTMLExporter

from lgqlib.figures.style import color_of, name_of
from lgqlib.files import replacing
from lgqlib.run import Run
from lgqlib.study.results import (
    NUMBERS,
    Group,
    compare,
    failure_of,
    study_runs,
    write_results,
    written,
)

OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""
"""nbconvert's template without the scripts that it would fetch."""

WIDGET = "application/vnd.jupyter.widget-view+json"

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, Helvetica, Arial, sans-serif; max-width: 1200px; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th { border-bottom: 2px solid #888; font-weight: 600; vertical-align: bottom; }
th small, td small, .note { color: #888; font-weight: 400; }
th:first-child, td:first-child { text-align: left; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
          margin-right: .5em; }
.scroll { overflow-x: auto; }
.failed { color: #c33; }
pre { overflow-x: auto; padding: .7rem; background: #8881; font-size: 12px; }
"""


def build_report(study: Path | str) -> Path:
    """Write results.parquet, results.csv and report/ of a study; give the path of the page.

    Notebooks are converted when they are newer than their page.
    """
    study = Path(study)
    table = write_results(study)
    folder = study / "report"
    pages = {}
    for name in study_runs(study):
        notebooks = sorted((study / name / "notebooks").glob("*.ipynb"))
        pages[name] = _convert(notebooks, folder / name)
    summaries = _convert(sorted((study / "notebooks").glob("*.ipynb")), folder / "summary")
    text = _page(study, table, pages, summaries)
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "index.html"


def _convert(notebooks: Iterable[Path], folder: Path) -> list[Path]:
    pages = []
    for notebook in notebooks:
        page = folder / f"{notebook.stem}.html"
        if not page.exists() or page.stat().st_mtime <= notebook.stat().st_mtime:
            try:
                text = to_html(notebook)
            except ValueError as error:
                text = _document(notebook.name, f"<p class=failed>{html.escape(str(error))}</p>")
            with replacing(page) as temporary:
                temporary.write_text(text, encoding="utf-8")
        pages.append(page)
    return pages


def to_html(notebook: Path) -> str:
    """Convert an executed notebook to one HTML page that loads nothing.

    Raises ValueError when the file is not a notebook (torn by a kill, say).
    """
    try:
        node = nbformat.read(notebook, as_version=4)
    except Exception as error:  # of many kinds
        raise ValueError(f"{notebook.name} could not be read ({error}).") from None
    # A live widget is nothing without its kernel; what it said is in the cells after it.
    node.metadata.pop("widgets", None)
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"offline.html.j2": OFFLINE})], template_file="offline.html.j2"
    )
    text, _ = exporter.from_notebook_node(
        node, resources={"metadata": {"name": f"{notebook.stem} · {notebook.parent.parent.name}"}}
    )
    return text


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _page(
    study: Path, table: pandas.DataFrame, pages: dict[str, list[Path]], summaries: list[Path]
) -> str:
    states = table["state"].value_counts().to_dict() if len(table) else {}
    counts = ", ".join(f"{number} {state}" for state, number in states.items()) or "no run yet"
    body = [
        f"<h1>{html.escape(study.name)}</h1>",
        f"<p>{len(pages)} runs: {html.escape(counts)}. All numbers, one row a run: "
        '<a href="results.csv">results.csv</a>.</p>',
        comparison_html(compare(table)),
    ]
    if summaries:
        links = " · ".join(_link(page, study / "report") for page in summaries)
        body.append(f"<h2>Over all runs</h2>\n<p>{links}</p>")
    body += [_failures(study, pages), _runs(study, table, pages)]
    return _document(study.name, "\n".join(part for part in body if part))


def comparison_html(groups: list[Group]) -> str:
    """Give the comparison as an HTML table, with what its numbers are of below it."""
    if not groups:
        return '<p class="note">No run is finished yet: there is nothing to compare.</p>'
    numbers = [n for n in NUMBERS if any(n.key in group.mean for group in groups)]
    settings = list(groups[0].settings)
    head = ["method", "codes", *settings]
    cells = [f"<th>{html.escape(name)}</th>" for name in head]
    for n in numbers:
        arrow = {"higher": " ↑", "lower": " ↓"}.get(n.better, "")
        cells.append(f"<th>{html.escape(n.label)}{arrow}<br><small>{n.unit}&nbsp;</small></th>")
    cells.append("<th>seeds</th>")
    rows = [f"<tr>{''.join(cells)}</tr>"]
    for group in groups:
        variant = f" <small>{html.escape(group.variant)}</small>" if group.variant else ""
        swatch = f'<span class="swatch" style="background:{color_of(group.method)}"></span>'
        cells = [f"{swatch}{html.escape(name_of(group.method))}{variant}", f"{group.num_codes:,}"]
        cells += [html.escape(str(group.settings[name])) for name in settings]
        cells += [html.escape(written(group, n)) for n in numbers]
        cells.append(f"{len(group.seeds)}")
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    note = html.escape(comparison_note(groups))
    return _table(rows) + f'\n<p class="note">{note}</p>'


def _table(rows: list[str]) -> str:
    return '<div class="scroll"><table>\n' + "\n".join(rows) + "\n</table></div>"


def comparison_note(groups: list[Group]) -> str:
    """Say what the comparison's numbers are of: seeds, images, tokens, extractor, direction."""
    sizes = sorted(
        {(g.about.get("num_images"), g.about.get("num_tokens")) for g in groups}, key=str
    )
    of = "; ".join(
        f"{int(images):,} held-out images, {int(tokens):,} tokens"
        for images, tokens in sizes
        if images
    )
    extractors = sorted({str(g.about["extractor"]) for g in groups if "extractor" in g.about})
    features = ""
    if extractors:
        features = (
            f" Perceptual distance, KID and FD (Fréchet) are on {', '.join(extractors)} features:"
            " they are neither LPIPS nor FID."
        )
    return (
        f"Mean ± standard deviation over seeds; every number through decode(encode(x)), on {of}."
        f"{features} Arrows point where better is; active codes and perplexity grow with the tokens"
        " looked at."
    )


def comparison_text(groups: list[Group]) -> str:
    """Give the comparison as text for a terminal."""
    if not groups:
        return "No run is finished yet: there is nothing to compare."
    numbers = [n for n in NUMBERS if any(n.key in group.mean for group in groups)]
    rows = []
    for group in groups:
        row = {"method": f"{name_of(group.method)} {group.variant}".strip()}
        row |= {"codes": group.num_codes, **group.settings}
        row |= {f"{n.label} {n.unit}".strip(): written(group, n) for n in numbers}
        rows.append(row | {"seeds": len(group.seeds)})
    return pandas.DataFrame(rows).to_string(index=False)


def _link(page: Path, folder: Path) -> str:
    target = html.escape(page.relative_to(folder).as_posix(), quote=True)
    return f'<a href="{target}">{html.escape(page.stem)}</a>'


def _failures(study: Path, pages: dict[str, list[Path]]) -> str:
    parts = []
    for name in pages:
        if (study / name / "config.json").exists():
            failure = failure_of(Run.open(study / name))
            if failure is not None:
                parts.append(_failure(name, failure))
    return "<h2>Failed</h2>\n" + "\n".join(parts) if parts else ""


def _failure(name: str, failure: dict) -> str:
    said = {key: html.escape(str(failure.get(key, ""))) for key in ("notebook", "error", "time")}
    return (
        f'<p><b class="failed">{html.escape(name)}</b> in {said["notebook"]}, {said["time"]}:'
        f" {said['error']}</p>\n<details><summary>traceback</summary>"
        f"<pre>{html.escape(str(failure.get('traceback', '')))}</pre></details>"
    )


def _runs(study: Path, table: pandas.DataFrame, pages: dict[str, list[Path]]) -> str:
    states = dict(zip(table["run"], table["state"], strict=True)) if len(table) else {}
    rows = ["<tr><th>run</th><th>state</th><th>notebooks, as they were executed</th></tr>"]
    for name, converted in pages.items():
        links = " · ".join(_link(page, study / "report") for page in converted) or "–"
        state = states.get(name, "new")
        mark = ' class="failed"' if state == "failed" else ""
        rows.append(f"<tr><td>{html.escape(name)}</td><td{mark}>{state}</td><td>{links}</td></tr>")
    return "<h2>Runs</h2>\n" + _table(rows)
