# make            builds ./run
# make test       everything that is quick (sets up .venv by itself)
# make check-san  the C tests and the fuzzers under ASan and UBSan
# make model      brings SmolLM2-135M-Instruct into models/
# make help       lists the targets

CC      ?= gcc
BUILD   ?= build
RUN     ?= run
CFLAGS  ?= -O3 -g
WARN    := -Wall -Wextra -Wpedantic -Wshadow
ALL_CFLAGS = -std=gnu11 -I. $(WARN) $(CFLAGS) -pthread -ffp-contract=off -fno-math-errno -MMD -MP
LDLIBS  := -lm -pthread

ARCH    := $(shell $(CC) -dumpmachine | cut -d- -f1)
SRC     := $(filter-out run.c,$(wildcard *.c)) $(wildcard app/*.c attention/*.c cache/*.c tokenizer/*.c)
ISA_C   := $(foreach isa,avx2 avx512 avx512vnni amx neon,$(wildcard kernels/*_$(isa).c))
SRC     += $(filter-out $(ISA_C),$(wildcard kernels/*.c))
ifneq (,$(filter x86_64 i686,$(ARCH)))
SRC     += $(filter-out %_neon.c,$(ISA_C))
endif
ifeq ($(ARCH),aarch64)
SRC     += $(filter %_neon.c,$(ISA_C))
endif
OBJ     := $(SRC:%.c=$(BUILD)/%.o)

# Only these files may use more than the baseline instruction set: kernels_select() decides at run time.
AVX2    := -mavx2 -mfma -mf16c
AVX512  := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
$(BUILD)/kernels/%_avx2.o:       ISA_FLAGS = $(AVX2)
$(BUILD)/kernels/%_avx512.o:     ISA_FLAGS = $(AVX512)
$(BUILD)/kernels/%_avx512vnni.o: ISA_FLAGS = $(AVX512) -mavx512vnni
$(BUILD)/kernels/%_amx.o:        ISA_FLAGS = $(AVX512) -mavx512vnni -mamx-tile -mamx-int8
ifeq ($(ARCH),x86_64)
$(BUILD)/tests/unit/test_amx.o:  ISA_FLAGS = $(AVX512) -mavx512vnni -mamx-tile -mamx-int8
endif

TESTS   := $(patsubst tests/unit/%.c,%,$(wildcard tests/unit/test_*.c))

.PHONY: all test unit clean help
all: $(RUN)

$(RUN): $(BUILD)/run.o $(OBJ)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(ISA_FLAGS) -c -o $@ $<

$(BUILD)/test_%: $(BUILD)/tests/unit/test_%.o $(OBJ)
	$(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)

unit: $(TESTS:%=$(BUILD)/%)
	@for t in $^; do $$t || exit 1; done

clean:
	rm -rf $(BUILD) $(RUN)

help:
	@sed -n 's/^# make/make/p' Makefile

-include $(OBJ:.o=.d) $(BUILD)/run.d $(TESTS:%=$(BUILD)/tests/unit/%.d)
