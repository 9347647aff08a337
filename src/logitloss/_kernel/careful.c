/*
 * The elements for which blocks.c would leave the number range on the way to a
 * result that is inside it.  Rare, hence plain C library calls, one at a time.
 */
#include "blocks.h"

#include <math.h>

/* The product of five numbers, rounded as if the exponent range had no end. */
static double product(double a, double b, double c, double d, double f)
{
    int ea, eb, ec, ed, ef;
    if (a == 0 || b == 0 || c == 0 || d == 0 || f == 0)
        return isnan(a) || isnan(b) || isnan(c) || isnan(d) || isnan(f) ? NAN : 0;
    const double mantissa = frexp(a, &ea) * frexp(b, &eb) * (frexp(c, &ec) * frexp(d, &ed)) * frexp(f, &ef);
    return isfinite(mantissa) ? ldexp(mantissa, ea + eb + ec + ed + ef) : mantissa;
}

logitloss_element logitloss_careful(double label, double logit, double pos_weight, double weight)
{
    /* In the tail exp(-m) may be subnormal or zero, where a coefficient still lifts the
     * result out: it is multiplied in as the square of its root.  log1p(e) is e there. */
    const double m = fabs(logit);
    const int in_tail = m > 87;
    const double root = exp(in_tail ? -m / 2 : -m), tail = in_tail ? root : 1;
    const double denominator = 1 + root * tail;
    const double softplus = in_tail ? root : log1p(root);
    const double against = root / denominator, towards = 1 / denominator;
    const double negative = 1 - label;
    const double positive_part = logit > 0 ? 0 : m, negative_part = logit > 0 ? m : 0;

    logitloss_element result;
    result.loss = (product(weight, pos_weight, label, softplus, tail)
                   + product(weight, pos_weight, label, positive_part, 1))
                  + (product(weight, negative, 1, softplus, tail)
                     + product(weight, negative, 1, negative_part, 1));
    if (logit >= 0)
        result.gradient = product(weight, negative, 1, towards, 1)
                          - product(weight, pos_weight, label, against, tail);
    else
        result.gradient = product(weight, negative, 1, against, tail)
                          - product(weight, pos_weight, label, towards, 1);
    result.hessian = product(weight, pos_weight, label, against * towards, tail)
                     + product(weight, negative, 1, against * towards, tail);
    return result;
}
