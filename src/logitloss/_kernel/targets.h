/* The instruction sets that the loops of blocks.c were compiled for, and which of them the
 * processor and the operating system run. */
#ifndef LOGITLOSS_TARGETS_H
#define LOGITLOSS_TARGETS_H

#include "blocks.h"
#include "compiler.h"

/* The baseline: the compiler's default target. */
#if defined(_M_X64) || defined(__SSE2__)
#define LOGITLOSS_BASELINE "sse2"
#elif defined(_M_ARM64) || defined(__aarch64__)
#define LOGITLOSS_BASELINE "neon"
#else
#define LOGITLOSS_BASELINE "generic"
#endif

#ifndef LOGITLOSS_X86
static inline int logitloss_has_avx2(void) { return 0; }
static inline int logitloss_has_avx512(void) { return 0; }
#elif defined(_MSC_VER)
/* Without the library that __builtin_cpu_supports needs. */
#include <intrin.h>
/* Bits of the extended states that the operating system saves: XMM and YMM, and for AVX-512
 * the masks and both kinds of ZMM, too. */
enum { LOGITLOSS_YMM_STATE = 0x06, LOGITLOSS_ZMM_STATE = 0xe6 };

#ifdef __clang__
__attribute__((target("xsave")))
#endif
static inline int logitloss_saves(int state)
{
    int registers[4];
    enum { ECX = 2, OSXSAVE = 1 << 27 };
    __cpuid(registers, 1);
    return registers[ECX] & OSXSAVE && ((int)_xgetbv(0) & state) == state;
}

/* The features in EBX of leaf 7, or none. */
static inline int logitloss_has_features(int features)
{
    int registers[4];
    enum { EAX, EBX };
    __cpuid(registers, 0);
    if (registers[EAX] < 7)
        return 0;
    __cpuidex(registers, 7, 0);
    return (registers[EBX] & features) == features;
}

static inline int logitloss_has_avx2(void)
{
    int registers[4];
    enum { ECX = 2, FMA3 = 1 << 12, AVX2 = 1 << 5 };
    __cpuid(registers, 1);
    return registers[ECX] & FMA3 && logitloss_saves(LOGITLOSS_YMM_STATE) && logitloss_has_features(AVX2);
}

static inline int logitloss_has_avx512(void)
{
    const int f = 1 << 16, dq = 1 << 17, bw = 1 << 30, vl = (int)(1u << 31);
    return logitloss_has_avx2() && logitloss_saves(LOGITLOSS_ZMM_STATE) && logitloss_has_features(f | dq | bw | vl);
}
#else
static inline int logitloss_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static inline int logitloss_has_avx512(void)
{
    return logitloss_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

typedef struct {
    const char *name;
    int is_fused; /* has AVX2's bits */
    logitloss_run *run_float32, *run_float64;
} logitloss_target;

enum { LOGITLOSS_MAX_TARGETS = 3 };

/* Lists those that run here, the best one last, and returns their number. */
static inline int logitloss_list_targets(logitloss_target targets[LOGITLOSS_MAX_TARGETS])
{
    int count = 0;
    targets[count++] = (logitloss_target){
        LOGITLOSS_BASELINE, HAS_FMA, logitloss_run_float32_baseline, logitloss_run_float64_baseline};
#ifdef LOGITLOSS_X86
    if (logitloss_has_avx2())
        targets[count++] = (logitloss_target){"avx2", 1, logitloss_run_float32_avx2, logitloss_run_float64_avx2};
    if (logitloss_has_avx512())
        targets[count++] = (logitloss_target){"avx512", 1, logitloss_run_float32_avx512, logitloss_run_float64_avx512};
#endif
    return count;
}

#endif
