"""Studies as they lie on a disk when finished, without any training."""

from pathlib import Path

from lgqlib.files import write_json
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study.results import FAILURE_FILE, STUDY_FILE


def finished_run(
    study: Path,
    *,
    more: str = "",
    numbers: dict | None = None,
    failure: dict | None = None,
    evaluated: bool = True,
    **named,
) -> Run:
    """Write the files that a finished run leaves, with these numbers of its evaluation."""
    run = Run.create(study, preset("laptop", **named).override(f"train.num_steps=20 {more}"))
    for step in (10, 20):
        run.log(step, "train", loss=1.0 / step)
        run.log(step, "timing", images_per_second=100.0 + step)
    run.save_checkpoint(20, {}, tau=0.1, tau_c=None)
    if evaluated:
        about = {"num_images": 256, "num_tokens": 16384, "extractor": "lite2", "kid": None}
        run.save_evaluation(about | (numbers or {"psnr": 20.0, "active": 900}), {})
    if failure is not None:
        write_json(run.path / FAILURE_FILE, failure)
    return run


def study_of(folder: Path, runs: list[tuple[Run, str]]) -> Path:
    """Write a study's file over runs, each with its variant."""
    write_json(folder / STUDY_FILE, {"name": "made", "runs": [[r.name, v] for r, v in runs]})
    return folder
