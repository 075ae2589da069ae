# phoenix-nvidia: build, try, test, install. `make test` needs a Debian
# machine with cargo and root, and nothing before it.

# A pipe fails with what is piped.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PREFIX ?= /usr
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY ?= $(TARGET)/release/phoenix-nvidia
PACKAGES := $(shell sed 's/\#.*//' tests/lab/packages.txt)
VM_PACKAGES := $(shell sed 's/\#.*//' tests/vm/packages.txt)
# Builds quietly in CI, where nobody watches a bar.
export CARGO_TERM_PROGRESS_WHEN ?= auto

# `make` alone builds.
.DEFAULT_GOAL := build
.PHONY: help build demo test test-all lint fmt clippy rustdoc e2e bench fuzz audit deb gpu-kit test-gpu test-vm install \
    install-files clean packages vm-packages

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## the program, target/release/phoenix-nvidia
	$(CARGO) build --release --locked

# The Debian packages that lab and tests use; nothing to do when all are there.
define install-packages
@missing=$$(for p in $(1); do \
    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done; \
    $(CARGO) clippy --version >/dev/null 2>&1 || echo rust-clippy; \
    $(CARGO) fmt --version >/dev/null 2>&1 || echo rustfmt); \
if [ -n "$$missing" ]; then \
    echo "installing $$missing"; \
    apt-get -qq update && \
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; \
fi
endef
packages:
	$(call install-packages,$(PACKAGES))

# qemu is large, and nothing else uses it.
vm-packages: packages
	$(call install-packages,$(VM_PACKAGES))

# The main job in the lab, shown step by step.
demo: packages ## the main job in the lab, shown step by step
	$(CARGO) build --release --locked
	$(CARGO) build --locked -p phoenix-lab
	./target/debug/lab-demo ./target/release/phoenix-nvidia

# The program as it is built for developers, tested from end to end, with the
# lints that everybody should see at once: eleven minutes on two cores, from
# a fresh checkout. The images of the lab's containers are made while the rest
# compiles.
test: packages fmt ## format, clippy and all tests, on the debug build: eleven minutes on two cores
	$(CARGO) build --workspace --locked --bins --test lab_itself
	@mkdir -p $(TARGET) && $(TARGET)/debug/lab-images $(IMAGES) >$(TARGET)/lab-images.log 2>&1 & \
	$(MAKE) --no-print-directory clippy e2e; code=$$?; wait; exit $$code

# What the tests of `make test` start most.
IMAGES := debian-12 debian-12-systemd debian-13-systemd

# All that is known to be worth a look, within an hour on two cores. It prints
# what ran, for how long, and what did not and why.
test-all: packages ## everything, within an hour on two cores (.ci/run)
	tests/all

# Unused dependencies and the rooms of src/ are tests (tests/source).
lint: fmt clippy rustdoc ## format, clippy, and the documentation of the sources

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Links between the pages of the sources, which lead somewhere.
rustdoc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items --workspace --locked

# Unit, property, command-line and end-to-end tests (tests/run). The lab's own
# programs are built first: tests find them beside themselves.
e2e:
	$(CARGO) build --workspace --locked --bins --tests
	tests/run

# Tables of times: what happens at every start, on hosts of every size. The
# lab's own programs come from the debug build.
bench: packages ## what a start costs, on hosts of every size
	$(CARGO) build --locked -p phoenix-lab
	$(CARGO) bench --locked --bench '*'

# Every fuzz target for so many seconds, or FUZZ=name alone. What is found
# lies in target/fuzz/artifacts.
SECONDS ?= 60
fuzz: ## every fuzz target for SECONDS, or FUZZ=name alone
	fuzz/run $(SECONDS) $(FUZZ)

# Licences, bans, sources (deny.toml).
audit: ## licences, bans and sources of the dependencies
	tests/audit

# What the tests on real cards need, in one file, for a machine without network.
gpu-kit: packages ## the same in one file, for a machine without network
	$(CARGO) build --release --locked -p phoenix-nvidia -p phoenix-lab -p phoenix-gpu
	tests/gpu/kit $(TARGET)/gpu-kit.tar.xz $(TARGET)/release

# The same, run on this machine's cards: needs root, cgroup2 and a loaded NVIDIA
# driver. Nothing of it stays, and no setting of a card is changed.
test-gpu: gpu-kit ## the tests on this machine's NVIDIA cards
	tests/gpu/run $(TARGET)/gpu-kit.tar.xz

# Containers under AppArmor's profiles, in a virtual machine, which is emulated
# where there is no KVM: then 12 minutes on two cores. The first run makes its
# image. CASES="101 102" are the containers of these numbers (tests/vm/src).
test-vm: vm-packages ## containers under AppArmor, in a virtual machine (part of test-all)
	$(CARGO) build --release --locked -p phoenix-nvidia -p phoenix-lab -p phoenix-vm
	tests/vm/run $(TARGET)/release $(CASES)

# The Debian package, in target/deb; needs debhelper.
deb: ## the Debian package, in target/deb
	$(CARGO) build --release --locked
	packaging/build-deb $(TARGET)/release/phoenix-nvidia $(TARGET)/deb

# For those without dpkg: the program, its files and the boot unit.
install: build ## without dpkg, below PREFIX and DESTDIR
	$(MAKE) install-files
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then \
	    systemd-tmpfiles --create phoenix-nvidia.conf; \
	    systemctl daemon-reload && systemctl enable phoenix-nvidia-nodes.service; \
	fi

# The one list of files; the package is made by it too. Settings that are
# there already stay.
install-files:
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/sbin/phoenix-nvidia
	install -D -m 755 hooks/phoenix-nvidia $(DESTDIR)$(PREFIX)/share/phoenix-nvidia/phoenix-nvidia
	for unit in phoenix-nvidia-nodes.service phoenix-nvidia-prepare.service phoenix-nvidia-install@.service; do \
	    install -d $(DESTDIR)$(UNITDIR) && \
	    sed 's|/usr/sbin/phoenix-nvidia|$(PREFIX)/sbin/phoenix-nvidia|' packaging/$$unit \
	        >$(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	install -D -m 644 packaging/phoenix-nvidia.udev $(DESTDIR)$(PREFIX)/lib/udev/rules.d/70-phoenix-nvidia.rules
	install -d $(DESTDIR)/etc/apt/apt.conf.d
	sed 's|/usr/sbin/phoenix-nvidia|$(PREFIX)/sbin/phoenix-nvidia|g' packaging/phoenix-nvidia.apt \
	    >$(DESTDIR)/etc/apt/apt.conf.d/20phoenix-nvidia
	install -D -m 644 packaging/phoenix-nvidia.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/phoenix-nvidia.conf
	[ -e $(DESTDIR)/etc/default/phoenix-nvidia ] || \
	    install -D -m 644 packaging/default/phoenix-nvidia $(DESTDIR)/etc/default/phoenix-nvidia
	install -D -m 644 packaging/man/phoenix-nvidia.8 $(DESTDIR)$(PREFIX)/share/man/man8/phoenix-nvidia.8
	install -D -m 644 packaging/man/phoenix-nvidia.env.5 $(DESTDIR)$(PREFIX)/share/man/man5/phoenix-nvidia.env.5
	install -D -m 644 packaging/completions/phoenix-nvidia.bash \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/phoenix-nvidia
	install -D -m 644 packaging/completions/_phoenix-nvidia \
	    $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_phoenix-nvidia
	install -D -m 644 packaging/completions/phoenix-nvidia.fish \
	    $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/phoenix-nvidia.fish

clean: ## take away what was built
	$(CARGO) clean
