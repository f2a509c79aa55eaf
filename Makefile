# What one can do with a checkout. `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

# Cargo's own answer: it knows CARGO_TARGET_DIR and every configuration file.
TARGET_DIR = $(shell $(CARGO) metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

SCRIPTS := setup/run setup/install .ci/run deploy/image fuse-view/fuzz/run fuse-view/fuzz/seeds/make $(wildcard demo/*) $(addprefix tests/kernel/,bench build debian debian-init init lib.sh rootfs run stock systemd systemd-job test) \
	$(addprefix tests/kubernetes/,build cluster driver image images on-ublk roles test)

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

.PHONY: setup
setup: ## Install what building and testing need (root only if something is missing)
	@setup/run

.PHONY: build
build: ## Release binaries: cowslip and cowslip-csi
	$(CARGO) build --release --locked --bins

.PHONY: demo
demo: ## Snapshots, restore, clone, rollback and a killed agent, on real files of this machine
	@demo/run

.PHONY: test
test: ## Every test this machine can run
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked

.PHONY: test-kernel
test-kernel: ## Tests on a kernel of their own, with ublk: built once and cached (6 to 25 minutes)
	@CARGO='$(CARGO)' tests/kernel/test

.PHONY: fuzz
fuzz: ## Changed images of every format, guided by coverage, SECONDS=60 each; needs a C++ compiler
	for target in ext4 xfs btrfs vfat containers; do CARGO='$(CARGO)' fuse-view/fuzz/run $$target $(or $(SECONDS),60) || exit 1; done

.PHONY: crash
crash: ## Random crash cuts of the store for SECONDS=600, from COWSLIP_CRASH_SEED (1) on; prints cuts and seeds
	COWSLIP_CRASH_SECONDS=$(or $(SECONDS),600) $(CARGO) test --release -p store --locked --test crash -- --nocapture nothing_acknowledged

.PHONY: mutations
mutations: ## The tests of the rules against deliberate bugs: each must be caught
	$(CARGO) test -p store --locked --features mutations --test mutations -- --nocapture

.PHONY: models
models: ## Interleavings of gate, I/O epochs and group commit, COWSLIP_MODELS=20000 of each
	COWSLIP_MODELS=$(or $(COWSLIP_MODELS),20000) $(CARGO) test -p store --locked --features models --test models

.PHONY: miri
miri: ## The unsafe parts that need no kernel, under Miri (a nightly Rust with the component miri)
	MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-permissive-provenance' $(CARGO) +nightly miri test -p store --locked --lib -- io::buffer log::ring log::replay gate

.PHONY: test-kubernetes
test-kubernetes: ## The driver in a real cluster of two nodes, and csi-sanity (root; builds Kubernetes once, some 25 CPU minutes)
	@setup/run kubernetes
	@CARGO='$(CARGO)' tests/kubernetes/test

.PHONY: bench-kubernetes
bench-kubernetes: ## The driver beside csi-driver-host-path in one cluster, written to docs/benchmarks-kubernetes.md
	@setup/run kubernetes
	@CARGO='$(CARGO)' COWSLIP_BENCH_OUT=$(CURDIR)/docs/benchmarks-kubernetes.md tests/kubernetes/test --bench

.PHONY: bench
bench: ## The store beside fio on one file and qemu on a qcow2, as ratios, written to docs/benchmarks.md (ARGS="--rounds 5 --seconds 3")
	@setup/run bench
	$(CARGO) bench -p store --locked --bench engine -- --out $(CURDIR)/docs/benchmarks.md $(ARGS)

.PHONY: bench-devices
bench-devices: ## FUSE + loop beside the kernel's loop and qemu's FUSE, PostgreSQL under snapshots, written to docs/benchmarks-devices.md (root)
	@setup/run bench
	$(CARGO) bench -p ublk-target --locked --bench devices -- --out $(CURDIR)/docs/benchmarks-devices.md $(ARGS)

.PHONY: bench-kernel
bench-kernel: ## Volumes over ublk beside rublk, dm-thin and loop in the test kernel, written to docs/benchmarks-kernel.md
	@CARGO='$(CARGO)' COWSLIP_BENCH_PAGE=$(CURDIR)/docs/benchmarks-kernel.md tests/kernel/bench

.PHONY: bench-files
bench-files: ## The file view beside the kernel's mount, as ratios, written to docs/benchmarks-files.md (root; images take minutes to make)
	@setup/run bench
	$(CARGO) bench -p fuse-view --locked --bench files -- --out $(CURDIR)/docs/benchmarks-files.md $(ARGS)

.PHONY: lint
lint: check-format check-scripts ## Formatting, clippy, rustdoc and the shell scripts, warnings being errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --workspace --test kernel --test machine --test kubernetes --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

.PHONY: check-format
check-format: ## Fail where `make format` would change something
	$(CARGO) fmt --all --check

.PHONY: check-scripts
check-scripts: ## shellcheck of the scripts
	shellcheck --external-sources $(SCRIPTS)

.PHONY: format
format: ## Format the Rust sources
	$(CARGO) fmt --all

.PHONY: install
install: build ## Install under DESTDIR and PREFIX (default /usr/local): binaries, units, man pages, completions
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' setup/install '$(TARGET_DIR)/release'

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
