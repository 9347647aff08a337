/*
 * One call of the kernel: what is read, what is wanted, and where it goes.  task.c
 * makes a task of arrays, blocks.c works through any part of it, from any thread,
 * without touching Python.
 */
#ifndef LOGITLOSS_TASK_H
#define LOGITLOSS_TASK_H

#include "half.h"

#include <math.h>
#include <stddef.h>

enum {
    /* Elements that are worked on at a time, in buffers that stay in the L1 cache: 256
     * doubles are 2 KiB, and some ten such buffers are live.  Slices begin at multiples of
     * it, so that sums do not depend on how a call is divided. */
    LOGITLOSS_BLOCK = 256,
    /* Axes of more than one element that an array can have: NumPy's limit. */
    LOGITLOSS_MAX_AXES = 64,
};

typedef enum {
    LOGITLOSS_FLOAT16,
    LOGITLOSS_BFLOAT16,
    LOGITLOSS_FLOAT32,
    LOGITLOSS_FLOAT64,
    LOGITLOSS_LONGDOUBLE, /* read only */
    LOGITLOSS_BOOL, /* any byte but 0 is 1 */
    LOGITLOSS_INT8,
    LOGITLOSS_UINT8,
    LOGITLOSS_INT16,
    LOGITLOSS_UINT16,
    LOGITLOSS_INT32,
    LOGITLOSS_UINT32,
    LOGITLOSS_INT64,
    LOGITLOSS_UINT64,
    LOGITLOSS_TYPES, /* how many there are */
} logitloss_type;

/* The derivatives by the logits that are wanted, as bits 1 << order. */
enum { LOGITLOSS_LOSS = 1, LOGITLOSS_GRADIENT = 2, LOGITLOSS_HESSIAN = 4 };

typedef enum {
    LOGITLOSS_NONE,
    LOGITLOSS_SUM,
    LOGITLOSS_MEAN,
    LOGITLOSS_WEIGHTED_MEAN,
} logitloss_reduction;

/* An array as its owner has it: strides in bytes, of either sign or zero. */
typedef struct {
    char *data; /* NULL where there is none */
    logitloss_type type;
    int is_swapped; /* not in native byte order */
    int ndim;
    const ptrdiff_t *shape, *strides;
} logitloss_array;

typedef struct {
    ptrdiff_t size, stride;
} logitloss_axis;

/* An array as a walk over the elements of the logits in one order for all: axes from the
 * innermost, those merged that follow on each other in memory.  A broadcast axis has a
 * stride of 0. */
typedef struct {
    char *data;
    logitloss_type type;
    int is_swapped;
    int is_rounded; /* to the half precision of the results */
    int is_overwritten; /* a result is the same memory: a block is read before it is written */
    int ndim;
    logitloss_axis *axes;
} logitloss_operand;

typedef struct {
    ptrdiff_t size;
    logitloss_type type; /* of the results, to which coefficients are rounded */
    int orders;          /* what is computed */
    int adds_losses, adds_weights;
    double divisor; /* of the gradient */
    double pos_weight_value, weight_value;
    logitloss_operand logits, labels;
    logitloss_operand pos_weight, weight; /* without data: the values above */
    logitloss_operand scale;              /* of the results; without data: 1 */
    logitloss_operand results[3];         /* by order; without data: not written */
    /* The axes of all, next to each other: mostly it is one each. */
    logitloss_axis axes[8 * LOGITLOSS_MAX_AXES];
} logitloss_task;

/* An unevaluated sum. */
typedef struct {
    double hi, lo;
} logitloss_sum;

typedef struct {
    logitloss_sum losses, weights;
} logitloss_sums;

/* The arrays of a call; coefficients without data have the values, results without data
 * are not written.  Results are multiplied by `scale`, if it has data, losses before they are added up:
 * a zero of it or of the weight masks the other. */
typedef struct {
    logitloss_array logits, labels, pos_weight, weight, scale;
    double pos_weight_value, weight_value;
    logitloss_array results[3];
} logitloss_arrays;

/* The promotion of the floating types.  Integer logits count as float64.  LOGITLOSS_TYPES if the
 * kernel has no such type: the two half precisions have no promotion to either, and long double is
 * left to the formula. */
logitloss_type logitloss_result_type(logitloss_type labels, logitloss_type logits);

/* Makes a task of arrays, without looking at their elements, or returns 0 if their shapes
 * do not fit.  They may lie in the memory of another device. */
int logitloss_plan_remote(logitloss_task *task, const logitloss_arrays *arrays, logitloss_type type, int orders);

/* The same, and reads coefficients that are one element. */
int logitloss_plan(logitloss_task *task, const logitloss_arrays *arrays, logitloss_type type, int orders);

/* Works through all of a task. */
typedef logitloss_sums logitloss_execute(const logitloss_task *task, void *context);

/* Computes a task and returns the reduced loss; the gradient is that of the reduced loss.  The
 * divisor is that of a sum. */
double logitloss_compute(logitloss_task *task, logitloss_reduction reduction, double divisor,
                         logitloss_execute *execute, void *context);

/* Makes a task of the weights alone, each of them once: with no orders the sum of them is all
 * there is to do.  Returns how often each counts. */
double logitloss_plan_weights(logitloss_task *weights, const logitloss_task *task);

/* Whether the sum of the weights has to be there before the rest: for a gradient, and where
 * there are fewer weights than elements. */
int logitloss_sums_weights_first(const logitloss_task *task);

/* Whether two elements of an array lie in the same memory. */
int logitloss_overlaps_itself(const logitloss_array *array);

/* Whether the arrays may have memory in common, seen from their first and last bytes. */
int logitloss_may_overlap(const logitloss_array *first, const logitloss_array *second);

/* Whether they are the same elements in the same memory. */
int logitloss_is_same(const logitloss_array *first, const logitloss_array *second);

#ifndef __CUDACC_RTC__
extern const ptrdiff_t logitloss_itemsizes[LOGITLOSS_TYPES];
#endif

static inline int logitloss_is_half(logitloss_type type)
{
    return type == LOGITLOSS_FLOAT16 || type == LOGITLOSS_BFLOAT16;
}

/* Writes a value, rounded once, as one element of a type that results have. */
static inline void logitloss_write(double value, logitloss_type type, void *to)
{
    const float single = logitloss_is_half(type) ? logitloss_round_to_odd(value) : (float)value;
    const uint16_t half = type == LOGITLOSS_FLOAT16 ? logitloss_to_float16(single) : logitloss_to_bfloat16(single);
    if (logitloss_is_half(type))
        memcpy(to, &half, sizeof half);
    else if (type == LOGITLOSS_FLOAT32)
        memcpy(to, &single, sizeof single);
    else
        memcpy(to, &value, sizeof value);
}

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

/* Adds `term` to `sum`, rounding error and all (Knuth's TwoSum). */
static inline void logitloss_add(logitloss_sum *sum, logitloss_sum term)
{
    const double total = sum->hi + term.hi;
    const double part = total - sum->hi;
    sum->lo += ((sum->hi - (total - part)) + (term.hi - part)) + term.lo;
    sum->hi = total;
}

/* A sum so many times, rounded once.  After an overflow to infinity its low part is NaN. */
static inline double logitloss_value_of(logitloss_sum sum, double times)
{
    return isfinite(sum.hi) ? fma(sum.hi, times, sum.lo * times) : sum.hi;
}

static inline void logitloss_add_both(logitloss_sums *sums, const logitloss_sums *more)
{
    logitloss_add(&sums->losses, more->losses);
    logitloss_add(&sums->weights, more->weights);
}

#endif
