/* The loops of the kernel one by one, for operations.py to find in the compiler's assembly. */
#include "blocks.c"

#define FIRST(name, orders, general)                                            \
    extremes first_##name(inputs in, terms *to, destination results, ptrdiff_t n) \
    {                                                                           \
        return first_pass(in, to, results, n, orders, general, 0);              \
    }
#define SECOND(name, orders)                                                        \
    void second_##name(const terms *from, pair factor, destination to, ptrdiff_t n) \
    {                                                                               \
        second_step(from, factor, to, 0, whole_vectors(n), orders, 0);              \
    }

FIRST(loss, LOGITLOSS_LOSS, 0)
FIRST(loss_and_gradient, LOGITLOSS_LOSS | LOGITLOSS_GRADIENT, 0)
FIRST(weighted_loss, LOGITLOSS_LOSS, 1)
void quotients(terms *block, ptrdiff_t n)
{
    divide_pass(block, whole_vectors(n), 0);
}
SECOND(loss, LOGITLOSS_LOSS)
SECOND(loss_and_gradient, LOGITLOSS_LOSS | LOGITLOSS_GRADIENT)
