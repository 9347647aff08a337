/* cuda.cu as C++ for the host: threads are loops within, and blocks one here. */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

static struct {
    unsigned x;
} gridDim, blockIdx;

static void __threadfence() {}

static unsigned atomicAdd(unsigned *value, unsigned more)
{
    const unsigned before = *value;
    *value += more;
    return before;
}

/* As inexact as a GPU's may be: so many floats from the nearest, of a double half as many from 20 bits. */
static int reciprocal_is_off = 2;

static inline float about_reciprocal(float divisor)
{
    float reciprocal = 1 / divisor;
    uint32_t bits;
    memcpy(&bits, &reciprocal, sizeof bits);
    bits += (uint32_t)reciprocal_is_off;
    memcpy(&reciprocal, &bits, sizeof bits);
    return reciprocal;
}

static inline double about_reciprocal(double divisor)
{
    uint64_t bits;
    memcpy(&bits, &divisor, sizeof bits);
    bits &= ~(uint64_t)UINT32_MAX;
    memcpy(&divisor, &bits, sizeof bits);
    double reciprocal = 1 / divisor;
    memcpy(&bits, &reciprocal, sizeof bits);
    bits = (bits & ~(uint64_t)UINT32_MAX) + (uint64_t)(reciprocal_is_off / 2) * ((uint64_t)1 << 32);
    memcpy(&reciprocal, &bits, sizeof bits);
    return reciprocal;
}

#include "cuda.cu"

extern "C" void launch(void **parameters, unsigned blocks)
{
    gridDim.x = blocks;
    /* In any order, as on a GPU. */
    for (blockIdx.x = blocks; blockIdx.x-- > 0;)
        logitloss_run(*(const logitloss_grid_task *)*parameters);
}
