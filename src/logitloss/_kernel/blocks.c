/*
 * The loops over logistic.h.  meson.build compiles this file once for each type
 * (LOGITLOSS_REAL, 32 or 64) and instruction set; LOGITLOSS_RUN names its function.
 *
 * A call is worked through in blocks that fit the L1 cache, and a block in
 * passes rather than in one: a processor cannot look far enough ahead to overlap
 * the whole chain from exp to log1p of one vector with that of the next, but it can
 * for half a chain.  What waits for memory is fetched ahead, a line with every
 * vector: without, the time of a call was the sum of the memory's and the arithmetic's
 * (float64 loss 1.6 times the memory's), and with it little more than the greater of
 * the two (1.2 to 1.3).
 */
#include "blocks.h"
#include "careful.h"
#include "compiler.h"
#include "element.h"
#include "half.h"

#include <stdalign.h>

enum {
    BLOCK = LOGITLOSS_BLOCK,
    /* Elements of the widest vector: a shorter block is padded to that many in a buffer, so
     * that no loop of a pass runs a scalar remainder. */
    LANES = 64 / sizeof(REAL),
    /* The number of partial sums. */
    SUMS = BLOCK / 4,
    /* Bytes ahead of the elements at hand that are prefetched with each vector: all of a block's at
     * once would wait for each other.  The hardware's prefetcher stops at each page; of 1, 2, 4 and
     * 8 KiB, 2 and 1 were the best. */
    PREFETCH_DISTANCE = 2048,
    CACHE_LINE = 64,
};

#if LOGITLOSS_REAL == 32
#define REAL_TYPE LOGITLOSS_FLOAT32
#else
#define REAL_TYPE LOGITLOSS_FLOAT64
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

INLINE void prefetch(const REAL *values, int to_write)
{
    PREFETCH((const char *)values + PREFETCH_DISTANCE, to_write);
}

typedef struct {
    const REAL *logits, *labels, *pos_weight, *weight;
} inputs;

typedef struct {
    REAL *losses, *gradients, *hessians;
} destination;

/* What each pass over a block leaves to the next ones. */
typedef struct {
    alignas(CACHE_LINE) REAL e_hi[BLOCK], e_lo[BLOCK], quotient[BLOCK];
    alignas(CACHE_LINE) REAL towards[BLOCK], against[BLOCK], sum[BLOCK], linear[BLOCK];
} terms;

/* What is compared of bits.  AVX-512 compares 64 as fast, which is stricter. */
#if LOGITLOSS_REAL == 64 && defined(__AVX512F__)
typedef uint64_t ORDERED;
#else
typedef uint32_t ORDERED;
#endif

INLINE ORDERED ordered(UINT bits)
{
    return sizeof(ORDERED) == sizeof(UINT) ? (ORDERED)bits : first_bits(bits);
}

/* The greatest in a block: magnitude of a logit; bits of 1 - label, which are those of 1 at
 * most if and only if all labels are in [0, 1]; and bits of a sum whose weight is not zero, less
 * those of SUM_MIN, so that what is smaller wraps around to the far end. */
typedef struct {
    ORDERED logit, label, sum;
} extremes;

/* The same for every lane of a vector: they are brought together once, at the end. */
typedef struct {
    alignas(CACHE_LINE) ORDERED logit[LANES], label[LANES], sum[LANES];
} extremes_by_lane;

INLINE extremes of_all_lanes(const extremes_by_lane *seen)
{
    extremes all = {0, 0, 0};
    for (int lane = 0; lane < LANES; lane++) {
        all.logit = MAX(seen->logit[lane], all.logit);
        all.label = MAX(seen->label[lane], all.label);
        all.sum = MAX(seen->sum[lane], all.sum);
    }
    return all;
}

/* A pass takes the whole vectors of a block, which has n >= LANES elements, and then those left, which
 * fill a vector with some before them: these are computed again.  The terms of that vector follow
 * on the others, so that nothing is written before all has been read. */
INLINE ptrdiff_t whole_vectors(ptrdiff_t n)
{
    return n / LANES * LANES;
}

INLINE ptrdiff_t computed_again(ptrdiff_t n)
{
    return n % LANES ? LANES - n % LANES : 0;
}

