# run - test - check - slow-test - fuzz - soak - bench - dist.  CI calls only these.  PYTHON and VENV choose another Python.

PYTHON ?= python3
VENV ?= .venv
export PYTHON VENV

# PORT=9443 moves the demo, PYTEST="-k relay -x" goes to pytest, FUZZ="http1 names" names targets for SECONDS.
PORT ?= 8443
PYTEST ?=
SECONDS ?= 60
FUZZ ?=
MINUTES ?= 5
VISITS ?=

# What the journeys of the tests put behind a label, and before it.
PROGRAMS = caddy git lego openssh-client openssh-server pebble

SOURCES = taas.py taas_admin.py taas_agent.py make_cert.py taaslib taasadmin tools bench

.PHONY: help run test check slow-test fuzz soak bench dist clean dev

help:
	@echo "make run        the whole journey on this machine: service, agent, sample page (Ctrl-C ends it)"
	@echo "make test       the tests (slow ones: make slow-test)"
	@echo "make check      ruff, mypy --strict, the tests"
	@echo "make fuzz       a minute of new inputs for all that reads from the network"
	@echo "make soak       five minutes of faults around a steady visitor, and what they leave behind (MINUTES=10)"
	@echo "make bench      our service beside its peers (QUICK=1: under two minutes; YES=1: fetch the peers unasked)"
	@echo "make dist       dist/taas.pyz, dist/taas.tar.gz and their SHA-256SUMS"
	@echo "make clean      forget what the others made"

run:
	@sh tools/need.sh python3 python3-venv openssl curl
	@sh tools/environment.sh run
	@exec "$(VENV)/bin/python" tools/run_demo.py --port $(PORT) --end-with-parent

dev:
	@sh tools/need.sh python3 python3-venv
	@test -f "$(VENV)/requirements-dev.txt" || sh tools/need.sh --optional openssl curl iproute2 nftables chromium $(PROGRAMS)
	@sh tools/environment.sh dev

test: dev
	"$(VENV)/bin/python" -m pytest $(PYTEST)

check: dev
	"$(VENV)/bin/python" -m ruff check .
	"$(VENV)/bin/python" -m mypy --strict $(SOURCES)
	"$(VENV)/bin/python" -m pytest $(PYTEST)

# pytest calls it an error (5) when it finds no test; here that is a fact worth a line.
slow-test: dev
	"$(VENV)/bin/python" -m pytest -m slow $(PYTEST) || { [ $$? = 5 ] && echo "there are no slow tests"; }

fuzz: dev
	@sh tools/environment.sh fuzz
	@"$(VENV)/bin/python" tools/fuzz.py --seconds $(SECONDS) $(FUZZ)

# VISITS=100000: so many visits, one after the other, and no faults.
soak: dev
	@"$(VENV)/bin/python" tools/soak.py $(if $(VISITS),--visits $(VISITS),--minutes $(MINUTES))

# Takes half an hour and wants a machine that does nothing else; bench/README.md says what it measures.
bench:
	@sh tools/need.sh python3 python3-venv openssl gcc libssl-dev
	@sh tools/environment.sh run
	@sh bench/fetch_peers.sh
	@"$(VENV)/bin/python" bench/run.py $(if $(QUICK),--quick)

dist:
	@sh tools/need.sh python3 python3-venv
	@sh tools/environment.sh run
	@"$(VENV)/bin/python" tools/dist.py

clean:
	rm -rf .venv .venv-* run dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
