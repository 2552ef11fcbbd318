# latentd: make prints what this machine can build; make all builds build/latentd.
#
#   make all      the daemon            make tests   the test programs
#   make check    style, import direction and every test
#   make bench    checkkernels --bench  make SAN=1 … with ASan and UBSan, under build-san/
#   make CUDA=0   leaves CUDA out

CC      ?= gcc
SAN     ?= 0
WERROR  ?= 1
BUILD   ?= $(if $(filter 1,$(SAN)),build-san,build)
VERSION ?= 0.1.0

PKGS    := libmicrohttpd libcjson libpng
PKG_OK  := $(shell pkg-config --exists $(PKGS) 2>/dev/null && echo yes)

WARN    := -Wall -Wextra -Wshadow -Wconversion -Wformat=2 -Wvla -Wstrict-prototypes -Wmissing-prototypes $(if $(filter 1,$(WERROR)),-Werror)
HARDEN  := -fstack-protector-strong -fPIE -D_FORTIFY_SOURCE=2
CFLAGS  ?= -O2 -g
ALL_CFLAGS := -std=gnu11 $(CFLAGS) $(WARN) -fno-math-errno -fno-trapping-math -pthread -D_GNU_SOURCE \
              -DLATENTD_VERSION='"$(VERSION)"' -Iinclude $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
LDLIBS  := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm -pthread
LDFLAGS += -pie -Wl,-z,relro,-z,now

ifeq ($(SAN),1)
ALL_CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -fPIE
LDFLAGS    += -fsanitize=address,undefined
else
ALL_CFLAGS += $(HARDEN)
endif

# Tier files get the flags of their instruction set by suffix; every other file runs on any x86-64.
AVX2       := -mavx2 -mfma -mf16c -O3
AVX512     := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
AVX512BF16 := $(AVX512) -mavx512bf16
AMX        := $(AVX512) -mamx-tile -mamx-bf16

SRC := $(sort $(wildcard src/*/*.c) $(wildcard kernels/*.c kernels/ref/*.c kernels/plan/*.c kernels/cpu/*.c))
LIB_OBJ := $(SRC:%.c=$(BUILD)/%.o)
MAIN_OBJ := $(BUILD)/src/main.o
CHECK_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard tests/kernels/*.c)))
TESTS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/unit/test_*.c tests/golden/test_*.c tests/api/test_*.c tests/fault/test_*.c)))
# Test folders may hold shared helpers: every .c there that is not test_*.c is linked into that folder's programs.
TEST_HELP = $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard $(1)/test_*.c),$(wildcard $(1)/*.c)))

.PHONY: help all tests check bench clean lint imports format
help:
	@echo "latentd $(VERSION)"
	@echo "  compiler:  $$($(CC) --version 2>/dev/null | head -n 1 || echo 'none: install gcc')"
	@echo "  libraries: $(if $(PKG_OK),found ($(PKGS)),missing; run scripts/quickstart.sh or install libmicrohttpd-dev libcjson-dev libpng-dev)"
	@echo "  CPU tiers: avx2 avx512 avx512bf16 amx are all built; the daemon picks at start-up"
	@echo "  CUDA:      no CUDA backend in this version"
	@echo "targets: all tests check bench clean   variables: SAN=1 WERROR=0 CUDA=0 BUILD=dir CFLAGS=…"

all: $(BUILD)/latentd
tests: $(BUILD)/latentd $(BUILD)/checkkernels $(TESTS)

$(BUILD)/latentd: $(MAIN_OBJ) $(LIB_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/checkkernels: $(CHECK_OBJ) $(LIB_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS)

define TEST_RULE
$(BUILD)/$(1)test_%: $(BUILD)/$(1)test_%.o $(call TEST_HELP,$(patsubst %/,%,$(1))) $$(LIB_OBJ)
	$$(CC) $$(ALL_CFLAGS) $$(LDFLAGS) $$^ -o $$@ $$(LDLIBS)
endef
$(foreach d,tests/unit/ tests/golden/ tests/api/ tests/fault/,$(eval $(call TEST_RULE,$(d))))

$(BUILD)/%_avx2.o: TIER = $(AVX2)
$(BUILD)/%_avx512.o: TIER = $(AVX512)
$(BUILD)/%_avx512bf16.o: TIER = $(AVX512BF16)
$(BUILD)/%_amx.o: TIER = $(AMX)
$(BUILD)/%_emulated.o: TIER = $(AVX512)

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(TIER) -Itests -MMD -MP -c $< -o $@

imports:
	scripts/check_imports.sh

lint:
	clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

check: imports
	scripts/test.sh

bench: $(BUILD)/checkkernels
	$(BUILD)/checkkernels --bench

clean:
	rm -rf build build-san

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
