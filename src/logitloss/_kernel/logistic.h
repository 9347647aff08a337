/*
 * The scalar mathematics of weighted cross entropy, for REAL = float or double.
 *
 * blocks.c is compiled once for each type, so that both run the same algorithm
 * and differ in the constants below only.  Every function is branch-free: the
 * compiler vectorises the loops that call it.  docs/numerics.md derives the
 * formulas, constants.py beside this file the polynomials.
 *
 * With m = |x| and e = exp(-m), everything follows from e:
 *
 *     softplus(+-x) = max(+-x, 0) + log1p(e)
 *     sigma(-m)     = e / (1 + e)
 *     sigma(+m)     = 1 - sigma(-m)          (no cancellation: it is >= 1/2)
 *
 * e is carried as a sum hi + lo, because its rounding alone would cost half an
 * ulp of the result, and scaled up by 2^S, because results in the subnormal
 * range must be rounded once, at the very end, after the coefficients have been
 * applied.  `down` = 2^-S undoes the scaling.
 */
#ifndef LOGITLOSS_LOGISTIC_H
#define LOGITLOSS_LOGISTIC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* EXP_POLYNOMIAL is (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2 and LOG_POLYNOMIAL
 * log1p(e) / e - LOG_CENTRE for t = e - 1/2 in [-1/2, 1/2], both in Estrin's order,
 * which keeps the chains of dependent operations short.  The bounds are on what
 * they contribute to the relative error of exp(r) and of log1p(e).
 *
 * SCALE_LARGE serves coefficients >= 1, which may lift a result out of the
 * subnormals; SCALE_SMALL those below 1, which the multiplication by 2^-S must
 * not push into them. */
#if LOGITLOSS_REAL == 32

typedef float REAL;
typedef uint32_t UINT;
#define FABS fabsf
#define FUSED fmaf
#define SIGN_BIT 0x80000000u
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUND_TO_INTEGER 0x1.8p23f
#define SCALE_SMALL 24
#define SCALE_LARGE 125
#define DOWN_SMALL 0x1p-24f
#define DOWN_LARGE 0x1p-125f
#define LOG_CENTRE 0.9375f
#define LN2 0x1.62e43p-1f
#define LOG2_E 0x1.715476p+0f
#define LN2_HI 0x1.62e4p-1f
#define LN2_LO 0x1.7f7d1cp-20f
/* 2^-28.04 */
#define EXP_POLYNOMIAL(r, r2) \
    FMA(r, FMA(r2, FMA(0x1.6a23dp-10f, r, 0x1.123a2p-7f), \
        FMA(0x1.5558f2p-5f, r, 0x1.555492p-3f)), \
        0x1.fffffcp-2f)
/* 2^-26.78 */
#define LOG_POLYNOMIAL(t, t2) \
    FMA(t, FMA(t2, FMA(t2, FMA(t2, FMA(t2, -0x1.a93344p-9f, \
        FMA(0x1.584892p-8f, t, -0x1.ba5cd4p-8f)), \
        FMA(0x1.7b53bap-7f, t, -0x1.51062p-6f)), \
        FMA(0x1.2c1e1cp-5f, t, -0x1.153fbep-4f)), \
        FMA(0x1.0f954ep-3f, t, -0x1.2773a6p-2f)), \
        -0x1.033704p-3f)

#else