/* One vector of the first pass. */
INLINE void first_step(inputs in, terms *restrict to, ptrdiff_t start, extremes_by_lane *restrict seen, int orders,
                       int general, int any_logit)
{
    ROLLED for (int lane = 0; lane < LANES; lane++) {
        const ptrdiff_t i = start + lane;
        REAL x = in.logits[i];
        REAL negative = 1 - in.labels[i];
        const ORDERED label = ordered(bits_of(negative));
        seen->label[lane] = MAX(label, seen->label[lane]);
        REAL minus_positive = -(general ? in.pos_weight[i] : in.pos_weight[0]) * in.labels[i];
        const REAL weight = general ? in.weight[i] : 1;
        const UINT mask = mask_of(weight);
        if (general) {
            negative = masked(weight * negative, mask);
            minus_positive = masked(weight * minus_positive, mask);
            x = masked(x, mask);
        }
        const coefficients c = coefficients_of(x, negative, minus_positive, any_logit);
        if (orders & LOGITLOSS_GRADIENT) {
            to->towards[i] = c.towards;
            to->against[i] = c.against;
        }
        if (orders & (LOGITLOSS_LOSS | LOGITLOSS_HESSIAN))
            to->sum[i] = c.sum;
        if (orders & LOGITLOSS_LOSS)
            to->linear[i] = linear_part(x, c.towards, any_logit);
        const pair e = exp_neg_abs(x, any_logit);
        to->e_hi[i] = e.hi;
        to->e_lo[i] = e.lo;

        const ORDERED logit = ordered(magnitude(x));
        seen->logit[lane] = MAX(logit, seen->logit[lane]);
        if (general) {
            const ORDERED sum = ordered((bits_of(FABS(negative - minus_positive)) - bits_of(SUM_MIN)) & mask);
            seen->sum[lane] = MAX(sum, seen->sum[lane]);
        }
    }
}

/* `general` and `any_logit` are constants in every caller: without weights and with one
 * pos_weight for all the compiler keeps everything but the labels in registers, and for
 * ordinary logits it leaves out the scaling and what infinity needs, a tenth of the work.
 * `orders`, too: nothing is computed that is not wanted. */
INLINE extremes first_pass(inputs in, terms *restrict block, destination to, ptrdiff_t n, int orders, int general,
                           int any_logit)
{
    extremes_by_lane seen;
    memset(&seen, 0, sizeof seen);
    const ptrdiff_t whole = whole_vectors(n), again = computed_again(n);
    for (ptrdiff_t start = 0; start < whole; start += LANES) {
        prefetch(in.logits + start, 0);
        prefetch(in.labels + start, 0);
        if (general) {
            prefetch(in.pos_weight + start, 0);
            prefetch(in.weight + start, 0);
        }
        if (orders & LOGITLOSS_LOSS)
            prefetch(to.losses + start, 1);
        if (orders & LOGITLOSS_GRADIENT)
            prefetch(to.gradients + start, 1);
        if (orders & LOGITLOSS_HESSIAN)
            prefetch(to.hessians + start, 1);
        first_step(in, block, start, &seen, orders, general, any_logit);
    }
    if (again) {
        in.logits -= again;
        in.labels -= again;
        in.pos_weight -= general ? again : 0;
        in.weight -= general ? again : 0;
        first_step(in, block, whole, &seen, orders, general, any_logit);
    }
    return of_all_lanes(&seen);
}

/* The divisions of the logarithm have a pass of their own: with them in the second one, too
 * much would wait for them at a time. */
INLINE void divide_pass(terms *restrict block, ptrdiff_t n, int any_logit)
{
    for (ptrdiff_t i = 0; i < n; i++)
        block->quotient[i] = log1p_quotient(block->e_hi[i], any_logit);
}

INLINE void second_step(const terms *restrict from, pair factor, destination to, ptrdiff_t start, ptrdiff_t stop,
                        int orders, int any_logit)
{
    REAL *restrict losses = to.losses, *restrict gradients = to.gradients, *restrict hessians = to.hessians;
    for (ptrdiff_t i = start; i < stop; i++) {
        const pair e = {from->e_hi[i], from->e_lo[i]};
        if (orders & LOGITLOSS_LOSS)
            losses[i] = loss(from->sum[i], log1p_scaled(e, from->quotient[i], any_logit), from->linear[i]);
        if (orders & (LOGITLOSS_GRADIENT | LOGITLOSS_HESSIAN)) {
            const sigmoid s = sigmoid_scaled(e, any_logit);
            if (orders & LOGITLOSS_GRADIENT) {
                const REAL value = gradient(from->towards[i], from->against[i], s, any_logit);
                gradients[i] = orders & LOGITLOSS_HESSIAN ? value : FMA(value, factor.hi, value * factor.lo);
            }
            if (orders & LOGITLOSS_HESSIAN)
                hessians[i] = hessian(from->sum[i], s, any_logit);
        }
    }
}

INLINE void second_pass(terms *restrict block, pair factor, destination to, ptrdiff_t n, int orders, int any_logit)
{
    const ptrdiff_t whole = whole_vectors(n), again = computed_again(n);
    if (orders & LOGITLOSS_LOSS)
        divide_pass(block, whole + (again ? LANES : 0), any_logit);
    second_step(block, factor, to, 0, whole, orders, any_logit);
    if (again) {
        if (orders & LOGITLOSS_LOSS)
            to.losses -= again;
        if (orders & LOGITLOSS_GRADIENT)
            to.gradients -= again;
        if (orders & LOGITLOSS_HESSIAN)
            to.hessians -= again;
        second_step(block, factor, to, whole, whole + LANES, orders, any_logit);
    }
}

