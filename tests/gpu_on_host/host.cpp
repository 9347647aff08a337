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

#include "cuda.cu"

extern "C" void launch(void **parameters, unsigned blocks)
{
    gridDim.x = blocks;
    /* In any order, as on a GPU. */
    for (blockIdx.x = blocks; blockIdx.x-- > 0;)
        logitloss_run(*(const logitloss_grid_task *)*parameters);
}
