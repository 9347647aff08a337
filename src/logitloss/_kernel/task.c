/* Shapes and strides become a walk, and a call the tasks that it takes. */
#include "task.h"
#include "half.h"

#include <stdint.h>
#include <string.h>

const ptrdiff_t logitloss_itemsizes[LOGITLOSS_TYPES] = {
    [LOGITLOSS_FLOAT16] = 2, [LOGITLOSS_BFLOAT16] = 2, [LOGITLOSS_FLOAT32] = 4, [LOGITLOSS_FLOAT64] = 8,
    [LOGITLOSS_LONGDOUBLE] = sizeof(long double), [LOGITLOSS_BOOL] = 1, [LOGITLOSS_INT8] = 1, [LOGITLOSS_UINT8] = 1,
    [LOGITLOSS_INT16] = 2, [LOGITLOSS_UINT16] = 2, [LOGITLOSS_INT32] = 4, [LOGITLOSS_UINT32] = 4,
    [LOGITLOSS_INT64] = 8, [LOGITLOSS_UINT64] = 8,
};

logitloss_type logitloss_result_type(logitloss_type labels, logitloss_type logits)
{
    if (logits > LOGITLOSS_LONGDOUBLE)
        logits = LOGITLOSS_FLOAT64;
    if (labels > LOGITLOSS_LONGDOUBLE)
        labels = logits;
    if (labels != logits && logitloss_is_half(labels) && logitloss_is_half(logits))
        return LOGITLOSS_TYPES;
    const logitloss_type type = labels > logits ? labels : logits;
    return type == LOGITLOSS_LONGDOUBLE ? LOGITLOSS_TYPES : type;
}

static ptrdiff_t distance(ptrdiff_t stride) { return stride < 0 ? -stride : stride; }

/* The axes of more than one element, those with the least strides first: in the order of
 * the memory of the logits, and where that does not tell of the labels.  Returns their
 * number. */
static int order_axes(const logitloss_array *logits, const logitloss_array *labels, int *axes)
{
    int count = 0;
    for (int axis = logits->ndim - 1; axis >= 0; axis--) {
        if (logits->shape[axis] == 1)
            continue;
        const ptrdiff_t stride = distance(logits->strides[axis]);
        int place = count++;
        for (; place > 0; place--) {
            const ptrdiff_t inner = distance(logits->strides[axes[place - 1]]);
            if (inner < stride
                || (inner == stride
                    && distance(labels->strides[axes[place - 1]]) <= distance(labels->strides[axis])))
                break;
            axes[place] = axes[place - 1];
        }
        axes[place] = axis;
    }
    return count;
}

/* Whether an array has, or broadcasts to, the shape of the logits. */
static int fits(const logitloss_array *array, const logitloss_array *logits, int may_broadcast)
{
    const int missing = logits->ndim - array->ndim;
    if (missing < 0 || (missing && !may_broadcast))
        return 0;
    for (int axis = 0; axis < array->ndim; axis++) {
        const ptrdiff_t size = array->shape[axis];
        if (size != logits->shape[missing + axis] && !(may_broadcast && size == 1))
            return 0;
    }
    return 1;
}

/* What the walks of a task have in common. */
typedef struct {
    const logitloss_array *logits;
    const int *axes; /* of the logits, from the innermost */
    int count;
    logitloss_type type;
    logitloss_axis *free; /* where the axes of the next walk go */
} course;

/* The walk of an array along the axes of the logits, backwards where theirs is negative. */
static void walk(logitloss_operand *operand, const logitloss_array *array, course *along)
{
    const int missing = along->logits->ndim - array->ndim;
    logitloss_axis last = {1, logitloss_itemsizes[array->type]};
    operand->data = array->data;
    operand->type = array->type;
    operand->is_swapped = array->is_swapped;
    /* Both half precisions hold all integers of 8 bits. */
    const int is_exact = array->type == along->type || array->type == LOGITLOSS_BOOL
                         || array->type == LOGITLOSS_INT8 || array->type == LOGITLOSS_UINT8;
    operand->is_rounded = logitloss_is_half(along->type) && !is_exact;
    operand->is_overwritten = 0;
    operand->axes = along->free;
    for (int i = 0; i < along->count; i++) {
        const int axis = along->axes[i], own = axis - missing;
        const ptrdiff_t size = along->logits->shape[axis];
        ptrdiff_t stride = own < 0 || array->shape[own] == 1 ? 0 : array->strides[own];
        if (along->logits->strides[axis] < 0) {
            operand->data += (size - 1) * stride;
            stride = -stride;
        }
        if (last.size == 1) {
            last = (logitloss_axis){size, stride};
        } else if (stride == last.size * last.stride) {
            last.size *= size;
        } else {
            *along->free++ = last;
            last = (logitloss_axis){size, stride};
        }
    }
    *along->free++ = last;
    operand->ndim = (int)(along->free - operand->axes);
}

