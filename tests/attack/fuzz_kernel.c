/*
 * A fuzzer for the C kernels: bytes become the arrays of a call, every instruction set of
 * this processor computes it, and each result is compared with the closed form in long
 * double.  run.sh compiles it with sanitizers, against libFuzzer where there is clang, and
 * otherwise with a main function that feeds random bytes.
 *
 * WITHOUT_VALUES leaves the values to others, for valgrind, where long double is double.
 *
 * All memory is allocated to the byte, so that AddressSanitizer sees what lies outside.
 * Inputs, and what lies between the elements of a result, must stay as they are.
 */
#include "blocks.h"
#include "half.h"
#include "targets.h"

#include <float.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { AXES = 4, MOST = 1200, MOST_SELDOM = 9000, LABELS = 0, LOGITS, POS_WEIGHT, WEIGHT, SCALE, RESULTS, ARRAYS = 8 };

#define CHECK(condition, ...)                    \
    do {                                         \
        if (!(condition)) {                      \
            fprintf(stderr, "%s: ", #condition); \
            fprintf(stderr, __VA_ARGS__);        \
            fputc('\n', stderr);                 \
            abort();                             \
        }                                        \
    } while (0)

/* Input, which begins anew where it ends: arrays want more than fuzzers like to give. */
typedef struct {
    const uint8_t *data;
    size_t size, at;
} bytes;

static uint32_t take(bytes *input, int count)
{
    uint32_t value = 0;
    while (count--)
        value = value << 8 | (input->size ? input->data[input->at++ % input->size] : 0);
    return value;
}

static int one_in(uint32_t count, bytes *input) { return take(input, 1) % count == 0; }

static const double INTERESTING[] = {
    0, -0.0, 1, -1, 0.5, 0.3, 2, 1e-7, 1 - 0x1p-24, 1 - 0x1p-53, 87.0, 87.4, 88.8, -88.8, 104, -104,
    709, -709, 746, -746, 1e4, -1e4, 1e-20, 1e-30, 1e-36, 2e-38, 1e-40, 1e-45, 1e20, 1e30, 3e38,
    1e-160, 1e-250, 1e-290, 3e-308, 5e-324, 1e160, 1e300, 1.7e308, INFINITY, -INFINITY, NAN,
};

static double number(bytes *input)
{
    const uint32_t kind = take(input, 1);
    if (kind < 64)
        return INTERESTING[kind % (sizeof INTERESTING / sizeof *INTERESTING)];
    /* With few bits, which lie half-way between two of half precision now and then, or with many. */
    const double fraction = kind & 2 ? take(input, 2) * 0x1p-16 : take(input, 4) * 0x1p-32;
    if (kind < 144)
        return fraction;
    if (kind < 192)
        return 40 * fraction - 20;
    if (kind < 224)
        return 400 * fraction - 200;
    return ldexp(kind & 1 ? fraction - 0.5 : fraction, (int)(take(input, 2) % 2150) - 1075);
}

/* Some arrays hold nothing beyond the ordinary, and some very little: blocks without are a
 * way of their own. */
static double number_for(bytes *input, uint32_t mood)
{
    return mood == 0 || (mood == 1 && one_in(128, input)) ? number(input)
           : mood == 2 ? 40 * (take(input, 2) * 0x1p-16) - 20
                       : take(input, 2) / 65535.0;
}

/* Half precision by the definition of its fields, and by bisection. */
static long double half_value(unsigned code, logitloss_type type)
{
    const int digits = type == LOGITLOSS_FLOAT16 ? 10 : 7, greatest = 0x7fff >> digits;
    const int exponent = (int)(code & 0x7fff) >> digits, fraction = (int)code & ((1 << digits) - 1);
    const int scale = (exponent ? exponent : 1) - greatest / 2 - digits;
    const long double size = exponent == greatest ? (fraction ? NAN : INFINITY)
                                                  : ldexpl(fraction + (exponent ? 1 << digits : 0), scale);
    return code & 0x8000 ? -size : size;
}

static unsigned half_code(long double value, logitloss_type type)
{
    const unsigned sign = signbit(value) ? 0x8000 : 0, infinity = type == LOGITLOSS_FLOAT16 ? 0x7c00 : 0x7f80;
    if (isnan(value))
        return infinity | 1;
    /* The greatest that is not greater; infinity stands where the next number would. */
    unsigned low = 0, high = infinity;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        *(half_value(middle, type) <= fabsl(value) ? &low : &high) = middle;
    }
    const long double below = half_value(low, type);
    const long double above = high == infinity ? 2 * below - half_value(low - 1, type) : half_value(high, type);
    const long double tie = (below + above) / 2;
    return sign | (fabsl(value) > tie || (fabsl(value) == tie && low & 1) ? high : low);
}

static int is_half(logitloss_type type) { return type == LOGITLOSS_FLOAT16 || type == LOGITLOSS_BFLOAT16; }

/* The nearest number of a type that results have. */
static double nearest(long double value, logitloss_type type)
{
    return is_half(type) ? (double)half_value(half_code(value, type), type)
           : type == LOGITLOSS_FLOAT32 ? (float)value
                                       : (double)value;
}