/* Whether any of the block's elements may need it; never says no to one.  Mostly this is
 * seen from the extremes: for logits of ordinary size an underflow of one product, at most
 * half the least subnormal, is nothing beside sum * exp(-|x|). */
INLINE int may_need_care(inputs in, extremes seen, ptrdiff_t n, int general)
{
    const REAL q = FABS(in.pos_weight[0]);
    const int has_plain_labels = seen.label <= ordered(bits_of(1));
    if (!general && q == 1 && has_plain_labels)
        return 0;
    if (has_plain_labels && seen.logit <= ordered(magnitude(ORDINARY_LOGIT))
        && (general ? seen.sum <= ordered(bits_of(SUM_MAX) - bits_of(SUM_MIN))
                    : (SUM_MIN <= q && q <= SUM_MAX) || q == 0))
        return 0;
    int any = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        any |= is_at_limits(in.pos_weight[general ? i : 0], in.labels[i], general ? in.weight[i] : 1);
    return any;
}

INLINE void take_care(inputs in, pair factor, destination to, ptrdiff_t n, int orders, int general)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL q = in.pos_weight[general ? i : 0], w = general ? in.weight[i] : 1;
        if (!needs_care(q, in.labels[i], w, in.logits[i]))
            continue;
        const logitloss_element element = logitloss_careful(in.labels[i], in.logits[i], q, w);
        if (orders & LOGITLOSS_LOSS)
            to.losses[i] = (REAL)element.loss;
        if (orders & LOGITLOSS_GRADIENT)
            to.gradients[i] = (REAL)(element.gradient * ((double)factor.hi + factor.lo));
        if (orders & LOGITLOSS_HESSIAN)
            to.hessians[i] = (REAL)element.hessian;
    }
}

/* Both passes for logits of any size, out of line: inline, their constants would take registers
 * from those for ordinary ones. */
NOINLINE static void run_any_logit(int orders, inputs in, terms *restrict block, pair factor, destination to,
                                   ptrdiff_t n, int general)
{
#define PASSES(orders, general) \
    (first_pass(in, block, to, n, orders, general, 1), second_pass(block, factor, to, n, orders, 1))
#define RUN(orders) \
    case orders: general ? PASSES(orders, 1) : PASSES(orders, 0); break
    switch (orders) {
        RUN(LOGITLOSS_LOSS);
        RUN(LOGITLOSS_LOSS | LOGITLOSS_GRADIENT);
        RUN(LOGITLOSS_GRADIENT | LOGITLOSS_HESSIAN);
    case LOGITLOSS_GRADIENT: PASSES(LOGITLOSS_GRADIENT, 1); break;
    case LOGITLOSS_HESSIAN: PASSES(LOGITLOSS_HESSIAN, 1); break;
    default: PASSES(LOGITLOSS_LOSS | LOGITLOSS_GRADIENT | LOGITLOSS_HESSIAN, 1);
    }
#undef RUN
#undef PASSES
}

INLINE void compute(int orders, inputs in, pair factor, destination to, ptrdiff_t n, int general)
{
    terms block;
    const extremes seen = first_pass(in, &block, to, n, orders, general, 0);
    if (seen.logit <= ordered(magnitude(ORDINARY_LOGIT)))
        second_pass(&block, factor, to, n, orders, 0);
    else
        run_any_logit(orders, in, &block, factor, to, n, general);
    if (may_need_care(in, seen, n, general))
        take_care(in, factor, to, n, orders, general);
}

/* One partial sum for each lane, so that the order of the additions, and with it
 * every bit, is the same for all instruction sets.  A float result is exact enough
 * with plain double sums; a double one needs the rounding errors added up too, and
 * then does not depend on the order of the elements either, but for rare ties. */
