"""The run directory, the only module that knows its file names.

config.json       what the run is
metrics.jsonl     one JSON object a line: step, split, then names and numbers
checkpoints/      step-00000200.safetensors: weights, optimizer, averages, and the temperature
snapshots/        step-00000000.safetensors: codebook and a fixed probe, at log-spaced steps
evaluation.json   and evaluation.safetensors
notebooks/        executed copies
lock              held by the process that trains
"""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from torch import Tensor

from lgqlib import files
from lgqlib.config import Config
from lgqlib.data import identified
from lgqlib.tokenizer import Tokenizer

KEPT_CHECKPOINTS = 2
GO_ON = " Remove it to go on from the checkpoint before."
EVALUATE = " Run notebook 02_evaluate on the run."
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read and verified."""

    step: int  # steps done
    state: dict  # `tau`, `tau_c` and whatever else the trainer wrote
    tensors: dict[str, dict[str, Tensor]]  # by part: `tokenizer`, `training`, maybe `ema`, `judge`


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Codebook and a fixed probe of latents at one step of training, as numpy arrays."""

    step: int
    tau: float
    tau_c: float
    codebook: np.ndarray  # [K, D], codes in the space where the nearest is chosen (`sites`)
    latents: np.ndarray  # [P, D], the probe's latents in the same space
    indices: np.ndarray  # [P], the probe's codes
    counts: np.ndarray  # [K], uses in training since the snapshot before
    last_used: np.ndarray  # [K], last step at which the code was used; -1 for never


