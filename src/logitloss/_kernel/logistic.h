/*
 * The scalar mathematics of weighted cross entropy, for REAL = float or double.
 *
 * blocks.c is compiled once for each type, so that both run the same algorithm
 * and differ in the constants below only.  Every function is branch-free: the
 * compiler vectorises the loops that call it.  docs/numerics.md derives the
 * formulas, tools/constants.py the polynomials.
 *
 * With m = |x| and e = exp(-m), everything follows from e:
 *
 *     softplus(+-x) = max(+-x, 0) + log1p(e)
 *     sigma(-m)     = e / (1 + e)
 *     sigma(+m)     = 1 - sigma(-m)          (no cancellation: it is >= 1/2)
 *
 * e is carried as a sum hi + lo, because its rounding alone would cost half an
 * ulp of the result, and, where `any_logit`, scaled up by 2^S, because results in
 * the subnormal range must be rounded once, at the very end, after the coefficients
 * have been applied; DOWN = 2^-S undoes the scaling.  Otherwise |x| must be at most
 * ORDINARY_LOGIT, where S = 0 does and gives the same bits, and where sigma(-m) 2^S is
 * more than IN_TAIL.  blocks.c sends coefficients whose sum is outside SUM_MIN .. SUM_MAX
 * elsewhere: within it neither they times 2^-S nor an e 2^S that matters is subnormal.
 */
/* INLINE: a function that is called in a loop keeps it from being vectorised. */
#include "compiler.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* cuda.cu, all of which is one file for its compiler, includes this for both types. */
#undef FABS
#undef FUSED
#undef SIGN_BIT
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUND_TO_INTEGER
#undef SCALE
#undef DOWN
#undef SUM_MIN
#undef SUM_MAX
#undef ORDINARY_LOGIT
#undef IN_TAIL
#undef LN2
#undef LOG2_E
#undef LN2_HI
#undef LN2_LO
#undef EXP_POLYNOMIAL
#undef LOG_POLYNOMIAL
#undef FMA

/* EXP_POLYNOMIAL is (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2 and LOG_POLYNOMIAL
 * (2 atanh(s) - 2 s) / s^3 for u = s^2, 0 <= s <= 1/3, both in Estrin's order, which
 * keeps the chains of dependent operations short.  The bounds are on what
 * they contribute to the relative error of exp(r) and of log1p(e). */
#if LOGITLOSS_REAL == 32

typedef float REAL;
typedef uint32_t UINT;
#define FABS fabsf
#define FUSED fmaf
#define SIGN_BIT 0x80000000u
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUND_TO_INTEGER 0x1.8p23f
#define SCALE 75
#define DOWN 0x1p-75f
#define SUM_MIN 0x1p-51f
#define SUM_MAX 0x1p51f
#define ORDINARY_LOGIT 32.0f
#define IN_TAIL 0x1p25f
#define LN2 0x1.62e43p-1f
#define LOG2_E 0x1.715476p+0f
#define LN2_HI 0x1.62e4p-1f
#define LN2_LO 0x1.7f7d1cp-20f
/* 2^-27.19 */
#define EXP_POLYNOMIAL(r, r2) \
    FMA(r, FMA(r2, FMA(0x1.6a23d2p-10f, r, 0x1.123a2p-7f), \
        FMA(0x1.5558f2p-5f, r, 0x1.555492p-3f)), \
        0x1.fffffap-2f)
/* 2^-27.46 */
#define LOG_POLYNOMIAL(u, u2) \
    FMA(u2, FMA(0x1.1ed7bep-2f, u, 0x1.1ebd0ep-2f), \
        FMA(0x1.99d208p-2f, u, 0x1.555502p-1f))

#else

typedef double REAL;
typedef uint64_t UINT;
#define FABS fabs
#define FUSED fma
#define SIGN_BIT 0x8000000000000000u
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUND_TO_INTEGER 0x1.8p52
#define SCALE 537
#define DOWN 0x1p-537
#define SUM_MIN 0x1p-485
#define SUM_MAX 0x1p484
#define ORDINARY_LOGIT 256.0
#define IN_TAIL 0x1p137
#define LN2 0x1.62e42fefa39efp-1
#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HI 0x1.62e42fefa2p-1
#define LN2_LO 0x1.9ef35793c7673p-41
/* 2^-56.34 */
#define EXP_POLYNOMIAL(r, r2) \
    FMA(r, FMA(r2, FMA(r2, FMA(r2, FMA(r2, 0x1.ad7f397977a54p-26, \
        FMA(0x1.28ad9b8453dd6p-22, r, 0x1.71df25b6d85c5p-19)), \
        FMA(0x1.a01999e26516bp-16, r, 0x1.a01a012a0d4bp-13)), \
        FMA(0x1.6c16c18438af4p-10, r, 0x1.1111111127d15p-7)), \
        FMA(0x1.555555555083ep-5, r, 0x1.55555555554f9p-3)), \
        0x1.000000000000ap-1)
