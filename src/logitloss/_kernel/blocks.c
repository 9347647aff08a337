/*
 * The loops over logistic.h.  meson.build compiles this file once for each type
 * (LOGITLOSS_REAL, 32 or 64) and instruction set; LOGITLOSS_RUN names its function.
 *
 * A call is worked through in blocks that fit the L1 cache, and a block in
 * several short passes rather than one long one: a processor cannot look far
 * enough ahead to overlap the whole chain from exp to log1p of one vector with
 * that of the next, but it can for half a chain.  With the prefetch of later
 * blocks this took the float32 loss from 1.4 to 1.1 times the memory's speed.
 */
#include "blocks.h"
#include "logistic.h"

#include <float.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
#define PREFETCH(address) __builtin_prefetch(address, 0, 3)
#else
#define INLINE static inline
#define ALIGNED
#define PREFETCH(address) ((void)(address))
#endif

enum {
    BLOCK = LOGITLOSS_BLOCK,
    /* A short block is padded to a multiple of this in a buffer, so that no loop
     * runs a scalar remainder.  It is also the number of partial sums. */
    LANES = 32,
    /* Bytes ahead of the block at hand.  The hardware's prefetcher stops at each
     * page; of 1, 2, 4, 8 and 16 KiB this was the best. */
    PREFETCH_DISTANCE = 4096,
    CACHE_LINE = 64,
};

#if LOGITLOSS_REAL == 32
#define REAL_TYPE LOGITLOSS_FLOAT32
#define REAL_MIN FLT_MIN
/* The sum of the coefficients times 2^-S has to be a normal number: see logistic.h. */
#define CARE_BELOW 0x1p-100f
/* Larger coefficients may lift an exp(-|x|) that is zero for logistic.h into the range. */
#define CARE_ABOVE 0x1p102f
#else
#define REAL_TYPE LOGITLOSS_FLOAT64
#define REAL_MIN DBL_MIN
#define CARE_BELOW 0x1p-820
#define CARE_ABOVE 0x1p148
#endif

typedef struct {
    const REAL *logits, *labels, *pos_weight, *weight;
} inputs;

/* Where the passes below read the coefficients of element i.  `general` is a
 * constant in every caller: without weights and with one pos_weight for all the
 * compiler keeps everything but the labels in registers. */
typedef struct {
    REAL negative, positive, down, scale;
} coefficients;

INLINE coefficients coefficients_at(inputs in, ptrdiff_t i, int general)
{
    coefficients c;
    const REAL q = general ? in.pos_weight[i] : in.pos_weight[0];
    c.negative = 1 - in.labels[i];
    c.positive = q * in.labels[i];
    if (general) {
        c.negative *= in.weight[i];
        c.positive *= in.weight[i];
    }
    /* For labels in [0, 1] the sum of the two is on the same side of 1 as pos_weight. */
    const REAL sum = general ? c.negative + c.positive : q;
    c.scale = scale_exponent(sum);
    c.down = scale_down(sum);
    return c;
}

/* A weight of zero masks NaN, too. */
INLINE REAL masked(REAL value, inputs in, ptrdiff_t i, int general)
{
    return general && in.weight[i] == 0 ? 0 : value;
}

INLINE void exp_pass(inputs in, REAL *restrict hi, REAL *restrict lo, ptrdiff_t n, int general)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const pair e = exp_neg_abs(in.logits[i], coefficients_at(in, i, general).scale);
        hi[i] = e.hi;
        lo[i] = e.lo;
    }
}

INLINE void loss_pass(inputs in, const REAL *restrict hi, const REAL *restrict lo, REAL *restrict out,
                      ptrdiff_t n, int general)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const coefficients c = coefficients_at(in, i, general);
        const pair log1p_e = log1p_scaled((pair){hi[i], lo[i]}, c.down);
        out[i] = masked(loss(in.logits[i], c.negative, c.positive, log1p_e, c.down), in, i, general);
    }
}

