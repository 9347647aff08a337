/*
 * A task as cuda.cu takes it: by value, its axes inside, with sizes that an index is divided by
 * without a division.  It is the same for the compilers of the host and of the device.
 */
#ifndef LOGITLOSS_GRID_H
#define LOGITLOSS_GRID_H

#include "task.h"

#include <stdint.h>

enum {
    /* The axes that are left once those are merged that follow on each other in memory. */
    LOGITLOSS_GRID_AXES = 8,
    LOGITLOSS_GRID_THREADS = 256,
    /* Blocks of threads at most: as many as keep a GPU busy to the end, fewer where each leaves a
     * sum, and fewer still where every block that comes next adds up the sums.  The number does
     * not depend on the GPU, so that no bit of a sum does. */
    LOGITLOSS_GRID_BLOCKS = 4096,
    LOGITLOSS_GRID_SUMS = 1024,
    LOGITLOSS_GRID_WEIGHT_SUMS = 256,
};

/* How an operand lies in memory: nowhere, or being a factor of 1; nowhere, being one number; being
 * one element; one element after the other, aligned so that a thread reads all of its own at once,
 * or not; or in any other way. */
#define ABSENT 0
#define NUMBER 1
#define SINGLE 2
#define PACKED 3
#define UNALIGNED 4
#define STRIDED 5

/* Elements that a thread takes at a time: 16 bytes of float32 and float64, as many as it reads at
 * once.  Eight of half precision would take more registers than that gains.  Of weights that are
 * only added up, it takes 16 bytes. */
#define LOGITLOSS_GRID_LANES(orders, type, weight_itemsize) \
    ((orders) ? (type) == LOGITLOSS_FLOAT64 ? 2 : 4 : 16 / (int)(weight_itemsize))

/* For indices below 2^31 the quotient is (index * multiplier / 2^32 + index) >> shift
 * (Granlund and Montgomery 1994, "Division by invariant integers using multiplication"). */
typedef struct {
    int64_t stride, size;
    uint32_t multiplier, shift;
} logitloss_grid_axis;

typedef struct {
    uint64_t data;
    int64_t ndim;
    logitloss_grid_axis axes[LOGITLOSS_GRID_AXES];
} logitloss_grid_operand;

typedef struct {
    int64_t size;
    double divisor, pos_weight_value, weight_value;
    logitloss_grid_operand logits, labels, pos_weight, weight, scale, results[3];
    /* Of a reduction: where the result goes, a pair of sums for each block of threads, and how
     * many blocks are done. */
    uint64_t reduced, parts, done;
    /* The sums of the weights that the launch before has left, and how often they count. */
    uint64_t weight_parts;
    int64_t weight_parts_count;
    double weight_times;
} logitloss_grid_task;

/* The constants that cuda.cu is compiled with, by name. */
#define LOGITLOSS_GRID_CONSTANTS(X)                                                                    \
    X(REAL_BITS) X(ORDERS) X(LOGITS) X(LABELS) X(POS_WEIGHT) X(WEIGHT) X(INCOMING) X(RESULT) X(REDUCED)   \
    X(LOGITS_KIND) X(LABELS_KIND) X(POS_WEIGHT_KIND) X(WEIGHT_KIND) X(INCOMING_KIND)                      \
    X(LOSS_KIND) X(GRADIENT_KIND) X(HESSIAN_KIND)                                                      \
    X(ADDS_LOSSES) X(ADDS_WEIGHTS) X(DIVIDES) X(DIVIDES_BY_WEIGHTS) X(IS_WIDE)

#ifndef __CUDACC_RTC__

#define LOGITLOSS_INDEX(name) LOGITLOSS_GRID_##name,
enum { LOGITLOSS_GRID_CONSTANTS(LOGITLOSS_INDEX) LOGITLOSS_GRID_COUNT };
#undef LOGITLOSS_INDEX
#define LOGITLOSS_SPACED(name) #name " "
#define LOGITLOSS_GRID_NAMES LOGITLOSS_GRID_CONSTANTS(LOGITLOSS_SPACED)

typedef struct {
    logitloss_grid_task task;
    uint32_t blocks;
    uint8_t constants[LOGITLOSS_GRID_COUNT];
} logitloss_grid_launch;

/* The launches that a task takes: one, or one before it that adds up the weights.  Returns their
 * number, or 0 for a layout that they cannot have.  The type is that of the reduced loss.  Where
 * they keep their sums, logitloss_place_grid says. */
int logitloss_plan_grid(logitloss_grid_launch launches[2], const logitloss_task *task, logitloss_reduction reduction,
                        double divisor, logitloss_type reduced);

/* Bytes that launches need to keep sums in, and where these and the reduced loss are. */
uint64_t logitloss_grid_scratch(const logitloss_grid_launch *launches, int count);
void logitloss_place_grid(logitloss_grid_launch *launches, int count, uint64_t scratch, uint64_t reduced);

#endif

#endif
