"""The report of a study: one page with the comparison on top, and each notebook behind a link.

Nothing in it is loaded from a network: it can be read, moved and sent as it is.
"""

import contextlib
import hashlib
import re
import shutil
from html import escape
from pathlib import Path
from urllib.parse import quote

import nbformat
import plotly.io
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbconvert.preprocessors import Preprocessor
from pandas import DataFrame
from plotly.offline import get_plotlyjs

from lgqlib.explorers.codebook import explore
from lgqlib.figures.story import style
from lgqlib.files import read_json, replacing
from lgqlib.study.comparison import comparison_note, comparison_table
from lgqlib.study.results import FAILURE_FILE, finished, study_runs, write_results
from lgqlib.study.story import Peers, lead, story_html

PLOTLY, LOOK = "plotly.min.js", "notebook.css"
OFFLINE = f"""{{% extends 'lab/index.html.j2' %}}
{{% block notebook_css %}}<link rel="stylesheet" href="../{LOOK}">{{% endblock %}}
{{% block html_head_js %}}<script src="../{PLOTLY}"></script>{{% endblock %}}
{{% block html_head_js_mathjax %}}{{% endblock %}}
{{% block html_head_js_mermaidjs %}}{{% endblock %}}
{{% block jupyter_widgets %}}{{% endblock %}}
"""
"""nbconvert's template without the scripts that it would fetch, its style beside the pages."""


def notebook_css() -> str:
    """Give nbconvert's style, a quarter of a megabyte, which is one file for all pages."""
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook())
    return "\n".join(re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL))


BLOB = re.compile(r"(?<=id=&quot;blob&quot;&gt;)[\w+/=]+(?=&lt;/script&gt;)")
"""What an explorer in a notebook's frame shows: pictures and arrays, as base64."""
INLINE = "script-src 'unsafe-inline'"  # all that an explorer's page may run, where it stands alone
SHARED = {PLOTLY: get_plotlyjs, LOOK: notebook_css}
"""What lies once in a report's folder, and what makes it."""


def build_report(
    study: Path | str, *, story: bool = False, cache: Path | str = "data/cache"
) -> Path:
    """Write results.parquet, results.csv and report/ of a study; give the path of the page.

    `story`: compute what the page tells, where it is not kept yet, from decoded images in `cache`.
    """
    study = Path(study)
    table, folder = write_results(study), study / "report"
    for name, made in SHARED.items():
        if not (folder / name).exists():
            _write(folder / name, made())
    states = dict(zip(table["run"], table["state"], strict=True))
    counts = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    rows, failures = [], []
    for name in study_runs(study):
        pages, state = _converted(study / name, folder / name), states.get(name, "new")
        rows.append((escape(name), state, pages or "–"))
        if state == "failed":
            said = {k: escape(str(v)) for k, v in read_json(study / name / FAILURE_FILE).items()}
            where = f"{escape(name)}, {said.get('notebook')}, {said.get('time')}"
            more = f"<summary>traceback</summary><pre>{said.get('traceback')}</pre>"
            failures.append(f"<p>{where}: {said.get('error')}</p><details>{more}</details>")
    runs = DataFrame(rows, columns=["run", "state", "notebooks, as they were executed"])
    parts = {
        "Over all runs": _converted(study, folder / "summary"),
        "Failed": "\n".join(failures),
        "Runs": runs.to_html(index=False, border=0, escape=False),
    }
    failed = int((table["state"] == "failed").sum())
    where = Path(cache) if story else None
    body = f"{lead(study)}\n{_visualizer(study, folder, cache if story else None)}"
    body += f"{story_html(study, folder, failed=failed, cache=where)}\n"
    body += f'<div class="more"><p>{len(rows)} runs: {counts or "no run yet"}. All numbers, one '
    body += f'row a run: <a href="results.csv">results.csv</a>.</p>\n{comparison_html(study)}\n'
    parts = {title: part for title, part in parts.items() if part}
    body += "\n".join(f'<h2 id="{k.split()[0]}">{k}</h2>\n{part}' for k, part in parts.items())
    head_line = f"LGQ in nine findings: study {study.name}"
    _write(folder / "index.html", _document(study.name, f"{body}</div>", head_line))
    if story:
        with replacing(study / "report.zip") as temporary:  # to send
            made = shutil.make_archive(str(temporary), "zip", study, "report")
            Path(made).replace(temporary)
    return folder / "index.html"


