# The folders stand at the top level and are imported as codi_tracing.<folder>; type checkers follow the links in .venv.
# `make demo` and `make test` each set up .venv first, where it is missing or the pins have changed.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(if $(shell \
	$(python) -c 'import sys; print("fits" if (3, 11) <= sys.version_info < (3, 14) else "")' 2>/dev/null),$(python))))
INSTALLED := .venv/installed
NDIF_INSTALLED := .venv-ndif/installed
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-slow test-ndif notebooks setup browser ndif

demo: $(INSTALLED)
	.venv/bin/codi run tiny

# The models of the tests are so small that a second thread only gets in the way.
test: export OMP_NUM_THREADS := 1
test: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -q

# A checkpoint of Llama-3.2-1B's real size: a minute, 5 GB of disk.
test-slow: $(INSTALLED)
	.venv/bin/pytest -q -m slow

# Executes the tutorials anew and rewrites their saved copies.
notebooks: export OMP_NUM_THREADS := 1
notebooks: $(INSTALLED)
	.venv/bin/python analysis/notebooks/execute.py

# Remote runs against a real ndif server, which lives as long as its tests and is seen by nobody else.
test-ndif: export OMP_NUM_THREADS := 1
test-ndif: $(INSTALLED) ndif
	.venv/bin/python -m tests.ndif.namespace .venv/bin/pytest -q -rs -m ndif tests/ndif

setup: $(INSTALLED)

# For the report's tests in a real browser, which are skipped where there is none.
browser:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; } || \
		echo "found no chromium, and could not install it: the tests in a browser will be skipped" >&2

# What the server needs; where it cannot be had, the tests that need it are skipped and say why.
ndif: $(INSTALLED)
	@command -v redis-server >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends redis-server >/dev/null; } || \
		echo "found no redis-server, and could not install it: the tests against a server will be skipped" >&2
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq --no-install-recommends postgresql >/dev/null; } || \
		echo "found no PostgreSQL, and could not install it: the tests of API keys will be skipped" >&2
	@$(MAKE) -s --no-print-directory $(NDIF_INSTALLED) || \
		echo "could not install ndif: the tests against a server will be skipped" >&2

# The server sees .venv's packages behind its own, so that both sides of a remote run have the same torch and nnsight.
$(NDIF_INSTALLED): $(INSTALLED) tests/ndif/constraints.txt
	.venv/bin/python -m venv .venv-ndif
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		>"$$(.venv-ndif/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
	.venv-ndif/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
		-r tests/ndif/constraints.txt
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "found no Python 3.11 to 3.13; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@mkdir -p .venv/links/codi_tracing
	@cd .venv/links/codi_tracing && ln -sfn $(foreach folder,configs traces patching analysis codi_tracing/cli,../../../$(folder)) \
		$(foreach file,__init__.py __init__.pyi py.typed,../../../codi_tracing/$(file)) .
	@touch $@
