# make            builds ./run
# make test       builds, then runs all tests that are quick (sets up .venv, brings the model)
# make unit       the C tests alone: no Python
# make unit-blas  those of matrix products with BLAS=1, where OpenBLAS is installed
# make check-san  the C tests and the fuzzers under ASan and UBSan
# make test-long  all of that, and the tests that take minutes
# make model      brings SmolLM2-135M-Instruct into models/
# make venv       the Python environment of the tests, .venv
# make peers      llama.cpp and ik_llama.cpp, built for this machine, in .venv-bench
# make bench      speed beside theirs: a table and a plot in bench/results/
# make help       lists the targets

CC      ?= gcc
BUILD   ?= build
RUN     ?= run
CFLAGS  ?= -O3 -g1
PYTHON  ?= python3
WARN    := -Wall -Wextra -Wpedantic -Wshadow
ALL_CFLAGS = -std=gnu11 -I. $(WARN) $(CFLAGS) -pthread -ffp-contract=off -fno-math-errno -MMD -MP
LDLIBS  := -lm -pthread

# OPENMP=0 is accepted and changes nothing: threads are POSIX threads, no OpenMP runtime is ever needed.
# BLAS=1: prompts with F32, F16 and BF16 weights go through OpenBLAS.
ifeq ($(BLAS),1)
ALL_CFLAGS += -DATTN_BLAS
LDLIBS  += -lopenblas
endif

# As many compilers as there are cores, unless -j says otherwise: the kernels take most of a minute. A make below
# this one shares its jobs.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif

ARCH    := $(shell $(CC) -dumpmachine | cut -d- -f1)
# Those that take longest come first, so that no core is left waiting for them.
ISA_C   := $(foreach isa,avx512vnni avx2 avx512 amx neon neondot,$(wildcard kernels/*_$(isa).c))
ifneq (,$(filter x86_64 i686,$(ARCH)))
SRC     := $(filter-out %_neon.c %_neondot.c,$(ISA_C))
endif
ifeq ($(ARCH),aarch64)
SRC     := $(filter %_neon.c %_neondot.c,$(ISA_C))
endif
SRC     += $(filter-out $(ISA_C),$(wildcard kernels/*.c)) $(filter-out run.c,$(wildcard *.c))
SRC     += $(wildcard app/*.c attention/*.c cache/*.c tokenizer/*.c)
OBJ     := $(SRC:%.c=$(BUILD)/%.o)

# Only these files may use more than the baseline instruction set: kernels_select() decides at run time.
AVX2    := -mavx2 -mfma -mf16c
AVX512  := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
$(BUILD)/kernels/%_avx2.o:       ISA_FLAGS = $(AVX2)
$(BUILD)/kernels/%_avx512.o:     ISA_FLAGS = $(AVX512)
$(BUILD)/kernels/%_avx512vnni.o: ISA_FLAGS = $(AVX512) -mavx512vnni
$(BUILD)/kernels/%_neondot.o:    ISA_FLAGS = -march=armv8.2-a+dotprod
$(BUILD)/kernels/%_amx.o:        ISA_FLAGS = $(AVX512) -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16
ifeq ($(ARCH),x86_64)
$(BUILD)/tests/unit/test_amx.o:  ISA_FLAGS = $(AVX512) -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16
endif

TESTS   := $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_*.c))

.PHONY: all test unit unit-blas check-san test-long model venv peers bench clean help
all: $(RUN)

$(RUN): $(BUILD)/run.o $(OBJ)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ISA_FLAGS) -c -o $@ $<

$(BUILD)/bench-%: $(BUILD)/bench/%.o $(OBJ)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/test_%: $(BUILD)/tests/unit/test_%.o $(OBJ)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

# Runs every program, whatever the others say; .ci/run reads the results.
unit: $(TESTS:%=$(BUILD)/%)
	@rm -f $(BUILD)/unit.txt; for t in $^; do \
	    if $$t; then r=ok; else r=FAILED; fi; echo "$$r $$t" >> $(BUILD)/unit.txt; done; \
	 ! grep FAILED $(BUILD)/unit.txt

# A build of its own, as objects with BLAS=1 differ, and a quick one: it is for exactness.
unit-blas:
	@if echo 'int main(void) { return 0; }' | \
	    $(CC) -x c -include cblas.h -o /dev/null - -lopenblas 2>/dev/null; then \
	    $(MAKE) -s BLAS=1 BUILD=$(BUILD)/blas CFLAGS=-O1 $(BUILD)/blas/test_matmul && $(BUILD)/blas/test_matmul; \
	 else echo "unit-blas: skipped, there is no OpenBLAS"; fi

# Without a network and without the model, its tests are skipped.
test: all venv
	-@$(MAKE) -s model
	@$(MAKE) -s unit; unit=$$?; $(MAKE) -s unit-blas || unit=1; \
	 RUN=$(RUN) .venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal \
	     --junitxml=$(BUILD)/pytest.xml tests && exit $$unit

SAN       := $(BUILD)/san
SAN_FLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
FUZZERS   := $(SAN)/fuzz_gguf $(SAN)/fuzz_tokenizer

$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/heap_mmap.o $(OBJ)
	$(CC) $(CFLAGS) -Wl,--wrap=mmap,--wrap=munmap -o $@ $^ $(LDLIBS)

check-san: venv
	$(MAKE) BUILD=$(SAN) RUN=$(SAN)/run CFLAGS="$(SAN_FLAGS)" all unit $(FUZZERS)
	.venv/bin/python tests/reference/tiny.py $(SAN)/tiny.gguf
	for f in $(FUZZERS); do $$f $(SAN)/tiny.gguf 2000 1 || exit 1; done
	RUN=$(SAN)/run .venv/bin/python tests/fuzz/fuzz_models.py
	RUN=$(SAN)/run .venv/bin/python tests/fuzz/fuzz_cli.py

test-long: test
	$(MAKE) check-san
	RUN=$(RUN) .venv/bin/python -m pytest -q -m long tests

model:
	@$(PYTHON) scripts/get_model.py

# torch comes first and alone: together with the others, pip may choose a build for GPUs.
venv: .venv/done
.venv/done: tests/requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q $$(grep ^torch= $<)
	.venv/bin/pip install -q -r $<
	@touch $@

peers: .venv-bench/done
.venv-bench/done: bench/requirements.txt bench/setup_peers.py
	$(PYTHON) bench/setup_peers.py .venv-bench
	@touch $@

bench: all venv model peers
	.venv/bin/python bench/compare.py

clean:
	rm -rf $(BUILD) $(RUN)

help:
	@sed -n 's/^# make/make/p' Makefile

-include $(OBJ:.o=.d) $(BUILD)/run.d $(TESTS:%=$(BUILD)/tests/unit/%.d)
