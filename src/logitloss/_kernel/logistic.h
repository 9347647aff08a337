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
#undef LOG_CENTRE
#undef LOG_ORIGIN
#undef LN2
#undef LOG2_E
#undef LN2_HI
#undef LN2_LO
#undef EXP_POLYNOMIAL
#undef LOG_POLYNOMIAL
#undef FMA
#undef LAST

/* EXP_POLYNOMIAL is (exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2 and LOG_POLYNOMIAL
 * log1p(e) / e - LOG_CENTRE for t = e - LOG_ORIGIN, 0 <= e <= 1, both in Estrin's order,
 * which keeps the chains of dependent operations short.  The bounds are on what
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
#define LOG_CENTRE 0.875f
#define LOG_ORIGIN 0.5f
#define LN2 0x1.62e43p-1f
#define LOG2_E 0x1.715476p+0f
#define LN2_HI 0x1.62e4p-1f
#define LN2_LO 0x1.7f7d1cp-20f
/* 2^-27.19 */
#define EXP_POLYNOMIAL(r, r2) \
    FMA(r, FMA(r2, FMA(0x1.6a23d2p-10f, r, 0x1.123a2p-7f), \
        FMA(0x1.5558f2p-5f, r, 0x1.555492p-3f)), \
        0x1.fffffap-2f)
/* 2^-27.92 */
#define LOG_POLYNOMIAL(t, t2) \
    LAST(t, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(0x1.0a1b9ap-9f, t, -0x1.aad016p-9f), \
        FMA(0x1.0521c6p-8f, t, -0x1.b9e8bcp-8f)), \
        FMA(0x1.846bd6p-7f, t, -0x1.510b8ep-6f)), \
        FMA(0x1.2bea3ap-5f, t, -0x1.153fa8p-4f)), \
        FMA(0x1.0f95b8p-3f, t, -0x1.2773a6p-2f)), \
        -0x1.066e0ap-4f)

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
#define LOG_CENTRE 0.9375
#define LOG_ORIGIN 0.5
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
/* 2^-55.17 */
#define LOG_POLYNOMIAL(t, t2) \
    LAST(t, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(t2, FMA(0x1.69ecc10dbc146p-17, t, -0x1.143df0145d75dp-16), \
        FMA(0x1.590a5370798d3p-17, t, -0x1.19834b29da0c6p-16)), \
        FMA(0x1.3000fbfe0d116p-15, t, -0x1.ddbe660086367p-15)), \
        FMA(0x1.6c2cc8cdbaa78p-14, t, -0x1.2203a76e85149p-13)), \
        FMA(0x1.d0e34c0c83e46p-13, t, -0x1.74d379ffe9f8bp-12)), \
        FMA(0x1.2c68d199bddc8p-11, t, -0x1.e6f12565cd4b6p-11)), \
        FMA(0x1.8d40138376f1bp-10, t, -0x1.469c8b6ae8862p-9)), \
        FMA(0x1.0f119082dee57p-8, t, -0x1.c72c62ed84342p-8)), \
        FMA(0x1.83c50b12b5e6fp-7, t, -0x1.50abf6ccba2f5p-6)), \
        FMA(0x1.2bec9fba4efe8p-5, t, -0x1.1540afd54ada3p-4)), \
        FMA(0x1.0f95b3dc0a12cp-3, t, -0x1.2773a5da90bddp-2)), \
        -0x1.033704d019edp-3)

#endif

/* a * b + c.  Only where the target has a fused instruction is it fused: the C library's
 * emulation is many times slower, and most steps below need no more than the two roundings
 * of the plain expression.  The LAST ones towards a float result do: double precision,
 * which holds the product, serves there. */
#if HAS_FMA
#define FMA(a, b, c) FUSED(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#if LOGITLOSS_REAL == 32 && !HAS_FMA
typedef double LAST_REAL;
#define LAST(a, b, c) ((double)(a) * (b) + (c))
#else
typedef REAL LAST_REAL;
#define LAST(a, b, c) FMA(a, b, c)
#endif

