# Two commands: `make demo` shows a signature, `make test` runs everything CI runs. Both install what they need.

CARGO ?= cargo

.PHONY: demo test lint module

demo:
	@scripts/prepare demo
	@$(CARGO) build --locked --release -p claviger-pkcs11
	@$(CARGO) build --locked --release -p claviger-hw-tests --bin demo
	@$(CARGO) run --locked --quiet --release -p claviger-hw-tests --bin demo

test:
	@scripts/prepare test
	@$(MAKE) --no-print-directory lint
	$(CARGO) build --locked --release -p claviger-pkcs11
	$(CARGO) build --locked --release -p claviger-hw-tests --bins
	$(CARGO) test --locked --release --workspace

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	scripts/cargo-deny

module:
	$(CARGO) build --locked --release -p claviger-pkcs11