/* 2^-58.59 */
#define LOG_POLYNOMIAL(u, u2) \
    FMA(u2, FMA(u2, FMA(u2, FMA(u2, FMA(0x1.5c5c18d788894p-3, u, 0x1.55cf6284bf534p-4), \
        FMA(0x1.efd18b25fe27p-4, u, 0x1.10682ef6cb1e4p-3)), \
        FMA(0x1.3b1dd3aacd8adp-3, u, 0x1.745cb459c5c14p-3)), \
        FMA(0x1.c71c741a06108p-3, u, 0x1.2492492091137p-2)), \
        FMA(0x1.99999999a06c1p-2, u, 0x1.5555555555535p-1))

#endif

/* a * b + c.  Only where the target has a fused instruction is it fused: the C library's
 * emulation is many times slower, and most steps below need no more than the two roundings
 * of the plain expression.  product_plus serves the others. */
#if HAS_FMA
#define FMA(a, b, c) FUSED(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

/* Holds what a product of two REALs has to be added to before it is rounded. */
#if LOGITLOSS_REAL == 32 && !HAS_FMA
typedef double WIDER;
#else
typedef REAL WIDER;
#endif

/* The quotient where neither number, nor any in between, is near the limits of the type. */
#ifndef ORDINARY_QUOTIENT
#define ORDINARY_QUOTIENT(dividend, divisor) ((dividend) / (divisor))
#endif

typedef struct {
    REAL hi, lo;
} pair;

/* 2^-S */
INLINE REAL down(int any_logit)
{
    return any_logit ? DOWN : 1;
}

INLINE REAL quotient(REAL dividend, REAL divisor, int any_logit)
{
    return any_logit ? dividend / divisor : ORDINARY_QUOTIENT(dividend, divisor);
}

/* exp(-|x|) * 2^S, as a pair.
 *
 * exp(-m) = 2^k exp(r), k = round(-m / ln 2), r = -m - k ln 2, |r| <= ln(2)/2
 * exp(r)  = 1 + r + r^2 P(r)
 *
 * Adding `magic` rounds to an integer and leaves k + bias in the low bits: with S added, and
 * shifted into place, they are the exponent field of 2^(k + S). */
INLINE pair exp_neg_abs(REAL x, int any_logit)
{
    UINT bits;
    memcpy(&bits, &x, sizeof bits);
    bits |= SIGN_BIT;
    REAL v;
    memcpy(&v, &bits, sizeof v);
    /* At the clamp k + bias + S is 0, so that the power, and with it e, is
     * exactly 0 from there to infinity.  NaN passes the comparison. */
    const REAL clamp = (SCALE + EXPONENT_BIAS) * -LN2;
    if (any_logit)
        v = v < clamp ? clamp : v;

    /* Without S, whose parity would decide how ties are rounded. */
    const REAL magic = ROUND_TO_INTEGER + EXPONENT_BIAS;
    const REAL shifted = FMA(v, LOG2_E, magic);
    const REAL k = shifted - magic;
    /* LN2_HI has so few bits that k * LN2_HI and the difference are exact: r_hi has no
     * error, and that of r, which only the polynomial sees, does no harm. */
    const REAL r_hi = FMA(k, -LN2_HI, v);
    const REAL r_lo = k * -LN2_LO;
    const REAL r = r_hi + r_lo;

    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + (any_logit ? SCALE : 0)) << MANTISSA_BITS;
    REAL power;
    memcpy(&power, &bits, sizeof power);

    const REAL r2 = r * r;
    const REAL rest = FMA(r2, EXP_POLYNOMIAL(r, r2), r_lo);
    pair e;
    e.hi = FMA(r_hi + rest, power, power);
    /* From both parts of exp(r) - 1, because the rounding of their sum would show. */
    e.lo = FMA(rest, power, FMA(r_hi, power, power - e.hi));
    return e;
}

#if LOGITLOSS_REAL == 64 && !HAS_FMA
/* a without the lower half of its digits: of an odd number of them, the smaller half stays. */
INLINE REAL upper_half(REAL a)
{
    UINT bits;
    memcpy(&bits, &a, sizeof bits);
    bits &= ~(UINT)0 << (MANTISSA_BITS + 2) / 2;
    memcpy(&a, &bits, sizeof a);
    return a;
}
#endif

