/* Every quotient that an ordinary float32 logit needs, and random ones of float64, beside a division. */
#include "host.cpp"

#include <stdio.h>

template <typename T> static bool differs(T dividend, T divisor)
{
    return ordinary_quotient<T>(dividend, divisor) != dividend / divisor;
}

int main()
{
    long long wrong = 0;
    /* From 2^-47, as exp(-32) is 2^-46.2, to 1. */
    for (reciprocal_is_off = -2; reciprocal_is_off <= 2; reciprocal_is_off++)
        for (uint32_t bits = (127 - 47) << 23; bits <= 127 << 23; bits++) {
            float e;
            memcpy(&e, &bits, sizeof e);
            wrong += differs<float>(e, 1 + e) + differs<float>(e, 2 + e);
        }
    uint64_t state = 1;
    for (int i = 0; i < 20000000; i++) {
        reciprocal_is_off = i % 3 * 2 - 2;
        state = state * 6364136223846793005u + 1442695040888963407u;
        /* From 2^-370, as exp(-256) is 2^-369.3, to 1. */
        const uint64_t bits = ((uint64_t)(1022 - (state >> 32) % 370) << 52) | (state ^ state << 32) >> 12;
        double e;
        memcpy(&e, &bits, sizeof e);
        wrong += differs<double>(e, 1 + e) + differs<double>(e, 2 + e);
    }
    if (wrong)
        printf("%lld quotients are wrong\n", wrong);
    return wrong != 0;
}
