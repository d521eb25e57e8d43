# make demo   train a small GPT on this machine and write a report
# make test   run the fast tests
# make lint   check style and format
# make clean  remove .venv
# Another interpreter: make demo PYTHON=python3.12
PYTHON ?= python3

demo: .venv/installed
	.venv/bin/python launch.py train --workdir=runs/demo

test: .venv/installed
	.venv/bin/python -m pytest

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo 'error: $(PYTHON) is not Python 3.11, 3.12 or 3.13'; \
	  echo 'fix: make demo PYTHON=/path/to/python3.12'; exit 1; }
	@[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo 'error: $(PYTHON) cannot create a virtual environment'; \
	  echo 'fix: install its venv module (Debian, Ubuntu: apt install python3-venv)'; exit 1; }
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch .venv/installed

clean:
	rm -rf .venv

.PHONY: demo test lint clean
