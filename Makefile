PYTHON ?= python3

# in an activated environment everything goes there, so that no second PyTorch is installed
venv := $(or $(VIRTUAL_ENV),.venv)
python := $(venv)/bin/python
installed := $(venv)/pvt_kernels-installed
# the last version before the modules of SegFormer got other names, beside what it needs
old_transformers := build/transformers-4
# those of torch 2.9 and 2.10; the environment's torch brings a newer one
old_tritons := 3.6 3.5
triton_table := benchmarks/results/triton-kernels.md
# the oldest packages that pyproject.toml allows
oldest := $(abspath build/oldest)
# what depends on them. Left out are the operators' own tests: what is compiled ahead gives one result
# under every PyTorch, and all of it runs in the layers' tests. So is Hugging Face's kernels:
# transformers 5.1 takes none from 0.11 on, and the mapping needs a newer one.
oldest_tests := tests/ops/test_transforms.py tests/test_layers.py tests/test_repeated_calls.py \
	tests/backends/test_forced.py \
	$(addprefix tests/integrations/test_,patch.py at_call.py timm.py transformers.py \
		transforms_and_tracers.py) \
	$(addprefix tests/models/test_,blocks.py variants.py checkpoint.py timm_registry.py) \
	tests/systems/datasets $(addprefix tests/systems/test_,coco_figures.py classification.py \
		segmentation.py detection.py) tests/test_build.py
# the oldest that the CUDA kernels compile with; its files have the names of those of CUDA 12
old_cuda := $(venv)/cuda-11.8
# whose nvdisasm reads sm_70
disassembler := build/triton-3.3
cpp_files := $(shell find csrc python tests/csrc tests/host tests/simt -name '*.h' -o -name '*.cpp' \
	-o -name '*.cu' -o -name '*.cuh')
build_files := setup.py CMakeLists.txt $(shell find csrc python -type f)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(installed)  ## install everything, in place, into the active environment or else .venv

test: $(installed)  ## run the tests, in a process a core
	$(python) -m pytest tests --numprocesses logical --dist loadfile --no-loadscope-reorder

test-thorough: $(installed) $(old_cuda)/installed $(disassembler)/installed  ## run the tests that take long
	$(python) -m pytest tests -m thorough --numprocesses logical --dist loadfile
	$(python) -m pytest tests/simt/test_main_loops.py

test-nightly: $(installed) $(old_cuda)/installed  ## run the tests that only a night has time for
	$(python) -m pytest tests -m nightly --numprocesses logical --dist loadfile
	$(python) -m tests.cpu_paths amx_bf16

fuzz: $(installed)  ## run the fuzzes' 500 cases each, or CASES=N; PVT_KERNELS_FUZZ_SEED is the first
	PVT_KERNELS_FUZZ_CASES=$(or $(CASES),500) $(python) -m pytest tests/fuzz -m thorough \
		--numprocesses logical --dist loadfile

test-cpu-paths: $(installed)  ## run the CPU kernels' tests on every lower code path of this CPU
	$(python) -m tests.cpu_paths

test-systems: $(installed)  ## train each system on generated data until it has learned
	$(python) -m pytest tests -m systems

test-old-transformers: $(old_transformers)/installed  ## test patch() on transformers 4
	PYTHONPATH=$(old_transformers) $(python) -c \
		'import transformers; assert transformers.__version__.startswith("4.")'
	PYTHONPATH=$(old_transformers) $(python) -m pytest tests/integrations/test_transformers.py \
		--numprocesses logical

aot: $(installed) $(old_tritons:%=build/triton-%/installed)  ## compile the Triton kernels for ARCHS="80 90", else for all
	$(python) -m tests.aot $(if $(ARCHS),--archs $(ARCHS),--output $(triton_table))
	for version in $(old_tritons); do \
		export PYTHONPATH=build/triton-$$version && \
		$(python) -c "import triton; assert triton.__version__.startswith('$$version.')" && \
		$(python) -m tests.aot --archs 80 90 --dtypes fp16 bf16 fp32 --head-dims 64 \
			$(if $(ARCHS),,--output $(triton_table) --append) || exit; \
	done