/* An input as it is computed with: half precision comes of what a float of an integer, or
 * a double of a long double, is. */
static double as_read(long double value, logitloss_type from, logitloss_type type)
{
    return nearest(!is_half(type) ? value : from > LOGITLOSS_LONGDOUBLE ? (float)value : (double)value, type);
}

static int is_same_number(double first, double second)
{
    return isnan(first) ? isnan(second) : first == second && !signbit(first) == !signbit(second);
}

#define EACH_TYPE(DO)                                                                                       \
    DO(LOGITLOSS_FLOAT32, float, value) DO(LOGITLOSS_FLOAT64, double, value)                                \
    DO(LOGITLOSS_LONGDOUBLE, long double, value * (1 + 0x1p-60L)) DO(LOGITLOSS_INT8, int8_t, small)         \
    DO(LOGITLOSS_BOOL, uint8_t, fabs(small)) \
    DO(LOGITLOSS_UINT8, uint8_t, fabs(small)) DO(LOGITLOSS_INT16, int16_t, small * 300)                     \
    DO(LOGITLOSS_UINT16, uint16_t, fabs(small) * 600) DO(LOGITLOSS_INT32, int32_t, small * 2e7)             \
    DO(LOGITLOSS_UINT32, uint32_t, fabs(small) * 4e7) DO(LOGITLOSS_INT64, int64_t, small * 9e16)            \
    DO(LOGITLOSS_UINT64, uint64_t, fabs(small) * 1.8e17) DO(LOGITLOSS_FLOAT16, uint16_t, half_code(value, type)) \
    DO(LOGITLOSS_BFLOAT16, uint16_t, half_code(value, type))

static void put(char *at, logitloss_type type, int is_swapped, double value)
{
    const double small = isfinite(value) ? fmod(value, 100) : 1;
    const ptrdiff_t size = logitloss_itemsizes[type];
    char native[sizeof(long double)] = {0};
    /* The last bytes of a long double are padding. */
#define PUT(code, ctype, expression)                          \
    case code: {                                              \
        const ctype x = (ctype)(expression);                  \
        memcpy(native, &x, size > 10 ? 10 : (size_t)size);    \
        break;                                                \
    }
    switch (type) {
        EACH_TYPE(PUT)
    case LOGITLOSS_TYPES: break;
    }
    for (ptrdiff_t i = 0; i < size; i++)
        at[i] = native[is_swapped ? size - 1 - i : i];
}

static long double get(const char *at, logitloss_type type, int is_swapped)
{
    const ptrdiff_t size = logitloss_itemsizes[type];
    char native[sizeof(long double)];
    for (ptrdiff_t i = 0; i < size; i++)
        native[i] = at[is_swapped ? size - 1 - i : i];
#define GET(code, ctype, expression)                                       \
    case code: {                                                           \
        ctype x;                                                           \
        CHECK((size_t)size == sizeof x, "type %d", code);                  \
        memcpy(&x, native, sizeof x);                                      \
        /* Any byte but 0 is true. */                                      \
        return is_half(code) ? half_value((unsigned)x, code)               \
               : code == LOGITLOSS_BOOL ? x != 0 : (long double)x;         \
    }
    switch (type) {
        EACH_TYPE(GET)
    case LOGITLOSS_TYPES: break;
    }
    return NAN;
}

/* An array that owns its memory, and what that held at first. */
typedef struct {
    logitloss_array array;
    ptrdiff_t shape[AXES], strides[AXES];
    char *memory, *before;
    size_t bytes;
    int is_repeated;
} owned;

static ptrdiff_t count_of(const logitloss_array *array)
{
    ptrdiff_t count = 1;
    for (int axis = 0; axis < array->ndim; axis++)
        count *= array->shape[axis];
    return count;
}

/* Where an array has, or broadcasts, the element of another that has this index in C order. */
static char *element(const logitloss_array *array, const logitloss_array *like, ptrdiff_t index)
{
    char *data = array->data;
    for (int axis = like->ndim - 1, own = array->ndim - 1; own >= 0; axis--, own--) {
        if (array->shape[own] != 1)
            data += index % like->shape[axis] * array->strides[own];
        index /= like->shape[axis];
    }
    return data;
}

/* Any order of axes, with gaps of any number of bytes, backwards, and, where elements may
 * share memory, repeated; an axis of one element has any stride. */
