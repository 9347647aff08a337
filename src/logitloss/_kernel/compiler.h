/* What C leaves to each compiler.  clang-cl is known by __clang__ alone: it defines no
 * __GNUC__, and _MSC_VER as Microsoft's own compiler does. */
#ifndef LOGITLOSS_COMPILER_H
#define LOGITLOSS_COMPILER_H

/* Allowed for any address: it is a hint, for memory that may not be ours. */
#if defined(__CUDACC_RTC__)
#define INLINE static __forceinline__
#define NOINLINE __noinline__
#elif defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define PREFETCH(address, to_write) \
    ((to_write) ? __builtin_prefetch(address, 1, 3) : __builtin_prefetch(address, 0, 3))
#elif defined(_MSC_VER)
#include <intrin.h>
#define INLINE static __forceinline
#define NOINLINE __declspec(noinline)
#if defined(_M_X64) || defined(_M_IX86)
#define PREFETCH(address, to_write) ((void)(to_write), _mm_prefetch(address, _MM_HINT_T0))
#elif defined(_M_ARM64)
#define PREFETCH(address, to_write) ((void)(to_write), __prefetch(address))
#endif
/* meson.build tells the other compilers. */
#pragma fp_contract(off)
#else
#define INLINE static inline
#define NOINLINE
#endif
#ifndef PREFETCH
#define PREFETCH(address, to_write) ((void)(address), (void)(to_write))
#endif

/* Before a loop over the elements of one vector, which would be unrolled into scalars before it could
 * become a vector. */
#if defined(__clang__)
#define ROLLED _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define ROLLED _Pragma("GCC unroll 1")
#else
#define ROLLED
#endif

#ifdef _MSC_VER
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

/* Whether the target has a fused multiply-add: the C library's emulation is many times
 * slower than the multiplication and the addition. */
#if defined(__FMA__) || defined(__CUDACC_RTC__) || defined(__ARM_FEATURE_FMA) || defined(_M_ARM64) \
    || (defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF))
#define HAS_FMA 1
#else
#define HAS_FMA 0
#endif

#endif
