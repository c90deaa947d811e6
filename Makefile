# What people and machines run. Each target says what it does: make help
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin

# of the demo: make up DEMO_MNT=/mnt/elsewhere
export DEMO_DIR DEMO_MNT DEMO_SIZE PURGE SKIP_BUILD
# of the installation: make install PREFIX=/usr DESTDIR=/tmp/package
export DESTDIR PREFIX
# of the benchmarks
export BENCH_DIR

.PHONY: help build up down test test-quick test-long test-vm lint bench install clean simulator crash-states sim mutants soak fuzzer fuzz coverage

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## build the programs, optimised
	@tools/dev/need.sh build
	cargo build --release --locked -p qrvsa -p qrvsad -p qrvsa-tgt

up: ## start the demo: a pool of four files, mounted; again: bring back what is missing
	@tools/demo/up.sh

down: ## end the demo, keep its pool; PURGE=1 removes it
	@tools/demo/down.sh

test: test-long ## everything: lints, unit, property and system tests at full size

test-long:
	@tools/dev/need.sh build mount lint test
	@tools/dev/test.sh long

test-quick: ## the same with small sizes and without the long tests
	@tools/dev/need.sh build mount lint test
	@tools/dev/test.sh quick

test-vm: build ## a kernel initiator in QEMU: Debian's kernel with open-iscsi on our LUNs
	@tools/dev/need.sh test vm
	tests/system/run.py --vm

lint: ## formatting and lints
	@tools/dev/need.sh build lint
	@tools/dev/lint.sh

SIM := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/sim/qrvsa-sim
SEEDS ?= 2000
STATES ?= 200000
MINUTES ?= 60

simulator:
	@tools/dev/need.sh build
	@cargo build --profile sim --locked --quiet -p qrvsa-sim

crash-states: simulator ## crash short workloads at every write, with every choice of what was unflushed (STATES=n)
	@$(SIM) crash-states --states $(STATES)

sim: simulator ## simulated worlds with faults of every kind, and what they hit (SEEDS=n, SEED=first)
	@$(SIM) seeds --count $(SEEDS) $(if $(SEED),--first $(SEED),--known tests/sim/known-seeds) --table

FUZZ := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/sim/qrvsa-fuzz
SECONDS ?= 60

fuzzer:
	@tools/dev/need.sh build
	@cargo build --profile sim --locked --quiet -p qrvsa-fuzz

fuzz: fuzzer ## throw changed inputs at all that reads foreign bytes (SECONDS=n, SEED=n, TARGET=name)
	@$(FUZZ) run --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(TARGET),--target $(TARGET))

soak: simulator fuzzer ## crash states, seeds and fuzzers side by side until the time is over (MINUTES=n)
	@nice -n 10 $(FUZZ) run --seconds $$(( $(MINUTES) * 60 )) --seed "$$(date +%s)" & fuzz=$$!; \
	$(SIM) soak --minutes $(MINUTES); sim=$$?; \
	wait $$fuzz && exit $$sim

coverage: ## lines of qrvsa-core that its tests, the simulator and the fuzzers run
	@tools/dev/need.sh build coverage
	@tools/dev/coverage.sh

mutants: ## break the engine on purpose, one breakage at a time, and see whether the simulator notices
	@tools/dev/need.sh build
	@tests/mutants/run.py

bench: ## measure beside btrfs, zfs-fuse and GlusterFS; writes docs/performance.md
	@tools/dev/need.sh build mount bench
	@tests/bench/run.sh

install: ## programs, mount helper, units, manuals, completions (PREFIX, DESTDIR)
	@[ -n "$(SKIP_BUILD)" ] || $(MAKE) --no-print-directory build
	@tools/dev/install.sh

clean: ## remove what was built
	cargo clean