static void lay_out(bytes *input, owned *it, logitloss_type type, int ndim, const ptrdiff_t *shape, int is_input)
{
    const uint32_t orders = take(input, 1) % 4, mood = take(input, 1) % 4;
    const ptrdiff_t offset = one_in(8, input) ? 1 + (ptrdiff_t)take(input, 1) % 15 : 0;
    ptrdiff_t extent = logitloss_itemsizes[type], step = extent, first = 0;
    int order[AXES];
    it->array = (logitloss_array){NULL, type, is_input && one_in(16, input), ndim, it->shape, it->strides};
    it->is_repeated = 0;
    for (int axis = 0; axis < ndim; axis++) {
        const int place = orders < 2 ? 0 : orders == 2 ? axis : (int)(take(input, 1) % (uint32_t)(axis + 1));
        memmove(order + place + 1, order + place, (size_t)(axis - place) * sizeof *order);
        order[place] = axis;
        it->shape[axis] = shape[axis];
    }
    const ptrdiff_t count = count_of(&it->array);
    for (int i = 0; i < ndim; i++) {
        const uint32_t kind = take(input, 1) % 16;
        const ptrdiff_t size = shape[order[i]];
        ptrdiff_t stride = step + (kind == 0 ? (ptrdiff_t)take(input, 1) % 40 : kind == 1 ? step : 0);
        if (is_input && kind == 2)
            stride = 0;
        if (size > 1) {
            it->is_repeated |= !stride;
            extent += (size - 1) * stride;
            step = !stride ? step : kind == 1 ? size * stride : extent;
            first += kind > 12 ? (size - 1) * stride : 0;
        }
        it->strides[order[i]] = size == 1 ? (ptrdiff_t)take(input, 2) - 32768 : kind > 12 ? -stride : stride;
    }
    it->bytes = (size_t)(offset + (count ? extent : 0));
    it->memory = malloc(it->bytes);
    it->before = malloc(it->bytes);
    CHECK(it->memory && it->before, "out of memory");
    memset(it->memory, 0xA5, it->bytes);
    it->array.data = it->memory + offset + (count ? first : 0);
    for (ptrdiff_t i = 0; is_input && i < count; i++)
        put(element(&it->array, &it->array, i), type, it->array.is_swapped, number_for(input, mood));
    memcpy(it->before, it->memory, it->bytes);
}

typedef struct {
    long double value, scale;
} truth;

/* 0 * inf is 0 here, as it is for the loss. */
static long double times(long double a, long double b)
{
    return (a == 0 && !isnan(b)) || (b == 0 && !isnan(a)) ? 0 : a * b;
}

static truth closed_form(int order, double z, double x, double q, double w)
{
    if (w == 0)
        return (truth){0, 0};
    const long double m = fabsl((long double)x), e = expl(-m);
    const long double a = times(w, 1 - (long double)z), b = times(times(w, q), z);
    const long double small = log1pl(e), large = small + m;
    const long double near = 1 / (1 + e), far = e / (1 + e);
    const long double first = times(a, order == 2 ? far * near : order ? (x >= 0 ? near : far) : x > 0 ? large : small);
    const long double second = times(b, order == 2 ? far * near : order ? (x >= 0 ? -far : -near) : x > 0 ? small : large);
    const int is_nan = isnan(z) || isnan(x) || isnan(q) || isnan(w);
    return (truth){is_nan ? NAN : first + second, fabsl(first) + fabsl(second)};
}

static void compare(int order, double got, double z, double x, double q, double w, truth t, int is_float)
{
    const long double largest = is_float ? FLT_MAX : DBL_MAX, epsilon = is_float ? FLT_EPSILON : DBL_EPSILON;
    const int is_finite = isfinite(z) && isfinite(q) && isfinite(w), is_label = z >= 0 && z <= 1;
    const long double costs = (1 + fabsl(w)) * (fabsl(1 - (long double)z) + fabsl(q * (long double)z));
    /* The kernel's range beyond the subnormals is laid out for labels in [0, 1]. */
    const long double quantum = (is_float ? 0x1p-149L : 0x1p-1074L) * (is_label ? 1 : 1 + costs);
#define AT "order %d, label %a, logit %a, pos_weight %a, weight %a: got %a", order, z, x, q, w, got
    if (w == 0)
        CHECK(got == 0, AT);
    else if (isnan(t.value))
        CHECK(isnan(got) || !(isnan(z) || isnan(x) || isnan(q) || isnan(w)), AT);
    else if (!is_finite || (!is_label && costs > largest / 8))
        return;
    else if (isinf(t.value))
        CHECK(got == (double)t.value, AT);
    else if (t.scale <= largest / 8) {
        CHECK(got >= 0 || order == 1 || !is_label || q < 0 || w < 0, AT);
        CHECK(fabsl(got - t.value) <= 4 * epsilon * t.scale + 3 * quantum, AT);
    }
}

typedef struct {
    logitloss_run *run;
    ptrdiff_t part; /* or 0 for slices as the callers make them */
    logitloss_type type;
} executor;

static logitloss_sums execute(const logitloss_task *task, void *context)
{
    const executor *by = context;
    const ptrdiff_t width = by->part ? by->part : logitloss_slice(task->size);
    logitloss_sums total = {{0, 0}, {0, 0}};
    ptrdiff_t start = 0;
    CHECK(task->type == by->type, "type %d of a task for %d", task->type, by->type);
    do {
        const ptrdiff_t stop = task->size - start < width ? task->size : start + width;
        const logitloss_sums sums = by->run(task, start, stop);
        logitloss_add_both(&total, &sums);
    } while ((start += width) < task->size);
    return total;
}