/* The first element of a walk, as blocks.c reads it for results of this type: integers, and
 * for float32 long doubles, too, are rounded to a float without being a double before. */
static double first_of(const logitloss_operand *operand, logitloss_type type)
{
    const int is_single = type == LOGITLOSS_FLOAT32
                          || (type != LOGITLOSS_FLOAT64 && operand->type > LOGITLOSS_LONGDOUBLE);
    char bytes[sizeof(long double)];
    const ptrdiff_t size = logitloss_itemsizes[operand->type];
    for (ptrdiff_t i = 0; i < size; i++)
        bytes[i] = operand->data[operand->is_swapped ? size - 1 - i : i];
#define READ(code, ctype, widen)              \
    case code: {                              \
        ctype value;                          \
        memcpy(&value, bytes, sizeof value);  \
        return is_single ? (float)widen(value) : (double)widen(value); \
    }
    switch (operand->type) {
        READ(LOGITLOSS_FLOAT16, uint16_t, logitloss_from_float16)
        READ(LOGITLOSS_BFLOAT16, uint16_t, logitloss_from_bfloat16)
        READ(LOGITLOSS_FLOAT32, float, )
        READ(LOGITLOSS_FLOAT64, double, )
        READ(LOGITLOSS_LONGDOUBLE, long double, )
        READ(LOGITLOSS_BOOL, uint8_t, !!)
        READ(LOGITLOSS_INT8, int8_t, )
        READ(LOGITLOSS_UINT8, uint8_t, )
        READ(LOGITLOSS_INT16, int16_t, )
        READ(LOGITLOSS_UINT16, uint16_t, )
        READ(LOGITLOSS_INT32, int32_t, )
        READ(LOGITLOSS_UINT32, uint32_t, )
        READ(LOGITLOSS_INT64, int64_t, )
        READ(LOGITLOSS_UINT64, uint64_t, )
    case LOGITLOSS_TYPES: break;
    }
#undef READ
    return NAN;
}

/* A value as an element of this type holds it. */
static double rounded(double value, logitloss_type type)
{
    if (type == LOGITLOSS_FLOAT32)
        return (float)value;
    if (type == LOGITLOSS_FLOAT16)
        return logitloss_from_float16(logitloss_to_float16(logitloss_round_to_odd(value)));
    if (type == LOGITLOSS_BFLOAT16)
        return logitloss_from_bfloat16(logitloss_to_bfloat16(logitloss_round_to_odd(value)));
    return value;
}

static int plan_factor(logitloss_operand *operand, const logitloss_array *array, course *along)
{
    operand->data = NULL;
    operand->is_overwritten = 0;
    if (!array->data)
        return 1;
    if (!fits(array, along->logits, 1))
        return 0;
    walk(operand, array, along);
    return 1;
}

/* A coefficient is a value where nothing varies, as in an array of one element. */
static void read_value(logitloss_operand *operand, double *value, const logitloss_task *task)
{
    if (!operand->data || operand->ndim > 1 || (operand->axes[0].size != 1 && operand->axes[0].stride))
        return;
    *value = rounded(task->size ? first_of(operand, task->type) : 1, task->type);
    operand->data = NULL;
}

int logitloss_plan_remote(logitloss_task *task, const logitloss_arrays *arrays, logitloss_type type, int orders)
{
    const logitloss_array *logits = &arrays->logits;
    if (!fits(&arrays->labels, logits, 0))
        return 0;
    task->size = 1;
    for (int axis = 0; axis < logits->ndim; axis++)
        task->size *= logits->shape[axis];
    task->type = type;
    task->orders = orders;
    task->adds_losses = task->adds_weights = 0;
    task->pos_weight_value = rounded(arrays->pos_weight_value, type);
    task->weight_value = rounded(arrays->weight_value, type);

    int axes[LOGITLOSS_MAX_AXES];
    const int count = task->size ? order_axes(logits, &arrays->labels, axes) : 0;
    course along = {logits, axes, count, type, task->axes};
    walk(&task->logits, logits, &along);
    walk(&task->labels, &arrays->labels, &along);
    if (!plan_factor(&task->pos_weight, &arrays->pos_weight, &along)
        || !plan_factor(&task->weight, &arrays->weight, &along)
        || !plan_factor(&task->scale, &arrays->scale, &along))
        return 0;
    for (int order = 0; order < 3; order++) {
        task->results[order].data = NULL;
        if (!arrays->results[order].data)
            continue;
        if (!fits(&arrays->results[order], logits, 0))
            return 0;
        walk(&task->results[order], &arrays->results[order], &along);
    }
    return 1;
}

