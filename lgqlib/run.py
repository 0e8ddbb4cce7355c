"""The run directory, the only module that knows its file names.

config.json          what the run is
metrics.jsonl        one JSON object a line: step, split, then names and numbers
checkpoints/         step-00000200/ {tokenizer,ema,training}.safetensors, state.json with their
checksums
snapshots/           step-00000000.safetensors: codebook and a fixed probe of latents, at log-spaced
steps
evaluation.json, evaluation.safetensors
notebooks/           executed copies
lock                 held by the process that trains
"""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgqlib.config import Config
from lgqlib.files import (
    as_os_error,
    json_text,
    naming,
    read_json,
    read_line,
    read_sealed,
    replacing,
    sealed,
    sealed_line,
    sha256,
    sweep,
    write_json,
)
from lgqlib.parameters import require_folder
from lgqlib.tokenizer import Tokenizer

KEPT_CHECKPOINTS = 2
HASH = re.compile(r"(?<=-)[0-9a-f]{10}$")
"""The hash of the config, at the end of a run's name."""
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, read and verified."""

    step: int
    """Steps done."""
    state: dict
    """`tau`, `tau_c` and whatever else the trainer wrote."""
    tensors: dict[str, dict[str, Tensor]]
    """By file: `tokenizer`, `training`, and `ema` where an average of weights is kept."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Codebook and a fixed probe of latents at one step of training, as numpy arrays."""

    step: int
    tau: float
    tau_c: float
    codebook: np.ndarray
    """[K, D], codes in the space where the nearest is chosen (`Quantizer.sites`)."""
    latents: np.ndarray
    """[P, D], the probe's latents in the same space."""
    indices: np.ndarray
    """[P], the probe's codes."""
    counts: np.ndarray
    """[K], uses in training since the snapshot before."""
    last_used: np.ndarray
    """[K], last step at which the code was used; -1 for never."""


