# mini-sgl: `make` lists what can be made.

CARGO ?= cargo

# Where there is an NVIDIA GPU and a CUDA compiler, the CUDA backend is built and used. CUDA=0 or CUDA=1 decides.
NVCC_PLACES := $(NVCC) $(CUDA_HOME)/bin/nvcc $(CUDA_PATH)/bin/nvcc /usr/local/cuda/bin/nvcc .cuda/lib/python3*/site-packages/nvidia/cu13/bin/nvcc
CUDA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && { command -v nvcc || ls $(NVCC_PLACES); } 2>/dev/null | grep -q . && echo 1 || echo 0)
ifeq ($(CUDA),1)
LLM_FEATURES := --features minisgl-llm/cuda
endif

.DEFAULT_GOAL := help
.PHONY: help demo test bench gpu-bundle cuda-toolkit cuda-check lint fmt doc fuzz

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Build, and generate text with the bundled model.
	$(CARGO) run --release --quiet -p minisgl-llm $(LLM_FEATURES) --bin minisgl -- demo --model models/rust-docs-6m

test: ## Run every test: kernels against the oracle, engine, command, documentation.
	CUDA=$(CUDA) ci/test

bench: ## Measure ops and whole models beside the machine's limits; tables and plots under bench/results/latest.
	CUDA=$(CUDA) ci/bench

gpu-bundle: ## Pack tests, benchmarks and programs for a GPU host without Rust into gpu-bundle/.
	ci/gpu-bundle

cuda-toolkit: ## Fetch a CUDA compiler into .cuda where none is installed.
	@ci/cuda-toolkit

cuda-check: ## Compile and lint the CUDA backend, check its bindings, register spills and instructions; no GPU needed.
	ci/cuda

lint: ## Check formatting, warnings, documentation and the rules of the repository.
	ci/lint

fmt: ## Format the code.
	$(CARGO) fmt --all

doc: ## Build the documentation of all crates.
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps

fuzz: ## Feed broken files to every reader for FUZZ_SECONDS (default 20) each.
	ci/fuzz
