/*
 * The elements for which blocks.c would leave the number range on the way to a
 * result that is inside it.  Rare, hence plain C library calls, one at a time.
 */
#include "careful.h"

#include <math.h>

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
    /* In the tail exp(-m) may be subnormal or zero, where coefficients still lift the
     * result out: it is multiplied in as the square of its root, and far out, where that
     * is subnormal too, as exp(1507 - m) exp(-1507), of which the latter is next to a
     * double times 2^shift.  log1p(e) is e there, and 1 + e is 1. */
    const double m = fabs(logit);
    const int in_tail = m > 87, is_far = m > 1400, shift = is_far ? -2174 : 0;
    const double root = exp(is_far ? 1507 - m : in_tail ? -m / 2 : -m);
    const double tail = is_far ? 0x1.d030c8af93de1p-1 : in_tail ? root : 1;
    const double denominator = in_tail ? 1 : 1 + root;
    const double softplus = in_tail ? root : log1p(root);
    const double against = root / denominator, towards = 1 / denominator;
    const double negative = 1 - label;
    const double positive_part = logit > 0 ? 0 : m, negative_part = logit > 0 ? m : 0;

    logitloss_element result;
    result.loss = (product(weight, pos_weight, label, softplus, tail, shift)
                   + product(weight, pos_weight, label, positive_part, 1, 0))
                  + (product(weight, negative, 1, softplus, tail, shift)
                     + product(weight, negative, 1, negative_part, 1, 0));
    if (logit >= 0)
        result.gradient = product(weight, negative, 1, towards, 1, 0)
                          - product(weight, pos_weight, label, against, tail, shift);
    else
        result.gradient = product(weight, negative, 1, against, tail, shift)
                          - product(weight, pos_weight, label, towards, 1, 0);
    result.hessian = product(weight, pos_weight, label, against * towards, tail, shift)
                     + product(weight, negative, 1, against * towards, tail, shift);
    return result;
}
