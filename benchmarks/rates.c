/* What arithmetic alone costs: how fast the processor does independent operations on vectors. */
#include <stddef.h>

/* As many chains as hide the time that one operation takes. */
enum { CHAINS = 12 };

#define CHAIN for (int j = 0; j < CHAINS; j++)

/* Each of `threads` threads does so many rounds: of CHAINS fused operations; of as many fused ones
 * and as many additions, in turn; of as many divisions; of CHAINS fused ones and one division. */
#define RATES(type, suffix, bytes)                                                                 \
    typedef type vector_##suffix##_##bytes __attribute__((vector_size(bytes)));                    \
    static void run_##suffix##_##bytes(int kind, ptrdiff_t rounds, volatile type *result)          \
    {                                                                                              \
        vector_##suffix##_##bytes a[CHAINS], b[CHAINS], x, y, sum = {0};                           \
        x = (vector_##suffix##_##bytes){0} + (type)0.999;                                          \
        y = (vector_##suffix##_##bytes){0} + (type)1e-3;                                           \
        CHAIN a[j] = b[j] = x * (type)(j + 1);                                                     \
        if (kind == 0)                                                                             \
            for (ptrdiff_t i = 0; i < rounds; i++)                                                 \
                CHAIN a[j] = a[j] * x + y;                                                         \
        else if (kind == 1)                                                                        \
            for (ptrdiff_t i = 0; i < rounds; i++) {                                               \
                CHAIN a[j] = a[j] * x + y;                                                         \
                CHAIN b[j] = b[j] + y;                                                             \
            }                                                                                      \
        else if (kind == 2)                                                                        \
            for (ptrdiff_t i = 0; i < rounds; i++)                                                 \
                CHAIN a[j] = x / a[j];                                                             \
        else                                                                                       \
            for (ptrdiff_t i = 0; i < rounds; i++) {                                               \
                CHAIN a[j] = a[j] * x + y;                                                         \
                b[i % CHAINS] = x / b[i % CHAINS];                                                 \
            }                                                                                      \
        CHAIN sum += a[j] + b[j];                                                                  \
        *result = sum[0];                                                                          \
    }                                                                                              \
    void rate_##suffix##_##bytes(int kind, ptrdiff_t rounds, int threads)                          \
    {                                                                                              \
        _Pragma("omp parallel num_threads(threads)")                                               \
        {                                                                                          \
            volatile type result;                                                                  \
            run_##suffix##_##bytes(kind, rounds, &result);                                         \
        }                                                                                          \
    }

RATES(float, float32, 32)
RATES(double, float64, 32)
#ifdef __AVX512F__
RATES(float, float32, 64)
RATES(double, float64, 64)
#endif
