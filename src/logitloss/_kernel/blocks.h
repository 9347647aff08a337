/*
 * What kernel.pyx and blocks.c agree on.  One `task` describes one call; the
 * kernels run any slice of it, from any thread, without touching Python.
 */
#ifndef LOGITLOSS_BLOCKS_H
#define LOGITLOSS_BLOCKS_H

#include <math.h>
#include <stddef.h>

/* Elements that are worked on at a time, in buffers that stay in the L1 cache:
 * 256 doubles are 2 KiB, and at most eight such buffers are live.  Slices begin
 * at multiples of it, so that sums do not depend on how a call is divided. */
enum { LOGITLOSS_BLOCK = 256 };

typedef enum {
    LOGITLOSS_FLOAT32,
    LOGITLOSS_FLOAT64,
    LOGITLOSS_INT8,
    LOGITLOSS_UINT8, /* and bool */
    LOGITLOSS_INT16,
    LOGITLOSS_UINT16,
    LOGITLOSS_INT32,
    LOGITLOSS_UINT32,
    LOGITLOSS_INT64,
    LOGITLOSS_UINT64,
} logitloss_type;

typedef enum { LOGITLOSS_LOSS, LOGITLOSS_VALUE_AND_GRAD, LOGITLOSS_GRAD_AND_HESS } logitloss_operation;

/* Element i is at data + (i / repeat % period) * stride, aligned and in native
 * byte order.  An operand of the kernel's own type that is contiguous and has a
 * period shorter than the task is read in place: LOGITLOSS_BLOCK elements of its
 * next period must follow the first. */
typedef struct {
    const char *data;
    ptrdiff_t stride, repeat, period;
    logitloss_type type;
} logitloss_operand;

typedef struct {
    char *data; /* NULL if not wanted */
    ptrdiff_t stride;
} logitloss_result;

typedef struct {
    logitloss_operation operation;
    logitloss_operand logits, labels;
    logitloss_operand pos_weight, weight; /* data is NULL: the scalars below */
    double pos_weight_scalar, weight_scalar;
    logitloss_result first, second; /* in the order the public function returns them */
    double gradient_divisor; /* 1, or what a mean is divided by */
    int in_place; /* an output is an input as well: read a block before it is written */
    int reduce;   /* add up the losses */
} logitloss_task;

/* An unevaluated sum. */
typedef struct {
    double hi, lo;
} logitloss_sum;

/* A call is divided into at most so many slices, by its size alone, so that the sum of
 * their sums has the same bits on any number of threads, whoever they belong to. */
enum { LOGITLOSS_MAX_SLICES = 1024, LOGITLOSS_MIN_SLICE = 4096 };

/* The elements of every slice but the last. */
static inline ptrdiff_t logitloss_slice(ptrdiff_t size)
{
    const ptrdiff_t blocks = (size + LOGITLOSS_BLOCK - 1) / LOGITLOSS_BLOCK;
    const ptrdiff_t width = (blocks + LOGITLOSS_MAX_SLICES - 1) / LOGITLOSS_MAX_SLICES * LOGITLOSS_BLOCK;
    return width < LOGITLOSS_MIN_SLICE ? LOGITLOSS_MIN_SLICE : width;
}

/* Works through elements start .. stop and returns the sum of the losses, if wanted.
 * `start` is a multiple of LOGITLOSS_BLOCK.  Needs no GIL and is thread-safe. */
typedef logitloss_sum logitloss_run(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop);

logitloss_run logitloss_run_float32_baseline, logitloss_run_float64_baseline;
#ifdef LOGITLOSS_X86
logitloss_run logitloss_run_float32_avx2, logitloss_run_float64_avx2;
logitloss_run logitloss_run_float32_avx512, logitloss_run_float64_avx512;
#endif

typedef struct {
    double loss, gradient, hessian;
} logitloss_element;

/* One element, for coefficients at the limits of the number range. */
logitloss_element logitloss_careful(double label, double logit, double pos_weight, double weight);

/* Adds `term` to `sum`, rounding error and all (Knuth's TwoSum). */
static inline void logitloss_add(logitloss_sum *sum, logitloss_sum term)
{
    const double total = sum->hi + term.hi;
    const double part = total - sum->hi;
    sum->lo += ((sum->hi - (total - part)) + (term.hi - part)) + term.lo;
    sum->hi = total;
}

/* The sum as one number.  After an overflow to infinity the low part is NaN. */
static inline double logitloss_value(logitloss_sum sum)
{
    return isfinite(sum.hi) ? sum.hi + sum.lo : sum.hi;
}

#endif