typedef struct {
    logitloss_type type;
    int orders, is_loss_kept; /* beside its reduction */
    logitloss_reduction reduction;
    double divisor; /* of a sum */
    owned all[ARRAYS];
    logitloss_arrays arrays;
    int same[3]; /* the input that a result overwrites, or the result itself */
    ptrdiff_t size, part;
    double values[RESULTS][MOST_SELDOM];      /* of the inputs, as they are computed with */
    double plain[3][MOST_SELDOM];             /* the results of a call on contiguous arrays */
    double got[3][MOST_SELDOM], whole[3][MOST_SELDOM];
} call;

static logitloss_type real_type(const call *it)
{
    return it->type == LOGITLOSS_FLOAT64 ? LOGITLOSS_FLOAT64 : LOGITLOSS_FLOAT32;
}

/* All results before they are multiplied, from contiguous arrays of the type that is computed in. */
static void run_plain(call *it, logitloss_run *run)
{
    const logitloss_type type = real_type(it);
    const ptrdiff_t stride = logitloss_itemsizes[type];
    logitloss_arrays arrays;
    logitloss_array *all[ARRAYS] = {&arrays.labels, &arrays.logits, &arrays.pos_weight, &arrays.weight,
                                    &arrays.scale, &arrays.results[0], &arrays.results[1], &arrays.results[2]};
    for (int which = 0; which < ARRAYS; which++) {
        *all[which] = (logitloss_array){malloc((size_t)(it->size * stride)), type, 0, 1, &it->size, &stride};
        CHECK(all[which]->data, "out of memory");
        for (ptrdiff_t i = 0; which < RESULTS && i < it->size; i++)
            put(all[which]->data + i * stride, type, 0, it->values[which][i]);
    }
    char *scale = arrays.scale.data;
    arrays.scale.data = NULL;
    logitloss_task task;
    CHECK(logitloss_plan(&task, &arrays, type, 7), "contiguous arrays of %td", it->size);
    logitloss_compute(&task, LOGITLOSS_NONE, 1, execute, &(executor){run, 0, type});
    for (int order = 0; order < 3; order++)
        for (ptrdiff_t i = 0; i < it->size; i++)
            it->plain[order][i] = (double)get(arrays.results[order].data + i * stride, type, 0);
    arrays.scale.data = scale;
    for (int which = 0; which < ARRAYS; which++)
        free(all[which]->data);
}

static int is_written(const call *it, int order, logitloss_reduction reduction)
{
    return it->orders >> order & 1 && (order || reduction == LOGITLOSS_NONE || it->is_loss_kept);
}

/* Computes the call as it is laid out, into `got`; returns the reduced loss. */
static double run_laid_out(call *it, logitloss_reduction reduction, executor by)
{
    logitloss_arrays arrays = it->arrays;
    logitloss_task task;
    memset(&task, 0xA5, sizeof task);
    for (int order = 0; order < 3; order++)
        if (!is_written(it, order, reduction))
            arrays.results[order].data = NULL;
    if (reduction != LOGITLOSS_NONE)
        arrays.scale.data = NULL;
    CHECK(logitloss_plan(&task, &arrays, it->type, it->orders), "shapes fit");
    logitloss_operand *inputs[RESULTS] = {&task.labels, &task.logits, &task.pos_weight, &task.weight, &task.scale};
    for (int order = 0; order < 3; order++)
        if (it->same[order] < RESULTS && arrays.results[order].data)
            inputs[it->same[order]]->is_overwritten = 1;
    const double value = logitloss_compute(&task, reduction, reduction == LOGITLOSS_SUM ? it->divisor : 1, execute, &by);

    for (int order = 0; order < 3; order++) {
        const logitloss_array *result = &arrays.results[order];
        const owned *owner = &it->all[it->same[order]];
        for (ptrdiff_t i = 0; result->data && i < it->size; i++) {
            char *at = element(result, result, i);
            it->got[order][i] = (double)get(at, it->type, 0);
            memcpy(at, owner->before + (at - owner->memory), (size_t)logitloss_itemsizes[it->type]);
        }
    }
    for (int which = 0; which < ARRAYS; which++) {
        const owned *one = &it->all[which];
        CHECK(!one->bytes || !memcmp(one->memory, one->before, one->bytes), "array %d, beside the results", which);
    }
    return value;
}

/* The same as of contiguous arrays, rounded once.  Of negative coefficients a zero may have either
 * sign, for infinite logits elsewhere in a block change it. */
static void check_elements(const call *it, int order, int is_multiplied, const char *target)
{
    for (ptrdiff_t i = 0; i < it->size; i++) {
        double expected = it->plain[order][i];
        if (is_multiplied) {
            const double scale = it->values[SCALE][i], product = expected * scale;
            expected = real_type(it) == LOGITLOSS_FLOAT64 ? product : (float)product;
            if (scale == 0 || it->values[WEIGHT][i] == 0)
                expected = 0;
        }
        CHECK(is_same_number(it->got[order][i], nearest(expected, it->type)) || (it->got[order][i] == 0 && expected == 0),
              "%s, order %d of %d, element %td of %td: %a, contiguous %a; label %a, logit %a, pos_weight %a, weight %a, "
              "scale %a",
              target, order, it->orders, i, it->size, it->got[order][i], expected, it->values[LABELS][i],
              it->values[LOGITS][i], it->values[POS_WEIGHT][i], it->values[WEIGHT][i], it->values[SCALE][i]);
    }
}

