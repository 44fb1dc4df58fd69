# Everything from a fresh clone, with Python 3.11 or later, make and a C++ compiler:
#   make demo      pictures from three prompts into out/
#   make test      lint, types, all tests (network off), JOBS=2 files at a time
#   make bench     benchmarks, of engines too; the README's table is made from their JSON
#   make docs      charts, tables, pages from committed numbers; the README's pictures anew
#   make upstream SUITE=path    diffusers' own tests/schedulers, from a checkout of diffusers
#   make format    what the lint asks for;    make clean    back to the clone
# The first of them makes .venv and builds (while what csrc knows nothing of is installed);
# the next ones find that done. PYTHON=python3.12 chooses.
# Where nvcc is, CUDA kernels are built, too (FASTDIFF_CUDA=0 make demo leaves them out); `make test`
# judges what the compiler said of them and builds what is missing. Test processes have one thread each,
# but for tests of threads: with two on two cores Triton's interpreter took twice as long. Files come
# in the order of tests/conftest.py; by their number of tests the longest came last.

PYTHON ?= python3
BIN := .venv/bin
SUITE ?=
JOBS ?= 2
# not compiled to bytecode, most of which nobody imports: that took half of the time
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -q --no-compile \
	-c constraints.txt
NATIVE := $(wildcard csrc/*)
READY := .venv/.ready

export HF_HUB_OFFLINE := 1
unexport PYTHONDONTWRITEBYTECODE # or each of hundreds of processes compiles our modules again

.PHONY: demo test bench docs upstream format clean

$(READY): pyproject.toml constraints.txt setup.py .ci/requirements.py $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) setuptools pybind11 ninja
	mkdir -p build && $(BIN)/python .ci/requirements.py test dev bench > build/requirements.txt
	$(BIN)/python setup.py -q build_ext --inplace & built=$$!; \
		$(INSTALL) torch==2.13.0 && $(INSTALL) -r build/requirements.txt; installed=$$?; \
		wait $$built && test $$installed = 0
	$(INSTALL) --no-build-isolation --no-deps -e .
	touch $@

DEMO = $(BIN)/fastdiff generate "a red circle above a blue square" "a green triangle" \
	"a yellow cross left of a purple circle" --sampler dpmpp_2m --steps 20 --seed 0 --out out

demo: $(READY)
	$(DEMO)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=15 -n $(JOBS) --dist loadfile \
		--no-loadscope-reorder

bench: $(READY)
	$(INSTALL) openvino
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --engine

# docs/generated.py is what the scripts share
docs: $(READY)
	for script in $(filter-out docs/generated.py,$(wildcard docs/*.py)); do \
		$(BIN)/python $$script || exit 1; done
	$(BIN)/python -m benchmarks.table

upstream: $(READY)
	@test -n "$(SUITE)" || { echo "usage: make upstream SUITE=path/to/a/checkout/of/diffusers"; exit 2; }
	$(BIN)/python -m tests.upstream $(SUITE)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

clean:
	rm -rf .venv build out *.egg-info fastdiff/_C*.so fastdiff/_build_info.json
	rm -rf examples/javascript/node_modules
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
