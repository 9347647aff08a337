/* A task becomes launches of cuda.cu. */
#include "grid.h"

#include <string.h>

static logitloss_grid_axis axis_of(logitloss_axis from)
{
    logitloss_grid_axis axis = {from.stride, from.size, 0, 0};
    const uint64_t size = (uint64_t)from.size;
    while (axis.shift < 32 && (uint64_t)1 << axis.shift < size)
        axis.shift++;
    if (size < (uint64_t)1 << 31)
        axis.multiplier = (uint32_t)(((((uint64_t)1 << axis.shift) - size) << 32) / size + 1);
    return axis;
}

/* Returns how the operand lies in memory, or -1 if it has too many axes. */
static int place_operand(logitloss_grid_operand *to, const logitloss_operand *from, logitloss_type type, int lanes)
{
    memset(to, 0, sizeof *to);
    if (!from->data)
        return ABSENT;
    if (from->ndim > LOGITLOSS_GRID_AXES)
        return -1;
    to->data = (uint64_t)(uintptr_t)from->data;
    to->ndim = from->ndim;
    for (int axis = 0; axis < from->ndim; axis++)
        to->axes[axis] = axis_of(from->axes[axis]);
    const ptrdiff_t itemsize = logitloss_itemsizes[type], taken = itemsize * lanes;
    const uint64_t alignment = (uint64_t)(taken < 16 ? taken : 16);
    if (from->ndim == 1 && !from->axes[0].stride)
        return SINGLE;
    if (from->ndim > 1 || from->axes[0].stride != itemsize)
        return STRIDED;
    return to->data % alignment ? UNALIGNED : PACKED;
}

/* One launch of a task; returns whether there can be one. */
static int plan_launch(logitloss_grid_launch *launch, const logitloss_task *task)
{
    logitloss_grid_task *to = &launch->task;
    uint8_t *constants = launch->constants;
    memset(launch, 0, sizeof *launch);
    to->size = task->size;
    to->divisor = task->divisor;
    to->pos_weight_value = task->pos_weight_value;
    to->weight_value = task->weight_value;

    static const logitloss_operand absent;
    const int orders = task->orders;
    const int lanes = LOGITLOSS_GRID_LANES(orders, task->type, logitloss_itemsizes[task->weight.type]);
    const struct {
        const logitloss_operand *from;
        logitloss_grid_operand *to;
        int kind, type; /* the constants; a result has no type of its own */
    } operands[] = {
        {orders ? &task->logits : &absent, &to->logits, LOGITLOSS_GRID_LOGITS_KIND, LOGITLOSS_GRID_LOGITS},
        {orders ? &task->labels : &absent, &to->labels, LOGITLOSS_GRID_LABELS_KIND, LOGITLOSS_GRID_LABELS},
        {orders ? &task->pos_weight : &absent, &to->pos_weight, LOGITLOSS_GRID_POS_WEIGHT_KIND,
         LOGITLOSS_GRID_POS_WEIGHT},
        {&task->weight, &to->weight, LOGITLOSS_GRID_WEIGHT_KIND, LOGITLOSS_GRID_WEIGHT},
        {&task->scale, &to->scale, LOGITLOSS_GRID_INCOMING_KIND, LOGITLOSS_GRID_INCOMING},
        {orders & LOGITLOSS_LOSS ? &task->results[0] : &absent, &to->results[0], LOGITLOSS_GRID_LOSS_KIND, -1},
        {orders & LOGITLOSS_GRADIENT ? &task->results[1] : &absent, &to->results[1], LOGITLOSS_GRID_GRADIENT_KIND, -1},
        {orders & LOGITLOSS_HESSIAN ? &task->results[2] : &absent, &to->results[2], LOGITLOSS_GRID_HESSIAN_KIND, -1},
    };
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++) {
        /* One that is absent has the type of the results, so that there are fewer combinations. */
        const logitloss_operand *from = operands[i].from;
        const logitloss_type type = from->data && operands[i].type >= 0 ? from->type : task->type;
        const int kind = place_operand(operands[i].to, from, type, lanes);
        if (kind < 0 || type == LOGITLOSS_LONGDOUBLE || (from->data && from->is_swapped))
            return 0;
        constants[operands[i].kind] = (uint8_t)kind;
        if (operands[i].type >= 0)
            constants[operands[i].type] = (uint8_t)type;
    }
    if (!task->pos_weight.data && task->pos_weight_value != 1)
        constants[LOGITLOSS_GRID_POS_WEIGHT_KIND] = NUMBER;
    if (!task->weight.data && task->weight_value != 1)
        constants[LOGITLOSS_GRID_WEIGHT_KIND] = NUMBER;
    constants[LOGITLOSS_GRID_REAL_BITS] = task->type == LOGITLOSS_FLOAT64 ? 64 : 32;
    constants[LOGITLOSS_GRID_ORDERS] = (uint8_t)orders;
    constants[LOGITLOSS_GRID_RESULT] = constants[LOGITLOSS_GRID_REDUCED] = (uint8_t)task->type;
    constants[LOGITLOSS_GRID_ADDS_LOSSES] = (uint8_t)task->adds_losses;
    constants[LOGITLOSS_GRID_ADDS_WEIGHTS] = (uint8_t)task->adds_weights;
    constants[LOGITLOSS_GRID_DIVIDES] = orders & ~LOGITLOSS_LOSS && task->divisor != 1;
    /* An index goes past the end by as much as all threads take at a time. */
    constants[LOGITLOSS_GRID_IS_WIDE] = task->size >= (int64_t)1 << 30;

    const int64_t taken = LOGITLOSS_GRID_THREADS * lanes;
    const int64_t blocks = (task->size + taken - 1) / taken;
    const int64_t most = !orders                                   ? LOGITLOSS_GRID_WEIGHT_SUMS
                         : task->adds_losses || task->adds_weights ? LOGITLOSS_GRID_SUMS
                                                                   : LOGITLOSS_GRID_BLOCKS;
    launch->blocks = (uint32_t)(blocks < 1 ? 1 : blocks < most ? blocks : most);
    return 1;
}

