/*
 * float16 and bfloat16 as bits, without branches, so that loops over them vectorise on
 * every target.  Where the target converts float16 itself the loops ask it to, since that is
 * a single instruction; the bits are the same.
 */
#ifndef LOGITLOSS_HALF_H
#define LOGITLOSS_HALF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

static inline float logitloss_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t logitloss_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float logitloss_from_bfloat16(uint16_t half)
{
    return logitloss_float_of((uint32_t)half << 16);
}

static inline float logitloss_from_float16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    /* The exponent's bias grows by 112, and once more for infinity and NaN. */
    const uint32_t normal = (rest << 13) + (112u << 23) + (rest >= 0x7c00 ? 112u << 23 : 0);
    const uint32_t subnormal = logitloss_bits_of((float)(int32_t)rest * 0x1p-24f);
    return logitloss_float_of(sign | (rest < 0x400 ? subnormal : normal));
}

/* Rounded to nearest, ties to even. */
static inline uint16_t logitloss_to_bfloat16(float value)
{
    const uint32_t bits = logitloss_bits_of(value);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    /* Rounding could carry a NaN over into zero. */
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16);
}

static inline uint16_t logitloss_to_float16(float value)
{
    const uint32_t bits = logitloss_bits_of(value);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    const uint32_t normal = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
    /* The last place of 1/2 is the least subnormal: the addition rounds as it should. */
    const uint32_t subnormal = logitloss_bits_of(logitloss_float_of(rest) + 0.5f) - 0x3f000000u;
    const uint32_t special = rest > 0x7f800000 ? 0x7e00 | (rest >> 13 & 0x1ff) : 0x7c00;
    /* From 65520 on the nearest is infinity. */
    return (uint16_t)(sign | (rest < 0x38800000 ? subnormal : rest < 0x477ff000 ? normal : special));
}

/* n numbers one after the other, at any addresses.  What is left is counted down: in `i < n` GCC
 * warns of an overflow where n is constant. */
static inline void logitloss_widen_float16(const char *from, float *restrict to, ptrdiff_t n)
{
    ptrdiff_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from + i * 2))));
#endif
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i * 2))));
#endif
    for (ptrdiff_t rest = n - i; rest > 0; rest--, i++) {
        uint16_t half;
        memcpy(&half, from + i * 2, sizeof half);
        to[i] = logitloss_from_float16(half);
    }
}

static inline void logitloss_narrow_float16(const float *restrict from, char *to, ptrdiff_t n)
{
    ptrdiff_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i * 2), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i * 2), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (ptrdiff_t rest = n - i; rest > 0; rest--, i++) {
        const uint16_t half = logitloss_to_float16(from[i]);
        memcpy(to + i * 2, &half, sizeof half);
    }
}

static inline void logitloss_widen_bfloat16(const char *from, float *restrict to, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, from + i * 2, sizeof half);
        to[i] = logitloss_from_bfloat16(half);
    }
}

static inline void logitloss_narrow_bfloat16(const float *restrict from, char *to, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint16_t half = logitloss_to_bfloat16(from[i]);
        memcpy(to + i * 2, &half, sizeof half);
    }
}

/* A float that rounds to half precision as the double would: inexact, its last bit is set. */
static inline float logitloss_round_to_odd(double value)
{
    const float rounded = (float)value;
    const uint32_t bits = logitloss_bits_of(rounded);
    const int is_exact = (double)rounded == value || value != value;
    /* The sign is that of the double: what was rounded may be zero. */
    const int is_too_large = (rounded > value) == (value > 0);
    /* Infinity is only where the double is far beyond the greatest float. */
    const uint32_t towards_zero = is_too_large ? bits - 1 : bits;
    return is_exact ? rounded : logitloss_float_of(towards_zero | 1);
}

#endif