INLINE void gradient_pass(inputs in, const REAL *restrict hi, const REAL *restrict lo, pair factor,
                          REAL *restrict out, ptrdiff_t n, int general)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const coefficients c = coefficients_at(in, i, general);
        const sigmoid s = sigmoid_scaled((pair){hi[i], lo[i]}, c.down);
        const REAL value = gradient(in.logits[i], c.negative, c.positive, s, c.down);
        out[i] = masked(FMA(value, factor.hi, value * factor.lo), in, i, general);
    }
}

INLINE void hessian_pass(inputs in, const REAL *restrict hi, const REAL *restrict lo, REAL *restrict out,
                         ptrdiff_t n, int general)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const coefficients c = coefficients_at(in, i, general);
        const sigmoid s = sigmoid_scaled((pair){hi[i], lo[i]}, c.down);
        out[i] = masked(hessian(c.negative, c.positive, s, c.down), in, i, general);
    }
}

/* Elements that the passes get wrong, because a product of coefficients leaves the
 * normal numbers although the result need not.  They hardly ever occur: careful.c
 * does them singly. */
INLINE int needs_care(REAL q, REAL z, REAL w)
{
    const REAL product = FABS(q * z);
    const REAL positive = FABS(w) * product, negative = FABS(w * (1 - z));
    /* A factor of zero makes an exact zero; with two factors of 1 nothing is rounded. */
    const int positive_underflows = ((product < REAL_MIN) | (positive < REAL_MIN)) & (z != 0) & (q != 0)
                                    & ((q != 1) | (w != 1));
    const int negative_underflows = (negative < REAL_MIN) & (z != 1);
    const int sum_underflows = (positive + negative < CARE_BELOW) & (positive + negative != 0);
    /* Each by itself, too: infinite beside zero adds up to NaN. */
    const int is_huge = (FABS(q) > CARE_ABOVE) | (positive > CARE_ABOVE) | (negative > CARE_ABOVE)
                        | (positive + negative > CARE_ABOVE);
    return (w != 0) & (positive_underflows | negative_underflows | sum_underflows | is_huge);
}

/* Whether the block may hold such an element; never says no to one. */
INLINE int may_need_care(inputs in, ptrdiff_t n, int general)
{
    if (general) {
        int any = 0;
        for (ptrdiff_t i = 0; i < n; i++)
            any |= needs_care(in.pos_weight[i], in.labels[i], in.weight[i]);
        return any;
    }
    const REAL q = FABS(in.pos_weight[0]);
    if (q > CARE_ABOVE)
        return 1;
    if (q == 1 || q == 0 || q != q)
        return 0;
    /* The least positive label, as an integer: subtracting 1 moves 0 out of the way. */
    const REAL least_harmless = q < 1 ? CARE_BELOW / q : REAL_MIN;
    UINT bound, least = ~(UINT)0;
    memcpy(&bound, &least_harmless, sizeof bound);
    for (ptrdiff_t i = 0; i < n; i++) {
        UINT bits;
        memcpy(&bits, &in.labels[i], sizeof bits);
        bits = (bits & ~SIGN_BIT) - 1;
        least = bits < least ? bits : least;
    }
    return least < bound - 1;
}

INLINE void take_care(logitloss_operation operation, inputs in, pair factor, REAL *first, REAL *second,
                      ptrdiff_t n, int general)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL q = in.pos_weight[general ? i : 0], w = general ? in.weight[i] : 1;
        if (!needs_care(q, in.labels[i], w))
            continue;
        const logitloss_element element = logitloss_careful(in.labels[i], in.logits[i], q, w);
        const REAL gradient = (REAL)(element.gradient * ((double)factor.hi + factor.lo));
        first[i] = operation == LOGITLOSS_GRAD_AND_HESS ? gradient : (REAL)element.loss;
        if (operation == LOGITLOSS_VALUE_AND_GRAD)
            second[i] = gradient;
        if (operation == LOGITLOSS_GRAD_AND_HESS)
            second[i] = (REAL)element.hessian;
    }
}

