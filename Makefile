# make demo    a Linux guest on real QEMU draws its screen through vgpud
# make test    every test layer, real QEMU and guest included; nothing is skipped
# make chain   the tests that need a QEMU of our own building; CI runs them too
# make check   the inner loop: lint, types, unit, contract and wire tests
# make diff    N generated scripts (1000) on QEMU's own device and on vgpud; SEED=1, QEMU=a root
# make fuzz    SECONDS (60) of coverage-guided fuzzing for each target, or for TARGET
# make bench   vgpud and the C back-end in turn on the same work; writes docs/performance.md (BENCH="--pairs 5")
# make soak    SECONDS (600) of everything in any order; nothing may grow
# make qemu    QEMU 10.0 with our edit (blobs), built in a private root; prints the root
# make install DESTDIR=, PREFIX=/usr, PYTHON=/usr/bin/python3: programs, units, manifest, manual pages
# make deb     a Debian package for the release it is built on, in dist/
# make clean   remove what was built in the tree (downloads stay in the cache)
#
# Each installs what it needs. Downloads, builds and the Python environment live in
# $VGPUD_CACHE, else ~/.cache/vgpud; PYTHON=... chooses an interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: bench demo test chain check diff fuzz soak lint sanitize machine qemu install deb clean

# The environment's programs first in PATH. Inside recipes only: `make clean` installs nothing.
ENTER = venv=$$(tests/qemu/setup.sh); export PATH="$$venv/bin:$$PATH"

demo:
	$(ENTER)
	exec python -m tests.demo $(DEMO)

test: lint sanitize machine
	$(ENTER)
	exec pytest tests --ignore=tests/lab/test_chain.py

# The whole way of a dma-buf to a viewer, on a QEMU that is built for it (minutes, once).
chain: machine
	$(ENTER)
	exec pytest tests/lab/test_chain.py

check: lint
	$(ENTER)
	exec pytest -m "not slow" tests/unit tests/contract tests/wire tests/attacks tests/fuzz

diff:
	$(ENTER)
	exec python -m tests.diff --count $(or $(N),1000) --seed $(or $(SEED),1) --qemu "$(QEMU)"

fuzz:
	$(ENTER)
	exec python -m tests.fuzz --seconds $(or $(SECONDS),60) $(TARGET)

bench:
	$(ENTER)
	exec python -m tests.bench --write $(BENCH)

soak:
	$(ENTER)
	exec python -m tests.soak --seconds $(or $(SECONDS),600)

lint:
	$(ENTER)
	ruff check .
	ruff format --check .
	mypy

# The extension under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize:
	$(ENTER)
	if [ -e native/sanitize.sh ]; then bash native/sanitize.sh; fi

# The QEMUs, the guest's kernel and its initramfs, and the lab, made here so that progress is seen.
machine:
	$(ENTER)
	python -m tests.qemu.fetch
	python -m tests.fuzz.native
	exec python -m tests.lab.image

# docs/qemu.md says what for. Three minutes on two idle processors, once.
qemu:
	$(ENTER)
	exec python -m tests.qemu.build

install:
	exec systemd/package/install.sh

deb:
	exec systemd/package/deb.sh

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis vgpud/_native.*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
