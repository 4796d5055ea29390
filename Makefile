# Every command a developer needs; `make help` lists them. The work is done by CMake and tools/.

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
BUILD ?= build
JOBS ?= $(shell nproc)
PYTHON = .venv/bin/python
GENERATOR := $(if $(shell command -v ninja),-G Ninja)
# A folder configured with another generator keeps it.
configure = cmake -S . -B $(1) $(if $(wildcard $(1)/CMakeCache.txt),,$(GENERATOR)) --log-level=NOTICE
compile = cmake --build $(1) -j $(JOBS)
FUZZ_SECONDS ?= 20
# Every instruction set; dot products without matrix products; neither.
QEMU_CPUS ?= max neoverse-n1 cortex-a53
BENCH_ARGS ?= --device cpu --threads 1 --format int4-g128,nvfp4,mxfp4 --compute exact,int8 \
	--x-dtype bf16,f32 --k 4096 --n 14336 --m 1,16,64,256

.PHONY: help build test demo bench check format asan tsan fuzz coverage emulated nightly ci clean \
	setup-build setup-test configure-build

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: configure-build  ## Release build in build/; the command line is build/nibble
	@$(call compile,$(BUILD)) --target nibble nibble_shared nibble_cli

test: setup-test configure-build  ## everything: build, C++, C and Python tests
	@$(call compile,$(BUILD))
	@$(PYTHON) tools/run_tests.py $(BUILD) --python

demo: build  ## quantize a real sentence-embedding model and compare it with FP32
	@tools/setup demo
	@$(call compile,$(BUILD)) --target sentence_embedding
	@examples/sentence_embedding/demo.sh $(BUILD)

bench: build  ## cold-cache benchmark of this machine; choose with BENCH_ARGS="…"
	@$(BUILD)/nibble bench $(BENCH_ARGS)

check:  ## format, layers, documents and files, without building
	@tools/setup format
	@tools/check.sh

format:  ## rewrite the sources in the project's format
	@tools/setup format
	@tools/check.sh --fix

asan: setup-test  ## all tests under the address and undefined-behaviour sanitizers
	@$(call configure,build-asan) --preset asan
	@$(call compile,build-asan)
	@$(PYTHON) tools/run_tests.py build-asan --python

tsan: setup-test  ## all tests under the thread sanitizer; choose with TSAN_TESTS=regex TSAN_TARGETS=…
	@$(call configure,build-tsan) --preset tsan
	@$(call compile,build-tsan) $(if $(TSAN_TARGETS),--target $(TSAN_TARGETS))
	@$(PYTHON) tools/run_tests.py build-tsan $(if $(TSAN_TESTS),--tests '$(TSAN_TESTS)')

fuzz: setup-test  ## corpus replay, then FUZZ_SECONDS (20) of fuzzing a target
	@tools/fuzz.sh $(FUZZ_SECONDS)

coverage: setup-test  ## line coverage of host code
	@$(call configure,build-coverage) -DCMAKE_BUILD_TYPE=Debug -DNIBBLE_CUDA=OFF -DNIBBLE_COVERAGE=ON
	@$(call compile,build-coverage)
	@$(PYTHON) tools/run_tests.py build-coverage
	@$(PYTHON) tools/coverage.py build-coverage

emulated:  ## AArch64 build and its tests under qemu-user; choose with QEMU_CPUS="max cortex-a76 …"
	@tools/setup build aarch64
	@$(call configure,build-aarch64) --preset aarch64
	@$(call compile,build-aarch64)
	@tools/emulated.sh build-aarch64 $(QEMU_CPUS)

nightly: ci asan tsan emulated  ## what CI has no time for: ARM, long fuzzing, all threads tests, all GPUs
	@$(MAKE) fuzz FUZZ_SECONDS=600
	@$(call configure,build-release) --preset release
	@$(call compile,build-release)

ci:  ## what CI runs
	@.ci/run

clean:  ## remove build folders; .venv stays
	rm -rf build build-*

setup-build:
	@tools/setup build

setup-test:
	@tools/setup build python demo

configure-build: setup-build
	@$(call configure,$(BUILD)) -DCMAKE_BUILD_TYPE=Release
