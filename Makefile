# latentd: make prints what this machine can build; make all builds build/latentd.
#
#   make all      the daemon            make tests   the test programs
#   make check    style, import direction and every test
#   make bench    checkkernels --bench  make SAN=1 … with ASan and UBSan, under build-san/
#   make CUDA=0   leaves CUDA out       make install PREFIX=/usr/local DESTDIR=
#   make soak     a daemon under mixed clients for MINUTES=10
#   make fuzz     libFuzzer targets of the parsers of what clients send, under build/fuzz; needs clang

CC      ?= gcc
SAN     ?= 0
WERROR  ?= 1
BUILD   ?= $(if $(filter 1,$(SAN)),build-san,build)
VERSION ?= 0.1.0
NVCC    ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
# CUDA 12.4 or newer, and the C++ compiler that nvcc calls; empty: not here.
NVCC_RELEASE := $(if $(NVCC),$(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p'))
NVCC_OK := $(if $(NVCC_RELEASE),$(shell printf '12.4\n$(NVCC_RELEASE)\n' | sort -CV && command -v $(CXX) >/dev/null && echo yes))
# Not in sanitizer builds: there the kernels run on the emulated GPU (tests/emulator).
CUDA    ?= $(if $(filter 1,$(SAN)),0,$(if $(NVCC_OK),1,0))

PKGS    := libmicrohttpd libcjson libpng libjpeg libwebp libwebpdemux zlib
PKG_OK  := $(shell pkg-config --exists $(PKGS) 2>/dev/null && echo yes)

# FFmpeg, for videos: left out where it is not installed, or with FFMPEG=0.
FFMPEG_PKGS := libavcodec libavformat libavutil
FFMPEG  ?= $(if $(shell pkg-config --exists $(FFMPEG_PKGS) 2>/dev/null && echo yes),1,0)

WARN    := -Wall -Wextra -Wshadow -Wconversion -Wformat=2 -Wvla -Wstrict-prototypes -Wmissing-prototypes $(if $(filter 1,$(WERROR)),-Werror)
HARDEN  := -fstack-protector-strong -fPIE -D_FORTIFY_SOURCE=2
CFLAGS  ?= -O2 -g
ALL_CFLAGS := -std=gnu11 $(CFLAGS) $(WARN) -fno-math-errno -fno-trapping-math -pthread -D_GNU_SOURCE \
              -DLATENTD_VERSION='"$(VERSION)"' -Iinclude $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
# giflib has no pkg-config file of its own; distributions that add one name it differently.
LDLIBS  := $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lgif -lm -pthread
LDFLAGS += -pie -Wl,-z,relro,-z,now

ifeq ($(FFMPEG),1)
ALL_CFLAGS += $(shell pkg-config --cflags $(FFMPEG_PKGS))
LDLIBS     := $(shell pkg-config --libs $(FFMPEG_PKGS)) $(LDLIBS)
endif

ifeq ($(SAN),1)
# What of ref runs without instrumentation most of the time: see tests/sanitizer/ref_sums.c.
PLAIN      := accumulate int8_accumulate attention
SAN_FLAGS  := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
ALL_CFLAGS += $(SAN_FLAGS) -fPIE
LDFLAGS    += -fsanitize=address,undefined $(PLAIN:%=-Wl,--wrap=ref_%)
else
ALL_CFLAGS += $(HARDEN)
endif

# Tier files get the flags of their instruction set by suffix; every other file runs on any x86-64. With all checks
# GCC needs minutes for some of them: in a sanitizer build UBSan leaves out what mostly ASan or the processor sees as well.
TIER_OPT   := -O3
ifeq ($(SAN),1)
TIER_OPT   := -O2 -g1 -fno-sanitize=null,alignment,object-size,pointer-overflow
endif
AVX2       := -mavx2 -mfma -mf16c $(TIER_OPT)
AVX512     := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
AVX512BF16 := $(AVX512) -mavx512bf16
AVX512VNNI := $(AVX512) -mavx512vnni
AMX        := $(AVX512BF16) -mavx512vbmi -mamx-tile -mamx-bf16 -mamx-int8 -falign-loops=64

# CUDA: the runtime is linked in and finds the driver by itself when the program starts; cuDNN and cuBLASLt are
# opened at run time.
CUDA_HOME  := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_CODES := $(if $(filter 1,$(CUDA)),$(shell $(NVCC) --list-gpu-code 2>/dev/null))
CUDA_ARCHS ?= 80 86 89 90a $(if $(filter sm_100,$(CUDA_CODES)),100)
CUDA_PTX   := $(lastword $(CUDA_ARCHS))
CUDA_GEN   := $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
              -gencode arch=compute_$(patsubst %a,%,$(CUDA_PTX)),code=compute_$(patsubst %a,%,$(CUDA_PTX))
NVCCFLAGS  := -std=c++17 -O3 -lineinfo -Xcompiler -fPIE,-Wall,-Wextra,-Wshadow --expt-relaxed-constexpr \
              $(if $(filter 1,$(WERROR)),-Werror all-warnings) -D_GNU_SOURCE -Iinclude \
              $(if $(filter 90a,$(CUDA_ARCHS)),-DLATENTD_SM90A=1)
# What the dynamic loader would open at run time of the names $(1), and whether header $(2) is here to build against:
# one without the other is said, too.
loader_finds = $(firstword $(foreach n,$(1),$(wildcard $(addsuffix /$(n),$(subst :, ,$(LD_LIBRARY_PATH)))) \
               $(shell PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | sed -n 's|^[[:space:]]*$(n) .*=> ||p' | head -n 1)))
has_header   = $(shell echo '\#include <$(1)>' | $(CC) -isystem $(CUDA_HOME)/include -x c -E - >/dev/null 2>&1 && echo yes)
library_line = $(or $(call loader_finds,$(1)),not found by the dynamic loader)$(if $(call has_header,$(2)),,; no $(2): left out of this build)
ifeq ($(CUDA),1)
LDLIBS     += -L$(CUDA_HOME)/lib64 -lcudart_static -lstdc++ -ldl -lrt
endif

SRC := $(sort $(filter-out src/pull/%,$(wildcard src/*/*.c)) $(wildcard kernels/*.c kernels/ref/*.c kernels/plan/*.c kernels/cpu/*.c))
SRC := $(filter-out $(if $(filter 1,$(FFMPEG)),src/media/mp4_none.c,src/media/mp4.c),$(SRC))
LIB_OBJ := $(SRC:%.c=$(BUILD)/%.o)
CUDA_SRC := $(sort $(wildcard kernels/cuda/*.c kernels/cuda/*.cu))
ifeq ($(CUDA),1)
LIB_OBJ += $(patsubst %,$(BUILD)/%.o,$(basename $(CUDA_SRC)))
endif
ifeq ($(SAN),1)
LIB_OBJ += $(addprefix $(BUILD)/tests/sanitizer/,ref_sums.o plain_activation.o plain_int8.o plain_attention.o)
endif
# The CUDA kernels on the CPU, for tests: see tests/emulator/emulator.h.
EMULATED := $(BUILD)/emulated
EMULATED_OBJ := $(filter-out $(BUILD)/kernels/backend.o $(BUILD)/kernels/cuda/%,$(LIB_OBJ)) $(EMULATED)/kernels/backend.o \
                $(patsubst %,$(EMULATED)/%.o,$(basename $(CUDA_SRC) $(filter-out %/test_emulator.cc,$(wildcard tests/emulator/*.cc))))
EMULATED_TESTS := $(EMULATED)/test_emulator $(EMULATED)/test_library $(EMULATED)/test_step $(EMULATED)/test_trial \
                $(EMULATED)/checkkernels $(EMULATED)/latentd \
                $(addprefix $(EMULATED)/fake/,libnvidia-ml.so.1 libcublasLt.so.13 libcudnn.so.9) \
                $(patsubst %.c,$(EMULATED)/%,$(sort $(wildcard tests/golden/test_*.c)))
MAIN_OBJ := $(BUILD)/src/main.o
# Downloads are a program of their own: the daemon links no HTTP client.
PULL_PKGS := libcurl libcrypto
PULL_OK   := $(shell pkg-config --exists $(PULL_PKGS) 2>/dev/null && echo yes)
PULL      := $(if $(PULL_OK),$(BUILD)/latentd-pull)
PULL_OBJ  := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard src/pull/*.c src/base/*.c))) $(BUILD)/src/weights/model_find.o
CHECK_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard tests/kernels/*.c)))
TESTS := $(patsubst %.c,$(BUILD)/%,$(sort $(wildcard tests/unit/test_*.c tests/golden/test_*.c tests/api/test_*.c tests/fault/test_*.c $(if $(PULL_OK),tests/pull/test_*.c))))
# Test folders may hold shared helpers: every .c there that is not test_*.c is linked into that folder's programs.
TEST_HELP = $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard $(1)/test_*.c),$(wildcard $(1)/*.c)))

.PHONY: help all tests check bench clean lint imports format
help:
	@echo "latentd $(VERSION)"
	@echo "  compiler:  $$($(CC) --version 2>/dev/null | head -n 1 || echo 'none: install gcc')"
	@echo "  libraries: $(if $(PKG_OK),found ($(PKGS)),missing; run scripts/quickstart.sh or install libmicrohttpd-dev libcjson-dev libpng-dev libjpeg-dev libwebp-dev libgif-dev zlib1g-dev)"
	@echo "  downloads: $(if $(PULL_OK),latentd pull is built,latentd pull is left out: install libcurl4-openssl-dev libssl-dev)"
	@echo "  CPU tiers: avx2 avx512 avx512bf16 amx are all built; the daemon picks at start-up"
	@echo "  CUDA:      $(if $(filter 1,$(CUDA)),$(NVCC_RELEASE) at $(NVCC); GPUs: $(CUDA_ARCHS) and newer,$(if $(NVCC_OK),left out (CUDA=0),$(if $(NVCC_RELEASE),nvcc $(NVCC_RELEASE) found; 12.4 or newer and $(CXX) are needed,no nvcc found): only the CPU backends))"
	$(if $(filter 1,$(CUDA)),@echo "  cuBLASLt:  $(call library_line,libcublasLt.so.13 libcublasLt.so.12,cublasLt.h)")
	$(if $(filter 1,$(CUDA)),@echo "  cuDNN:     $(call library_line,libcudnn.so.9,cudnn.h)")
	@echo "  FFmpeg:    $(if $(filter 1,$(FFMPEG)),found: videos are encoded,left out: no MP4 from image-to-video; install libavcodec-dev libavformat-dev libavutil-dev)"
	@echo "targets: all tests check bench clean   variables: SAN=1 WERROR=0 CUDA=0 FFMPEG=0 BUILD=dir CFLAGS=…"

all: $(BUILD)/latentd $(PULL)
tests: $(BUILD)/latentd $(PULL) $(BUILD)/checkkernels $(TESTS) $(EMULATED_TESTS)

$(BUILD)/latentd: $(MAIN_OBJ) $(LIB_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(BUILD)/latentd-pull: $(PULL_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(shell pkg-config --libs libcjson $(PULL_PKGS)) -pthread -lm
$(BUILD)/src/pull/%.o: TIER = $(shell pkg-config --cflags $(PULL_PKGS))

$(BUILD)/checkkernels: $(CHECK_OBJ) $(LIB_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(EMULATED)/checkkernels: $(CHECK_OBJ) $(EMULATED_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS) -lstdc++

$(EMULATED)/test_emulator: $(EMULATED)/tests/emulator/test_emulator.o $(EMULATED_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS) -lstdc++

$(EMULATED)/latentd: $(MAIN_OBJ) $(EMULATED_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS) -lstdc++

$(EMULATED)/test_library $(EMULATED)/test_step $(EMULATED)/test_trial: $(EMULATED)/test_%: $(EMULATED)/tests/emulator/test_%.o $(EMULATED_OBJ)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS) -lstdc++

# Libraries that the programs over the emulator open at run time; they enqueue through the emulated CUDA runtime.
$(EMULATED)/%: LDFLAGS += -rdynamic
$(EMULATED)/fake/libnvidia-ml.so.1: tests/emulator/fake_nvml.c
$(EMULATED)/fake/libcublasLt.so.13: tests/emulator/fake_cublaslt.c
$(EMULATED)/fake/libcudnn.so.9: tests/emulator/fake_cudnn.c
$(EMULATED)/fake/lib%:
	@mkdir -p $(@D)
	$(CC) $(filter-out -fPIE,$(ALL_CFLAGS)) -Itests/emulator -fPIC -shared $< -o $@ -lm

$(EMULATED)/tests/golden/test_%: $(BUILD)/tests/golden/test_%.o $(EMULATED_OBJ)
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS) -lstdc++

$(EMULATED)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(EMULATED_FLAGS) -MMD -MP -c $< -o $@

$(EMULATED)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(CXX) -x c++ $(CXX_FLAGS) $(EMULATED_FLAGS) -MMD -MP -c $< -o $@

$(EMULATED)/%.o: %.cc Makefile
	@mkdir -p $(@D)
	$(CXX) $(CXX_FLAGS) $(EMULATED_FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(CUDA_GEN) -MMD -MP -c $< -o $@

define TEST_RULE
$(BUILD)/$(1)test_%: $(BUILD)/$(1)test_%.o $(call TEST_HELP,$(patsubst %/,%,$(1))) $$(LIB_OBJ)
	$$(CC) $$(ALL_CFLAGS) $$(LDFLAGS) $$^ -o $$@ $$(LDLIBS)
endef
$(foreach d,tests/unit/ tests/golden/ tests/api/ tests/fault/ tests/pull/,$(eval $(call TEST_RULE,$(d))))

# A daemon under mixed clients for MINUTES; not part of `make tests`.
MINUTES ?= 10
$(BUILD)/tests/soak/soak: $(BUILD)/tests/soak/soak.o $(BUILD)/tests/api/client.o
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) $^ -o $@ $(LDLIBS)
.PHONY: soak
soak: $(BUILD)/latentd $(BUILD)/tests/soak/soak
	LATENTD_BIN=$(BUILD)/latentd $(BUILD)/tests/soak/soak $(MINUTES)

# The fake hub computes digests.
$(BUILD)/tests/pull/%: LDLIBS += $(shell pkg-config --libs libcrypto 2>/dev/null)

# Files that are built into the program.
$(BUILD)/src/http/docs.o $(EMULATED)/src/http/docs.o: $(wildcard src/http/pages/*)

# Whether CUDA is in: the only object that asks is built anew when the answer changes.
CUDA_STAMP := $(BUILD)/cuda-$(CUDA).stamp
$(CUDA_STAMP):
	@mkdir -p $(@D)
	@rm -f $(BUILD)/cuda-*.stamp
	@touch $@
$(BUILD)/kernels/backend.o: $(CUDA_STAMP)
$(BUILD)/kernels/backend.o: TIER = $(if $(filter 1,$(CUDA)),-DLATENTD_CUDA=1)
$(BUILD)/kernels/cuda/%.o: TIER = -isystem $(CUDA_HOME)/include

# Whether FFmpeg is in: the object that says so is built anew when the answer changes, and all is linked again.
FFMPEG_STAMP := $(BUILD)/ffmpeg-$(FFMPEG).stamp
$(FFMPEG_STAMP):
	@mkdir -p $(@D)
	@rm -f $(BUILD)/ffmpeg-*.stamp
	@touch $@
	$(if $(filter 1,$(FFMPEG)),,@echo "FFmpeg is left out: image-to-video makes frames, no MP4")
$(BUILD)/src/media/mp4.o $(BUILD)/src/media/mp4_none.o: $(FFMPEG_STAMP)

# What packed weights look like, by the sources that say so: a file of them that another build left is not used.
LAYOUT_SOURCES := $(wildcard kernels/int8.h kernels/cpu/*.c kernels/cpu/*.h kernels/ref/pack.c kernels/ref/ref.h)
LAYOUT := $(shell cat $(LAYOUT_SOURCES) | sha256sum | cut -c1-16)
$(BUILD)/kernels/cpu/cpu.o $(EMULATED)/kernels/cpu/cpu.o: ALL_CFLAGS += -DLATENTD_LAYOUT='"$(LAYOUT)"'
$(BUILD)/kernels/cpu/cpu.o $(EMULATED)/kernels/cpu/cpu.o: $(LAYOUT_SOURCES)

# The commit, for the metrics: the only object that asks is built anew when it changes.
COMMIT ?= $(or $(shell git describe --always --dirty --exclude '*' 2>/dev/null),unknown)
COMMIT_STAMP := $(BUILD)/commit-$(COMMIT).stamp
$(COMMIT_STAMP):
	@mkdir -p $(@D)
	@rm -f $(BUILD)/commit-*.stamp
	@touch $@
$(BUILD)/src/http/metrics.o $(EMULATED)/src/http/metrics.o: $(COMMIT_STAMP)
$(BUILD)/src/http/metrics.o $(EMULATED)/src/http/metrics.o: ALL_CFLAGS += -DLATENTD_COMMIT='"$(COMMIT)"'

# -Wno-psabi: a note on how arguments aligned to 64 were passed before GCC 4.6.
EMULATED_FLAGS := -Itests/emulator -Ikernels/cuda -DLATENTD_CUDA=1 -DLATENTD_CUDA_EMULATED=1 -Wno-psabi
CXX_FLAGS := -std=gnu++17 $(CFLAGS) -Wall -Wextra -Wshadow $(if $(filter 1,$(WERROR)),-Werror) -fno-math-errno -pthread -D_GNU_SOURCE -fPIE \
             -Iinclude $(SAN_FLAGS)

$(BUILD)/%_avx2.o: TIER = $(AVX2)
$(BUILD)/%_avx512.o: TIER = $(AVX512)
$(BUILD)/%_avx512bf16.o: TIER = $(AVX512BF16)
$(BUILD)/%_avx512vnni.o: TIER = $(AVX512VNNI)
$(BUILD)/%_amx.o: TIER = $(AMX)
$(BUILD)/src/media/resize.o: TIER = -O3
$(BUILD)/%_emulated.o: TIER = $(AVX512)

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(TIER) -Itests -MMD -MP -c $< -o $@

# Loops of ref without instrumentation, under another name; every other name of theirs is local to them.
$(BUILD)/tests/sanitizer/plain_%.o: kernels/ref/%.c Makefile
	@mkdir -p $(@D)
	$(CC) $(filter-out $(SAN_FLAGS),$(ALL_CFLAGS)) -O3 -MMD -MP -c $< -o $@
	objcopy $(foreach n,$(PLAIN),--redefine-sym ref_$(n)=plain_$(n) --keep-global-symbol plain_$(n)) $@

# Fuzzing: clang compiles what each target needs, with ASan and UBSan.
FUZZ_CC ?= clang
FUZZ    := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
$(BUILD)/fuzz/fuzz_form: $(addprefix src/api/,form.c form_header.c json_scan.c json_value.c)
$(BUILD)/fuzz/fuzz_request: $(addprefix src/api/,params.c form_params.c form.c form_header.c values.c text.c reply.c json_scan.c json_value.c)
$(BUILD)/fuzz/fuzz_safetensors: $(addprefix src/weights/,safetensors.c)
$(BUILD)/fuzz/fuzz_image: $(filter-out src/media/mp4%,$(wildcard src/media/*.c))
$(BUILD)/fuzz/%: tests/fuzz/%.c src/base/buffer.c src/base/error.c src/base/utf8.c Makefile
	@mkdir -p $(@D)
	$(FUZZ_CC) -g -O1 -std=gnu11 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -pthread -D_GNU_SOURCE -Iinclude \
		$(shell pkg-config --cflags $(PKGS) 2>/dev/null) $(filter %.c,$^) -o $@ $(LDLIBS)
.PHONY: fuzz
fuzz: $(FUZZ)

imports:
	scripts/check_imports.sh

# The programs, and the shipped models where the programs look for them: no other that was pulled into ./models, and to be read by
# every user, whatever umask the checkout was made under. make -o all install: what is built as it is, nothing compiled as root.
PREFIX ?= /usr/local
.PHONY: install
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/latentd/models
	install -s -m 755 $(BUILD)/latentd $(PULL) $(DESTDIR)$(PREFIX)/bin
	cp -R models/latentd $(DESTDIR)$(PREFIX)/share/latentd/models/
	chmod -R u=rwX,go=rX $(DESTDIR)$(PREFIX)/share/latentd/models/latentd

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