typedef struct {
    alignas(CACHE_LINE) double hi[SUMS], lo[SUMS];
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

/* The same for integers of at most 16 bits, whose sums have no rounding errors. */
INLINE void accumulate_integers(partial_sums *restrict sums, const REAL *restrict values)
{
    for (int j = 0; j < SUMS; j++)
        sums->hi[j] += (values[j] + values[j + SUMS]) + (values[j + 2 * SUMS] + values[j + 3 * SUMS]);
}

#if LOGITLOSS_REAL == 32
/* Half precision in native byte order, one after the other at any address. */
INLINE void widen(logitloss_type type, const char *from, REAL *restrict to, ptrdiff_t n)
{
    if (type == LOGITLOSS_FLOAT16)
        logitloss_widen_float16(from, to, n);
    else
        logitloss_widen_bfloat16(from, to, n);
}

INLINE void narrow(logitloss_type type, const REAL *restrict from, char *to, ptrdiff_t n)
{
    if (type == LOGITLOSS_FLOAT16)
        logitloss_narrow_float16(from, to, n);
    else
        logitloss_narrow_bfloat16(from, to, n);
}
#endif

/* What an element of each type becomes.  One that has yet to be rounded to half precision is
 * not rounded twice. */
#if LOGITLOSS_REAL == 32
#define FROM_DOUBLE(value) (rounds ? logitloss_round_to_odd((double)(value)) : (REAL)(value))
#else
#define FROM_DOUBLE(value) (REAL)(value)
#endif
#define FROM_FLOAT16(value) (REAL)logitloss_from_float16(value)
#define FROM_BFLOAT16(value) (REAL)logitloss_from_bfloat16(value)
#define FROM_NUMBER(value) (REAL)(value)
#define FROM_BOOL(value) (REAL)((value) != 0)

/* `rows` runs of n elements each.  By memcpy, since an element may lie at any address. */
NOINLINE static void convert(const logitloss_operand *operand, const char *data, ptrdiff_t stride, ptrdiff_t n,
                    ptrdiff_t row_stride, ptrdiff_t rows, REAL *restrict out)
{
    const int rounds = operand->is_rounded;
    (void)rounds;
#if LOGITLOSS_REAL == 32
    if (logitloss_is_half(operand->type) && stride == 2 && !operand->is_swapped) {
        for (; rows; rows--, data += row_stride, out += n)
            widen(operand->type, data, out, n);
        return;
    }
#endif
    /* Unit stride has a loop of its own, which the compiler can vectorise. */
#define CONVERT(code, ctype, FROM)                                                              \
    case code:                                                                                  \
        for (; rows; rows--, data += row_stride, out += n)                                      \
            if (operand->is_swapped)                                                            \
                for (ptrdiff_t i = 0; i < n; i++) {                                             \
                    char bytes[sizeof(ctype)];                                                  \
                    ctype value;                                                                \
                    for (size_t byte = 0; byte < sizeof(ctype); byte++)                         \
                        bytes[byte] = data[i * stride + (ptrdiff_t)(sizeof(ctype) - 1 - byte)]; \
                    memcpy(&value, bytes, sizeof value);                                        \
                    out[i] = FROM(value);                                                       \
                }                                                                               \
            else if (stride == sizeof(ctype))                                                   \
                for (ptrdiff_t i = 0; i < n; i++) {                                             \
                    ctype value;                                                                \
                    memcpy(&value, data + i * (ptrdiff_t)sizeof(ctype), sizeof value);          \
                    out[i] = FROM(value);                                                       \
                }                                                                               \
            else                                                                                \
                for (ptrdiff_t i = 0; i < n; i++) {                                             \
                    ctype value;                                                                \
                    memcpy(&value, data + i * stride, sizeof value);                            \
                    out[i] = FROM(value);                                                       \
                }                                                                               \
        break
    switch (operand->type) {
        CONVERT(LOGITLOSS_FLOAT16, uint16_t, FROM_FLOAT16);
        CONVERT(LOGITLOSS_BFLOAT16, uint16_t, FROM_BFLOAT16);
        CONVERT(LOGITLOSS_FLOAT32, float, FROM_NUMBER);
        CONVERT(LOGITLOSS_FLOAT64, double, FROM_DOUBLE);
        CONVERT(LOGITLOSS_LONGDOUBLE, long double, FROM_DOUBLE);
        CONVERT(LOGITLOSS_BOOL, uint8_t, FROM_BOOL);
        CONVERT(LOGITLOSS_INT8, int8_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_UINT8, uint8_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_INT16, int16_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_UINT16, uint16_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_INT32, int32_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_UINT32, uint32_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_INT64, int64_t, FROM_NUMBER);
        CONVERT(LOGITLOSS_UINT64, uint64_t, FROM_NUMBER);
    case LOGITLOSS_TYPES: break;
    }
#undef CONVERT
}

/* Where a walk stands. */
typedef struct {
    char *data;
    ptrdiff_t at[LOGITLOSS_MAX_AXES];
} position;

INLINE void find(const logitloss_operand *operand, ptrdiff_t index, position *place)
{
    const int last = operand->ndim - 1;
    place->data = operand->data;
    for (int axis = 0; axis < last; axis++) {
        place->at[axis] = index % operand->axes[axis].size;
        index /= operand->axes[axis].size;
        place->data += place->at[axis] * operand->axes[axis].stride;
    }
    place->at[last] = index;
    place->data += index * operand->axes[last].stride;
}

/* The elements to the end of the innermost axis. */
INLINE ptrdiff_t run_length(const logitloss_operand *operand, const position *place)
{
    return operand->axes[0].size - place->at[0];
}

/* Steps of an axis further, and on along the next ones where it ends. */
INLINE void advance(const logitloss_operand *operand, position *place, int axis, ptrdiff_t steps)
{
    place->data += steps * operand->axes[axis].stride;
    place->at[axis] += steps;
    for (; place->at[axis] == operand->axes[axis].size && axis + 1 < operand->ndim; axis++) {
        place->data += operand->axes[axis + 1].stride - operand->axes[axis].size * operand->axes[axis].stride;
        place->at[axis] = 0;
        place->at[axis + 1]++;
    }
}

/* n elements from a position, one after the other. */
NOINLINE static void gather(const logitloss_operand *operand, position *place, ptrdiff_t n, REAL *restrict out)
{
    const ptrdiff_t size = operand->axes[0].size, stride = operand->axes[0].stride;
    for (ptrdiff_t done = 0, count; done < n; done += count) {
        ptrdiff_t rows = 1, row_stride = 0;
        count = MIN(run_length(operand, place), n - done);
        /* Whole rows of the two innermost axes at once, where there are any. */
        if (!place->at[0] && n - done >= 2 * size) {
            rows = MIN((n - done) / size, operand->axes[1].size - place->at[1]);
            row_stride = operand->axes[1].stride;
        }
        convert(operand, place->data, stride, count, row_stride, rows, out + done);
        if (rows > 1) {
            advance(operand, place, 1, rows);
            count *= rows;
        } else {
            advance(operand, place, 0, count);
        }
    }
}

/* Values rounded to the half precision that the results have. */
INLINE void round_to_half(REAL *values, ptrdiff_t n, logitloss_type type)
{
    if (type == LOGITLOSS_FLOAT16)
        for (ptrdiff_t i = 0; i < n; i++)
            values[i] = (REAL)logitloss_from_float16(logitloss_to_float16((float)values[i]));
    else
        for (ptrdiff_t i = 0; i < n; i++)
            values[i] = (REAL)logitloss_from_bfloat16(logitloss_to_bfloat16((float)values[i]));
}

#if LOGITLOSS_REAL == 32
INLINE void prefetch_half(const char *values, int to_write)
{
    for (int byte = 0; byte < 2 * BLOCK; byte += CACHE_LINE)
        PREFETCH(values + byte + PREFETCH_DISTANCE, to_write);
}

/* Whole blocks of half precision, which most are: without the checks for other layouts, and in
 * loops whose length the compiler knows. */
NOINLINE static const REAL *widen_block(const char *from, logitloss_type type, REAL *to)
{
    prefetch_half(from, 0);
    widen(type, from, to, BLOCK);
    return to;
}

NOINLINE static void narrow_block(const REAL *from, logitloss_type type, char *to)
{
    prefetch_half(to, 1);
    narrow(type, from, to, BLOCK);
}
#endif

/* Whether all of it is half precision in native byte order, one after the other. */
INLINE int is_half_in_a_row(const logitloss_operand *operand)
{
    return LOGITLOSS_REAL == 32 && logitloss_is_half(operand->type) && operand->ndim == 1
           && operand->axes[0].stride == 2 && !operand->is_swapped && !operand->is_rounded;
}

/* An input of the passes: a block of it is read in place where it lies as they need it,
 * and otherwise converted into the buffer and padded with zeros. */
typedef struct {
    const logitloss_operand *operand;
    logitloss_type rounded_to;
    int is_half; /* one after the other */
    int is_in_place; /* wherever a block is not cut by the end of the innermost axis */
    /* Where the walk stands, since most blocks follow on the one before. */
    ptrdiff_t next;
    position place;
    /* A coefficient that repeats within a block is converted once: elements of more than
     * one period, so that a block can begin anywhere in the first.  Where the innermost axis repeats
     * an element, as a weight for each row does, those of the next rows are converted at once. */
    ptrdiff_t period, row, rows;
    alignas(CACHE_LINE) REAL buffer[BLOCK + LANES], kept[2 * BLOCK + LANES];
} input;

static void seek(input *in, ptrdiff_t start)
{
    find(in->operand, start, &in->place);
    in->row = in->rows = 0;
}

/* n elements of a walk whose innermost axis repeats one.  Each row is written in whole vectors, as
 * short as it allows, and the next overwrites what is beyond its end. */
NOINLINE static void repeat_rows(input *in, ptrdiff_t n, REAL *restrict out)
{
    const logitloss_operand *operand = in->operand;
    position *place = &in->place;
    const ptrdiff_t size = operand->axes[0].size;
    for (ptrdiff_t count; n; n -= count, out += count) {
        if (in->row == in->rows) {
            in->row = 0;
            in->rows = MIN(BLOCK, operand->axes[1].size - place->at[1]);
            convert(operand, place->data, operand->axes[1].stride, in->rows, 0, 1, in->kept);
        }
        /* As many whole rows as there are, or what is left of one. */
        const int are_whole = !place->at[0] && n >= size;
        const ptrdiff_t length = are_whole ? size : MIN(size - place->at[0], n);
        const ptrdiff_t rows = are_whole ? MIN(n / size, in->rows - in->row) : 1;
        const REAL *values = in->kept + in->row;
        count = rows * length;
#define REPEAT(width, end)                                                          \
    for (ptrdiff_t row = 0; row < rows; row++)                                      \
        for (ptrdiff_t i = row * length; i < row * length + (end); i += width)      \
            ROLLED for (int lane = 0; lane < width; lane++)                         \
                out[i + lane] = values[row]
        /* Short rows are one vector each, without a loop for them. */
        if (length <= 2)
            REPEAT(2, 1);
        else if (length <= 4)
            REPEAT(4, 1);
        else if (length <= 8)
            REPEAT(8, 1);
        else
            REPEAT(LANES, length);
#undef REPEAT
        advance(operand, place, are_whole ? 1 : 0, are_whole ? rows : count);
        in->row += are_whole ? rows : !place->at[0];
    }
}

static void convert_block(input *in, ptrdiff_t n, REAL *out)
{
    if (in->operand->ndim > 1 && !in->operand->axes[0].stride) {
        repeat_rows(in, n, out);
    } else if (in->operand->ndim == 1) {
        const ptrdiff_t stride = in->operand->axes[0].stride;
        convert(in->operand, in->place.data, stride, n, 0, 1, out);
        in->place.data += n * stride;
    } else {
        gather(in->operand, &in->place, n, out);
    }
    if (in->operand->is_rounded)
        round_to_half(out, n, in->rounded_to);
}

/* `fetch` for all but what is contiguous from the first element to the last. */
NOINLINE static const REAL *fetch_part(input *in, ptrdiff_t start, ptrdiff_t n)
{
    const logitloss_operand *operand = in->operand;
    position *place = &in->place;
    if (in->period)
        return in->kept + start % in->period;
    if (start != in->next)
        seek(in, start);
    in->next = start + n;
    if (in->is_in_place && n >= LANES && operand->ndim > 1 && n <= run_length(operand, place)
        && (uintptr_t)place->data % sizeof(REAL) == 0) {
        const REAL *data = (const REAL *)place->data;
        advance(operand, place, 0, n);
        return data;
    }
    if (n < LANES)
        memset(in->buffer, 0, LANES * sizeof(REAL));
    convert_block(in, n, in->buffer);
    return in->buffer;
}

/* The input's elements start .. start + n. */
INLINE const REAL *fetch(input *in, ptrdiff_t start, ptrdiff_t n)
{
#if LOGITLOSS_REAL == 32
    if (in->is_half && n == BLOCK)
        return widen_block(in->operand->data + start * 2, in->operand->type, in->buffer);
#endif
    if (!in->is_in_place || in->operand->ndim > 1)
        return fetch_part(in, start, n);
    const REAL *values = (const REAL *)in->operand->data + start;
    if (n >= LANES)
        return values;
    /* What is computed of the padding is dropped. */
    ROLLED for (int lane = 0; lane < LANES; lane++)
        in->buffer[lane] = lane < n ? values[lane] : 0;
    return in->buffer;
}

/* Converts a coefficient that repeats, as far as `most` elements need it. */
NOINLINE static void fill_periods(input *in, ptrdiff_t most)
{
    const logitloss_operand *operand = in->operand;
    ptrdiff_t period = 1;
    for (int axis = 0; axis + 1 < operand->ndim && period <= BLOCK; axis++)
        period *= operand->axes[axis].size;
    if (period > BLOCK)
        return;
    seek(in, 0);
    convert_block(in, period, in->buffer);
    memcpy(in->kept, in->buffer, (size_t)period * sizeof(REAL));
    const ptrdiff_t end = period + MIN(most, BLOCK) + LANES;
    for (ptrdiff_t i = period; i < MIN(end, 2 * BLOCK + LANES); i++)
        in->kept[i] = in->kept[i - period];
    in->period = period;
}

/* Prepares to read `most` elements. */
INLINE void open_input(input *in, const logitloss_operand *operand, logitloss_type type, ptrdiff_t most)
{
    const int outermost = operand->ndim - 1;
    in->operand = operand;
    in->rounded_to = type;
    in->is_in_place = operand->type == REAL_TYPE && operand->axes[0].stride == sizeof(REAL) && !operand->is_swapped
                      && !operand->is_rounded && !operand->is_overwritten
                      && (uintptr_t)operand->data % sizeof(REAL) == 0;
    in->is_half = is_half_in_a_row(operand);
    in->period = 0;
    in->next = -1;
    if (outermost && !operand->axes[outermost].stride)
        fill_periods(in, most);
}

/* Where a block of a result goes: its own memory, or a buffer from which it is stored. */
typedef struct {
    const logitloss_operand *operand; /* NULL if it is not written */
    REAL *block, *own;
    alignas(CACHE_LINE) REAL buffer[BLOCK];
} output;

INLINE REAL *open_output(output *out, const logitloss_operand *operand, ptrdiff_t start, ptrdiff_t n, int is_added)
{
    out->operand = operand->data ? operand : NULL;
    out->own = NULL;
    if (out->operand && operand->ndim == 1 && operand->axes[0].stride == sizeof(REAL) && operand->type == REAL_TYPE
        && (uintptr_t)operand->data % sizeof(REAL) == 0)
        out->own = (REAL *)operand->data + start;
    /* What is added up is padded with zeros to a whole block. */
    out->block = out->own && n >= LANES && !(is_added && n < BLOCK) ? out->own : out->buffer;
    return out->block;
}

NOINLINE static void store(const logitloss_operand *operand, ptrdiff_t start, ptrdiff_t n, const REAL *restrict values)
{
    position place;
    find(operand, start, &place);
    const ptrdiff_t stride = operand->axes[0].stride;
#define STORE(ctype, convert_one)                                                \
    if (stride == sizeof(ctype))                                                 \
        for (ptrdiff_t i = 0; i < count; i++) {                                  \
            const ctype value = convert_one(values[i]);                          \
            memcpy(place.data + i * (ptrdiff_t)sizeof(ctype), &value, sizeof value); \
        }                                                                        \
    else                                                                         \
        for (ptrdiff_t i = 0; i < count; i++) {                                  \
            const ctype value = convert_one(values[i]);                          \
            memcpy(place.data + i * stride, &value, sizeof value);               \
        }
    for (ptrdiff_t count; n; n -= count, values += count) {
        count = MIN(run_length(operand, &place), n);
#if LOGITLOSS_REAL == 32
        if (logitloss_is_half(operand->type) && stride == 2)
            narrow(operand->type, values, place.data, count);
        else if (operand->type == LOGITLOSS_FLOAT16)
            STORE(uint16_t, logitloss_to_float16)
        else if (operand->type == LOGITLOSS_BFLOAT16)
            STORE(uint16_t, logitloss_to_bfloat16)
        else
#endif
            STORE(REAL, )
        advance(operand, &place, 0, count);
    }
#undef STORE
}

INLINE void close_output(const output *out, ptrdiff_t start, ptrdiff_t n)
{
    if (out->own && n < LANES) {
        ROLLED for (int lane = 0; lane < LANES; lane++)
            if (lane < n)
                out->own[lane] = out->buffer[lane];
#if LOGITLOSS_REAL == 32
    } else if (out->operand && n == BLOCK && is_half_in_a_row(out->operand)) {
        narrow_block(out->buffer, out->operand->type, out->operand->data + start * 2);
#endif
    } else if (out->operand && out->block == out->buffer)
        store(out->operand, start, n, out->buffer);
}

/* In double, since such a divisor may be beyond the range of REAL where the quotient is not.
 * Zero stays zero where other weights are NaN or cancel. */
NOINLINE static void divide(REAL *restrict values, const REAL *weight, int general, double divisor, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        values[i] = general && weight[i] == 0 ? 0 : (REAL)(values[i] / divisor);
}

/* What an incoming gradient makes of a derivative.  A zero of it or of the weight masks the other. */
NOINLINE static void multiply(REAL *restrict values, const REAL *scale, const REAL *weight, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        const REAL product = values[i] * scale[i];
        values[i] = ((scale[i] == 0) | (weight[i] == 0)) ? 0 : product;
    }
}