class Run:
    """A folder that holds one run, or a ValueError that says why not."""

    def __init__(self, path: Path | str):
        self.path, file = Path(path), Path(path) / "config.json"
        with files.reading(file, " Notebook 01_train writes it where there is none."):
            self.config = Config.from_dict(files.unseal(file.read_bytes()))

    @classmethod
    def create(cls, root: Path | str, config: Config) -> "Run":
        """Make, or find, the folder of `config` under `root`.

        One that is found gets the config's evaluation, and the place of its images. A new one that
        goes on after another (`train.after`) gets that one's newest checkpoint, metrics and
        snapshots. ValueError when there is no such finished run with fewer steps.
        """
        config = identified(config)
        path = Path(root) / config.run_name
        is_new = not (path / "config.json").exists()
        if is_new and config.train.after:
            cls(Path(root) / config.train.after)._go_on(path, config)
        if is_new or cls(path).config != config:
            files.write_json(path / "config.json", config.to_dict())
        return cls(path)

    def _go_on(self, path: Path, config: Config) -> None:
        """Copy what training leaves into the folder of a run that goes on from here."""
        done, steps = self.step, config.train.num_steps
        if not self.is_complete or steps <= done:
            raise ValueError(
                f"train.after = {self.name!r}: it must be a finished run with fewer steps than "
                f"train.num_steps = {steps}; it has done {done} of {self.config.train.num_steps}."
            )
        last = self._steps("checkpoints")[-1]
        for file in (last, *self._steps("snapshots"), *self.path.glob("metrics.jsonl")):
            copy = path / file.relative_to(self.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)

    def moved(self, images: Path | str) -> "Run":
        """Note that the run's images lie in `images` now; ValueError when they are others."""
        place = {"data.root": str(Path(images).resolve())}
        self.config = identified(self.config.override(place))
        files.write_json(files.writable(self.path) / "config.json", self.config.to_dict())
        return self

    @classmethod
    def all(cls, root: Path | str) -> list["Run"]:
        """Give the runs below `root`, the newest last; what is damaged is logged and left out."""
        runs = []
        for file in sorted(Path(root).rglob("config.json"), key=lambda file: file.stat().st_mtime):
            try:
                runs.append(cls(file.parent))
            except ValueError as error:  # damaged, or of another version
                LOG.warning("passed over: %s", error)
        return runs

    @classmethod
    def latest(cls, root: Path | str) -> "Run":
        """Give the newest trained run below `root`. Raises ValueError when there is none."""
        if found := next((run for run in reversed(cls.all(root)) if run.step > 0), None):
            return found
        text = "train one with notebook 01_train, or `make study`."
        raise ValueError(f"no trained run below {root}: {text}")

    @property
    def name(self) -> str:
        """Name of the folder: method, data, K, seed and the config's hash."""
        return self.path.name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing, or raise RuntimeError that names the process that does."""
        lock = self.path / "lock"
        with files.locked(lock, wait=False) as held:
            if not held:
                owner = lock.read_text(encoding="utf-8") or "another process"
                raise RuntimeError(f"{self.path} is being written by {owner}.")
            with files.naming(lock):
                lock.write_text(f"process {os.getpid()}", encoding="utf-8")
            for folder in (self.path, self.path / "checkpoints", self.path / "snapshots"):
                files.sweep(folder)
            yield

    def log(self, step: int, split: str, **numbers: float) -> None:
        """Append one line to the metrics. A number that is not finite is written as null."""
        path = self.path / "metrics.jsonl"
        with files.naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(files.seal({"step": step, "split": split, **numbers}) + "\n")

    def _records(self) -> list[dict]:
        """Read whole lines; a last one that was torn by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        with files.reading(path, " Without the file, training goes on."):
            return [files.unseal(line) for line in lines]

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, and a torn last line: training will log it again."""
        kept = [files.seal(record) + "\n" for record in self._records() if record["step"] <= step]
        with files.replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def metrics(self) -> pandas.DataFrame:
        """Give the metrics as a table: `step`, `split`, then a column a name."""
        records = self._records()
        return pandas.DataFrame(records, columns=None if records else ["step", "split"])

    def _steps(self, kind: str) -> list[Path]:
        return sorted((self.path / kind).glob("step-*.safetensors"))

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], **state: Any
    ) -> None:
        """Write tensors, by part and name, and a state that JSON holds; keep the newest few."""
        arrays = {
            f"{part}/{name}": value.detach().cpu().numpy()
            for part, values in tensors.items()
            for name, value in values.items()
        }
        path = self.path / "checkpoints" / f"step-{step:08d}.safetensors"
        files.write_arrays(path, arrays, {"step": step, **state})
        for old in self._steps("checkpoints")[:-KEPT_CHECKPOINTS]:
            old.unlink()

    @property
    def state(self) -> dict:
        """What the newest checkpoint says of itself: `step`, `tau`, `tau_c`; empty before any."""
        found = self._steps("checkpoints")
        return files.read_about(found[-1], remedy=GO_ON) if found else {}

    @property
    def step(self) -> int:
        """Steps done, by the newest checkpoint."""
        return self.state.get("step", 0)

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done."""
        return bool(self.state) and self.step >= self.config.train.num_steps

    @property
    def tau(self) -> float:
        """Temperature of the newest checkpoint's last step."""
        return self.state.get("tau", np.nan)

    def load_checkpoint(self, device: str = "cpu") -> Checkpoint | None:
        """Read and verify the newest checkpoint; None before the first."""
        found = self._steps("checkpoints")
        if not found:
            return None
        arrays, state = files.read_arrays(found[-1], remedy=GO_ON)
        tensors: dict[str, dict[str, Tensor]] = {}
        for key, value in arrays.items():
            part, _, name = key.partition("/")
            tensors.setdefault(part, {})[name] = torch.from_numpy(value).to(device)
        return Checkpoint(state["step"], state, tensors)

    def tokenizer(self, device: str = "cpu") -> Tokenizer:
        """Load the trained tokenizer for evaluation, with averaged weights where they were kept."""
        checkpoint = self.load_checkpoint(device)
        if checkpoint is None:
            raise ValueError(f"{self.path} has no checkpoint yet: train it with notebook 01_train.")
        tokenizer, tensors = Tokenizer(self.config), checkpoint.tensors
        with self.fitting(checkpoint):
            tokenizer.load_state_dict(tensors.get("ema", tensors["tokenizer"]))
        return tokenizer.to(device).eval()

    @contextlib.contextmanager
    def fitting(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Let an error of the block, which loads a checkpoint, say of which run and step it is."""
        try:
            yield
        except (RuntimeError, KeyError, ValueError) as error:  # of another shape, or of fewer parts
            text = f"the checkpoint of step {checkpoint.step} does not fit its config.json"
            raise ValueError(f"{self.path}: {text} ({error}).") from None

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Write one snapshot, whole."""
        path = self.path / "snapshots" / f"step-{snapshot.step:08d}.safetensors"
        arrays = dict(vars(snapshot))
        about = {name: arrays.pop(name) for name in ("step", "tau", "tau_c")}
        files.write_arrays(path, arrays, about)

    def snapshots(self) -> list[Snapshot]:
        """Read all snapshots, in the order of training."""
        remedy = " Remove it; the rest is unharmed."
        found = [files.read_arrays(path, remedy=remedy) for path in self._steps("snapshots")]
        return [Snapshot(**about, **arrays) for arrays, about in found]

    @property
    def notebooks(self) -> Path:
        """Folder of executed notebooks and what they wrote; a temporary one on a read-only disk."""
        folder = files.writable(self.path / "notebooks")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save_evaluation(self, numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write the evaluation and its settings: numbers as JSON, and arrays beside them."""
        file = files.writable(self.path) / "evaluation.json"
        # Killed between the two, a run has no evaluation rather than one of two halves.
        file.unlink(missing_ok=True)
        files.write_arrays(file.with_suffix(".safetensors"), arrays, {})
        files.write_json(file, {"step": self.step, "settings": self.config.evaluated, **numbers})

    @property
    def is_evaluated(self) -> bool:
        """Whether the evaluation is of the newest checkpoint, with the settings of the config."""
        try:
            found = self.evaluation()
        except ValueError:  # missing, or damaged
            return False
        settings = found.get("settings", self.config.evaluated)
        return (found.get("step"), settings) == (self.step, self.config.evaluated)

    def evaluation(self) -> dict:
        """Give the evaluation's numbers. Raises ValueError before there are any."""
        return files.read_json(self.path / "evaluation.json", remedy=EVALUATE)

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the evaluation's arrays. Raises ValueError when they are damaged or missing."""
        return files.read_arrays(self.path / "evaluation.safetensors", remedy=EVALUATE)[0]