typedef struct {
    REAL hi, lo;
} pair;

/* 2^-S */
INLINE REAL down(int any_logit)
{
    return any_logit ? DOWN : 1;
}

/* exp(-|x|) * 2^S, as a pair.
 *
 * exp(-m) = 2^k exp(r), k = round(-m / ln 2), r = -m - k ln 2, |r| <= ln(2)/2
 * exp(r)  = 1 + r + r^2 P(r)
 *
 * Adding `magic` rounds to an integer and leaves k + bias + S in the low bits:
 * shifted into place they are the exponent field of 2^(k + S). */
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

    const REAL magic = ROUND_TO_INTEGER + EXPONENT_BIAS + (any_logit ? SCALE : 0);
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
    const REAL rest = FMA(r2, EXP_POLYNOMIAL(r, r2), r_lo);
    pair e;
    e.hi = FMA(r_hi + rest, power, power);
    /* From both parts of exp(r) - 1, because the rounding of their sum would show. */
    e.lo = FMA(rest, power, FMA(r_hi, power, power - e.hi));
    return e;
}

/* a * LOG_CENTRE + b with one rounding, or close to it. */
INLINE LAST_REAL centre_plus(REAL a, LAST_REAL b)
{
#if LOGITLOSS_REAL == 64 && !HAS_FMA
    /* LOG_CENTRE is 1 - 1/16: both differences are exact. */
    const REAL product = a * LOG_CENTRE;
    const REAL error = (a - product) - a * (1 - LOG_CENTRE);
    return product + (error + b);
#else
    return LAST(a, LOG_CENTRE, b);
#endif
}

/* What log1p(e) and sigma have in common: t, the derivative 1 / (1 + e) of log1p, by its
 * secant, which suffices for the corrections it multiplies, and the one for e.lo. */
typedef struct {
    REAL t, slope, correction;
} expansion;

INLINE expansion expand(pair e, int any_logit)
{
    expansion at;
    at.t = FMA(e.hi, down(any_logit), -LOG_ORIGIN);
    at.slope = FMA(at.t, (REAL)-0.5, 1 - LOG_ORIGIN / 2);
    at.correction = e.lo * at.slope;
    return at;
}

/* log1p(e) * 2^S = e LOG_CENTRE + e R(e), |R| < 1/4.  Only the small second term
 * carries rounding errors into the last operation. */
INLINE pair log1p_scaled(pair e, expansion at)
{
    const REAL t = at.t, t2 = t * t;
    const LAST_REAL small = LAST(e.hi, LOG_POLYNOMIAL(t, t2), at.correction);
    pair result;
    result.hi = (REAL)centre_plus(e.hi, small);
    result.lo = (REAL)(centre_plus(e.hi, -result.hi) + small);
    return result;
}

/* s = sigma(-|x|) * 2^S = e / (1 + e), to first order in the rounding errors:
 * value = estimate + correction / (1 + e), where the correction makes good the
 * rounding of 1 + e and e.lo.  The remainder is that of the division. */
typedef struct {
    REAL value, estimate, correction, remainder;
} sigmoid;

INLINE sigmoid sigmoid_scaled(pair e, expansion at, int any_logit)
{
    sigmoid s;
    const REAL denominator = FMA(e.hi, down(any_logit), (REAL)1);
    const REAL error = FMA(e.hi, down(any_logit), 1 - denominator);
    s.estimate = e.hi / denominator;
    s.correction = FMA(-s.estimate, error, at.correction);
    s.remainder = FMA(-s.estimate, denominator, e.hi);
    s.value = FMA(s.correction, at.slope, s.estimate);
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
    const REAL rest = ((s.correction + s.remainder) * (1 - unscaled)) * slope;
    return sum * (s.estimate + FMA(-unscaled, s.estimate, rest));
}
