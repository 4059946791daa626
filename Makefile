# `make demo` and `make test` set up what they need in .venv; nothing has to be activated.
# Another Python: make demo PYTHON=/path/to/python3.12

PYTHON_CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)

SUPPORTED := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

# The first candidate that runs and is new enough, as `$$python` of the shell.
define find_python
python=; \
for candidate in $(PYTHON_CANDIDATES); do \
	if $$candidate -c '$(SUPPORTED)' 2>/dev/null; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "outlier_moe needs Python 3.11 or newer, with its venv module." >&2; \
	for candidate in $(PYTHON_CANDIDATES); do \
		echo "  $$candidate: $$($$candidate --version 2>&1 | head -n 1)" >&2; \
	done; \
	echo "Install it, or name one: make PYTHON=/path/to/python3.11" >&2; \
	exit 1; \
fi
endef

define install_packages
@$(find_python); \
echo "Installing $< into $(@D) with $$($$python --version) ..."; \
$$python -m venv $(@D)
@$(PIP_INSTALL) --requirement $<
@touch $@
endef

PIP_INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo experiments test test-cloud lint cloud lock clean

help:  ## Say what each target does.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: .venv/compiled  ## Run the embedded study offline on two CPU cores: its table first, then the experiments.
	.venv/bin/snakemake --cores 2 results/comparison/models.parquet
	.venv/bin/outlier-moe show
	@echo 'This is the table of the study. Its experiments and its report follow, and take some six minutes.'
	@echo 'Ctrl-C ends them and loses no result; `make experiments` goes on.'
	.venv/bin/snakemake --cores 2

experiments: .venv/installed  ## Go on behind the table of `make demo`: the experiments, pictures and the report.
	.venv/bin/snakemake --cores 2

test: .venv/triton  ## Run the tests.
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

test-cloud: .venv/installed .venv-cloud/installed  ## Run the tests of rented nodes, on a stand-in for RunPod (root).
	OMP_NUM_THREADS=1 .venv-cloud/bin/python -m pytest $(or $(TESTS),tests/cloud tests/unit/skypilot_executor)

lint: .venv/triton  ## Check format, lint, floors, types and spelling.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache --no-logo
	.venv/bin/snakefmt --check Snakefile workflow
	.venv/bin/snakemake --lint
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright
	.venv/bin/codespell

cloud: .venv-cloud/installed  ## Set up .venv-cloud, which has SkyPilot for rented GPUs.

lock:  ## Resolve pyproject.toml anew and write both locks and environment.yml.
	@$(find_python); $$python .ci/write_locks.py

clean:  ## Remove the environments and caches; results stay.
	rm -rf .venv .venv-cloud .pytest_cache .hypothesis .ruff_cache
	find src tests workflow benchmarks .ci -name __pycache__ -prune -exec rm -rf {} +

.venv/packages: requirements.lock
	$(install_packages)

.venv-cloud/packages: requirements-cloud.lock
	$(install_packages)

%/installed: %/packages pyproject.toml
	@$(PIP_INSTALL) --no-deps --editable .
	@touch $@

# What cards' kernels are interpreted and compiled with in tests. torch's builds for cards bring their own.
.venv/triton: .venv/installed
	@.venv/bin/python -c 'import torch, sys; sys.exit(sys.platform == "linux" and torch.version.cuda is None)' || \
		$(PIP_INSTALL) triton==3.8.0
	@touch $@

# Loops are compiled once for a machine; the first recording would wait for them with the model in memory.
.venv/compiled: .venv/installed src/outlier_moe/recording/kernels.py src/outlier_moe/statistics/resample_kernels.py
	@echo "Compiling the counting loops for this processor (some 40 seconds, once) ..."
	@.venv/bin/python -m outlier_moe.study.compile_kernels
	@touch $@
