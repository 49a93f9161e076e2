# Commands for a clone of the repository. One thread per process: two threads slow down beside another process.
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
DATA ?=
OUT ?= reproduce-nucla
SEEDS ?= 0,1,2
DEMO ?= demo
FOLDS ?= judge-folds
RECIPES ?= default
JOBS ?= 2

.PHONY: help setup setup-gpu check test test-slow docs docs-serve demo folds bench reproduce-nucla clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

setup: .venv/.done  ## Create .venv with dtsf and its tools

# A CUDA build of torch brings Triton. With a CPU build, the tests use Triton's interpreter.
.venv/.done: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,docs]'
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install -q --no-deps triton==3.6.0
	touch $@

setup-gpu: setup  ## Add the CUDA kernels of mamba-ssm (needs nvcc and a CUDA build of torch; dtsf has its own, in Triton)
	MAMBA_KEEP_CUDA_BUILD=TRUE $(BIN)/pip install --no-build-isolation -e '.[gpu]'

check: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check dtsf tests benchmarks docs
	$(BIN)/ruff format --check dtsf
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
	$(BIN)/lint-imports

test: setup  ## Fast tests, on JOBS cores
	$(BIN)/pytest -m "not slow" -n $(JOBS) --dist loadfile --durations 15 --durations-min 5

test-slow: setup  ## Slow tests
	$(BIN)/pytest -m slow -n $(JOBS) --dist loadgroup --durations 40

docs: setup  ## Build the site into site/, and check every link in it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup  ## Serve the site while writing: http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

demo: setup  ## Draw a small dataset, preprocess, train, evaluate
	rm -rf $(DEMO)
	$(BIN)/dtsf synth nucla --out $(DEMO)/data --subjects 5 --episodes 2
	$(BIN)/dtsf preprocess nucla --root $(DEMO)/data --cache $(DEMO)/cache
	$(BIN)/dtsf train --cache $(DEMO)/cache --recipe demo --protocol cross-subject:5 --out $(DEMO)/run
	$(BIN)/dtsf evaluate $(DEMO)/run --cache $(DEMO)/cache --views 2
	$(BIN)/dtsf predict $(DEMO)/data/multiview_action_videos/a05/v0*_s05_e00.avi --run $(DEMO)/run
	@echo "the result is in $(DEMO)/run: metrics.json, log.jsonl, last/"

folds: setup  ## Numbers of recipes from folds on the datasets of DATA (default ../shared/data), continued after a kill: RECIPES=, SEEDS=
	$(BIN)/python benchmarks/judge.py --data "$(or $(DATA),../shared/data)" --out "$(FOLDS)" --seeds $(SEEDS) $(foreach recipe,$(RECIPES),--recipe $(recipe))

bench: setup  ## Run the benchmarks, in the order of docs/results/speed.md
	$(BIN)/python benchmarks/stage1.py
	$(BIN)/python benchmarks/stage1.py --make-1080p 10
	$(BIN)/python benchmarks/stage1.py --make-1080p 10 --codec mpeg4
	$(BIN)/python benchmarks/frames_cost.py
	$(BIN)/python benchmarks/frames_cost.py --draw mpeg4 --limit 10
	$(BIN)/python benchmarks/frames.py
	$(BIN)/python benchmarks/damaged.py --check full
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/train.py --clips 1000
	$(BIN)/dtsf synth sessions --out $(DEMO)/sessions --subjects 3 --seconds 60
	$(BIN)/dtsf sync --recordings $(DEMO)/sessions/recordings.csv --write
	$(BIN)/python benchmarks/recordings.py --root $(DEMO)/sessions --work $(DEMO)/timelines --people s01 --as-needed
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/export.py --recipe nucla-paper
	$(BIN)/python benchmarks/annotate.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/scheduler.py --shards 256 --clips 8 --seconds 0.35 --events 3 --workers 64
	$(BIN)/python benchmarks/scheduler.py --shards 10000 --clips 8 --workers 8
	$(BIN)/python benchmarks/scheduler.py --plan 100000
	$(BIN)/python benchmarks/report.py --clips 1000
	$(BIN)/python benchmarks/flops.py
	$(BIN)/python benchmarks/synthetic_check.py

reproduce-nucla: setup  ## N-UCLA end to end, 3 seeds: make reproduce-nucla DATA=DIR; INIT=CHECKPOINT adds the paper's own run on a GPU; OUT=, SEEDS=, EPOCHS=, CACHE=, OPTIONS=
	@$(BIN)/dtsf reproduce nucla $(if $(DATA),--root "$(DATA)") --out "$(OUT)" --seeds $(SEEDS) \
		$(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(CACHE),--cache "$(CACHE)") \
		$(if $(INIT),--init "$(INIT)") $(OPTIONS)

clean:  ## Remove everything that these commands made, except the data
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache $(DEMO)