/* The reduced loss and its derivatives, from the elements of the plain call. */
static void check_reduced(const call *it, double value)
{
    const int is_float = it->type != LOGITLOSS_FLOAT64, is_weighted = it->reduction == LOGITLOSS_WEIGHTED_MEAN;
    /* Of float32 losses the sums are plain ones of doubles, of float64 losses they are twice as long. */
    const long double relative = ((long double)it->size + 1) * (is_float ? 0x1p-53L : 0x1p-60L);
    const long double epsilon = is_float ? FLT_EPSILON : DBL_EPSILON, tiny = is_float ? 0x1p-149L : 0x1p-1074L;
    long double losses = 0, size = 0, weights = 0, weights_size = 0;
    for (ptrdiff_t i = 0; i < it->size; i++) {
        losses += it->plain[0][i];
        size += fabsl(it->plain[0][i]);
        weights += it->values[WEIGHT][i];
        weights_size += fabsl(it->values[WEIGHT][i]);
    }
    const long double divisor = is_weighted ? weights : it->reduction == LOGITLOSS_MEAN ? it->size : it->divisor;
    const long double doubt = is_weighted ? weights_size * relative : 0;
    const int is_cancelled = fabsl(weights) * 0x1p20L < weights_size || weights_size > DBL_MAX / 4;
    const long double mean = divisor != 0 ? losses / divisor : NAN;
    for (ptrdiff_t j = it->size; j < 3 * it->size; j++) {
        const ptrdiff_t order = j / it->size, i = j % it->size;
        if (!is_written(it, (int)order, it->reduction))
            continue;
        const double got = it->got[order][i], gradient = it->plain[order][i];
        const long double exact = gradient / divisor;
        if (it->values[WEIGHT][i] == 0)
            CHECK(got == 0, "gradient %a of an element without weight", got);
        else if (isnan(gradient) || isnan(divisor) || (divisor == 0 && !(is_weighted && weights_size)))
            CHECK(isnan(got), "gradient %a / %La: got %a", gradient, divisor, got);
        else if (isfinite(gradient) && !(is_weighted && is_cancelled)) {
            const long double error = (2 * epsilon + doubt / fabsl(divisor)) * fabsl(exact)
                                      + 2 * tiny * (1 + 1 / fabsl(divisor));
            CHECK(nearest(exact - error, it->type) <= got && got <= nearest(exact + error, it->type),
                  "gradient %a / %La: got %a", gradient, divisor, got);
        }
    }
    if (!(it->orders & LOGITLOSS_LOSS) || (is_weighted && is_cancelled && divisor != 0 && !isnan(divisor)))
        return;
    if (!isfinite(mean) && (isnan(mean) || !isfinite(losses)))
        CHECK(isnan(mean) ? isnan(value) : value == (double)mean, "reduced %La, got %a", mean, value);
    else if (size < DBL_MAX / 4 && weights_size < DBL_MAX / 4 && fabsl(mean) < DBL_MAX / 4)
        CHECK(fabsl(value - mean) <= (size * relative + fabsl(mean) * doubt) / fabsl(divisor)
                                         + fabsl(mean) * 0x1p-51L + 0x1p-1073L,
              "%td losses, %La / %La: got %a", it->size, losses, divisor, value);
}

static const struct {
    const char *name;
    logitloss_run *run32, *run64;
    int (*is_available)(void);
} targets[] = {
    {"baseline", logitloss_run_float32_baseline, logitloss_run_float64_baseline, NULL},
#ifdef LOGITLOSS_X86
    {"avx2", logitloss_run_float32_avx2, logitloss_run_float64_avx2, logitloss_has_avx2},
    {"avx512", logitloss_run_float32_avx512, logitloss_run_float64_avx512, logitloss_has_avx512},
#endif
};

