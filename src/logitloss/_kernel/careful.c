/*
 * The elements for which blocks.c would leave the number range on the way to a
 * result that is inside it.  Rare, hence one at a time.
 */
#include "careful.h"

/* In double and without fused operations, so that the bits are the same on every platform.
 * They would not be with exp and log1p of the C libraries. */
#define LOGITLOSS_REAL 64
#include "compiler.h"
#undef HAS_FMA
#define HAS_FMA 0
#include "logistic.h"

/* The product of five numbers and 2^shift, rounded as if the exponent range had no end. */
static double product(double a, double b, double c, double d, double f, int shift)
{
    int ea, eb, ec, ed, ef;
    if (a == 0 || b == 0 || c == 0 || d == 0 || f == 0)
        return isnan(a) || isnan(b) || isnan(c) || isnan(d) || isnan(f) ? NAN : 0;
    const double mantissa = frexp(a, &ea) * frexp(b, &eb) * (frexp(c, &ec) * frexp(d, &ed)) * frexp(f, &ef);
    return isfinite(mantissa) ? ldexp(mantissa, ea + eb + ec + ed + ef + shift) : mantissa;
}

logitloss_element logitloss_careful(double label, double logit, double pos_weight, double weight)
{
    /* In the tail, where log1p(e) is e and 1 + e is 1, e comes times 2^SCALE; and far out,
     * where even that is subnormal or zero, so many factors exp(-1075) are taken out, which is
     * next to a double times 2^-1551. */
    const double m = fabs(logit);
    const int in_tail = m > 87;
    int shift = in_tail ? -SCALE : 0;
    double rest = m, tail = 1;
    for (int i = 0; i < 3 && rest > 1075; i++) {
        rest -= 1075;
        tail *= 0x1.12e9b6ed29942p+0;
        shift -= 1551;
    }
    const pair e = exp_neg_abs(rest, in_tail);
    double softplus = e.hi, against = e.hi, towards = 1;
    if (!in_tail) {
        const pair log1p_e = log1p_scaled(e, log1p_quotient(e.hi, 0), 0);
        softplus = log1p_e.hi + log1p_e.lo;
        against = sigmoid_scaled(e, 0).value;
        towards = 1 - against;
    }
    const double negative = 1 - label;
    const double positive_part = logit > 0 ? 0 : m, negative_part = logit > 0 ? m : 0;

    logitloss_element result;
    result.loss = (product(weight, pos_weight, label, softplus, tail, shift)
                   + product(weight, pos_weight, label, positive_part, 1, 0))
                  + (product(weight, negative, 1, softplus, tail, shift)
                     + product(weight, negative, 1, negative_part, 1, 0));
    /* An infinite weight multiplies a gradient as a whole, because its terms have opposite signs. */
    const int is_whole = !isfinite(weight) && !isnan(weight) && negative != 0 && label != 0 && pos_weight != 0;
    const double inner = is_whole ? 1 : weight;
    if (logit >= 0)
        result.gradient = product(inner, negative, 1, towards, 1, 0)
                          - product(inner, pos_weight, label, against, tail, shift);
    else
        result.gradient = product(inner, negative, 1, against, tail, shift)
                          - product(inner, pos_weight, label, towards, 1, 0);
    if (is_whole)
        result.gradient = product(weight, result.gradient, 1, 1, 1, 0);
    result.hessian = product(weight, pos_weight, label, against * towards, tail, shift)
                     + product(weight, negative, 1, against * towards, tail, shift);
    return result;
}
