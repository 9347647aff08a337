/*
 * The loops over logistic.h.  meson.build compiles this file once for each type
 * (LOGITLOSS_REAL, 32 or 64) and instruction set; LOGITLOSS_RUN names its function.
 *
 * A call is worked through in blocks that fit the L1 cache, and a block in
 * two passes rather than one: a processor cannot look far enough ahead to overlap
 * the whole chain from exp to log1p of one vector with that of the next, but it can
 * for half a chain.  What waits for memory is fetched ahead, a little with every few
 * vectors: without, the time of a call was the sum of the memory's and the arithmetic's
 * (float64 loss 1.6 times the memory's), and with it little more than the greater of
 * the two (1.2 to 1.3).
 */
#include "blocks.h"
#include "logistic.h"

#include <float.h>

#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(64)))
#define NOINLINE __attribute__((noinline))
#define PREFETCH(address, to_write) \
    ((to_write) ? __builtin_prefetch(address, 1, 3) : __builtin_prefetch(address, 0, 3))
#else
#define ALIGNED
#define NOINLINE
#define PREFETCH(address, to_write) ((void)(address))
#endif

enum {
    BLOCK = LOGITLOSS_BLOCK,
    /* Elements of the widest vector: a short block is padded to that many in a buffer, so
     * that no loop of a pass runs a scalar remainder. */
    LANES = 64 / sizeof(REAL),
    /* The number of partial sums. */
    SUMS = BLOCK / 4,
    /* Bytes ahead of the elements at hand, and elements that are prefetched at a time,
     * just before as many are computed: all of a block's at once would wait for each
     * other.  The hardware's prefetcher stops at each page; of 1, 2, 4 and 8 KiB, 2 and
     * 1 were the best. */
    PREFETCH_DISTANCE = 2048,
    PREFETCHED = 64,
    CACHE_LINE = 64,
};

#if LOGITLOSS_REAL == 32
#define REAL_TYPE LOGITLOSS_FLOAT32
#define REAL_MIN FLT_MIN
#else
#define REAL_TYPE LOGITLOSS_FLOAT64
#define REAL_MIN DBL_MIN
#endif

INLINE void prefetch(const REAL *values, int to_write)
{
    for (int byte = 0; byte < PREFETCHED * (int)sizeof(REAL); byte += CACHE_LINE)
        PREFETCH((const char *)values + byte + PREFETCH_DISTANCE, to_write);
}

typedef struct {
    const REAL *logits, *labels, *pos_weight, *weight;
} inputs;

/* What the first pass over a block leaves to the others. */
typedef struct {
    REAL e_hi[BLOCK] ALIGNED, e_lo[BLOCK] ALIGNED;
    REAL towards[BLOCK] ALIGNED, against[BLOCK] ALIGNED, sum[BLOCK] ALIGNED, linear[BLOCK] ALIGNED;
} terms;