def _visualizer(study: Path, folder: Path, cache: Path | str | None) -> str:
    """Link the best LGQ and VQ to be looked into; write that page where there is a cache."""
    page = folder / "codebook.html"
    with contextlib.suppress(ValueError, KeyError):  # nothing is finished, or has no weights
        if cache is not None:
            encoded = Peers(study, finished(study)).encoded  # the page tells of the same runs
            best = [encoded[method].run for method in ("lgq", "vq") if method in encoded]
            explore(*best, cache=cache, title=study.name).save(page)
    if not page.exists():
        return ""
    said = "Look into the codebooks yourself: click a code, a token, a temperature"
    return f'<p class="look"><a href="{page.name}">{said}</a></p>\n'


def comparison_html(study: Path | str) -> str:
    """Give the comparison of a study's methods as an HTML table, with what its numbers are of."""
    try:
        runs = finished(study)
    except ValueError:
        return "<p>No run is finished yet: there is nothing to compare.</p>"
    table = comparison_table(runs).to_html(index=False, border=0)
    return f"{table}\n<p>{escape(comparison_note(runs))}</p>"


def _converted(folder: Path, pages: Path) -> str:
    """Convert the executed notebooks of a folder that are newer than their pages; give links."""
    links, notebooks, written = [], sorted((folder / "notebooks").glob("*.ipynb")), False
    kept = {notebook.stem for notebook in notebooks}
    for page in [page for page in pages.glob("*.part.html") if page.stem not in kept]:
        page.unlink()  # it is whole by now
    for notebook in notebooks:
        page = pages / f"{notebook.stem}.html"
        if not page.exists() or page.stat().st_mtime <= notebook.stat().st_mtime:
            try:
                text = _shared(to_html(notebook), pages)
            except Exception as error:  # of many kinds, where it was torn by a kill
                text = _document(notebook.name, f"<p>could not be read ({escape(str(error))})</p>")
            _write(page, text)
            written = True
        target = quote(f"{pages.name}/{page.name}")
        links.append(f'<a href="{target}">{escape(notebook.stem)}</a>')
    if written:  # what an explorer showed before is shown no more
        shown = "".join(page.read_text(encoding="utf-8") for page in pages.glob("*.html"))
        for file in pages.glob("explorer-*.js"):
            if file.name not in shown:
                file.unlink()
    return " · ".join(links)


def to_html(notebook: Path) -> str:
    """Convert an executed notebook to an HTML page that loads nothing but what is `SHARED`."""
    node = nbformat.read(notebook, as_version=4)
    node.metadata.pop("widgets", None)
    templates = DictLoader({"offline.html.j2": OFFLINE})
    how = {"extra_loaders": [templates], "template_file": "offline.html.j2"}
    name = f"{notebook.stem} · {notebook.parent.parent.name}"
    exporter = HTMLExporter(preprocessors=[_Figures], **how)
    return exporter.from_notebook_node(node, resources={"metadata": {"name": name}})[0]


def _shared(text: str, pages: Path) -> str:
    """Move what explorers show into files beside the pages of a run: they show the same."""
    for blob in BLOB.findall(text):
        file = pages / f"explorer-{hashlib.sha256(blob.encode()).hexdigest()[:12]}.js"
        _write(file, f'document.getElementById("blob").textContent = "{blob}";\n')
        script = f"&lt;/script&gt;&lt;script src=&quot;{file.name}&quot;&gt;"
        text = text.replace(blob, script).replace(INLINE, f"{INLINE} 'self' file:")
    return text


class _Figures(Preprocessor):
    """Turn plotly's data into HTML that draws it, and leave out live widgets, dead by now."""

    figure = "application/vnd.plotly.v1+json"
    widget = "application/vnd.jupyter.widget-view+json"

    def preprocess_cell(self, cell, resources, index):
        outputs = [o for o in cell.get("outputs", []) if self.widget not in o.get("data", {})]
        for output in outputs:
            if self.figure in output.get("data", {}):
                none = ("include_plotlyjs", "full_html", "validate", "auto_play")
                html = plotly.io.to_html(output.data[self.figure], **dict.fromkeys(none, False))
                output.data = nbformat.from_dict({"text/html": html})
        if "outputs" in cell:
            cell.outputs = outputs
        return cell, resources


def _document(title: str, body: str, head_line: str = "") -> str:
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=1300">\n'
    head += f"<title>{escape(title)}</title>\n<style>{style()}</style>"
    body = f"<body><main>\n<h1>{escape(head_line or title)}</h1>\n{body}\n</main></body>"
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n{body}\n</html>\n'


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
