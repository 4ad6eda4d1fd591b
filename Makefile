# Two commands: `make demo` shows a signature, `make test` runs everything CI runs. Both install what they need,
# and so does `make sanitize`, for a change to anything with threads.

CARGO ?= cargo

.PHONY: demo test lint module sanitize

demo:
	@scripts/prepare demo
	@$(CARGO) build --locked --release -p claviger-pkcs11
	@$(CARGO) build --locked --release -p claviger-hw-tests --bin demo
	@$(CARGO) run --locked --quiet --release -p claviger-hw-tests --bin demo

# What a machine cannot run is skipped aloud, recorded there, and counted at the end.
SKIPPED := $(abspath $(or $(CARGO_TARGET_DIR),target))/skipped-tests

test:
	@scripts/prepare test
	@$(MAKE) --no-print-directory lint
	$(CARGO) build --locked --release --workspace --all-targets
	@rm -f $(SKIPPED)
	CLAVIGER_SKIPPED_TESTS=$(SKIPPED) $(CARGO) test --locked --release --workspace
	@if [ -s $(SKIPPED) ]; then echo "Skipped on this machine, $$(wc -l < $(SKIPPED)) in all:"; sort $(SKIPPED); \
	else echo "Skipped on this machine: none"; fi

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	scripts/cargo-deny

module:
	$(CARGO) build --locked --release -p claviger-pkcs11

sanitize:
	@scripts/prepare sanitize
	@scripts/sanitize
