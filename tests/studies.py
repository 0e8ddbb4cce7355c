"""Studies as they lie on a disk when finished, without any training."""

from pathlib import Path

import numpy as np

from lgqlib.files import write_json
from lgqlib.presets import preset
from lgqlib.run import Run
from lgqlib.study.results import STUDY_FILE


def finished_run(
    study: Path, *, more: str = "", per_image: dict | None = None, numbers: dict, **named
) -> Run:
    """Write the files that a finished run leaves."""
    run = Run.create(study, preset("laptop", **named).override(f"train.num_steps=20 {more}"))
    run.log(20, "timing", images_per_second=100.0)
    run.save_checkpoint(20, {}, tau=0.1, tau_c=None)
    arrays = {f"per_image.{k}": np.asarray(v) for k, v in (per_image or {}).items()}
    about = {"num_images": 256, "num_tokens": 16384, "extractor": "lite2"}
    run.save_evaluation(about | numbers, arrays)
    return run


def study_of(folder: Path, runs: list[tuple[Run, str]]) -> Path:
    """Write a study's file over runs, each with its variant."""
    write_json(folder / STUDY_FILE, {"name": "made", "runs": [[r.name, v] for r, v in runs]})
    return folder