typedef double REAL;
typedef uint64_t UINT;
#define FABS fabs
#define FUSED fma
#define SIGN_BIT 0x8000000000000000u
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUND_TO_INTEGER 0x1.8p52
#define SCALE_SMALL 200
#define SCALE_LARGE 200
#define DOWN_SMALL 0x1p-200
#define DOWN_LARGE 0x1p-200
#define LOG_CENTRE 0.9375
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
/* 2^-54.7 */
#define LOG_POLYNOMIAL(t, t2) \
    FMA(t, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, -0x1.1374ddad0029fp-16, \
        FMA(0x1.a558a0388b513p-16, t, -0x1.1a8b483fd787cp-16)), \
        FMA(0x1.cc43f48554d05p-16, t, -0x1.dd741f2d80c98p-15)), \
        FMA(0x1.7891815feeb9ap-14, t, -0x1.22098068df16bp-13)), \
        FMA(0x1.cf98c4cdc65d7p-13, t, -0x1.74d2e6d896ecfp-12)), \
        FMA(0x1.2c73e0b82c719p-11, t, -0x1.e6f12f5080797p-11)), \
        FMA(0x1.8d3f99ee9ceb7p-10, t, -0x1.469c8b29418a7p-9)), \
        FMA(0x1.0f1192221ff9p-8, t, -0x1.c72c62f032312p-8)), \
        FMA(0x1.83c50b0c551abp-7, t, -0x1.50abf6ccb1023p-6)), \
        FMA(0x1.2bec9fba5517bp-5, t, -0x1.1540afd54ae8cp-4)), \
        FMA(0x1.0f95b3dc0a11p-3, t, -0x1.2773a5da90bdcp-2)), \
        -0x1.033704d019ed1p-3)

#endif

/* a * b + c.  Only where the target has a fused instruction is it fused: the
 * C library's emulation is many times slower, and no step below needs more than
 * the two roundings of the plain expression. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA
#define FMA(a, b, c) FUSED(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

typedef struct {
    REAL hi, lo;
} pair;

/* S and 2^-S. */
static inline REAL scale_exponent(REAL coefficient)
{
    return FABS(coefficient) >= 1 ? SCALE_LARGE : SCALE_SMALL;
}

static inline REAL scale_down(REAL coefficient)
{
    return FABS(coefficient) >= 1 ? DOWN_LARGE : DOWN_SMALL;
}

/* exp(-|x|) * 2^S, as a pair.
 *
 * exp(-m) = 2^k exp(r), k = round(-m / ln 2), r = -m - k ln 2, |r| <= ln(2)/2
 * exp(r)  = 1 + r + r^2 P(r)
 *
 * Adding `magic` rounds to an integer and leaves k + bias + S in the low bits:
 * shifted into place they are the exponent field of 2^(k + S). */
static inline pair exp_neg_abs(REAL x, REAL scale_exponent)
{
    UINT bits;
    memcpy(&bits, &x, sizeof bits);
    bits |= SIGN_BIT;
    REAL v;
    memcpy(&v, &bits, sizeof v);
    /* At the clamp k + bias + S is 0, so that the power, and with it e, is
     * exactly 0 from there to infinity.  NaN passes the comparison. */
    const REAL clamp = (scale_exponent + EXPONENT_BIAS) * -LN2;
    v = v < clamp ? clamp : v;

    const REAL magic = ROUND_TO_INTEGER + EXPONENT_BIAS + scale_exponent;
    const REAL shifted = FMA(v, LOG2_E, magic);
    const REAL k = shifted - magic;
    /* LN2_HI has so few bits that k * LN2_HI and the difference are exact: r_hi has no
     * error, and that of r, which only the polynomial sees, does no harm. */
    const REAL r_hi = FMA(k, -LN2_HI, v);
    const REAL r_lo = k * -LN2_LO;
    const REAL r = r_hi + r_lo;

    memcpy(&bits, &shifted, sizeof bits);
    bits <<= MANTISSA_BITS;
    REAL power;
    memcpy(&power, &bits, sizeof power);

    const REAL r2 = r * r;
    const REAL expm1_r = r_hi + FMA(r2, EXP_POLYNOMIAL(r, r2), r_lo);
    pair e;
    e.hi = FMA(expm1_r, power, power);
    e.lo = FMA(expm1_r, power, power - e.hi);
    return e;
}