int logitloss_plan_grid(logitloss_grid_launch launches[2], const logitloss_task *task, logitloss_reduction reduction,
                        double divisor, logitloss_type reduced)
{
    logitloss_task main = *task;
    logitloss_grid_launch *last = launches;
    main.adds_losses = reduction != LOGITLOSS_NONE && task->orders & LOGITLOSS_LOSS;
    if (reduction == LOGITLOSS_MEAN)
        divisor = (double)task->size;
    double times = 0;
    if (reduction == LOGITLOSS_WEIGHTED_MEAN) {
        /* Of weights for no elements, none may be in memory. */
        if (!task->weight.data || !task->size) {
            divisor = task->weight_value * (double)task->size;
        } else if (logitloss_sums_weights_first(task)) {
            logitloss_task weights = {.divisor = 1, .weight_value = 1, .adds_weights = 1};
            times = logitloss_plan_weights(&weights, task);
            if (!plan_launch(last++, &weights))
                return 0;
            divisor = NAN;
        } else {
            main.adds_weights = 1;
        }
    }
    main.divisor = divisor ? divisor : NAN;
    if (!plan_launch(last, &main))
        return 0;
    last->constants[LOGITLOSS_GRID_REDUCED] = (uint8_t)reduced;
    if (last != launches) {
        last->constants[LOGITLOSS_GRID_DIVIDES_BY_WEIGHTS] = 1;
        last->task.weight_times = times;
        last->task.weight_parts_count = launches->blocks;
    }
    return (int)(last - launches) + 1;
}

uint64_t logitloss_grid_scratch(const logitloss_grid_launch *launches, int count)
{
    uint64_t blocks = 0;
    /* The sum of a single block is the sum. */
    if (count > 1 || launches->blocks > 1)
        for (int i = 0; i < count; i++)
            if (launches[i].constants[LOGITLOSS_GRID_ADDS_LOSSES] || launches[i].constants[LOGITLOSS_GRID_ADDS_WEIGHTS])
                blocks += launches[i].blocks;
    return blocks ? sizeof(double) + blocks * sizeof(logitloss_sums) : 0;
}

void logitloss_place_grid(logitloss_grid_launch *launches, int count, uint64_t scratch, uint64_t reduced)
{
    uint64_t parts = scratch + sizeof(double);
    for (int i = 0; i < count; i++) {
        launches[i].task.done = scratch;
        launches[i].task.reduced = reduced;
        launches[i].task.parts = parts;
        launches[i].task.weight_parts = scratch + sizeof(double);
        parts += launches[i].blocks * sizeof(logitloss_sums);
    }
}
