# Main commands: `make demo` shows a signature, `make test` runs everything that CI runs. `make test-usb` is the last part of
# `make test`. After a change to threads, run `make races` and `make sanitize`. All five install the packages that they need.

CARGO ?= cargo

.PHONY: demo test test-usb races sanitize lint module install uninstall

demo:
	@scripts/prepare demo
	@$(CARGO) build --locked --release -p claviger-pkcs11
	@$(CARGO) build --locked --release -p claviger-hw-tests --bin demo
	@$(CARGO) run --locked --quiet --release -p claviger-hw-tests --bin demo

# Tests that this machine cannot run are reported, recorded in this file, and counted at the end.
SKIPPED := $(abspath $(or $(CARGO_TARGET_DIR),target))/skipped-tests

test:
	@scripts/prepare test
	@$(MAKE) --no-print-directory lint
	$(CARGO) build --locked --release --workspace --all-targets
	@rm -f $(SKIPPED)
	CLAVIGER_SKIPPED_TESTS=$(SKIPPED) $(CARGO) test --locked --release --workspace
	CLAVIGER_SKIPPED_TESTS=$(SKIPPED) scripts/test-usb
	@if [ -s $(SKIPPED) ]; then echo "Skipped on this machine, $$(wc -l < $(SKIPPED)) in all:"; sort $(SKIPPED); \
	else echo "Skipped on this machine: none"; fi

# Readers on a real USB stack: a guest of QEMU in which the module reaches a virtual reader by nusb, by libusb, and by pcscd
# with libccid. The last part of `make test`. Skipped, with a message, where no such guest can run.
test-usb:
	@scripts/test-usb

# The tests of C_Initialize and C_Finalize in `make test`, longer and one at a time: the models with one more preemption, 10,000
# rounds of waiters against C_Finalize, 10,000 generations over each service, with threads and without. The limits of the
# measured figures are enforced here: the delays of waiters and events, the delay that a slow card causes at other readers, and
# that a blocked process is not scheduled. The last part runs in the guest of `make test-usb`.
races:
	@scripts/prepare test
	@$(MAKE) --no-print-directory module
	LOOM_MAX_PREEMPTIONS=3 $(CARGO) test --locked --release -p claviger-pkcs11 --test model
	CLAVIGER_ROUNDS=10000 $(CARGO) test --locked --release -p claviger-hw-tests --test races --test lifecycle --test timing \
	--test sharing -- --nocapture --test-threads=1 waiters:: cycles:: generations:: alone:: latency:: quiet:: isolation::
	scripts/test-usb races

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	scripts/cargo-deny

module:
	$(CARGO) build --locked --release -p claviger-pkcs11

sanitize:
	@scripts/prepare sanitize
	@scripts/sanitize

# Run as root, after `make module` as an ordinary user. scripts/install documents its variables.
install:
	@scripts/install install $(or $(CARGO_TARGET_DIR),target)/release/libclaviger_pkcs11.so

uninstall:
	@scripts/install uninstall