/* a * b + c with one rounding, or close to it. */
INLINE WIDER product_plus(REAL a, REAL b, WIDER c)
{
#if HAS_FMA
    return FMA(a, b, c);
#elif LOGITLOSS_REAL == 32
    return (WIDER)a * b + c;
#else
    /* The halves of a and b have products without error (Dekker). */
    const REAL a_hi = upper_half(a), a_lo = a - a_hi, b_hi = upper_half(b), b_lo = b - b_hi;
    const REAL product = a * b;
    const REAL error = ((a_hi * b_hi - product) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo;
    return (product + c) + error;
#endif
}

/* log1p(e) * 2^S.  With s = e / (2 + e), at most 1/3,
 *
 *     log1p(e) = 2 atanh(s) = 2 s + s^3 P(s^2) = e - e s + s^3 P(s^2)
 *
 * Only what is taken from e, less than 0.31 e, carries rounding errors into the last operation.
 * The quotient is a function of its own, because loops are faster that divide beforehand. */
INLINE REAL log1p_quotient(REAL e_hi, int any_logit)
{
    return quotient(e_hi, 2 + e_hi * down(any_logit), any_logit);
}

INLINE pair log1p_scaled(pair e, REAL s, int any_logit)
{
    const REAL s_unscaled = s * down(any_logit);
    /* What the roundings of s and of its denominator left: the difference has no error.  It counts
     * -s / (1 + s) times, for which -s serves, and e.lo counts 1 / (1 + e) = (1 - s) / (1 + s) times,
     * for which the secant 1 - 3/2 s does. */
    const REAL remainder = (REAL)product_plus(-s, e.hi * down(any_logit), e.hi - 2 * s);
    const REAL correction = FMA(-s_unscaled, FMA(e.lo, (REAL)1.5, remainder), e.lo);
    const REAL u = s_unscaled * s_unscaled, u2 = u * u;
    const REAL rest = FMA(s * u, LOG_POLYNOMIAL(u, u2), correction);
    const WIDER small = product_plus(-s_unscaled, e.hi, rest);
    pair result;
    result.hi = (REAL)(e.hi + small);
    result.lo = (REAL)((e.hi - result.hi) + small);
    return result;
}

/* s = sigma(-|x|) * 2^S = e / (1 + e), to first order in the rounding errors: value =
 * estimate + correction (1 - s), where the correction makes good the roundings of 1 + e
 * and of the division, and e.lo. */
typedef struct {
    REAL value, estimate, correction;
} sigmoid;

INLINE sigmoid sigmoid_scaled(pair e, int any_logit)
{
    const REAL e_unscaled = e.hi * down(any_logit);
    sigmoid s;
    s.estimate = quotient(e.hi, 1 + e_unscaled, any_logit);
    const REAL slope = 1 - s.estimate * down(any_logit);
    s.correction = FMA(e.lo, slope, (REAL)product_plus(-s.estimate, e_unscaled, e.hi - s.estimate));
    s.value = FMA(s.correction, slope, s.estimate);
    return s;
}

/*
 * The three results, from the coefficients of the two terms of the loss,
 *
 *     negative = weight (1 - z),    positive = weight q z,
 *
 * each of which is formed once, from its own factors, so that neither a small
 * pos_weight nor a label next to 1 is lost in a sum.  With the signs they have in
 * the gradient, negative sigma(x) - positive sigma(-x), `towards` belongs to the
 * term that x favours and `against` to the other; `sum` is scaled by 2^-S.
 */
typedef struct {
    REAL towards, against, sum;
} coefficients;

INLINE coefficients coefficients_of(REAL x, REAL negative, REAL minus_positive, int any_logit)
{
    coefficients c;
    c.towards = x > 0 ? negative : minus_positive;
    c.against = x > 0 ? minus_positive : negative;
    c.sum = (negative - minus_positive) * down(any_logit);
    return c;
}

/* negative max(x, 0) + positive max(-x, 0); a term whose coefficient is zero is zero, at
 * infinite logits too. */
INLINE REAL linear_part(REAL x, REAL towards, int any_logit)
{
    return any_logit && towards == 0 ? 0 : towards * x;
}

/* (negative + positive) log1p(e) + linear */
INLINE REAL loss(REAL sum, pair log1p_e, REAL linear)
{
    return FMA(sum, log1p_e.hi, FMA(sum, log1p_e.lo, linear));
}

/* towards sigma(|x|) + against sigma(-|x|): towards - towards s + against s, which at
 * x = 0, where s is 1/2, is rounded but once.
 *
 * The scale is taken off the sigmoid where that leaves a normal number, as it does for every
 * ordinary logit, and elsewhere off `against`: where a small coefficient lost digits by that,
 * bits would depend on the logits beside it. */
INLINE REAL gradient(REAL towards, REAL against, sigmoid s, int any_logit)
{
    const REAL unscaled = s.value * down(any_logit);
    REAL factor = unscaled;
    if (any_logit) {
        const int is_in_tail = s.value < IN_TAIL;
        against *= is_in_tail ? DOWN : 1;
        factor = is_in_tail ? s.value : unscaled;
    }
    return FMA(against, factor, FMA(-towards, unscaled, towards));
}

/* (negative + positive) sigma(x) sigma(-x) = (negative + positive) (s - s^2), s in
 * all its parts, because a rounding of s just above a power of two would count twice
 * in a result just below. */
INLINE REAL hessian(REAL sum, sigmoid s, int any_logit)
{
    const REAL unscaled = s.estimate * down(any_logit);
    const REAL slope = FMA((REAL)-2, unscaled, (REAL)1);
    const REAL rest = (s.correction * (1 - unscaled)) * slope;
    return sum * (s.estimate + FMA(-unscaled, s.estimate, rest));
}