INLINE void compute(logitloss_operation operation, inputs in, pair factor, REAL *restrict first,
                    REAL *restrict second, ptrdiff_t n, int general)
{
    REAL hi[BLOCK] ALIGNED, lo[BLOCK] ALIGNED;
    exp_pass(in, hi, lo, n, general);
    if (operation != LOGITLOSS_GRAD_AND_HESS)
        loss_pass(in, hi, lo, first, n, general);
    if (operation == LOGITLOSS_VALUE_AND_GRAD)
        gradient_pass(in, hi, lo, factor, second, n, general);
    if (operation == LOGITLOSS_GRAD_AND_HESS) {
        gradient_pass(in, hi, lo, factor, first, n, general);
        hessian_pass(in, hi, lo, second, n, general);
    }
    if (may_need_care(in, n, general))
        take_care(operation, in, factor, first, second, n, general);
}

/* One partial sum for each lane, so that the order of the additions, and with it
 * every bit, is the same for all instruction sets.  A float result is exact enough
 * with plain double sums; a double one needs the rounding errors added up too, and
 * then does not depend on the order of the elements either, but for rare ties. */
typedef struct {
    double hi[LANES] ALIGNED, lo[LANES] ALIGNED;
} partial_sums;

INLINE void accumulate(partial_sums *restrict sums, const REAL *restrict values, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
#if LOGITLOSS_REAL == 32
            sums->hi[j] += values[i + j];
#else
            const double value = values[i + j], hi = sums->hi[j];
            const double total = hi + value;
            const double part = total - hi;
            sums->lo[j] += (hi - (total - part)) + (value - part);
            sums->hi[j] = total;
#endif
        }
}

/* Elements start .. start + n of a strided array of any real type. */
static void convert(const char *data, ptrdiff_t stride, logitloss_type type, ptrdiff_t n, REAL *restrict out)
{
    /* Unit stride has a loop of its own, which the compiler can vectorise. */
#define CONVERT(code, ctype)                                                     \
    case code:                                                                   \
        if (stride == sizeof(ctype))                                             \
            for (ptrdiff_t i = 0; i < n; i++)                                    \
                out[i] = (REAL)((const ctype *)data)[i];                         \
        else                                                                     \
            for (ptrdiff_t i = 0; i < n; i++)                                    \
                out[i] = (REAL) * (const ctype *)(data + i * stride);            \
        break
    switch (type) {
        CONVERT(LOGITLOSS_FLOAT32, float);
        CONVERT(LOGITLOSS_FLOAT64, double);
        CONVERT(LOGITLOSS_INT8, int8_t);
        CONVERT(LOGITLOSS_UINT8, uint8_t);
        CONVERT(LOGITLOSS_INT16, int16_t);
        CONVERT(LOGITLOSS_UINT16, uint16_t);
        CONVERT(LOGITLOSS_INT32, int32_t);
        CONVERT(LOGITLOSS_UINT32, uint32_t);
        CONVERT(LOGITLOSS_INT64, int64_t);
        CONVERT(LOGITLOSS_UINT64, uint64_t);
    }
#undef CONVERT
}

/* The operand's elements start .. start + n: in place where they lie as the passes
 * need them, otherwise converted into the buffer and padded with zeros. */
INLINE const REAL *fetch(const logitloss_operand *operand, ptrdiff_t start, ptrdiff_t n, int copy,
                         REAL *buffer)
{
    const ptrdiff_t index = start / operand->repeat % operand->period;
    const char *data = operand->data + index * operand->stride;
    if (operand->repeat == 1) {
        if (!copy && n % LANES == 0 && operand->type == REAL_TYPE && operand->stride == sizeof(REAL)) {
            for (ptrdiff_t byte = 0; byte < n * (ptrdiff_t)sizeof(REAL); byte += CACHE_LINE)
                PREFETCH(data + byte + PREFETCH_DISTANCE);
            return (const REAL *)data;
        }
        convert(data, operand->stride, operand->type, n, buffer);
    } else {
        for (ptrdiff_t done = 0; done < n;) {
            const ptrdiff_t position = start + done;
            ptrdiff_t run = operand->repeat - position % operand->repeat;
            run = run < n - done ? run : n - done;
            REAL value;
            convert(operand->data + position / operand->repeat % operand->period * operand->stride,
                    operand->stride, operand->type, 1, &value);
            for (ptrdiff_t i = 0; i < run; i++)
                buffer[done + i] = value;
            done += run;
        }
    }
    for (ptrdiff_t i = n; i % LANES; i++)
        buffer[i] = 0;
    return buffer;
}

