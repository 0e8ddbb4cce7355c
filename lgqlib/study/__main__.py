"""The command `python -m lgqlib.study`; a file of its own, which workers do not load."""

import argparse
import sys
from pathlib import Path

from lgqlib.study import runner
from lgqlib.study.comparison import comparison_table
from lgqlib.study.grid import read_study
from lgqlib.study.results import cohorts


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit code: 0, 1 (a run failed), 2 (a mistake), 130 (stopped)."""
    parser = argparse.ArgumentParser(
        "python -m lgqlib.study",
        description=runner.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="the YAML file (keys: lgqlib/study/grid.py)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"), help="decoded images")
    parser.add_argument(
        "--notebooks", type=Path, help="folder of notebooks; by default the one above the file's"
    )
    parser.add_argument("--scheduler", default="", help="address of a Dask scheduler")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time; 0: what fits")
    parser.add_argument("--threads", type=int, default=0, help="threads a run; 0: an equal share")
    parser.add_argument("--only", nargs="+", default=[], help="runs whose name or variant fits")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their state")
    options = parser.parse_args(arguments)
    try:
        study = read_study(options.study)
        notebooks = options.notebooks or options.study.resolve().parent.parent
        folder = options.runs.resolve() / study.name
        places = runner.Places(notebooks.resolve(), folder, options.cache.resolve())
        if options.dry_run:
            runner.check_notebooks(study, places)
            for planned in runner.chosen(study, options.only):
                state = runner.planned_state(planned, study, places)
                print(f"{state:8} {planned.name} {planned.variant}".rstrip())
            return 0
        how = {key: getattr(options, key) for key in ("workers", "threads", "scheduler", "only")}
        failed, stopped = runner.run_study(study, places, **how)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        stopped, failed = True, []
    if stopped:
        print("stopped; the same command goes on from the last checkpoints.", file=sys.stderr)
        return 130
    try:
        print(f"\n{comparison_table(cohorts(folder)).to_string(index=False)}\n")
    except ValueError as error:  # there is none to compare
        print(error)
    print(f"report: {folder / 'report' / 'index.html'}")
    if failed:
        print(f"failed: {', '.join(failed)} (the report says why)", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