static void run_targets(call *it)
{
    static double avx2[3][MOST_SELDOM];
    static truth truths[3][MOST_SELDOM];
    double value = NAN, reduced = NAN;
    const int is_float = it->type != LOGITLOSS_FLOAT64;
    const ptrdiff_t n = it->size;
#define INPUTS(i) it->values[LABELS][i], it->values[LOGITS][i], it->values[POS_WEIGHT][i], it->values[WEIGHT][i]
#ifndef WITHOUT_VALUES
    for (int order = 0; order < 3; order++)
        for (ptrdiff_t i = 0; i < n; i++)
            truths[order][i] = closed_form(order, INPUTS(i));
#endif
    for (size_t t = 0; t < sizeof targets / sizeof *targets; t++) {
        if (targets[t].is_available && !targets[t].is_available())
            continue;
        logitloss_run *run = is_float ? targets[t].run32 : targets[t].run64;
        run_plain(it, run);
        for (int order = 0; order < 3; order++)
            for (ptrdiff_t i = 0; i < n; i++) {
#ifndef WITHOUT_VALUES
                compare(order, it->plain[order][i], INPUTS(i), truths[order][i], is_float);
#endif
                CHECK(t < 2 || is_same_number(it->plain[order][i], avx2[order][i]), "order %d: %a, with avx2 %a",
                      order, it->plain[order][i], avx2[order][i]);
            }
        memcpy(avx2, it->plain, sizeof avx2);

        run_laid_out(it, LOGITLOSS_NONE, (executor){run, 0, it->type});
        memcpy(it->whole, it->got, sizeof it->whole);
        run_laid_out(it, LOGITLOSS_NONE, (executor){run, it->part, it->type});
        for (int order = 0; order < 3; order++)
            for (ptrdiff_t i = 0; it->orders >> order & 1 && i < n; i++)
                CHECK(is_same_number(it->whole[order][i], it->got[order][i]), "%s, order %d: %a, in parts of %td %a",
                      targets[t].name, order, it->whole[order][i], it->part, it->got[order][i]);
        if (it->reduction != LOGITLOSS_NONE)
            value = run_laid_out(it, it->reduction, (executor){run, 0, it->type});
        CHECK(t < 2 || is_same_number(value, reduced), "reduced %a, with avx2 %a", value, reduced);
        reduced = value;
#ifndef WITHOUT_VALUES
        if (it->reduction != LOGITLOSS_NONE)
            check_reduced(it, value);
        for (int order = 0; order < 3; order++)
            if (is_written(it, order, it->reduction) && (order == 0 || it->reduction == LOGITLOSS_NONE))
                check_elements(it, order, it->reduction == LOGITLOSS_NONE, targets[t].name);
        if (it->reduction != LOGITLOSS_NONE) {
            memcpy(it->got, it->whole, sizeof it->got);
            for (int order = 1; order < 3; order++)
                if (is_written(it, order, LOGITLOSS_NONE))
                    check_elements(it, order, 1, targets[t].name);
        }
#endif
    }
}

/* One array with a size that does not fit. */
static void check_misfit(bytes *input, const call *it)
{
    logitloss_arrays arrays = it->arrays;
    logitloss_array *candidates[] = {&arrays.labels, &arrays.pos_weight, &arrays.weight, &arrays.scale,
                                     &arrays.results[0], &arrays.results[1], &arrays.results[2]};
    const uint32_t which = take(input, 1) % 7, is_coefficient = which >= 1 && which <= 3;
    logitloss_array *changed = candidates[which];
    if (!changed->data || !changed->ndim)
        return;
    ptrdiff_t shape[AXES];
    memcpy(shape, changed->shape, sizeof shape);
    const int own = (int)(take(input, 1) % (uint32_t)changed->ndim);
    const ptrdiff_t wanted = arrays.logits.shape[arrays.logits.ndim - changed->ndim + own], size = ++shape[own];
    logitloss_task task;
    changed->shape = shape;
    CHECK(logitloss_plan(&task, &arrays, it->type, it->orders) == (size == wanted || (is_coefficient && size == 1)),
          "array %u with %td elements along axis %d for %td", which, size, own, wanted);
    if (is_coefficient)
        return;
    changed->shape = it->arrays.logits.shape + 1;
    changed->ndim--;
    CHECK(!logitloss_plan(&task, &arrays, it->type, it->orders), "array %u with an axis too few", which);
}

