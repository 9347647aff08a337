#ifndef LOGITLOSS_CAREFUL_H
#define LOGITLOSS_CAREFUL_H

typedef struct {
    double loss, gradient, hessian;
} logitloss_element;

/* One element, for coefficients at the limits of the number range. */
logitloss_element logitloss_careful(double label, double logit, double pos_weight, double weight);

#endif
