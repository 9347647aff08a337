/* What memory alone costs: the loops of compare.py that do no arithmetic to speak of. */
#include <stddef.h>

#define BOUNDS(type, suffix)                                                                     \
    void triad_##suffix(const type *z, const type *x, type *o, ptrdiff_t n, int threads)         \
    {                                                                                            \
        _Pragma("omp parallel for simd num_threads(threads)") for (ptrdiff_t i = 0; i < n; i++)  \
            o[i] = z[i] + (type)2.5 * x[i];                                                      \
    }                                                                                            \
    void weighted_triad_##suffix(const type *z, const type *x, const type *w, type *o,           \
                                 ptrdiff_t n, int threads)                                       \
    {                                                                                            \
        _Pragma("omp parallel for simd num_threads(threads)") for (ptrdiff_t i = 0; i < n; i++)  \
            o[i] = w[i] * (z[i] + (type)2.5 * x[i]);                                             \
    }                                                                                            \
    double sweep_##suffix(const type *z, const type *x, ptrdiff_t n, int threads)                \
    {                                                                                            \
        type sum = 0;                                                                            \
        _Pragma("omp parallel for simd reduction(+ : sum) num_threads(threads)") for (           \
            ptrdiff_t i = 0; i < n; i++) sum += z[i] * x[i];                                     \
        return (double)sum;                                                                      \
    }

BOUNDS(float, float32)
BOUNDS(double, float64)
