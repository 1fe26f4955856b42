# `make demo` shows what this is for; `make test` proves that it works. Both install into .venv first: the
# demonstration only what the package itself needs, everything else the tools and the optional libraries too.
PYTHON ?= python3
BIN := .venv/bin
BASE := .venv/.installed-base
DEV := .venv/.installed-dev
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints.txt --config-settings editable_mode=compat
SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema vendor

.PHONY: demo test slow fuzz check docs release format bench pictures clean

demo: $(BASE)
	@$(BIN)/text-gym compare mle pg-bleu seqgan --task "grammar(train_size=4000)" --preset demo --seeds 3 \
		--pg-bleu.updates 20 --seqgan.rounds 5 --seqgan.d-epochs 1 --seqgan.d-samples 2000 \
		--samples 2000 --sweep-samples 500 --references 500 --curve-samples 300 --points 5 --out runs/demo

test: $(DEV)
	$(BIN)/python -m pytest -m "not slow" -n 2

slow: $(DEV)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# Random kills, hostile arguments and damaged files: ten minutes of them, or SECONDS for each test.
fuzz: SECONDS ?= 85
fuzz: $(DEV)
	TEXT_GYM_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest -s tests/fuzz

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --doctest-modules text_gym agents
	$(SCHEMA).github-workflows .github/workflows/*.yml
	$(SCHEMA).github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/proposal.yml
	$(SCHEMA).dependabot .github/dependabot.yml
	$(SCHEMA).citation-file-format CITATION.cff
	@$(MAKE) --no-print-directory release

# The documentation, in site/: open site/index.html. Warnings are errors, and so are links that lead nowhere.
docs: $(DEV)
	$(BIN)/sphinx-build -E -a -q -W --keep-going -b html -d build/docs docs site
	$(BIN)/python -m tests.helpers.site site

# The wheel and the source distribution, in dist/. TAG=v0.2.0 holds that they have this version.
release: $(DEV)
	$(BIN)/python -c "import text_gym; tag = '$(TAG)'; assert tag in ('', 'v' + text_gym.__version__), tag"
	rm -rf dist
	$(BIN)/python -m build --no-isolation > /dev/null
	$(BIN)/twine check --strict dist/*

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# fast-bleu is C++; where it cannot be built, its rows say so.
bench: $(DEV)
	-$(BIN)/python -m pip install --quiet -c constraints.txt fast-bleu
	$(BIN)/text-gym bench

# The pictures of the documentation, from a comparison of four minutes.
pictures: $(BASE)
	$(BIN)/python docs/make_pictures.py

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BASE): setup.cfg pyproject.toml constraints.txt
	@echo "Installing into .venv (less than a minute the first time, after the downloads)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) --no-compile -e .  # Python compiles what it imports; all of torch would take longer than the rest
	touch $@

$(DEV): setup.cfg pyproject.toml constraints.txt
	@echo "Installing into .venv, with all tools and optional libraries (a minute or two the first time)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e ".[dev]"
	touch $(BASE) $@
