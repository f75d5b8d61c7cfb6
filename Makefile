# make train   set up .venv, then pretrain on the built-in synthetic X-rays
# make test    the same set-up, then the test-suite
# make lint    formatting, lint and types
# ARGS passes flags on: make train ARGS="--dataset covid --num-epochs 300"

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
ARGS ?=

.PHONY: train test lint clean

train: .venv/installed
	.venv/bin/python selfsup_task/train_barlow_twins.py $(ARGS)

test: .venv/installed
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

# A second call installs nothing: the stamp is newer than what it was made from.
.venv/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

clean:
	rm -rf .venv