static void fuzz_call(bytes *input)
{
    static const logitloss_type types[] = {LOGITLOSS_FLOAT32, LOGITLOSS_FLOAT64, LOGITLOSS_FLOAT16, LOGITLOSS_BFLOAT16};
    static call it;
    ptrdiff_t shape[AXES], room = one_in(64, input) ? MOST_SELDOM : one_in(2, input) ? MOST : 60;
    const uint32_t kind = take(input, 1) % 8;
    const int ndim = (int)(take(input, 1) % (AXES + 1));
    it.type = types[kind < 4 ? kind : kind % 2];
    it.orders = one_in(3, input) ? LOGITLOSS_LOSS : 1 + (int)(take(input, 1) % 7);
    it.reduction = one_in(3, input) ? LOGITLOSS_WEIGHTED_MEAN : (logitloss_reduction)(take(input, 1) % 4);
    it.divisor = one_in(2, input) ? 1 : number(input);
    it.is_loss_kept = one_in(4, input);
    it.part = LOGITLOSS_BLOCK * (1 + (ptrdiff_t)take(input, 1) % 4);
    it.size = 1;
    for (int axis = 0; axis < ndim; axis++) {
        const uint32_t how = take(input, 1) % 16, any = take(input, 2);
        shape[axis] = how == 0 ? (ptrdiff_t)any % 2 : 1 + (ptrdiff_t)any % (how < 8 && room > 8 ? 8 : room);
        it.size *= shape[axis];
        room /= shape[axis] ? shape[axis] : 1;
    }

    memset(&it.arrays, 0, sizeof it.arrays);
    logitloss_array *all[ARRAYS] = {&it.arrays.labels, &it.arrays.logits, &it.arrays.pos_weight, &it.arrays.weight,
                                    &it.arrays.scale, &it.arrays.results[0], &it.arrays.results[1], &it.arrays.results[2]};
    double one, *numbers[] = {&it.arrays.pos_weight_value, &it.arrays.weight_value, &one};
    for (int which = 0; which < ARRAYS; which++) {
        const int is_input = which < RESULTS, is_coefficient = is_input && which >= POS_WEIGHT;
        const logitloss_type type = !is_input || !one_in(4, input) ? it.type : take(input, 1) % LOGITLOSS_TYPES;
        ptrdiff_t own[AXES];
        int missing = 0;
        memcpy(own, shape, sizeof own);
        it.all[which].bytes = 0;
        it.all[which].memory = it.all[which].before = NULL;
        if (is_coefficient) {
            const uint32_t form = take(input, 1) % 8;
            double *value = numbers[which - POS_WEIGHT];
            *value = form && which != SCALE ? number(input) : 1;
            if (form < 3)
                continue;
            missing = form < 5 ? 0 : (int)(take(input, 1) % (uint32_t)(ndim + 1));
            for (int axis = 0; axis < ndim; axis++)
                own[axis] = form < 5 || take(input, 1) & 1 ? shape[axis] : 1;
        } else if (!is_input && !(it.orders >> (which - RESULTS) & 1)) {
            continue;
        }
        lay_out(input, &it.all[which], type, ndim - missing, own + missing, is_input);
        *all[which] = it.all[which].array;
        CHECK(is_input || !logitloss_overlaps_itself(all[which]), "result %d", which - RESULTS);
    }
    for (int which = 0; which < RESULTS; which++)
        for (ptrdiff_t i = 0; i < it.size; i++) {
            const logitloss_array *array = all[which];
            it.values[which][i] =
                array->data ? as_read(get(element(array, all[LOGITS], i), array->type, array->is_swapped), array->type, it.type)
                            : nearest(*numbers[which - POS_WEIGHT], it.type);
        }
    /* Sometimes a result is an input, element on element. */
    for (int order = 0; order < 3; order++) {
        logitloss_array *result = &it.arrays.results[order];
        const int which = (int)(take(input, 1) % 16);
        it.same[order] = RESULTS + order;
        if (which >= RESULTS || !all[which]->data || !result->data || it.all[which].is_repeated
            || !it.size || count_of(all[which]) != it.size || all[which]->ndim != ndim
            || logitloss_itemsizes[all[which]->type] != logitloss_itemsizes[it.type])
            continue;
        if ((order > 0 && it.same[0] == which) || (order > 1 && it.same[1] == which))
            continue;
        it.same[order] = which;
        *result = *all[which];
        result->type = it.type;
        result->is_swapped = 0;
        CHECK(logitloss_is_same(result, all[which]) && logitloss_may_overlap(result, all[which]), "input %d", which);
    }
    run_targets(&it);
    check_misfit(input, &it);
    for (int which = 0; which < ARRAYS; which++) {
        free(it.all[which].memory);
        free(it.all[which].before);
    }
}

/* Two small arrays in one memory, against every byte of every element. */
static void fuzz_overlaps(bytes *input)
{
    enum { SMALL = 3, LARGEST = 4, REACH = SMALL * LARGEST * 16 };
    static char memory[2 * REACH + 64];
    static uint8_t seen[2][sizeof memory];
    ptrdiff_t shapes[2][SMALL], strides[2][SMALL], counts[2];
    logitloss_array arrays[2];
    size_t low[2] = {sizeof memory, sizeof memory}, high[2] = {0, 0};
    int is_twice[2] = {0, 0}, is_same = 1;
    memset(seen, 0, sizeof seen);
    for (int a = 0; a < 2; a++) {
        arrays[a] = (logitloss_array){memory + REACH + take(input, 1) % 32, (logitloss_type)(take(input, 1) % LOGITLOSS_TYPES),
                                      0, (int)(take(input, 1) % (SMALL + 1)), shapes[a], strides[a]};
        for (int axis = 0; axis < SMALL; axis++) {
            shapes[a][axis] = (ptrdiff_t)(take(input, 1) % (LARGEST + 1));
            strides[a][axis] = (ptrdiff_t)(take(input, 1) % 33) - 16;
        }
        /* Often the second is the first, or nearly so. */
        if (a && take(input, 1) & 1) {
            arrays[1].data = arrays[0].data;
            arrays[1].type = one_in(4, input) ? arrays[1].type : arrays[0].type;
            arrays[1].ndim = one_in(8, input) ? arrays[1].ndim : arrays[0].ndim;
            for (int axis = 0; axis < SMALL; axis++) {
                shapes[1][axis] = one_in(8, input) ? shapes[1][axis] : shapes[0][axis];
                strides[1][axis] = one_in(8, input) ? strides[1][axis] : strides[0][axis];
            }
        }
        counts[a] = count_of(&arrays[a]);
        for (ptrdiff_t i = 0; i < counts[a]; i++) {
            const size_t at = (size_t)(element(&arrays[a], &arrays[a], i) - memory);
            const size_t end = at + (size_t)logitloss_itemsizes[arrays[a].type];
            low[a] = at < low[a] ? at : low[a];
            high[a] = end > high[a] ? end : high[a];
            for (size_t byte = at; byte < end; byte++)
                is_twice[a] |= seen[a][byte]++;
        }
        CHECK(!is_twice[a] || logitloss_overlaps_itself(&arrays[a]), "%d axes", arrays[a].ndim);
    }
    if (!counts[0] || !counts[1])
        return;
    const int may_overlap = low[0] < high[1] && low[1] < high[0];
    CHECK(logitloss_may_overlap(&arrays[0], &arrays[1]) == may_overlap, "%zu .. %zu and %zu .. %zu", low[0], high[0],
          low[1], high[1]);
    for (int axis = 0; axis < SMALL; axis++)
        is_same &= arrays[0].ndim == arrays[1].ndim && (axis >= arrays[0].ndim || shapes[0][axis] == shapes[1][axis]);
    is_same &= logitloss_itemsizes[arrays[0].type] == logitloss_itemsizes[arrays[1].type];
    for (ptrdiff_t i = 0; is_same && i < counts[0]; i++)
        is_same &= element(&arrays[0], &arrays[0], i) == element(&arrays[1], &arrays[1], i);
    CHECK(logitloss_is_same(&arrays[0], &arrays[1]) == is_same, "%d axes", arrays[0].ndim);
}

