# Two commands: `make demo` shows a signature, `make test` runs everything CI runs. Both install what they need, and
# so do three more: `make test-usb`, which is the end of `make test`, and for whoever changes anything with threads `make races`
# and `make sanitize`.

CARGO ?= cargo

.PHONY: demo test test-usb races sanitize lint module install uninstall

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
	CLAVIGER_SKIPPED_TESTS=$(SKIPPED) scripts/test-usb
	@if [ -s $(SKIPPED) ]; then echo "Skipped on this machine, $$(wc -l < $(SKIPPED)) in all:"; sort $(SKIPPED); \
	else echo "Skipped on this machine: none"; fi

# Readers on a real USB stack: a guest of QEMU in which the module reaches a virtual reader by nusb, by libusb, and by pcscd
# with libccid. The end of `make test`; skipped aloud where there can be no such guest.
test-usb:
	@scripts/test-usb

# The tests of C_Initialize and C_Finalize in `make test`, at length and with nothing beside them: the models with one preemption
# more, 10,000 rounds of waiters against C_Finalize, 10,000 lives in a row over each transport, with threads and without.
# Figures, which `make test` prints, are held to their limits here: how soon a waiter is back and an event is told, how
# much a slow card delays other readers, and that a blocked process is never scheduled. The end is in the guest of `make test-usb`.
races:
	@scripts/prepare test
	@$(MAKE) --no-print-directory module
	LOOM_MAX_PREEMPTIONS=3 $(CARGO) test --locked --release -p claviger-pkcs11 --test model
	CLAVIGER_ROUNDS=10000 $(CARGO) test --locked --release -p claviger-hw-tests --test races --test lifecycle --test timing \
	--test sharing -- --nocapture --test-threads=1 waiters:: cycles:: life:: alone:: latency:: quiet:: isolation::
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

# As root, after `make module` as an ordinary user. scripts/install says which variables it heeds.
install:
	@scripts/install install $(or $(CARGO_TARGET_DIR),target)/release/libclaviger_pkcs11.so

uninstall:
	@scripts/install uninstall
