# make demo   the main job, from simulated cutouts to a published-style model
# make space  the page that scores cutouts in a browser, with the demo's model, on this machine
# make publish   the models of model_cards/ on the Hub, under your account; make publish-dry writes them to published/
#             alone, to look at
# make test   the tests, on up to four cores; make test-slow the ones that take minutes,
#             make test-gpu the ones that need a GPU
# Every target sets up what it needs in .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
SPACE_INSTALLED := .venv/installed-space
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo space publish-dry publish test test-slow test-gpu quality style clean

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

space: $(SPACE_INSTALLED)
	$(BIN)/lens-ssl space demo/space

publish-dry: $(INSTALLED)
	$(BIN)/lens-ssl push --all --dry_run published

publish: publish-dry
	$(BIN)/lens-ssl push --all

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test-slow: $(SPACE_INSTALLED)
	$(BIN)/python -m pytest -m slow

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	@touch $@

$(SPACE_INSTALLED): $(INSTALLED)
	$(INSTALL) '.[dev,space]'
	@touch $@

clean:
	rm -rf .venv demo
