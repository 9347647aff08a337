/*
 * The loop over logistic.h for a GPU.  It is compiled when it is first called for, once for each
 * combination of what follows, so that types, layouts and results are constants of the code.
 * The arithmetic is that of blocks.c with fused multiply-add, and so are the bits of every
 * element.  Compiled as C++ for the host, it runs threads and blocks as loops.
 *
 *     REAL_BITS                       32 or 64: what is computed in
 *     ORDERS                          what is computed, as in task.h; 0: the sum of the weights alone
 *     LOGITS, LABELS, POS_WEIGHT, WEIGHT, INCOMING, RESULT, REDUCED
 *                                     types; REDUCED is that of the reduced loss
 *     LOGITS_KIND, ... LOSS_KIND, GRADIENT_KIND, HESSIAN_KIND
 *                                     how each lies in memory, see grid.h
 *     ADDS_LOSSES, ADDS_WEIGHTS       which sums are wanted
 *     DIVIDES                         the gradient has a divisor other than 1
 *     DIVIDES_BY_WEIGHTS              the divisor is the sum that the launch before has left
 *     IS_WIDE                         an index takes more than 31 bits
 */
#ifdef __CUDACC_RTC__
/* What the headers of the C library would say: the compiler comes without them. */
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef decltype((char *)0 - (char *)0) ptrdiff_t;
#define NAN __int_as_float(0x7fffffff)
#define FLT_MIN 0x1p-126f
#define DBL_MIN 0x1p-1022
#endif

#define restrict __restrict__
#include "compiler.h"
#include "grid.h"
#include "task.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* careful.c computes in double without fused operations, whatever the rest does. */
namespace careful {
#include "careful.c"
}

#ifdef __CUDACC_RTC__
/* To within 2^-23, or of a double, of which it sees and gives the first 32 bits alone, about 2^-20. */
template <typename T> INLINE T about_reciprocal(T divisor)
{
    T reciprocal;
    if constexpr (sizeof(T) == sizeof(double))
        asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(reciprocal) : "d"(divisor));
    else
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
    return reciprocal;
}
#endif

template <typename T> INLINE T fused(T a, T b, T c)
{
    if constexpr (sizeof(T) == sizeof(double))
        return fma(a, b, c);
    else
        return fmaf(a, b, c);
}

/* Rounded as by a division, which on a GPU takes the same steps (Markstein 1990, "Computation of
 * elementary functions on the IBM RISC System/6000 processor").  But it begins by asking whether the
 * numbers are out of the ordinary, and that keeps the compiler from doing several at a time. */
template <typename T> INLINE T ordinary_quotient(T dividend, T divisor)
{
    T reciprocal = about_reciprocal(divisor);
    T error = fused(-divisor, reciprocal, (T)1);
    if (sizeof(T) == sizeof(double)) {
        reciprocal = fused(reciprocal, fused(error, error, error), reciprocal);
        error = fused(-divisor, reciprocal, (T)1);
    }
    reciprocal = fused(reciprocal, error, reciprocal);
    const T quotient = dividend * reciprocal;
    return fused(reciprocal, fused(-divisor, quotient, dividend), quotient);
}
#undef ORDINARY_QUOTIENT
#define ORDINARY_QUOTIENT(dividend, divisor) ordinary_quotient<REAL>(dividend, divisor)

#undef LOGITLOSS_REAL
#define LOGITLOSS_REAL REAL_BITS
#undef HAS_FMA
#define HAS_FMA 1
#include "element.h"

#ifdef __CUDACC_RTC__
/* What every thread of a block does before any of them goes on. */
#define EACH_THREAD(t) for (int t = (int)threadIdx.x, left = 1; left; left = 0, __syncthreads())
#else
#define EACH_THREAD(t) for (int t = 0; t < LOGITLOSS_GRID_THREADS; t++)
#endif

#if IS_WIDE
typedef int64_t index_type;
INLINE index_type divided(index_type index, const logitloss_grid_axis &axis) { return index / axis.size; }
#else
typedef uint32_t index_type;
INLINE index_type divided(index_type index, const logitloss_grid_axis &axis)
{
    return ((index_type)((uint64_t)index * axis.multiplier >> 32) + index) >> axis.shift;
}
#endif