/* a * LOG_CENTRE + b with one rounding, or close to it. */
static inline REAL centre_plus(REAL a, REAL b)
{
#ifdef HAS_FMA
    return FMA(a, LOG_CENTRE, b);
#else
    /* LOG_CENTRE is 1 - 1/16: both differences are exact. */
    const REAL product = a * LOG_CENTRE;
    const REAL error = (a - product) - a * (REAL)0.0625;
    return product + (error + b);
#endif
}

/* log1p(e) * 2^S = e LOG_CENTRE + e R(e), |R| < 1/4.  Only the small second term
 * carries rounding errors into the last operation, and the powers of t = e - 1/2
 * have coefficients that fall by a factor of three each: nothing cancels.  e.lo is
 * multiplied by the derivative 1 / (1 + e), by its secant. */
static inline pair log1p_scaled(pair e, REAL down)
{
    const REAL t = FMA(e.hi, down, (REAL)-0.5);
    const REAL t2 = t * t;
    const REAL derivative = FMA(t, (REAL)-0.5, (REAL)0.75);
    const REAL small = FMA(e.hi, LOG_POLYNOMIAL(t, t2), e.lo * derivative);
    pair result;
    result.hi = centre_plus(e.hi, small);
    result.lo = centre_plus(e.hi, -result.hi) + small;
    return result;
}

/* s = sigma(-|x|) * 2^S = e / (1 + e), to first order in the rounding errors:
 * s = estimate + (correction + remainder) * complement, where the complement is
 * 1 - s 2^-S, the correction makes good the rounding of 1 + e and e.lo, and the
 * remainder that of the division. */
typedef struct {
    REAL estimate, complement, correction, remainder;
} sigmoid;

static inline sigmoid sigmoid_scaled(pair e, REAL down)
{
    sigmoid s;
    const REAL denominator = FMA(e.hi, down, (REAL)1);
    const REAL error = FMA(e.hi, down, 1 - denominator);
    s.estimate = e.hi / denominator;
    s.complement = FMA(-s.estimate, down, (REAL)1);
    s.correction = FMA(e.lo, s.complement, -(s.estimate * error));
    s.remainder = FMA(-s.estimate, denominator, e.hi);
    return s;
}

/*
 * The three results, from the coefficients of the two terms of the loss,
 *
 *     negative = weight (1 - z),    positive = weight q z,
 *
 * each of which is formed once, from its own factors, so that neither a small
 * pos_weight nor a label next to 1 is lost in a sum.
 */

/* (negative + positive) log1p(e) + negative max(x, 0) + positive max(-x, 0) */
static inline REAL loss(REAL x, REAL negative, REAL positive, pair log1p_e, REAL down)
{
    const REAL coefficient = x > 0 ? negative : positive;
    /* A term whose coefficient is zero is zero, at infinite logits too. */
    const REAL linear = coefficient == 0 ? 0 : coefficient * FABS(x);
    const REAL sum = (negative + positive) * down;
    return FMA(sum, log1p_e.hi, FMA(sum, log1p_e.lo, linear));
}

/* negative sigma(x) - positive sigma(-x) */
static inline REAL gradient(REAL x, REAL negative, REAL positive, sigmoid s, REAL down)
{
    const REAL towards = x >= 0 ? negative : positive;
    const REAL against = x >= 0 ? positive : negative;
    const REAL value = FMA(s.correction, s.complement, s.estimate);
    const REAL magnitude = FMA(towards, FMA(-value, down, (REAL)1), -((against * down) * value));
    return x >= 0 ? magnitude : -magnitude;
}

/* (negative + positive) sigma(x) sigma(-x) = (negative + positive) (s - s^2), s in
 * both its parts, because a rounding of s just above a power of two would count twice
 * in a result just below. */
static inline REAL hessian(REAL negative, REAL positive, sigmoid s, REAL down)
{
    const REAL unscaled = s.estimate * down;
    const REAL slope = FMA((REAL)-2, unscaled, (REAL)1);
    const REAL rest = ((s.correction + s.remainder) * s.complement) * slope;
    return ((negative + positive) * down) * (s.estimate + FMA(-unscaled, s.estimate, rest));
}

#endif
