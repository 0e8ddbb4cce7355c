"""The command `python -m lgqlib.study`; a file of its own, which workers do not load."""

import argparse
import sys
from pathlib import Path

from lgqlib.study import runner
from lgqlib.study.grid import read_study
from lgqlib.study.report import comparison_text
from lgqlib.study.results import collect, compare
from lgqlib.study.runner import Places, check_notebooks, chosen, run_study, state_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; give its exit code: 0, 1 (a run failed), 2 (a mistake), 130 (stopped)."""
    parser = argparse.ArgumentParser(
        "python -m lgqlib.study",
        description=runner.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="the YAML file (its keys: lgqlib/grid.py)")
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
        runs = options.runs.resolve()
        places = Places(notebooks.resolve(), runs, options.cache.resolve(), runs / study.name)
        if options.dry_run:
            check_notebooks(study, places)
            for cell in chosen(study, tuple(options.only)):
                print(f"{state_of(cell, study, places):8} {cell.name} {cell.variant}".rstrip())
            return 0
        result = run_study(
            study,
            places,
            workers=options.workers,
            threads=options.threads,
            scheduler=options.scheduler,
            only=tuple(options.only),
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoints.", file=sys.stderr)
        return 130
    print(f"\n{comparison_text(compare(collect(places.study)))}\n")
    print(f"report: {places.study / 'report' / 'index.html'}")
    if result.failed:
        print(f"failed: {', '.join(result.failed)} (the report says why)", file=sys.stderr)
    return 130 if result.stopped else 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