static void fuzz_write(bytes *input)
{
    static const logitloss_type types[] = {LOGITLOSS_FLOAT32, LOGITLOSS_FLOAT64, LOGITLOSS_FLOAT16, LOGITLOSS_BFLOAT16};
    for (int i = 0; i < 4; i++) {
        const double value = number(input), wanted = nearest(value, types[i]);
        char *memory = malloc((size_t)logitloss_itemsizes[types[i]]);
        CHECK(memory, "out of memory");
        logitloss_write(value, types[i], memory);
        CHECK(is_same_number((double)get(memory, types[i], 0), wanted), "%a as type %d: %La, not %a", value, types[i], get(memory, types[i], 0), wanted);
        free(memory);
    }
}

/* Every number of half precision, and what lies next to, and half-way between, two of them. */
static void check_half(logitloss_type type)
{
    const int is_float16 = type == LOGITLOSS_FLOAT16;
    for (unsigned code = 0; code < 0x10000; code++) {
        const float value = is_float16 ? logitloss_from_float16((uint16_t)code) : logitloss_from_bfloat16((uint16_t)code);
        CHECK(is_same_number(value, (double)half_value(code, type)), "code %#x: %a", code, value);
        const long double tie = (half_value(code, type) + half_value(code + 1, type)) / 2;
        const double doubles[] = {value, (double)tie, nextafter((double)tie, 0), nextafter((double)tie, INFINITY),
                                  nextafterf((float)tie, 0), nextafterf((float)tie, INFINITY), 1.5 * value};
        for (size_t i = 0; i < sizeof doubles / sizeof *doubles; i++) {
            const float single = i < 1 || i > 3 ? (float)doubles[i] : logitloss_round_to_odd(doubles[i]);
            const uint16_t got = is_float16 ? logitloss_to_float16(single) : logitloss_to_bfloat16(single);
            CHECK(is_same_number((double)half_value(got, type), nearest(doubles[i], type)), "%a as %#x", doubles[i], got);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes stream = {data, size, 0}, *input = &stream;
#ifndef WITHOUT_VALUES
    static int is_half_checked;
    if (!is_half_checked++) {
        check_half(LOGITLOSS_FLOAT16);
        check_half(LOGITLOSS_BFLOAT16);
    }
    fuzz_write(input);
#endif
    for (int i = 0; i < 8; i++)
        fuzz_overlaps(input);
    fuzz_call(input);
    return 0;
}

#ifdef STANDALONE
/* Random bytes, for so many seconds, from a seed, and at most so many inputs. */
int main(int argc, char **argv)
{
    const double seconds = argc > 1 ? atof(argv[1]) : 10;
    uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const long most = argc > 3 ? atol(argv[3]) : LONG_MAX;
    const time_t start = time(NULL);
    long runs = 0;
    static uint8_t data[8192];
    do {
        for (int burst = 0; burst < 20; burst++, runs++) {
            for (size_t i = 0; i < sizeof data; i++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                data[i] = (uint8_t)(state >> 56);
            }
            LLVMFuzzerTestOneInput(data, (size_t)(state >> 20) % sizeof data);
        }
    } while (runs < most && difftime(time(NULL), start) < seconds);
    printf("%ld inputs in %.0f seconds, seed %s\n", runs, difftime(time(NULL), start), argc > 2 ? argv[2] : "1");
    return 0;
}
#endif
