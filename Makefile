# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PIP_ARGS goes to pip, for those who want another build of torch (an index of CPU builds, say).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PACKAGES := "kedit_core[plot,sign,train]" "kedit_methods_locate[plot]" kedit_methods_meta "kedit_methods_memory[endpoint,retrieval]" plugins/kedit-factworld \
	"plugins/kedit-methods-finetune[peft]" "plugins/kedit-datasets[fluency]" "plugins/kedit-bench[ability]" "plugins/kedit-peft[gguf]" plugins/kedit-hub plugins/kedit-easyedit
PROJECTS := pyproject.toml $(wildcard kedit_*/pyproject.toml plugins/*/pyproject.toml)
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo test test-fast docs lint dist dist-test api editors table clean

demo: $(STAMP)
	$(BIN)/kedit demo

test: $(STAMP)
	$(PYTEST)

test-fast: $(STAMP)
	$(PYTEST) -m "not slow" --hypothesis-profile=fast

# The documentation as a site, in build/site; open build/site/index.html.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheels and sdists of every distribution, in dist/.
dist: $(STAMP)
	$(BIN)/python scripts/dist.py

# Each distribution alone, installed from dist/ into a bare environment beside the same third-party libraries; and plugins
# made with `kedit new-plugin`, built, installed, tested and used there.
dist-test: dist
	$(PYTEST) --dist loadfile dist_tests

# The lists of what is public (docs/api), anew; a test compares them with the code.
api: $(STAMP)
	$(BIN)/python scripts/api.py

# The editors that some methods of the table edit with: an hour, each goes on where it was interrupted.
editors: $(STAMP)
	$(BIN)/python benchmarks/editors.py $(EDITOR_ARGS)

# The table of results: hours; rows that are there are not run again. TABLE_ARGS goes to benchmarks/table.py.
table: $(STAMP)
	$(BIN)/python benchmarks/table.py $(TABLE_ARGS)

# Depends on every pyproject.toml, so that entry points are never stale. torch comes first and by itself: asked for
# exactly, a CPU build that pip can see is taken instead of the newest one with its CUDA libraries.
$(STAMP): $(PROJECTS) constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt \
		$(foreach package,$(PACKAGES),-e $(package)) -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name "*.egg-info" -type d -prune -exec rm -rf {} +
