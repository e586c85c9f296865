# Wrenn: `sudo make run` starts it, `sudo make test` proves it. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
.DEFAULT_GOAL := help

# sudo resets PATH, so Go is also looked for where its own archive puts it.
GO := $(or $(shell command -v go),$(wildcard /usr/local/go/bin/go),$(wildcard /usr/lib/go/bin/go),go)
export PATH := $(dir $(GO)):$(PATH):/usr/sbin:/sbin
BIN := build/bin
IMAGE := build/image
PROGRAMS := wrenn wrenn-cp wrenn-agent firecracker-qemu
# A checkout owned by another user than root makes git refuse to tell the revision.
export GOFLAGS := -buildvcs=false

# What a host needs to run sandboxes and to build the image, and what the tests need on top (a C compiler
# for the race detector, nginx and Python as servers behind the proxy, a browser, and npm for E2B's SDK).
RUN_PACKAGES := qemu-system-x86 mmdebstrap iptables iproute2 util-linux e2fsprogs xz-utils lz4 curl ca-certificates
TEST_PACKAGES := gcc libc6-dev git procps zstd dmsetup xfsprogs nginx-light python3 chromium

# What the Vagrant machine of `make e2e` needs. Nothing of it has to run: libvirt is started on a ground of its own.
VM_DEBS := vagrant vagrant-libvirt libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients dnsmasq-base qemu-utils openssh-client

# make e2e RUN=TestN09 runs the tests of that name alone, NATIVE=1 on this machine, KEEP=1 leaves the machine up.
RUN ?=
NATIVE ?=
export KEEP ?=

.PHONY: help deps deps-test deps-vm generate build build-fault image apps sdk run demo check lint test test-unit vmtest box e2e e2e-native test-fault e2e-shell e2e-down deps-bench bench clean

help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

deps: ## Install the Debian packages that running needs (as root), and Firecracker where it can be had
	@.ci/install $(RUN_PACKAGES)
	@.ci/firecracker $(BIN)

deps-test: deps
	@.ci/install $(TEST_PACKAGES)
	@command -v npm >/dev/null || .ci/install npm

deps-vm: deps-test
	@.ci/install $(VM_DEBS)

generate: ## Generate the code of proto/ anew
	cd proto && $(GO) tool buf lint && $(GO) tool buf generate

build: ## Build the programs into build/bin
	@mkdir -p $(BIN)
	@for p in $(PROGRAMS); do CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o $(BIN)/$$p ./impl/cmd/$$p; done
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o $(BIN)/envd ./impl/cmd/envd

build-fault: build ## Build the agent with the fault suite's hook into build/fault
	@mkdir -p build/fault
	@CGO_ENABLED=0 $(GO) build -tags fault -trimpath -o build/fault/wrenn-agent ./impl/cmd/wrenn-agent

image: ## Build kernel, initramfs and templates into build/image (seconds when nothing changed)
	@$(GO) run ./guest/build --out $(IMAGE)

APPS := build/apps

apps: deps-test ## Build an image whose templates run Jupyter and Next.js into build/apps (3 minutes, later seconds)
	@$(GO) run ./guest/build --out $(APPS) --templates guest/apps

# What the suites drive the API with: the SDK that users have, and the Node.js that it wants.
SDK_STAMP := e2e/sdk/node_modules/.wrenn-lock-sha256

sdk: deps-test ## Install E2B's SDK for the suites, as package-lock.json names it
	@want=$$(sha256sum <e2e/sdk/package-lock.json | cut -d' ' -f1); \
	[ "$$(cat $(SDK_STAMP) 2>/dev/null)" = "$$want" ] || \
	{ (cd e2e/sdk && npm ci --no-audit --no-fund --ignore-scripts) && echo "$$want" >$(SDK_STAMP); }

run: deps build image ## Start control plane and agent here (as root); Ctrl-C ends them and all sandboxes
	@exec $(BIN)/wrenn up

demo: deps build image ## Make a sandbox, show what it does and what each part costs, end it (as root)
	@$(BIN)/wrenn demo

