# Everything from a bare python3: `make run` measures, `make test` tests. Both set up .venv by themselves.
PYTHON  ?= python3
# Processes of the test suite; 4 save a tenth on 2 cores.
TESTS   ?= 2
UV      := 0.13.8
BIN     := .venv/bin
# In environments of their own (make engines): large, and pinned to what conflicts with others.
ISOLATED := onnxruntime_genai openvino transformers
# A placement for clusters, large and of no use without one (make ray).
RAY     := plugins/ray
# Extras of the host that are too large for everybody, and the server that they are tested against (make store).
STORE   := 'duckdb>=1.4' 'obstore>=0.12' 'moto[s3]>=5.2' 'flask>=3.1' 'flask-cors>=6'
PLUGINS := $(filter-out $(RAY)/pyproject.toml $(ISOLATED:%=plugins/%/pyproject.toml),$(sort $(wildcard plugins/*/pyproject.toml)))
# Compiled by cargo, which not every machine has: built by themselves, after everything else.
CPU     := plugins/custom_cpu
CANDLE  := plugins/candle
BURN    := plugins/burn
# What they share: a crate, no distribution.
SHIM    := plugins/rust_shim
RUST     = plugins/Cargo.toml plugins/Cargo.lock $(1)/Cargo.toml $(wildcard $(1)/src/*.rs)
EDITABLE := -e . $(foreach p,$(filter-out $(CPU)/% $(CANDLE)/% $(BURN)/%,$(PLUGINS)),-e $(dir $(p)))
CARGO   := $(shell command -v cargo 2>/dev/null)
# Beside the models, not in the clone: Candle compiles for minutes, and the next clone takes what this one built.
export CARGO_TARGET_DIR ?= $(or $(ENGINECMP_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/enginecmp)/cargo
# Where it is set, every command would compile its imports again.
unexport PYTHONDONTWRITEBYTECODE
# Said here and not in pyproject.toml: a source distribution holds one engine and the lock file of both, which cargo prunes.
export MATURIN_PEP517_ARGS := --locked

.DEFAULT_GOAL := help
.PHONY: help setup burn engines ray retrieval store model run test fuzz lint format bench calibrate constraints clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready .venv/.custom_cpu .venv/.candle ## create .venv with the host, every plugin and the pinned dependencies

# Offline first: what an earlier set-up left in uv's cache is taken as it is, where a network round trip could
# call llama.cpp's sources changed and compile them again for minutes.
# llama.cpp is compiled with a header that mends what GCC makes of AMX.
INSTALL := CXXFLAGS='$(CXXFLAGS) -include "$(CURDIR)/plugins/llamacpp/ldtilecfg.h"' $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r constraints.txt

# Two steps on purpose: editable installs cannot carry hashes, so dependencies come first, hash-checked,
# and our own distributions follow without dependencies.
.venv/.ready: constraints.txt pyproject.toml $(PLUGINS) Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "enginecmp needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(INSTALL) --offline 2>/dev/null || $(INSTALL)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(EDITABLE)
	@# Here and not at the first start of each module: two tests side by side would compile the same.
	$(BIN)/python -m compileall -q core analysis plugins
	@touch $@

.venv/.custom_cpu: .venv/.ready $(call RUST,$(CPU)) $(call RUST,$(CPU)/kernels) $(wildcard $(CPU)/kernels/src/simd/*.rs) $(call RUST,$(SHIM))
ifdef CARGO
	@echo "building the engine custom_cpu (about a minute on 2 cores the first time on this machine)"
	@if $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e $(CPU); \
	then touch $@; else echo "the engine custom_cpu is left out: its build failed, see above (it needs Rust 1.89)"; fi
else
	@echo "the engine custom_cpu is left out: no cargo here; install Rust 1.89 or newer and run make setup again"
endif

.venv/.candle: .venv/.ready $(call RUST,$(CANDLE)) $(call RUST,$(SHIM))
ifdef CARGO
	@echo "building the engine candle (about 4 minutes on 2 cores the first time on this machine)"
	@if $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e $(CANDLE); \
	then touch $@; else echo "the engine candle is left out: its build failed, see above (it needs Rust 1.88)"; fi
else
	@echo "the engine candle is left out: no cargo here; install Rust 1.88 or newer and run make setup again"
endif

engines: .venv/.ready ## install the engines that live in environments of their own (5 GB, minutes)
	@for engine in $(ISOLATED); do \
	  $(BIN)/cmp plugin install --yes --isolated $$engine plugins/$$engine || echo "the engine $$engine is left out, see above"; done

ray: .venv/.ready ## test the placement on a Ray cluster of two simulated nodes, in an environment of its own (700 MB)
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	grep -oE '^[a-zA-Z0-9_.-]+==[^ ;]+' constraints.txt | sort -u -t= -k1,1 > .venv-ray/constraints.txt
	$(BIN)/uv pip install --quiet --python .venv-ray/bin/python -c .venv-ray/constraints.txt editables hatchling
	$(BIN)/uv pip install --quiet --python .venv-ray/bin/python -c .venv-ray/constraints.txt --no-build-isolation -e '.[test]' -e $(RAY)
	@# Ray takes the machine's own address, never loopback, unless there is no other: a network of its own has none.
	if unshare -rn true 2>/dev/null; \
	then unshare -rn sh -c 'ip link set lo up && exec .venv-ray/bin/python -m pytest -q $(RAY)'; \
	else .venv-ray/bin/python -m pytest -q $(RAY); fi

retrieval: .venv/.ready ## install the vector indexes of the scenario retrieval (hnswlib is compiled) and test them
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e 'plugins/retrieval[indexes]'
	$(BIN)/python -m pytest -q plugins/retrieval

store: .venv/.ready ## install DuckDB and what keeps runs in object storage, with a server to test against (170 MB), and test it
	grep -oE '^[a-zA-Z0-9_.-]+==[^ ;]+' constraints.txt | sort -u -t= -k1,1 > .venv/.versions
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c .venv/.versions $(STORE)
	$(BIN)/python -m pytest -q tests/test_objects.py tests/test_store.py

burn: .venv/.burn ## compile the engine burn as well (minutes, which is why make setup leaves it out)

.venv/.burn: .venv/.ready $(call RUST,$(BURN)) $(call RUST,$(SHIM))
ifdef CARGO
	@echo "building the engine burn (about 7 minutes on 2 cores the first time on this machine)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e $(BURN)
	touch $@
else
	@echo "the engine burn needs cargo: install Rust 1.95 or newer and run make burn again" && exit 1
endif

model: setup ## fetch the embedded model and derive its Q8_0 and F32 files
	$(BIN)/cmp model pull smollm2-135m-instruct
	$(BIN)/cmp model quantize smollm2-135m-instruct f32
	$(BIN)/cmp model quantize smollm2-135m-instruct q8_0

run: model ## measure every engine on the embedded model (about 10 minutes), give the verdict and draw it
	$(BIN)/cmp run --engines all --scenario sustained --profile quick
	$(BIN)/cmp stats results/
	$(BIN)/cmp report results/ --output results/report.html

test: model ## the whole test suite; ENGINECMP_TEST_ALL=1 repeats costly files that passed as they are
	$(BIN)/python -m pytest -n $(TESTS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=25
	test ! -e .venv/.custom_cpu || (cd $(SHIM) && cargo test --quiet --release --locked)
	test ! -e .venv/.custom_cpu || (cd $(CPU) && cargo test --quiet --release --locked)
	test ! -e .venv/.custom_cpu || (cd $(CPU)/kernels && cargo test --quiet --release --locked)
	test ! -e .venv/.candle || (cd $(CANDLE) && cargo test --quiet --release --locked)
	test ! -e .venv/.burn || (cd $(BURN) && cargo test --quiet --release --locked)

fuzz: .venv/.ready ## 10,000 damaged inputs for everything that reads what others wrote
	ENGINECMP_FUZZ=10000 $(BIN)/python -m pytest -n 2 -p no:cacheprovider --timeout 3600 tests/test_fuzz.py

lint: .venv/.ready ## ruff and mypy --strict; rustfmt and clippy where they are installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy core analysis bench $(wildcard plugins/*/enginecmp_*)
ifneq ($(shell command -v cargo-clippy 2>/dev/null),)
	cd $(SHIM) && cargo fmt --check && cargo clippy --quiet --release --locked --all-targets --features python -- -D warnings
	cd $(CPU) && cargo fmt --check && cargo clippy --quiet --release --locked --all-targets --features python -- -D warnings
	cd $(CPU)/kernels && cargo fmt --check && cargo clippy --quiet --release --locked --all-targets -- -D warnings
	cd $(CANDLE) && cargo fmt --check && cargo clippy --quiet --release --locked --all-targets --features python -- -D warnings
	@# Clippy goes through all of Burn first, so only where somebody has built it.
	cd $(BURN) && cargo fmt --check
	test ! -e .venv/.burn || (cd $(BURN) && cargo clippy --quiet --release --locked --all-targets --features python -- -D warnings)
endif

format: .venv/.ready ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: model ## fidelity, silence, command latency: the claims of the README, measured (idle machine, about 2 hours; `python -m bench PART` for one part)
	$(BIN)/python -m bench

calibrate: .venv/.ready ## 4,000 simulated runs per kind of data: does the method keep its error rates?
	$(BIN)/python -m enginecmp_analysis.calibrate

constraints: ## pin every dependency again (names, versions, hashes)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --no-emit-package enginecmp --group dev pyproject.toml $(PLUGINS) -o constraints.txt

clean: ## remove .venv and caches; results and the model cache stay
	rm -rf .venv .venv-ray .pytest_cache .mypy_cache .ruff_cache .hypothesis