INLINE void accumulate_weights(partial_sums *sums, const logitloss_operand *weight, const REAL *values, ptrdiff_t n)
{
    alignas(CACHE_LINE) REAL padded[BLOCK];
    if (n < BLOCK) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, values, (size_t)n * sizeof(REAL));
        values = padded;
    }
    if (LOGITLOSS_BOOL <= weight->type && weight->type <= LOGITLOSS_UINT16)
        accumulate_integers(sums, values);
    else
        accumulate(sums, values);
}

INLINE logitloss_sum sum_of(const partial_sums *sums)
{
    logitloss_sum total = {0, 0};
    for (int j = 0; j < SUMS; j++)
        logitloss_add(&total, (logitloss_sum){sums->hi[j], sums->lo[j]});
    return total;
}

/* The sum of the weights alone. */
NOINLINE static logitloss_sums run_weights(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop)
{
    input weight;
    partial_sums sums;
    memset(&sums, 0, sizeof sums);
    open_input(&weight, &task->weight, task->type, stop - start);
    for (ptrdiff_t at = start, n; at < stop; at += n) {
        n = MIN(stop - at, BLOCK);
        accumulate_weights(&sums, &task->weight, fetch(&weight, at, n), n);
    }
    return (logitloss_sums){{0, 0}, sum_of(&sums)};
}