/* Where an operand has the element of an index. */
INLINE char *address(const logitloss_grid_operand &operand, index_type index)
{
    int64_t offset = 0;
    const int last = operand.ndim - 1;
    for (int axis = 0; axis < last; axis++) {
        const index_type outer = divided(index, operand.axes[axis]);
        offset += (int64_t)(index - outer * (index_type)operand.axes[axis].size) * operand.axes[axis].stride;
        index = outer;
    }
    return (char *)operand.data + (offset + (int64_t)index * operand.axes[last].stride);
}

template <int type> struct element_of;
template <> struct element_of<LOGITLOSS_FLOAT16> { typedef uint16_t stored; };
template <> struct element_of<LOGITLOSS_BFLOAT16> { typedef uint16_t stored; };
template <> struct element_of<LOGITLOSS_FLOAT32> { typedef float stored; };
template <> struct element_of<LOGITLOSS_FLOAT64> { typedef double stored; };
template <> struct element_of<LOGITLOSS_BOOL> { typedef uint8_t stored; };
template <> struct element_of<LOGITLOSS_INT8> { typedef int8_t stored; };
template <> struct element_of<LOGITLOSS_UINT8> { typedef uint8_t stored; };
template <> struct element_of<LOGITLOSS_INT16> { typedef int16_t stored; };
template <> struct element_of<LOGITLOSS_UINT16> { typedef uint16_t stored; };
template <> struct element_of<LOGITLOSS_INT32> { typedef int32_t stored; };
template <> struct element_of<LOGITLOSS_UINT32> { typedef uint32_t stored; };
template <> struct element_of<LOGITLOSS_INT64> { typedef int64_t stored; };
template <> struct element_of<LOGITLOSS_UINT64> { typedef uint64_t stored; };

#if defined(__CUDACC_RTC__)
/* A GPU converts half precision itself. */
INLINE float from_float16(uint16_t half)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

