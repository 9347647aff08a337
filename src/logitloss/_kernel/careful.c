/*
 * The elements for which blocks.c would leave the number range on the way to a
 * result that is inside it.  Rare, hence plain C library calls, one at a time.
 */
#include "blocks.h"

#include <math.h>

/* The product of four numbers, rounded as if the exponent range had no end. */
static double product(double a, double b, double c, double d)
{
    int ea, eb, ec, ed;
    if (a == 0 || b == 0 || c == 0 || d == 0)
        return isnan(a) || isnan(b) || isnan(c) || isnan(d) ? NAN : 0;
    const double mantissa = frexp(a, &ea) * frexp(b, &eb) * (frexp(c, &ec) * frexp(d, &ed));
    return isfinite(mantissa) ? ldexp(mantissa, ea + eb + ec + ed) : mantissa;
}

logitloss_element logitloss_careful(double label, double logit, double pos_weight, double weight)
{
    const double m = fabs(logit), e = exp(-m);
    const double against = e / (1 + e), towards = 1 / (1 + e);
    const double negative = 1 - label;
    const double positive_part = logit > 0 ? 0 : m, negative_part = logit > 0 ? m : 0;

    logitloss_element result;
    result.loss = (product(weight, pos_weight, label, log1p(e)) + product(weight, pos_weight, label, positive_part))
                  + (product(weight, negative, 1, log1p(e)) + product(weight, negative, 1, negative_part));
    result.gradient = product(weight, negative, 1, logit >= 0 ? towards : against)
                      - product(weight, pos_weight, label, logit >= 0 ? against : towards);
    result.hessian = product(weight, pos_weight, label, against * towards)
                     + product(weight, negative, 1, against * towards);
    return result;
}