INLINE int is_contiguous(const logitloss_result *result, ptrdiff_t n)
{
    return result->stride == sizeof(REAL) && n % LANES == 0;
}

INLINE void store(const logitloss_result *result, ptrdiff_t start, ptrdiff_t n, const REAL *values)
{
    char *data = result->data + start * result->stride;
    if (result->stride == sizeof(REAL))
        memcpy(data, values, (size_t)n * sizeof(REAL));
    else
        for (ptrdiff_t i = 0; i < n; i++)
            *(REAL *)(data + i * result->stride) = values[i];
}

/* 1 / divisor in two parts, which multiplies as exactly as the division divides. */
INLINE pair reciprocal(double divisor)
{
    const double quotient = 1 / divisor;
    pair factor;
    factor.hi = (REAL)quotient;
    factor.lo = (REAL)((quotient - factor.hi) + fma(-divisor, quotient, 1) / divisor);
    return factor;
}

INLINE logitloss_sum run_blocks(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop,
                                logitloss_operation operation, int general)
{
    REAL logits[BLOCK] ALIGNED, labels[BLOCK] ALIGNED, pos_weight[BLOCK] ALIGNED, weight[BLOCK] ALIGNED;
    REAL first_buffer[BLOCK] ALIGNED, second_buffer[BLOCK] ALIGNED;
    const pair factor = reciprocal(task->gradient_divisor);
    partial_sums sums;
    if (task->reduce)
        memset(&sums, 0, sizeof sums);
    inputs in = {logits, labels, pos_weight, weight};
    for (int i = 0; i < (general ? BLOCK : 1); i++) {
        pos_weight[i] = (REAL)task->pos_weight_scalar;
        weight[i] = (REAL)task->weight_scalar;
    }

    for (ptrdiff_t at = start; at < stop; at += BLOCK) {
        const ptrdiff_t n = stop - at < BLOCK ? stop - at : BLOCK;
        const ptrdiff_t padded = (n + LANES - 1) / LANES * LANES;
        in.logits = fetch(&task->logits, at, n, task->in_place, logits);
        in.labels = fetch(&task->labels, at, n, task->in_place, labels);
        if (general && task->pos_weight.data)
            in.pos_weight = fetch(&task->pos_weight, at, n, task->in_place, pos_weight);
        if (general && task->weight.data)
            in.weight = fetch(&task->weight, at, n, task->in_place, weight);

        const int first_in_place = task->first.data && is_contiguous(&task->first, n);
        const int second_in_place = task->second.data && is_contiguous(&task->second, n);
        REAL *first = first_in_place ? (REAL *)task->first.data + at : first_buffer;
        REAL *second = second_in_place ? (REAL *)task->second.data + at : second_buffer;
        compute(operation, in, factor, first, second, padded, general);

        if (task->reduce) {
            for (ptrdiff_t i = n; i < padded; i++)
                first[i] = 0;
            accumulate(&sums, first, padded);
        }
        if (task->first.data && !first_in_place)
            store(&task->first, at, n, first);
        if (task->second.data && !second_in_place)
            store(&task->second, at, n, second);
    }

    logitloss_sum total = {0, 0};
    if (task->reduce)
        for (int j = 0; j < LANES; j++)
            logitloss_add(&total, (logitloss_sum){sums.hi[j], sums.lo[j]});
    return total;
}

/* logitloss_run_float32_avx2 and its like. */
logitloss_sum LOGITLOSS_RUN(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop)
{
    const int general = task->pos_weight.data || task->weight.data || task->weight_scalar != 1;
#define RUN(operation) \
    case operation: return general ? run_blocks(task, start, stop, operation, 1) \
                                   : run_blocks(task, start, stop, operation, 0)
    switch (task->operation) {
        RUN(LOGITLOSS_LOSS);
        RUN(LOGITLOSS_VALUE_AND_GRAD);
        RUN(LOGITLOSS_GRAD_AND_HESS);
    }
#undef RUN
    return (logitloss_sum){0, 0};
}
