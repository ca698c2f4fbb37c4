# make demo: from nothing to a verified, trained operator. make test: all that CI runs.

PYTHON ?= python3
BIN := .venv/bin
GPU_ROOM := .wheels

# What a GPU machine lacks, unpacked for its Python; versions from the lock, fla-core for comparison only
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64
GPU_PACKAGES := fla-core==0.6.0 ruff platformdirs \
	jsonschema jsonschema-specifications referencing rpds-py attrs

.PHONY: help venv demo test generate bench gpu wheels clean

help:
	@echo "make demo      spec, derivation, verification, offline table, training on the CPU"
	@echo "make test      lint, freshness of generated/, tests"
	@echo "make generate  write generated/ again"
	@echo "make bench     count what kernels move and issue, and what calls cost the host, beside peers; needs no GPU"
	@echo "make wheels    fetch into $(GPU_ROOM)/ what a GPU machine lacks (here, with a network)"
	@echo "make gpu       verify, tune and time on a GPU with the python that is there; installs nothing"

venv: .venv/.stamp

.venv/.stamp: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "ttrc's lock is for Python 3.10 to 3.12: say make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock || \
		{ echo "Where torch came as a CUDA build: point pip to an index that has torch's CPU build."; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv
	$(BIN)/ttrc demo gated_deltanet --against linear_attention

test: venv
	$(BIN)/ruff check ttrc tests bench
	$(BIN)/ruff format --check ttrc tests bench
	$(BIN)/python -m pytest -n 2 --dist worksteal

generate: venv
	$(BIN)/ttrc generate

bench: venv
	$(BIN)/python -m bench.traffic --install
	$(BIN)/python -m bench.walls --install
	$(BIN)/python -m bench.host --install

wheels:
	rm -rf $(GPU_ROOM)
	$(PYTHON) -m pip install --disable-pip-version-check --target $(GPU_ROOM) --no-deps --only-binary=:all: \
		--implementation cp --python-version $(GPU_PYTHON) $(GPU_PLATFORMS) --constraint requirements.lock $(GPU_PACKAGES)

gpu:
	$(PYTHON) bench/gpu.py $(ARGS)

clean:
	rm -rf .venv $(GPU_ROOM) out build dist