INLINE logitloss_sums run_blocks(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop, int orders, int general)
{
    input logits, labels, pos_weight, weight, scale;
    output losses, gradients, hessians;
    partial_sums sums, weight_sums;
    const int divides = orders != LOGITLOSS_LOSS && task->divisor != 1
                        && (orders & LOGITLOSS_HESSIAN || !has_reciprocal(task->divisor));
    const pair factor = orders & LOGITLOSS_GRADIENT ? reciprocal(divides ? 1 : task->divisor) : (pair){1, 0};
    if (task->adds_losses)
        memset(&sums, 0, sizeof sums);
    if (task->adds_weights)
        memset(&weight_sums, 0, sizeof weight_sums);
    open_input(&logits, &task->logits, task->type, stop - start);
    open_input(&labels, &task->labels, task->type, stop - start);
    inputs in = {NULL, NULL, pos_weight.buffer, weight.buffer};
    if (general && task->pos_weight.data)
        open_input(&pos_weight, &task->pos_weight, task->type, stop - start);
    else
        for (int i = 0; i < (general ? BLOCK : 1); i++)
            pos_weight.buffer[i] = (REAL)task->pos_weight_value;
    if (general && task->weight.data)
        open_input(&weight, &task->weight, task->type, stop - start);
    else
        for (int i = 0; i < (general ? BLOCK : 1); i++)
            weight.buffer[i] = (REAL)task->weight_value;
    if (general && task->scale.data)
        open_input(&scale, &task->scale, task->type, stop - start);

    for (ptrdiff_t at = start, n; at < stop; at += n) {
        n = MIN(stop - at, BLOCK);
        in.logits = fetch(&logits, at, n);
        in.labels = fetch(&labels, at, n);
        if (general && task->pos_weight.data)
            in.pos_weight = fetch(&pos_weight, at, n);
        if (general && task->weight.data)
            in.weight = fetch(&weight, at, n);
        const REAL *factors = general && task->scale.data ? fetch(&scale, at, n) : NULL;

        destination to = {NULL, NULL, NULL};
        if (orders & LOGITLOSS_LOSS)
            to.losses = open_output(&losses, &task->results[0], at, n, task->adds_losses);
        if (orders & LOGITLOSS_GRADIENT)
            to.gradients = open_output(&gradients, &task->results[1], at, n, 0);
        if (orders & LOGITLOSS_HESSIAN)
            to.hessians = open_output(&hessians, &task->results[2], at, n, 0);
        compute(orders, in, factor, to, n < LANES ? LANES : n, general);
        if (divides) {
            if (orders & LOGITLOSS_GRADIENT)
                divide(to.gradients, in.weight, general, task->divisor, n);
            if (orders & LOGITLOSS_HESSIAN)
                divide(to.hessians, in.weight, general, task->divisor, n);
        }
        if (factors) {
            if (orders & LOGITLOSS_LOSS)
                multiply(to.losses, factors, in.weight, n);
            if (orders & LOGITLOSS_GRADIENT)
                multiply(to.gradients, factors, in.weight, n);
            if (orders & LOGITLOSS_HESSIAN)
                multiply(to.hessians, factors, in.weight, n);
        }

        if (task->adds_losses) {
            for (ptrdiff_t i = n; i < BLOCK; i++)
                to.losses[i] = 0;
            accumulate(&sums, to.losses);
        }
        if (general && task->adds_weights)
            accumulate_weights(&weight_sums, &task->weight, in.weight, n);
        if (orders & LOGITLOSS_LOSS)
            close_output(&losses, at, n);
        if (orders & LOGITLOSS_GRADIENT)
            close_output(&gradients, at, n);
        if (orders & LOGITLOSS_HESSIAN)
            close_output(&hessians, at, n);
    }

    logitloss_sums total = {{0, 0}, {0, 0}};
    if (task->adds_losses)
        total.losses = sum_of(&sums);
    if (task->adds_weights)
        total.weights = sum_of(&weight_sums);
    return total;
}

/* logitloss_run_float32_avx2 and its like. */
logitloss_sums LOGITLOSS_RUN(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop)
{
    /* Of such a task nothing but the weights is set. */
    if (!task->orders)
        return run_weights(task, start, stop);
    const int general = task->pos_weight.data || task->weight.data || task->weight_value != 1 || task->scale.data;
#define RUN(orders) \
    case orders: return general ? run_blocks(task, start, stop, orders, 1) \
                                : run_blocks(task, start, stop, orders, 0)
    switch (task->orders) {
        RUN(LOGITLOSS_LOSS);
        RUN(LOGITLOSS_LOSS | LOGITLOSS_GRADIENT);
        RUN(LOGITLOSS_GRADIENT | LOGITLOSS_HESSIAN);
    /* Alone they are asked for together with an incoming gradient. */
    case LOGITLOSS_GRADIENT: return run_blocks(task, start, stop, LOGITLOSS_GRADIENT, 1);
    case LOGITLOSS_HESSIAN: return run_blocks(task, start, stop, LOGITLOSS_HESSIAN, 1);
    default: return run_blocks(task, start, stop, LOGITLOSS_LOSS | LOGITLOSS_GRADIENT | LOGITLOSS_HESSIAN, 1);
    }
#undef RUN
}