class Run:
    """A folder that holds one run. Two equal configs have the same folder; two runs never share
    one.
    """

    def __init__(self, path: Path | str):
        require_folder(run=path)
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise ValueError(
                f"{self.path} is not a run: it has no config.json. "
                "Train one with notebook 01_train."
            )
        file = self.path / "config.json"
        try:
            self.config = Config.from_dict(read_json(file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        # A folder under another name (a copy, say) has no hash to hold the config against.
        named, written = HASH.search(self.path.name), HASH.search(self.config.run_name)
        if named and named[0] != written[0]:
            raise ValueError(
                f"{file} is not the config that this folder was made for: its hash is "
                f"{written[0]}, not {named[0]}. It was damaged or edited; train the run again."
            )

    @classmethod
    def create(cls, root: Path | str, config: Config) -> "Run":
        """Make, or find, the folder of `config` under `root`."""
        require_folder(runs=root)
        path = Path(root) / config.run_name
        if not (path / "config.json").exists():
            write_json(path / "config.json", config.to_dict())
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open a run's folder. Raises ValueError, with what to do, when it is none."""
        return cls(path)

    @classmethod
    def all(cls, root: Path | str) -> list["Run"]:
        """Give all runs below `root`, the newest last."""
        return [cls(folder) for folder in cls._folders(root)]

    @staticmethod
    def _folders(root: Path | str) -> list[Path]:
        found = sorted(Path(root).rglob("config.json"), key=lambda file: file.stat().st_mtime)
        return [file.parent for file in found]

    @classmethod
    def latest(cls, root: Path | str) -> "Run":
        """Give the newest trained run below `root`; one that cannot be read is logged and passed
        over.

        Raises ValueError, with what to do, when there is none.
        """
        require_folder(runs=root)
        damaged = []
        for folder in reversed(cls._folders(root)):
            try:
                run = cls(folder)
                if run.step > 0:
                    return run
            except ValueError as error:  # damaged, or of another version
                LOG.warning("passed over: %s", error)
                damaged.append(str(error))
        raise ValueError(
            f"no trained run below {root}: train one with notebook 01_train, or `make study`."
            + (f" {len(damaged)} could not be read: {damaged[0]}" if damaged else "")
        )

    @property
    def name(self) -> str:
        """Name of the folder: method, data, K, seed and the config's hash."""
        return self.path.name

    # The lock ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; the system frees it when the process dies.

        Raises RuntimeError that names the owner when another process holds it.
        """
        lock = self.path / "lock"
        with contextlib.ExitStack() as stack:
            with naming(lock):
                file = stack.enter_context(open(lock, "a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise RuntimeError(f"{self.path} is being written by {owner}.") from None
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            with naming(lock):
                file.truncate(0)
                file.write(f"process {os.getpid()}, started {now}\n")
                file.flush()
            for folder in (self.path, self.path / "checkpoints", self.path / "snapshots"):
                sweep(folder)
            yield

    # Metrics -------------------------------------------------------------------------------------

    def log(self, step: int, split: str, **numbers: float) -> None:
        """Append one line to the metrics. A number that is not finite is written as null."""
        clean = {name: _finite(value) for name, value in numbers.items()}
        path = self.path / "metrics.jsonl"
        with naming(path), open(path, "a", encoding="utf-8") as file:
            file.write(sealed_line({"step": step, "split": split, **clean}))

    def _records(self) -> list[dict]:
        """Read whole lines; a last one that was torn by a kill is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")
        records = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                records.append(read_line(line))
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number} is {error}; without that line, training goes on."
                ) from None
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, and a torn last line: training will log it again."""
        kept = [sealed_line(record) for record in self._records() if record["step"] <= step]
        with replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def metrics(self) -> pandas.DataFrame:
        """Give the metrics as a table: `step`, `split`, then a column a name."""
        records = self._records()
        return pandas.DataFrame(records, columns=None if records else ["step", "split"])

    # Checkpoints ---------------------------------------------------------------------------------

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*"))

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], **state: Any
    ) -> None:
        """Write a checkpoint whole, then remove all but the newest few.

        `tensors`: by file name (`tokenizer`, `training`, `ema`), named tensors; `state`: what JSON
        can hold.
        """
        folder = self.path / "checkpoints" / f"step-{step:08d}"
        with replacing(folder) as temporary:
            temporary.mkdir()
            for name, values in tensors.items():
                plain = {k: v.contiguous() for k, v in values.items()}
                with as_os_error():
                    save_file(plain, temporary / f"{name}.safetensors")
            sums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            clean = {k: _finite(v) if isinstance(v, float) else v for k, v in state.items()}
            text = json_text(sealed({"step": step, "files": sums, **clean}))
            (temporary / "state.json").write_text(text, encoding="utf-8")
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            # Half removed, by a kill, it must not pass for a checkpoint.
            left = old.rename(old.with_name(f".{old.name}.tmp"))
            shutil.rmtree(left, ignore_errors=True)

    @property
    def state(self) -> dict:
        """What the newest checkpoint says of itself: `step`, `tau`, `tau_c`; empty before the
        first.
        """
        found = self._checkpoints()
        return _read_state(found[-1]) if found else {}

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
        value = self.state.get("tau")
        return math.nan if value is None else value

    def load_checkpoint(self, device: str = "cpu") -> Checkpoint | None:
        """Read and verify the newest checkpoint, or None before the first.

        Raises ValueError that names the file and the reason when it is damaged.
        """
        found = self._checkpoints()
        if not found:
            return None
        state = _read_state(found[-1])
        tensors = {}
        for name, expected in state["files"].items():
            file = found[-1] / name
            if not file.is_file():
                raise ValueError(
                    f"{file} is missing; remove {found[-1]} to go on from the checkpoint before."
                )
            if sha256(file) != expected:
                raise ValueError(
                    f"{file} is damaged: its checksum is not the one that was written. "
                    f"Remove {found[-1]} to go on from the checkpoint before."
                )
            tensors[file.stem] = _load(file, device)
        return Checkpoint(state["step"], state, tensors)

    def tokenizer(self, device: str = "cpu") -> Tokenizer:
        """Load the trained tokenizer for evaluation, with averaged weights where they were kept.

        Raises ValueError before the first checkpoint, or when a file does not fit the config.
        """
        checkpoint = self.load_checkpoint(device)
        if checkpoint is None:
            raise ValueError(f"{self.path} has no checkpoint yet: train it with notebook 01_train.")
        tokenizer = Tokenizer(self.config)
        try:
            tokenizer.load_state_dict(
                checkpoint.tensors.get("ema", checkpoint.tensors["tokenizer"])
            )
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: the checkpoint does not fit its config.json ({error})."
            ) from None
        return tokenizer.to(device).eval()

    # Snapshots -----------------------------------------------------------------------------------

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Write one snapshot, whole."""
        arrays = {k: np.ascontiguousarray(getattr(snapshot, k)) for k in SNAPSHOT_ARRAYS}
        about = {
            "step": str(snapshot.step),
            "tau": repr(snapshot.tau),
            "tau_c": repr(snapshot.tau_c),
        }
        about["checksum"] = _checksum(about, arrays)
        path = self.path / "snapshots" / f"step-{snapshot.step:08d}.safetensors"
        with replacing(path) as temporary, as_os_error():
            save_arrays(arrays, temporary, metadata=about)

    def snapshots(self) -> list[Snapshot]:
        """Read all snapshots, in the order of training."""
        return [
            _read_snapshot(file)
            for file in sorted((self.path / "snapshots").glob("step-*.safetensors"))
        ]

    # Evaluation ----------------------------------------------------------------------------------

    @property
    def notebooks(self) -> Path:
        """Folder of executed notebooks and what they wrote."""
        folder = self.path / "notebooks"
        folder.mkdir(exist_ok=True)
        return folder

    def save_evaluation(self, numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write the evaluation: numbers as JSON, and arrays (per image, per code) beside them."""
        file, arrays_file = self.path / "evaluation.json", self.path / "evaluation.safetensors"
        # Killed between the two, a run has no evaluation rather than one of two halves.
        with naming(file):
            file.unlink(missing_ok=True)
        with replacing(arrays_file) as temporary, as_os_error():
            save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
        clean = {k: _finite(v) if isinstance(v, float) else v for k, v in numbers.items()}
        sums = {ARRAYS_SUM: sha256(arrays_file)}
        write_json(file, sealed({"step": self.step, **clean, **sums}))

    def evaluation(self) -> dict:
        """Give the evaluation's numbers. Raises ValueError before there are any."""
        numbers = self._evaluation()
        numbers.pop(ARRAYS_SUM, None)
        return numbers

    def _evaluation(self) -> dict:
        path = self.path / "evaluation.json"
        if not path.exists():
            raise ValueError(f"{self.path} has no evaluation yet: run notebook 02_evaluate on it.")
        return read_sealed(path)

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the evaluation's arrays. Raises ValueError when they are damaged or missing."""
        expected = self._evaluation().get(ARRAYS_SUM)
        file = self.path / "evaluation.safetensors"
        again = "run notebook 02_evaluate again"
        if not file.is_file():
            raise ValueError(f"{file} is missing: {again}.")
        if expected is not None and sha256(file) != expected:
            raise ValueError(
                f"{file} is damaged: its checksum is not the one that was written; {again}."
            )
        try:
            return load_arrays(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); {again}.") from None


ARRAYS_SUM = "arrays_sha256"
SNAPSHOT_ARRAYS = ("codebook", "latents", "indices", "counts", "last_used")


def _read_state(folder: Path) -> dict:
    file = folder / "state.json"
    try:
        state = read_sealed(file)
        whole = isinstance(state.get("step"), int) and isinstance(state.get("files"), dict)
        if not whole:
            raise ValueError(f"{file} is damaged: it lacks the step or the names of the files.")
    except ValueError as error:
        raise ValueError(f"{error} Remove {folder} to go on from the checkpoint before.") from None
    return state


def _read_snapshot(file: Path) -> Snapshot:
    try:
        with safe_open(file, framework="numpy") as stored:
            about = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in SNAPSHOT_ARRAYS}
        expected = about.pop("checksum", None)
        if expected is not None and _checksum(about, arrays) != expected:
            raise ValueError("its checksum is not the one that was written")
        about = {"step": int(about["step"])} | {k: float(about[k]) for k in ("tau", "tau_c")}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); remove it, the rest of the run is unharmed."
        ) from None
    return Snapshot(**about, **arrays)


def _checksum(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Give the SHA-256 of arrays, with their names, types and shapes, and of metadata."""
    digest = hashlib.sha256(json_text(dict(about)).encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _load(file: Path, device: str) -> dict[str, Tensor]:
    try:
        return load_file(file, device=device)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}).") from None


def _finite(value: Any) -> Any:
    """Give a plain number, or None where JSON has none."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