INLINE UINT bits_of(REAL value)
{
    UINT bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The bits of -|value|: integers in the order of the magnitudes, whose maximum the
 * compiler can vectorise. */
INLINE UINT magnitude(REAL value)
{
    return bits_of(value) | SIGN_BIT;
}

/* A weight of zero masks everything, NaN too.  As bits, because for conditions the compiler
 * would make branches. */
INLINE UINT mask_of(REAL weight)
{
    return weight == 0 ? 0 : ~(UINT)0;
}

INLINE REAL masked(REAL value, UINT mask)
{
    const UINT bits = bits_of(value) & mask;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The greatest magnitudes in a block; one less than the least of the sums that are not
 * zero: subtracting 1 moves 0 to the far end; and the greatest bits of 1 - label, which are
 * those of 1 at most if and only if all labels are in [0, 1]. */
typedef struct {
    UINT logit, label, sum, least_sum;
} extremes;

/* `general` and `any_logit` are constants in every caller: without weights and with one
 * pos_weight for all the compiler keeps everything but the labels in registers, and for
 * ordinary logits it leaves out the scaling and what infinity needs, a tenth of the work. */
INLINE extremes first_pass(inputs in, terms *restrict to, ptrdiff_t start, ptrdiff_t stop, extremes seen,
                           logitloss_operation operation, int general, int any_logit)
{
    for (ptrdiff_t i = start; i < stop; i++) {
        REAL x = in.logits[i];
        REAL negative = 1 - in.labels[i];
        const UINT label = bits_of(negative);
        seen.label = label > seen.label ? label : seen.label;
        REAL minus_positive = -(general ? in.pos_weight[i] : in.pos_weight[0]) * in.labels[i];
        if (general) {
            const REAL weight = in.weight[i];
            const UINT mask = mask_of(weight);
            negative = masked(weight * negative, mask);
            minus_positive = masked(weight * minus_positive, mask);
            x = masked(x, mask);
        }
        const coefficients c = coefficients_of(x, negative, minus_positive, any_logit);
        if (operation != LOGITLOSS_LOSS) {
            to->towards[i] = c.towards;
            to->against[i] = c.against;
        }
        to->sum[i] = c.sum;
        if (operation != LOGITLOSS_GRAD_AND_HESS)
            to->linear[i] = linear_part(x, c.towards, any_logit);
        const pair e = exp_neg_abs(x, any_logit);
        to->e_hi[i] = e.hi;
        to->e_lo[i] = e.lo;

        const UINT logit = magnitude(x);
        seen.logit = logit > seen.logit ? logit : seen.logit;
        if (general) {
            const UINT sum = magnitude(negative - minus_positive), less_one = (sum - 1) | SIGN_BIT;
            seen.sum = sum > seen.sum ? sum : seen.sum;
            seen.least_sum = less_one < seen.least_sum ? less_one : seen.least_sum;
        }
    }
    return seen;
}

INLINE void second_pass(const terms *restrict from, pair factor, REAL *restrict first, REAL *restrict second,
                        ptrdiff_t n, logitloss_operation operation, int any_logit)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const pair e = {from->e_hi[i], from->e_lo[i]};
        const expansion at = expand(e, any_logit);
        if (operation != LOGITLOSS_GRAD_AND_HESS)
            first[i] = loss(from->sum[i], log1p_scaled(e, at), from->linear[i]);
        if (operation != LOGITLOSS_LOSS) {
            const sigmoid s = sigmoid_scaled(e, at, any_logit);
            const REAL value = gradient(from->towards[i], from->against[i], s, any_logit);
            if (operation == LOGITLOSS_VALUE_AND_GRAD)
                second[i] = FMA(value, factor.hi, value * factor.lo);
            else {
                first[i] = value;
                second[i] = hessian(from->sum[i], s, any_logit);
            }
        }
    }
}

/* Elements that the passes get wrong, because a product of coefficients leaves the
 * normal numbers although the result need not, or their sum the range that logistic.h
 * is made for.  They hardly ever occur: careful.c does them singly. */
INLINE int needs_care(REAL q, REAL z, REAL w)
{
    const REAL product = FABS(q * z);
    const REAL positive = FABS(w) * product, negative = FABS(w * (1 - z)), sum = positive + negative;
    /* A factor of zero makes an exact zero; with two factors of 1 nothing is rounded. */
    const int positive_underflows = ((product < REAL_MIN) | (positive < REAL_MIN)) & (z != 0) & (q != 0)
                                    & ((q != 1) | (w != 1));
    const int negative_underflows = (negative < REAL_MIN) & (z != 1);
    /* NaN, too, which may come of an infinite factor beside a zero. */
    const int is_out_of_range = (!(sum <= SUM_MAX)) | ((sum < SUM_MIN) & (sum != 0));
    return (w != 0) & (positive_underflows | negative_underflows | is_out_of_range);
}

/* Whether any of the block's elements may need it; never says no to one.  Mostly this is
 * seen from the extremes: for logits of ordinary size an underflow of one product, at most
 * half the least subnormal, is nothing beside sum * exp(-|x|). */