INLINE uint16_t to_float16(float value)
{
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

INLINE uint16_t to_bfloat16(float value)
{
#if __CUDA_ARCH__ >= 800
    uint16_t half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    return logitloss_to_bfloat16(value);
#endif
}
#else
#define from_float16 logitloss_from_float16
#define to_float16 logitloss_to_float16
#define to_bfloat16 logitloss_to_bfloat16
#endif

template <int type> INLINE REAL widened(typename element_of<type>::stored value)
{
    if (type == LOGITLOSS_FLOAT16)
        return (REAL)from_float16((uint16_t)value);
    if (type == LOGITLOSS_BFLOAT16)
        return (REAL)logitloss_from_bfloat16((uint16_t)value);
    if (type == LOGITLOSS_BOOL)
        return value != 0;
    return (REAL)value;
}

template <int type> INLINE typename element_of<type>::stored narrowed(REAL value)
{
    if (type == LOGITLOSS_FLOAT16)
        return to_float16((float)value);
    if (type == LOGITLOSS_BFLOAT16)
        return to_bfloat16((float)value);
    return (typename element_of<type>::stored)value;
}

/* What is to be rounded to half precision is rounded once. */
template <int type> INLINE REAL read(typename element_of<type>::stored value)
{
    /* As in task.c: both half precisions hold all integers of 8 bits. */
    const int is_exact = type == RESULT || type == LOGITLOSS_BOOL || type == LOGITLOSS_INT8 || type == LOGITLOSS_UINT8;
    if (!(RESULT == LOGITLOSS_FLOAT16 || RESULT == LOGITLOSS_BFLOAT16) || is_exact)
        return widened<type>(value);
    const REAL single = type == LOGITLOSS_FLOAT64 ? (REAL)logitloss_round_to_odd((double)value) : widened<type>(value);
    return widened<RESULT>(narrowed<RESULT>(single));
}

enum { THREADS = LOGITLOSS_GRID_THREADS, LANES = LOGITLOSS_GRID_LANES(ORDERS, RESULT, sizeof(element_of<WEIGHT>::stored)) };

/* Whether an operand is read by its strides. */
enum {
    IS_STRIDED = LOGITS_KIND == STRIDED || LABELS_KIND == STRIDED || POS_WEIGHT_KIND == STRIDED || WEIGHT_KIND == STRIDED
                 || INCOMING_KIND == STRIDED,
};

template <bool is_first, typename first, typename second> struct either { typedef first type; };
template <typename first, typename second> struct either<false, first, second> { typedef second type; };

/* What a thread takes at a time, as it lies in memory.  Elements of less than 32 bits stay in words until
 * they are converted: the compiler would move each to a register of its own. */
template <int type>
struct alignas(sizeof(typename element_of<type>::stored) * LANES < 16 ? sizeof(typename element_of<type>::stored) * LANES
                                                                      : 16) lanes {
    typedef typename element_of<type>::stored stored;
    enum { BITS = 8 * sizeof(stored) };
    typedef typename either<BITS * LANES >= 32, uint32_t, uint16_t>::type several;
    typedef typename either<BITS >= 32, stored, several>::type word;
    enum { A_WORD = sizeof(word) / sizeof(stored) };
    word words[LANES / A_WORD];

    stored at(int lane) const
    {
        const word its = words[lane / A_WORD];
        if constexpr (A_WORD > 1)
            return (stored)(its >> lane % A_WORD * BITS);
        else
            return its;
    }

    /* In place of a zero. */
    void put(int lane, stored value)
    {
        word &its = words[lane / A_WORD];
        if constexpr (A_WORD > 1)
            its |= (several)(value & ((1u << BITS) - 1)) << lane % A_WORD * BITS;
        else
            its = value;
    }
};

template <int kind, typename stored>
INLINE stored *element(const logitloss_grid_operand &operand, index_type start, int lane)
{
    return kind == STRIDED ? (stored *)address(operand, start + lane) : (stored *)operand.data + start + lane;
}

/* `count` of the elements from `start` on; the others are zero. */
template <int kind, int type>
INLINE lanes<type> fetch(const logitloss_grid_operand &operand, index_type start, int count)
{
    typedef typename element_of<type>::stored stored;
    lanes<type> all = {};
    if (kind == PACKED && count == LANES)
        return *(const lanes<type> *)((const stored *)operand.data + start);
    for (int lane = 0; lane < LANES; lane++)
        if (kind >= PACKED && lane < count)
            all.put(lane, *element<kind, stored>(operand, start, lane));
    return all;
}

/* The value of every element of an operand that is one number. */
template <int kind, int type> INLINE REAL value_of(const logitloss_grid_operand &operand, double number)
{
    if (kind == SINGLE)
        return read<type>(*(const typename element_of<type>::stored *)operand.data);
    return kind == NUMBER ? (REAL)number : 1;
}

template <int kind, int type> INLINE void convert(const lanes<type> &from, REAL value, REAL *to)
{
    for (int lane = 0; lane < LANES; lane++)
        to[lane] = kind >= PACKED ? read<type>(from.at(lane)) : value;
}

template <int kind> INLINE void store(const logitloss_grid_operand &operand, index_type start, int count, const REAL *from)
{
    typedef typename element_of<RESULT>::stored stored;
    lanes<RESULT> all = {};
    for (int lane = 0; lane < LANES; lane++)
        all.put(lane, narrowed<RESULT>(from[lane]));
    if (kind == PACKED && count == LANES) {
        *(lanes<RESULT> *)((stored *)operand.data + start) = all;
        return;
    }
    for (int lane = 0; lane < LANES; lane++)
        if (kind >= PACKED && lane < count)
            *element<kind, stored>(operand, start, lane) = all.at(lane);
}

/* The operands of the elements that a thread takes at a time. */
typedef struct {
    lanes<LOGITS> logits;
    lanes<LABELS> labels;
    lanes<POS_WEIGHT> pos_weight;
    lanes<WEIGHT> weight;
    lanes<INCOMING> scale;
} operands;

/* All are asked for before any of them is used, so that a thread waits once. */
INLINE operands fetch_all(const logitloss_grid_task &task, index_type start, int count)
{
    operands all;
    all.logits = fetch<LOGITS_KIND, LOGITS>(task.logits, start, count);
    all.labels = fetch<LABELS_KIND, LABELS>(task.labels, start, count);
    all.pos_weight = fetch<POS_WEIGHT_KIND, POS_WEIGHT>(task.pos_weight, start, count);
    all.weight = fetch<WEIGHT_KIND, WEIGHT>(task.weight, start, count);
    all.scale = fetch<INCOMING_KIND, INCOMING>(task.scale, start, count);
    return all;
}

typedef struct {
    REAL loss, gradient, hessian;
} derivatives;

/* How a gradient is divided: by multiplying, where that is as exact. */
typedef struct {
    pair factor;
    double divisor; /* or 1 */
} division;

INLINE division division_by(double divisor)
{
    division by = {{1, 0}, 1};
    if (!DIVIDES)
        return by;
    const int divides = ORDERS & LOGITLOSS_HESSIAN || !has_reciprocal(divisor);
    by.factor = reciprocal(divides ? 1 : divisor);
    by.divisor = divides ? divisor : 1;
    return by;
}

/* Bits to be compared: the greatest among the elements at hand, as in blocks.c. */
typedef struct {
    UINT logit, label, sum;
} extremes;

/* The coefficients of an element, with what they tell of its kind. */
typedef struct {
    REAL x, negative, minus_positive;
} weighted;

INLINE UINT greater(UINT first, UINT second) { return first > second ? first : second; }

INLINE weighted weigh(REAL x, REAL z, REAL q, REAL w, extremes *seen)
{
    const UINT mask = mask_of(w);
    weighted it;
    it.x = masked(x, mask);
    it.negative = masked(w * (1 - z), mask);
    it.minus_positive = masked(w * (-q * z), mask);
    seen->logit = greater(seen->logit, magnitude(it.x));
    seen->label = greater(seen->label, bits_of(1 - z));
    seen->sum = greater(seen->sum, (bits_of(FABS(it.negative - it.minus_positive)) - bits_of(SUM_MIN)) & mask);
    return it;
}

/* Whether they are logits of ordinary size, labels in [0, 1] and sums in range, all of them. */
INLINE int are_ordinary(extremes seen)
{
    return seen.logit <= magnitude(ORDINARY_LOGIT) && seen.label <= bits_of(1)
           && seen.sum <= bits_of(SUM_MAX) - bits_of(SUM_MIN);
}

INLINE derivatives compute(weighted it, pair factor, int any_logit)
{
    const coefficients c = coefficients_of(it.x, it.negative, it.minus_positive, any_logit);
    const pair e = exp_neg_abs(it.x, any_logit);
    derivatives result = {0, 0, 0};
    if (ORDERS & LOGITLOSS_LOSS) {
        const pair log1p_e = log1p_scaled(e, log1p_quotient(e.hi, any_logit), any_logit);
        result.loss = loss(c.sum, log1p_e, linear_part(it.x, c.towards, any_logit));
    }
    if (ORDERS & (LOGITLOSS_GRADIENT | LOGITLOSS_HESSIAN)) {
        const sigmoid s = sigmoid_scaled(e, any_logit);
        result.gradient = gradient(c.towards, c.against, s, any_logit);
        if (DIVIDES)
            result.gradient = FMA(result.gradient, factor.hi, result.gradient * factor.lo);
        if (ORDERS & LOGITLOSS_HESSIAN)
            result.hessian = hessian(c.sum, s, any_logit);
    }
    return result;
}

/* An element that is out of the ordinary or beside one that is.  It is left to a function that is called,
 * because the loop would need more registers for it than for all else. */
NOINLINE static derivatives compute_any(REAL x, REAL z, REAL q, REAL w, pair factor)
{
    if (!needs_care(q, z, w, x)) {
        extremes seen = {0, 0, 0};
        return compute(weigh(x, z, q, w, &seen), factor, 1);
    }
    const careful::logitloss_element element = careful::logitloss_careful(z, x, q, w);
    derivatives result;
    result.loss = (REAL)element.loss;
    result.gradient = (REAL)(element.gradient * ((double)factor.hi + factor.lo));
    result.hessian = (REAL)element.hessian;
    return result;
}

/* What an incoming gradient makes of a derivative.  A zero of it or of the weight masks the other. */
INLINE REAL scaled(REAL value, REAL scale, REAL w)
{
    return scale == 0 || w == 0 ? 0 : value * scale;
}

INLINE void add(logitloss_sum *sum, REAL value)
{
#if LOGITLOSS_REAL == 32
    sum->hi += value;
#else
    logitloss_add(sum, logitloss_sum{value, 0});
#endif
}

/* The sum of the weights that one thread adds up, of a launch that does nothing else.  It has few
 * blocks, so that each thread asks for several pieces before it adds the first. */
INLINE logitloss_sums add_weights(const logitloss_grid_task &task, int thread)
{
    enum { PIECES = 4 };
    logitloss_sums sums = {{0, 0}, {0, 0}};
    const index_type size = (index_type)task.size, step = (index_type)gridDim.x * THREADS * LANES;
    const REAL single = value_of<WEIGHT_KIND, WEIGHT>(task.weight, task.weight_value);
    index_type start = ((index_type)blockIdx.x * THREADS + thread) * LANES;
    lanes<WEIGHT> raw[PIECES];
    REAL w[LANES];
    for (; WEIGHT_KIND != STRIDED && start + (PIECES - 1) * step + LANES <= size; start += PIECES * step) {
        for (int piece = 0; piece < PIECES; piece++)
            raw[piece] = fetch<WEIGHT_KIND, WEIGHT>(task.weight, start + piece * step, LANES);
        for (int piece = 0; piece < PIECES; piece++) {
            convert<WEIGHT_KIND, WEIGHT>(raw[piece], single, w);
            for (int lane = 0; lane < LANES; lane++)
                add(&sums.weights, w[lane]);
        }
    }
    for (; start < size; start += step) {
        const int count = size - start < LANES ? (int)(size - start) : LANES;
        convert<WEIGHT_KIND, WEIGHT>(fetch<WEIGHT_KIND, WEIGHT>(task.weight, start, count), single, w);
        for (int lane = 0; lane < LANES; lane++)
            if (lane < count)
                add(&sums.weights, w[lane]);
    }
    return sums;
}

/* All that one thread computes, and the sums of it. */
INLINE logitloss_sums work(const logitloss_grid_task &task, division by, int thread)
{
    logitloss_sums sums = {{0, 0}, {0, 0}};
    const index_type size = (index_type)task.size, step = (index_type)gridDim.x * THREADS * LANES;
    const REAL logit = value_of<LOGITS_KIND, LOGITS>(task.logits, 1), label = value_of<LABELS_KIND, LABELS>(task.labels, 1);
    const REAL pos_weight = value_of<POS_WEIGHT_KIND, POS_WEIGHT>(task.pos_weight, task.pos_weight_value);
    const REAL weight = value_of<WEIGHT_KIND, WEIGHT>(task.weight, task.weight_value);
    const REAL incoming = value_of<INCOMING_KIND, INCOMING>(task.scale, 1);
    for (index_type start = ((index_type)blockIdx.x * THREADS + thread) * LANES; start < size; start += step) {
        const int count = size - start < LANES ? (int)(size - start) : LANES;
        /* A number of elements that is known leaves nothing to decide for each operand. */
        const operands raw = count == LANES && !IS_STRIDED ? fetch_all(task, start, LANES) : fetch_all(task, start, count);
        REAL x[LANES], z[LANES], q[LANES], w[LANES], scale[LANES], losses[LANES], gradients[LANES], hessians[LANES];
        convert<LOGITS_KIND, LOGITS>(raw.logits, logit, x);
        convert<LABELS_KIND, LABELS>(raw.labels, label, z);
        convert<POS_WEIGHT_KIND, POS_WEIGHT>(raw.pos_weight, pos_weight, q);
        convert<WEIGHT_KIND, WEIGHT>(raw.weight, weight, w);
        convert<INCOMING_KIND, INCOMING>(raw.scale, incoming, scale);
        extremes seen = {0, 0, 0};
        weighted all[LANES];
        derivatives results[LANES];
        for (int lane = 0; lane < LANES; lane++)
            all[lane] = weigh(x[lane], z[lane], q[lane], w[lane], &seen);
        if (are_ordinary(seen))
            for (int lane = 0; lane < LANES; lane++)
                results[lane] = compute(all[lane], by.factor, 0);
        else
            for (int lane = 0; lane < LANES; lane++)
                results[lane] = compute_any(x[lane], z[lane], q[lane], w[lane], by.factor);
        for (int lane = 0; lane < LANES; lane++) {
            losses[lane] = results[lane].loss;
            gradients[lane] = results[lane].gradient;
            hessians[lane] = results[lane].hessian;
        }
        if (DIVIDES && by.divisor != 1)
            for (int lane = 0; lane < LANES; lane++) {
                /* Zero stays zero where other weights are NaN or cancel. */
                gradients[lane] = w[lane] == 0 ? 0 : (REAL)(gradients[lane] / by.divisor);
                hessians[lane] = w[lane] == 0 ? 0 : (REAL)(hessians[lane] / by.divisor);
            }
        if (INCOMING_KIND != ABSENT)
            for (int lane = 0; lane < LANES; lane++) {
                losses[lane] = scaled(losses[lane], scale[lane], w[lane]);
                gradients[lane] = scaled(gradients[lane], scale[lane], w[lane]);
                hessians[lane] = scaled(hessians[lane], scale[lane], w[lane]);
            }
        store<LOSS_KIND>(task.results[0], start, count, losses);
        store<GRADIENT_KIND>(task.results[1], start, count, gradients);
        store<HESSIAN_KIND>(task.results[2], start, count, hessians);
        for (int lane = 0; lane < LANES; lane++)
            if (lane < count) {
                if (ADDS_LOSSES)
                    add(&sums.losses, losses[lane]);
                if (ADDS_WEIGHTS)
                    add(&sums.weights, w[lane]);
            }
    }
    return sums;
}

/* Adds up what the threads of a block have, in an order of its own, into that of the first. */
INLINE void fold(logitloss_sums *sums)
{
    for (int half = THREADS / 2; half; half /= 2)
        EACH_THREAD (t)
            if (t < half)
                logitloss_add_both(&sums[t], &sums[t + half]);
}

/* The sum of the parts that a launch left, of one block of threads each. */
INLINE void gather(const logitloss_sums *parts, int64_t count, logitloss_sums *sums)
{
    EACH_THREAD (t) {
        sums[t] = logitloss_sums{{0, 0}, {0, 0}};
        for (int64_t part = t; part < count; part += THREADS)
            logitloss_add_both(&sums[t], &parts[part]);
    }
    fold(sums);
}

extern "C" __global__ void __launch_bounds__(THREADS) logitloss_run(const __grid_constant__ logitloss_grid_task task)
{
    __shared__ logitloss_sums sums[THREADS];
    __shared__ int is_last;
    logitloss_sums *parts = (logitloss_sums *)task.parts;
    double divisor = task.divisor;
    if (DIVIDES_BY_WEIGHTS) {
        gather((const logitloss_sums *)task.weight_parts, task.weight_parts_count, sums);
        divisor = logitloss_value_of(sums[0].weights, task.weight_times);
    }
    const division by = division_by(divisor ? divisor : NAN);
#ifdef __CUDACC_RTC__
    __syncthreads();
#endif
    EACH_THREAD (t)
        sums[t] = ORDERS ? work(task, by, t) : add_weights(task, t);
    if (!(ADDS_LOSSES || ADDS_WEIGHTS))
        return;

    fold(sums);
    if (gridDim.x > 1 || !ORDERS) {
        /* The last block to come here finishes the sum: by then the parts of all are written. */
        EACH_THREAD (t)
            if (t == 0) {
                parts[blockIdx.x] = sums[0];
                __threadfence();
                is_last = ADDS_LOSSES && atomicAdd((unsigned *)task.done, 1u) == gridDim.x - 1;
                if (!ORDERS && blockIdx.x == 0)
                    *(unsigned *)task.done = 0;
            }
        if (!ADDS_LOSSES || !is_last)
            return;
        __threadfence();
        gather(parts, gridDim.x, sums);
    }
    EACH_THREAD (t)
        if (t == 0) {
            if (ADDS_WEIGHTS)
                divisor = logitloss_value_of(sums[0].weights, 1);
            logitloss_write(divisor ? logitloss_value_of(sums[0].losses, 1) / divisor : NAN, (logitloss_type)REDUCED,
                            (void *)task.reduced);
        }
}
