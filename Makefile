# `make demo` shows what this is for; `make test` proves that it works. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test slow check format bench clean

demo: $(INSTALLED)
	@$(BIN)/text-gym compare mle pg-bleu seqgan --task grammar --preset demo --seeds 3 \
		--samples 2000 --sweep-samples 500 --references 500 --curve-samples 300 --points 8 --out runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n 2

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --doctest-modules text_gym agents

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# fast-bleu is C++; where it cannot be built, its rows say so.
bench: $(INSTALLED)
	-$(BIN)/python -m pip install --quiet -c constraints.txt fast-bleu
	$(BIN)/text-gym bench

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@echo "Installing into .venv (a minute or two the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--config-settings editable_mode=compat -e ".[dev]"
	touch $@