INLINE int may_need_care(inputs in, extremes seen, ptrdiff_t n, int general)
{
    const REAL q = FABS(in.pos_weight[0]);
    const int has_plain_labels = seen.label <= bits_of(1);
    if (!general && q == 1 && has_plain_labels)
        return 0;
    if (has_plain_labels && seen.logit <= magnitude(ORDINARY_LOGIT)
        && (general ? seen.sum <= magnitude(SUM_MAX) && seen.least_sum >= magnitude(SUM_MIN) - 1
                    : (SUM_MIN <= q && q <= SUM_MAX) || q == 0))
        return 0;
    int any = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        any |= needs_care(in.pos_weight[general ? i : 0], in.labels[i], general ? in.weight[i] : 1);
    return any;
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

/* Both passes for logits of any size, out of line: inline, their constants would take registers
 * from those for ordinary ones. */
NOINLINE static void run_any_logit(logitloss_operation operation, inputs in, terms *restrict block, pair factor,
                                   REAL *restrict first, REAL *restrict second, ptrdiff_t n, int general)
{
#define PASSES(operation, general)                                                 \
    (first_pass(in, block, 0, n, (extremes){0}, operation, general, 1),            \
     second_pass(block, factor, first, second, n, operation, 1))
#define RUN(operation) \
    case operation: general ? PASSES(operation, 1) : PASSES(operation, 0); break
    switch (operation) {
        RUN(LOGITLOSS_LOSS);
        RUN(LOGITLOSS_VALUE_AND_GRAD);
        RUN(LOGITLOSS_GRAD_AND_HESS);
    }
#undef RUN
#undef PASSES
}

INLINE void compute(logitloss_operation operation, inputs in, pair factor, REAL *restrict first,
                    REAL *restrict second, ptrdiff_t n, int general)
{
    terms block;
    extremes seen = {0, 0, 0, ~(UINT)0};
    for (ptrdiff_t start = 0; start < n; start += PREFETCHED) {
        const ptrdiff_t stop = n - start < PREFETCHED ? n : start + PREFETCHED;
        prefetch(in.logits + start, 0);
        prefetch(in.labels + start, 0);
        if (general) {
            prefetch(in.pos_weight + start, 0);
            prefetch(in.weight + start, 0);
        }
        prefetch(first + start, 1);
        if (operation != LOGITLOSS_LOSS)
            prefetch(second + start, 1);
        seen = first_pass(in, &block, start, stop, seen, operation, general, 0);
    }
    if (seen.logit <= magnitude(ORDINARY_LOGIT))
        second_pass(&block, factor, first, second, n, operation, 0);
    else
        run_any_logit(operation, in, &block, factor, first, second, n, general);
    if (may_need_care(in, seen, n, general))
        take_care(operation, in, factor, first, second, n, general);
}

/* One partial sum for each lane, so that the order of the additions, and with it
 * every bit, is the same for all instruction sets.  A float result is exact enough
 * with plain double sums; a double one needs the rounding errors added up too, and
 * then does not depend on the order of the elements either, but for rare ties. */
typedef struct {
    double hi[SUMS] ALIGNED, lo[SUMS] ALIGNED;
} partial_sums;

INLINE void accumulate(partial_sums *restrict sums, const REAL *restrict values)
{
#if LOGITLOSS_REAL == 32
    for (int j = 0; j < SUMS; j++)
        sums->hi[j] += ((double)values[j] + values[j + SUMS])
                       + ((double)values[j + 2 * SUMS] + values[j + 3 * SUMS]);
#else
    for (int i = 0; i < BLOCK; i += SUMS)
        for (int j = 0; j < SUMS; j++) {
            const double value = values[i + j], hi = sums->hi[j];
            const double total = hi + value;
            const double part = total - hi;
            sums->lo[j] += (hi - (total - part)) + (value - part);
            sums->hi[j] = total;
        }
#endif
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
    if (n < LANES)
        memset(buffer, 0, LANES * sizeof(REAL));
    if (operand->repeat == 1) {
        const ptrdiff_t index = start < operand->period ? start : start % operand->period;
        const char *data = operand->data + index * operand->stride;
        if (!copy && n % LANES == 0 && operand->type == REAL_TYPE && operand->stride == sizeof(REAL))
            return (const REAL *)data;
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
        for (ptrdiff_t i = 0; i < n; i++)
            ((REAL *)data)[i] = values[i];
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

    for (ptrdiff_t at = start, n; at < stop; at += n) {
        n = stop - at < BLOCK ? stop - at : BLOCK;
        /* What does not fill the last vector is a block of its own, which goes back to fill one
         * where computing elements twice does no harm. */
        if (n > LANES) {
            n -= n % LANES;
        } else if (at - start >= LANES && !task->in_place && !task->reduce) {
            n = LANES;
            at = stop - n;
        }
        in.logits = fetch(&task->logits, at, n, task->in_place, logits);
        in.labels = fetch(&task->labels, at, n, task->in_place, labels);
        if (general && task->pos_weight.data)
            in.pos_weight = fetch(&task->pos_weight, at, n, task->in_place, pos_weight);
        if (general && task->weight.data)
            in.weight = fetch(&task->weight, at, n, task->in_place, weight);

        /* What is summed up is padded with zeros to a whole block. */
        const int first_in_place = task->first.data && is_contiguous(&task->first, n)
                                   && !(task->reduce && n < BLOCK);
        const int second_in_place = task->second.data && is_contiguous(&task->second, n);
        REAL *first = first_in_place ? (REAL *)task->first.data + at : first_buffer;
        REAL *second = second_in_place ? (REAL *)task->second.data + at : second_buffer;
        compute(operation, in, factor, first, second, n < LANES ? LANES : n, general);

        if (task->reduce) {
            for (ptrdiff_t i = n; i < BLOCK; i++)
                first[i] = 0;
            accumulate(&sums, first);
        }
        if (task->first.data && !first_in_place)
            store(&task->first, at, n, first);
        if (task->second.data && !second_in_place)
            store(&task->second, at, n, second);
    }

    logitloss_sum total = {0, 0};
    if (task->reduce)
        for (int j = 0; j < SUMS; j++)
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