check: deps-test lint ## Formatting, vet, linters, architecture, generated code
	@test -z "$$(gofmt -l $$(git ls-files "*.go") | tee /dev/stderr)" || { echo "run gofmt -w on the files above" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags fault ./fault ./impl/step ./impl/sandbox
	$(GO) test ./impl -run .
	@$(GO) run ./proto/check

lint:
	$(GO) tool golangci-lint run ./...
	$(GO) tool golangci-lint run --build-tags fault ./fault ./impl/step

test: deps-test build-fault image apps sdk test-unit e2e-native test-fault vmtest ## All tests that need no Vagrant (as root)

test-unit:
	$(GO) test -race -timeout 20m ./impl/... ./guest/... ./proto/... ./bench/actor ./bench/echo ./bench/report

# Packages whose tests want a kernel of their own: device-mapper, a working KVM, freedom to break things.
VM_PACKAGES := ./impl/netns ./impl/snapshot ./impl/devicemapper ./impl/rootfs ./guest/wrenn-init

# Inside the VMs nothing may be missing, whatever the machine outside lacks.
IN_VM := WRENN_NEED= $(GO) test -count=1 -exec $(CURDIR)/$(BIN)/vmexec
vmtest: deps-test build image ## Test the VM runner itself, and the packages that want a kernel of their own
	$(GO) build -o $(BIN)/vmexec ./vagrant/vmexec
	$(GO) test -timeout 15m ./vagrant/vmexec/...
	$(IN_VM) -timeout 10m $(VM_PACKAGES)
	$(IN_VM) -timeout 15m -run 'TestA07_LifecycleOnRealDisks|TestS08_(APowerFailure|TheLogOfWrites)' ./impl/agent

box: deps-vm ## Build the Vagrant box (seconds when nothing changed)
	@$(GO) build -o $(BIN)/vm ./vagrant/vm
	@exec $(BIN)/vm box

ifeq ($(NATIVE),)
e2e: deps-vm build-fault image sdk ## End-to-end and fault suites in a Vagrant machine; RUN=regexp, NATIVE=1 (here), KEEP=1 (leave it up)
	@$(GO) build -o $(BIN)/vm ./vagrant/vm
	@$(GO) test -timeout 2m ./vagrant/vm/...
	@exec $(BIN)/vm e2e $(if $(RUN),'$(RUN)')
else
e2e: deps-test build-fault image apps sdk e2e-native test-fault
endif

# One after the other: there is one agent per host, and a census sees the whole host.
e2e-native:
	@mkdir -p build/e2e
	@$(GO) build -o $(BIN)/gotestsum gotest.tools/gotestsum
	@$(GO) build -o $(BIN)/failures ./e2e/harness/failures
	WRENN_ARTIFACTS=$(CURDIR)/build/e2e/artifacts $(BIN)/gotestsum --format standard-verbose --hide-summary output \
		--junitfile build/e2e/native.xml --jsonfile build/e2e/native.json \
		-- -count=1 -timeout 30m -p 1 $(if $(RUN),-run '$(RUN)') ./e2e/... ./bench \
		|| { $(BIN)/failures build/e2e/native.json; exit 1; }

e2e-shell: deps-vm build-fault image sdk ## A shell in the Vagrant machine, which stays up
	@$(GO) build -o $(BIN)/vm ./vagrant/vm
	@exec $(BIN)/vm shell

e2e-down: ## Take the Vagrant machine down
	@$(GO) build -o $(BIN)/vm ./vagrant/vm
	@exec $(BIN)/vm down

# Hosts are made of namespaces, so this changes nothing on the machine. WRENN_FAULT_ROUNDS and WRENN_FAULT_SEED are
# those of the random kills; FAULT_FLAGS=-short leaves most rows and the VMs out.
FAULT_FLAGS ?=
test-fault: deps-test build-fault image ## Kill the agent at every step and look at what is left (as root, 5 minutes)
	@mkdir -p build/e2e
	@$(GO) build -o $(BIN)/gotestsum gotest.tools/gotestsum
	@$(GO) build -o $(BIN)/failures ./e2e/harness/failures
	WRENN_ARTIFACTS=$(CURDIR)/build/e2e/artifacts $(BIN)/gotestsum --format standard-verbose --hide-summary output \
		--junitfile build/e2e/fault.xml --jsonfile build/e2e/fault.json \
		-- -tags fault -count=1 -timeout 20m $(FAULT_FLAGS) $(if $(RUN),-run '$(RUN)') ./fault ./impl/sandbox ./impl/step \
		|| { $(BIN)/failures build/e2e/fault.json; exit 1; }

# What the benchmarks measure beside Wrenn.
BENCH_DEBS := openssh-server openssh-client nginx python3-terminado

deps-bench: deps-test
	@.ci/install $(BENCH_DEBS)

# How many keys are typed for each distribution, and how long everything else is measured. BENCH_PREFIX is put before
# what measures (something that gives it a busy machine's processors), and WRENN_BENCH_VMM picks another VMM than the
# one without VMs, on which the transport alone is measured.
LONG ?=
BENCH_PREFIX ?=
BENCH_PACKAGES ?= ./bench ./bench/snapshots ./impl/...
BENCH_TYPING := ^Benchmark(PTY|PTYReno|PTYBands|PTYUnpaced|PTYSpare|Hops)$$
BENCH_KEYS := $(if $(LONG),10000,600)
BENCH_TIME := $(if $(LONG),10s,1s)
BENCH_RESULTS := bench/results/$(shell date -u +%Y%m%dT%H%M%SZ)

bench: deps-bench build image ## Benchmarks and a report in bench/results (as root, 15 minutes; LONG=1: 2 hours)
	@mkdir -p $(BENCH_RESULTS)
	@$(GO) run ./bench/report facts >$(BENCH_RESULTS)/bench.txt
	@export WRENN_BENCH_SAMPLES=$(CURDIR)/$(BENCH_RESULTS)/samples; \
	run() { $(BENCH_PREFIX) $(GO) test -run '^$$' -timeout 5h -p 1 "$$@" | tee -a $(BENCH_RESULTS)/bench.txt; }; \
	run -bench '$(BENCH_TYPING)' -benchtime $(BENCH_KEYS)x ./bench; \
	run -bench . -skip '$(BENCH_TYPING)' -benchtime $(BENCH_TIME) $(BENCH_PACKAGES)
	@$(GO) run ./bench/report $(BENCH_RESULTS)
	@echo "$(BENCH_RESULTS)/report.md"

clean: ## Remove what was built (the image's cache too)
	rm -rf build e2e/sdk/node_modules
