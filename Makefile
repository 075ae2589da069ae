# phoenix-nvidia: build, try, test, install. `make test` needs a Debian
# machine with cargo and root, and nothing before it.

# A pipe fails with what is piped.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PREFIX ?= /usr
DESTDIR ?=
CARGO ?= cargo
PACKAGES := $(shell sed 's/\#.*//' tests/lab/packages.txt)
# Builds quietly in CI, where nobody watches a bar.
export CARGO_TERM_PROGRESS_WHEN ?= auto

.PHONY: build demo test lint unit e2e bench audit deb install clean packages

build:
	$(CARGO) build --release --locked

# The Debian packages that lab and tests use; nothing to do when all are there.
packages:
	@missing=$$(for p in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done; \
	    $(CARGO) clippy --version >/dev/null 2>&1 || echo rust-clippy; \
	    $(CARGO) fmt --version >/dev/null 2>&1 || echo rustfmt); \
	if [ -n "$$missing" ]; then \
	    echo "installing $$missing"; \
	    apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing; \
	fi

# The main job in the lab, shown step by step.
demo: packages
	$(CARGO) build --release --locked
	$(CARGO) build --locked -p phoenix-lab
	./target/debug/lab-demo ./target/release/phoenix-nvidia

test: packages lint e2e

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Unit, property, command-line and end-to-end tests. The lab's own programs
# are built first: tests find them beside themselves. What the end-to-end
# tests run is the release build.
e2e:
	$(CARGO) build --release --locked
	$(CARGO) build --workspace --all-targets --locked
	@rm -f target/labs target/test.log
	PHOENIX_NVIDIA_BINARY=$(CURDIR)/target/release/phoenix-nvidia PHOENIX_LAB_COUNT=$(CURDIR)/target/labs \
	PHOENIX_REQUIRE_LAB=$${PHOENIX_REQUIRE_LAB:-1} \
	$(CARGO) test --workspace --locked --no-fail-fast -- --test-threads 4 2>&1 | tee target/test.log
	@echo "end-to-end: $$(wc -l < target/labs) labs with real containers were started"
	@awk '/^test result:/ { p += $$4; f += $$6; i += $$8 } \
	    END { printf "%d passed, %d failed, %d skipped\n", p, f, i }' target/test.log

# Tables of times: what happens at every start, on hosts of every size. The
# lab's own programs come from the debug build.
bench: packages
	$(CARGO) build --locked -p phoenix-lab
	$(CARGO) bench --locked --bench '*'

# Licences, bans, sources (deny.toml); needs cargo-deny.
audit:
	$(CARGO) deny --locked check licenses bans sources

clean:
	$(CARGO) clean
