# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRAS := cpu,convert,torch,server
DEV := ray,fpga,dev
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow bench bench-peers lint models packages clean

demo: $(VENV)/.demo
	$(PY) examples/demo.py

# Two processes, each file in one of them; more where there are cores and some 3 GB of memory for each: make test JOBS=4.
JOBS ?= 2
test: $(VENV)/.dev packages models lint
	$(PY) -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.dev packages models
	$(PY) examples/real_models.py all --out build/models
	$(PY) -m pytest -m slow

bench: $(VENV)/.dev packages models
	$(PY) -m tests.bench

# Other tools on the same networks, each in an environment of its own under build/peers: gigabytes, and a quarter of an hour.
bench-peers: $(VENV)/.dev packages models
	$(PY) -m tests.bench_peers

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The real models that the default tests use; those of several hundred MB are left to test-slow.
models: $(VENV)/.dev
	$(PY) examples/real_models.py efficientnet-lite0 magika silero-vad basic-pitch squeezenet shufflenet inception_v1 \
	  inception_v2 densenet121 resnet50 resnet8 ds-cnn mobilenet-vww autoencoder --out build/models

# Debian packages: the Fashion-MNIST images, the emulator, compilers, certificates for tests, what lists processes, simulates and
# synthesises logic, and opens pages. A missing one is a failure.
DEBIAN := dataset-fashion-mnist qemu-user gcc g++ make libc6-dev procps openssl yosys verilator iverilog chromium-headless-shell
COMMANDS := qemu-aarch64 cc g++ ps openssl yosys verilator iverilog chromium-headless-shell
packages:
	@missing=; for command in $(COMMANDS); do command -v $$command >/dev/null || missing="$$missing $$command"; done; \
	if [ ! -d /usr/share/datasets/fashion-mnist ] || [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(DEBIAN) >/dev/null; \
	  else echo "install the Debian packages: sudo apt-get install $(DEBIAN)"; exit 1; fi; fi

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed, as constraints.txt pins; set PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; } || { echo "install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its pin: left to the resolver it brings gigabytes of CUDA.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e '.[$(EXTRAS)]' pillow
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[$(EXTRAS),$(DEV)]'
	touch $@

clean:
	rm -rf build dist $(VENV)
