/*
 * What the loops of blocks.c and cuda.cu have in common beside the mathematics of logistic.h:
 * which elements are masked, which careful.c computes, and how a gradient is divided.
 */
#ifndef LOGITLOSS_ELEMENT_H
#define LOGITLOSS_ELEMENT_H

#include "logistic.h"

#include <float.h>

#if LOGITLOSS_REAL == 32
#define REAL_MIN FLT_MIN
#else
#define REAL_MIN DBL_MIN
#endif

INLINE UINT bits_of(REAL value)
{
    UINT bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The bits of -|value|: integers in the order of the magnitudes, whose maximum the
 * compiler can vectorise. */
INLINE UINT magnitude(REAL value)
{
    return bits_of(value) | SIGN_BIT;
}

/* Of a double the first 32: limits are compared by them, because most processors are at their best
 * with 32 bits.  The limits have room to spare. */
INLINE uint32_t first_bits(UINT bits)
{
    return (uint32_t)(bits >> 8 * (sizeof(UINT) - sizeof(uint32_t)));
}

/* A weight of zero masks everything, NaN too.  As bits, because for conditions the compiler
 * would make branches. */
INLINE UINT mask_of(REAL weight)
{
    return weight == 0 ? 0 : ~(UINT)0;
}

INLINE REAL masked(REAL value, UINT mask)
{
    const UINT bits = bits_of(value) & mask;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Elements that the passes get wrong, because a product of coefficients leaves the
 * normal numbers although the result need not, or their sum the range that logistic.h
 * is made for.  They hardly ever occur: careful.c does them singly. */
INLINE int is_at_limits(REAL q, REAL z, REAL w)
{
    const REAL product = q * z, positive = w * product, negative = w * (1 - z);
    const REAL size = FABS(positive) + FABS(negative), sum = FABS(negative + positive);
    /* A factor of zero makes an exact zero; with two factors of 1 nothing is rounded. */
    const int positive_underflows = ((FABS(product) < REAL_MIN) | (FABS(positive) < REAL_MIN)) & (z != 0) & (q != 0)
                                    & ((q != 1) | (w != 1));
    const int negative_underflows = (FABS(negative) < REAL_MIN) & (z != 1);
    /* NaN, too, which may come of an infinite factor beside a zero. */
    const int is_out_of_range = (!(size <= SUM_MAX)) | ((size < SUM_MIN) & (size != 0))
                                | ((sum < SUM_MIN) & (sum != 0));
    return (w != 0) & (positive_underflows | negative_underflows | is_out_of_range);
}

/* What does not need care among its like must not get it beside others: bits do not depend on
 * the rest of a block.  Hence the same comparisons as of the extremes of a block. */
INLINE int needs_care(REAL q, REAL z, REAL w, REAL x)
{
    const REAL sum = FABS(w * (1 - z) + w * (q * z));
    const int is_ordinary = (first_bits(bits_of(1 - z)) <= first_bits(bits_of(1)))
                            & (first_bits(magnitude(x)) <= first_bits(magnitude(ORDINARY_LOGIT)))
                            & (first_bits(bits_of(sum) - bits_of(SUM_MIN))
                               <= first_bits(bits_of(SUM_MAX) - bits_of(SUM_MIN)));
    return !is_ordinary && is_at_limits(q, z, w);
}

/* 1 / divisor in two parts, which multiplies as exactly as the division divides. */
INLINE pair reciprocal(double divisor)
{
    const double quotient = 1 / divisor;
    pair factor;
    factor.hi = (REAL)quotient;
    factor.lo = (REAL)((quotient - factor.hi) + fma(-divisor, quotient, 1) / divisor);
    return factor;
}

/* Whether the reciprocal is a normal number that may stand for the divisor. */
INLINE int has_reciprocal(double divisor)
{
    return 0x1p-100 < fabs(divisor) && fabs(divisor) < 0x1p100;
}

#endif