int logitloss_plan(logitloss_task *task, const logitloss_arrays *arrays, logitloss_type type, int orders)
{
    if (!logitloss_plan_remote(task, arrays, type, orders))
        return 0;
    read_value(&task->pos_weight, &task->pos_weight_value, task);
    read_value(&task->weight, &task->weight_value, task);
    return 1;
}

double logitloss_plan_weights(logitloss_task *weights, const logitloss_task *task)
{
    weights->size = 1;
    weights->type = task->type;
    weights->orders = 0;
    weights->weight = task->weight;
    weights->weight.axes = weights->axes;
    weights->weight.ndim = 0;
    for (int axis = 0; axis < task->weight.ndim; axis++) {
        if (!task->weight.axes[axis].stride)
            continue;
        weights->size *= task->weight.axes[axis].size;
        weights->axes[weights->weight.ndim++] = task->weight.axes[axis];
    }
    if (!weights->weight.ndim)
        weights->axes[weights->weight.ndim++] = (logitloss_axis){1, 0};
    return (double)(task->size / weights->size);
}

static double sum_of_weights(const logitloss_task *task, logitloss_execute *execute, void *context)
{
    logitloss_task weights;
    const double times = logitloss_plan_weights(&weights, task);
    return logitloss_value_of(execute(&weights, context).weights, times);
}

int logitloss_sums_weights_first(const logitloss_task *task)
{
    for (int axis = 0; axis < task->weight.ndim; axis++)
        if (!task->weight.axes[axis].stride)
            return 1;
    return task->orders != LOGITLOSS_LOSS;
}

double logitloss_compute(logitloss_task *task, logitloss_reduction reduction, double divisor,
                         logitloss_execute *execute, void *context)
{
    task->adds_losses = reduction != LOGITLOSS_NONE && task->orders & LOGITLOSS_LOSS;
    if (reduction == LOGITLOSS_MEAN)
        divisor = (double)task->size;
    if (reduction == LOGITLOSS_WEIGHTED_MEAN) {
        if (!task->weight.data)
            divisor = task->weight_value * (double)task->size;
        else if (logitloss_sums_weights_first(task))
            divisor = sum_of_weights(task, execute, context);
        else
            task->adds_weights = 1;
    }
    task->divisor = divisor ? divisor : NAN;
    const logitloss_sums sums = execute(task, context);
    if (task->adds_weights)
        divisor = logitloss_value_of(sums.weights, 1);
    return divisor ? logitloss_value_of(sums.losses, 1) / divisor : NAN;
}

int logitloss_overlaps_itself(const logitloss_array *array)
{
    /* Whether a step along an axis does not get past what the axes with smaller steps span. */
    int axes[LOGITLOSS_MAX_AXES];
    const int count = order_axes(array, array, axes);
    ptrdiff_t span = logitloss_itemsizes[array->type];
    for (int i = 0; i < count; i++) {
        const ptrdiff_t size = array->shape[axes[i]], step = distance(array->strides[axes[i]]);
        if (!size)
            return 0;
        if (step < span)
            return 1;
        span += step * (size - 1);
    }
    return 0;
}

/* The first byte of an array and the one after its last; anything for one without elements, of
 * which either answer is right. */
static void bounds(const logitloss_array *array, uintptr_t *low, uintptr_t *high)
{
    *low = *high = (uintptr_t)array->data;
    for (int axis = 0; axis < array->ndim; axis++) {
        const ptrdiff_t reach = (array->shape[axis] - 1) * array->strides[axis];
        *(reach < 0 ? low : high) += (uintptr_t)reach;
    }
    *high += (uintptr_t)logitloss_itemsizes[array->type];
}

int logitloss_may_overlap(const logitloss_array *first, const logitloss_array *second)
{
    uintptr_t low, high, other_low, other_high;
    bounds(first, &low, &high);
    bounds(second, &other_low, &other_high);
    return low < other_high && other_low < high;
}

int logitloss_is_same(const logitloss_array *first, const logitloss_array *second)
{
    if (first->data != second->data || first->ndim != second->ndim
        || logitloss_itemsizes[first->type] != logitloss_itemsizes[second->type])
        return 0;
    for (int axis = 0; axis < first->ndim; axis++)
        if (first->shape[axis] != second->shape[axis]
            || (first->shape[axis] > 1 && first->strides[axis] != second->strides[axis]))
            return 0;
    return 1;
}
