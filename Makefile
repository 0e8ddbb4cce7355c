# Every target first makes .venv, when it is missing or older than requirements.lock.
PYTHON ?= python3
PY := .venv/bin/python
STUDY ?= notebooks/studies/quick.yaml
RUNS ?= runs

.PHONY: study test lab bench soak

study: .venv/stamp
	$(PY) -m lgqlib.study "$(STUDY)" --runs "$(RUNS)"

test: .venv/stamp
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

lab: .venv/stamp
	$(PY) -m jupyter lab notebooks --LabApp.default_url=/lab/tree/index.md --LabApp.app_settings_dir=notebooks/.lab

bench: .venv/stamp
	$(PY) benchmarks/speed.py
	EXPLORER_TABLE=1 $(PY) -m pytest -q tests/browser/test_explore.py && cat docs/results/explorer.md

# Eighty kills and thousands of damaged files, in five minutes. ARGUMENTS="--seed 1 --kills 300"
soak: .venv/stamp
	$(PY) benchmarks/soak.py $(ARGUMENTS)

.venv/stamp: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; say which: make PYTHON=python3.12')"
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.lock
	$(PY) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@