test-oldest: $(oldest)/installed  ## run a core of the tests on the oldest packages that pyproject.toml allows
	PYTHONPATH=$(oldest) $(python) -m tests.oldest
	PYTHONPATH=$(oldest) $(python) -m pytest $(oldest_tests) --numprocesses logical

sanitize: $(installed)  ## run the CPU kernels on random shapes under ASan and UBSan
	$(venv)/bin/cmake -S tests/csrc -B build/sanitize -G Ninja \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(venv)/bin/ninja)
	$(venv)/bin/cmake --build build/sanitize
	build/sanitize/fuzz_cpu

cubins: $(installed) $(disassembler)/installed  ## tabulate the CUDA kernels as compiled
	$(python) -m pytest tests/simt/test_compile_matrix.py tests/simt/test_main_loops.py
	cat build/compile_matrix.md build/main_loops.md > benchmarks/results/cuda-kernels.md

host-time: $(installed)  ## measure the host code of a layer on a stand-in for the CUDA driver
	TRITON_INTERPRET=0 TRITON_CACHE_DIR=build/triton-cache $(python) -m tests.host.host_time

bench: $(installed)  ## run the benchmark's quick form
	$(python) -m pvt_kernels bench --quick

bench-full: $(installed)  ## run the whole benchmark
	$(python) -m pvt_kernels bench

bench-patch: $(installed)  ## measure other libraries' models before and after patch()
	$(python) -m pvt_kernels bench-patch

results: $(installed)  ## make RUN=benchmarks/runs/MACHINE the published results, and the README's
	test -n "$(RUN)" || { echo "make results RUN=benchmarks/runs/MACHINE" >&2; exit 2; }
	$(python) -m pvt_kernels publish $(RUN)

gpu:  ## build, check and measure on the GPU at hand, with PYTHON as it is and no network
	$(PYTHON) benchmarks/gpu/run.py --source . --out benchmarks/runs/gpu --budget 530

lint: $(installed)  ## check style, formatting, types, and that imports go one way
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(venv)/bin/clang-format --dry-run --Werror $(cpp_files)
	$(venv)/bin/lint-imports
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(python) -m pyright --pythonpath $(python)

docs: $(installed)  ## build the documentation into site/, with strict links
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet

format: $(installed)  ## format the code
	$(python) -m ruff check --fix
	$(python) -m ruff format
	$(venv)/bin/clang-format -i $(cpp_files)

clean:  ## remove everything that was built; the environment keeps its packages
	rm -rf build dist site pvt_kernels.egg-info pvt_kernels/_C.*.so pvt_kernels/_C.*.pyd $(installed)
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find pvt_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(installed): pyproject.toml $(build_files)
	test -x $(python) || $(PYTHON) -m venv $(venv)
	$(python) -m pip install --editable '.[dev]'
	touch $@

$(old_transformers)/installed: $(installed)
	$(python) -m pip install --no-deps --no-compile --upgrade --target $(old_transformers) \
		'transformers==4.57.*' 'huggingface-hub<1' 'tokenizers<=0.23.0' \
		'kernels==0.10.*' tomlkit requests urllib3 idna certifi charset-normalizer
	touch $@

build/triton-%/installed: $(installed)
	$(python) -m pip install --no-deps --no-compile --upgrade --target $(@D) 'triton==$*.*'
	touch $@

$(oldest)/installed: $(installed) tests/oldest.txt
	rm -rf $(oldest)
	$(python) -m pip install --no-deps --no-compile --no-cache-dir --target $(oldest) \
		--requirement tests/oldest.txt
	tests/cuda_stubs.sh $(oldest)
	touch $@

$(disassembler)/installed: $(installed)
	$(python) -m pip install --no-deps --no-compile --upgrade --target $(disassembler) triton==3.3.1
	touch $@

$(old_cuda)/installed: $(installed)
	$(python) -m pip install --no-deps --no-compile --upgrade --target $(old_cuda) \
		nvidia-cuda-nvrtc-cu11==11.8.89 nvidia-cuda-runtime-cu11==11.8.89 \
		nvidia-cuda-nvcc-cu11==11.8.89
	touch $@

.PHONY: help venv test test-thorough test-nightly fuzz test-cpu-paths test-systems \
	test-old-transformers test-oldest aot sanitize cubins host-time gpu bench bench-full \
	bench-patch results lint docs format clean
