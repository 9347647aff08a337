/*
 * A fuzzer for the C kernels: bytes become a task, every instruction set of this
 * processor runs it, and each result is compared with the closed form in long
 * double.  run.sh compiles it with sanitizers, against libFuzzer where there is
 * clang, and otherwise with a main function that feeds random bytes.
 *
 * All memory is allocated to the byte, so that AddressSanitizer sees what lies
 * outside.  Inputs, and what lies between strided outputs, must stay as they are.
 */
#include "blocks.h"
#include "runtime.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_SIZE = 1200 };

#define CHECK(condition, ...)                    \
    do {                                         \
        if (!(condition)) {                      \
            fprintf(stderr, "%s: ", #condition); \
            fprintf(stderr, __VA_ARGS__);        \
            fputc('\n', stderr);                 \
            abort();                             \
        }                                        \
    } while (0)

typedef struct {
    const uint8_t *data;
    size_t size, at;
} bytes;

static uint32_t take(bytes *input, int count)
{
    uint32_t value = 0;
    while (count--)
        value = value << 8 | (input->at < input->size ? input->data[input->at++] : 0);
    return value;
}

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
    const double fraction = take(input, 2) / 65536.0;
    if (kind < 144)
        return fraction;
    if (kind < 192)
        return 40 * fraction - 20;
    if (kind < 224)
        return 400 * fraction - 200;
    return ldexp(kind & 1 ? fraction - 0.5 : fraction, (int)(take(input, 2) % 2150) - 1075);
}

static const size_t SIZES[] = {4, 8, 1, 1, 2, 2, 4, 4, 8, 8};

static void put(char *at, logitloss_type type, double value)
{
    const double small = isfinite(value) ? fmod(value, 100) : 1;
#define PUT(code, ctype, expression)       \
    case code: {                           \
        const ctype x = (ctype)(expression); \
        memcpy(at, &x, sizeof x);          \
        break;                             \
    }
    switch (type) {
        PUT(LOGITLOSS_FLOAT32, float, value)
        PUT(LOGITLOSS_FLOAT64, double, value)
        PUT(LOGITLOSS_INT8, int8_t, small)
        PUT(LOGITLOSS_UINT8, uint8_t, fabs(small))
        PUT(LOGITLOSS_INT16, int16_t, small * 300)
        PUT(LOGITLOSS_UINT16, uint16_t, fabs(small) * 600)
        PUT(LOGITLOSS_INT32, int32_t, small * 2e7)
        PUT(LOGITLOSS_UINT32, uint32_t, fabs(small) * 4e7)
        PUT(LOGITLOSS_INT64, int64_t, small * 9e16)
        PUT(LOGITLOSS_UINT64, uint64_t, fabs(small) * 1.8e17)
    }
#undef PUT
}

static double get(const char *at, logitloss_type type)
{
#define GET(code, ctype)             \
    case code: {                     \
        ctype x;                     \
        memcpy(&x, at, sizeof x);    \
        return is_float ? (double)(float)x : (double)x; \
    }
    extern int is_float;
    switch (type) {
        GET(LOGITLOSS_FLOAT32, float)
        GET(LOGITLOSS_FLOAT64, double)
        GET(LOGITLOSS_INT8, int8_t)
        GET(LOGITLOSS_UINT8, uint8_t)
        GET(LOGITLOSS_INT16, int16_t)
        GET(LOGITLOSS_UINT16, uint16_t)
        GET(LOGITLOSS_INT32, int32_t)
        GET(LOGITLOSS_UINT32, uint32_t)
        GET(LOGITLOSS_INT64, int64_t)
        GET(LOGITLOSS_UINT64, uint64_t)
    }
#undef GET
    return 0;
}

/* The dtype of the kernel under test: float, not double. */
int is_float;

typedef struct {
    char *memory, *before;
    size_t bytes;
} block;

static block allocate(size_t bytes)
{
    block b = {malloc(bytes ? bytes : 1), malloc(bytes ? bytes : 1), bytes};
    CHECK(b.memory && b.before, "out of memory");
    return b;
}

static void remember(block *b)
{
    if (b->bytes)
        memcpy(b->before, b->memory, b->bytes);
}

static void release(block *b)
{
    free(b->memory);
    free(b->before);
}

/* Lays `count` elements out at a stride, which may be negative or zero. */
static block make_operand(bytes *input, logitloss_operand *operand, ptrdiff_t count, ptrdiff_t step)
{
    operand->type = (logitloss_type)(take(input, 1) % 20 < 12 ? !is_float : take(input, 1) % 10);
    const ptrdiff_t itemsize = (ptrdiff_t)SIZES[operand->type];
    const ptrdiff_t reach = count ? (count - 1) * labs(step) + 1 : 0;
    block b = allocate((size_t)(reach * itemsize));
    for (ptrdiff_t i = 0; i < reach; i++)
        put(b.memory + i * itemsize, operand->type, 0.25);
    operand->stride = step * itemsize;
    operand->data = b.memory + (step < 0 && count ? (count - 1) * -step * itemsize : 0);
    for (ptrdiff_t i = 0; i < count; i++)
        put((char *)operand->data + i * operand->stride, operand->type, number(input));
    remember(&b);
    return b;
}

static ptrdiff_t a_step(bytes *input)
{
    const uint32_t kind = take(input, 1) % 16;
    return kind < 10 ? 1 : kind == 10 ? -1 : kind == 11 ? 0 : kind == 12 ? 2 : kind == 13 ? -3 : 7;
}

/* blocks.h: element i of a coefficient is at i / repeat % period, and where it wraps
 * around, a block's worth of the next period follows the first. */
static block make_coefficient(bytes *input, logitloss_operand *operand, double *scalar, ptrdiff_t n,
                              int is_weight)
{
    const uint32_t kind = take(input, 1) % 8;
    operand->data = NULL;
    *scalar = 1;
    if (kind < 3) {
        if (kind)
            *scalar = number(input);
        if (is_float)
            *scalar = (float)*scalar;
        return (block){NULL, NULL, 0};
    }
    (void)is_weight;
    operand->repeat = kind == 3 ? 1 + (ptrdiff_t)take(input, 2) % 700 : 1;
    operand->period = kind < 6 ? 1 + (ptrdiff_t)take(input, 2) % 700 : n ? n : 1;
    const int wraps = operand->repeat == 1 && operand->period < n;
    const ptrdiff_t repeat = operand->repeat, period = operand->period;
    block b = make_operand(input, operand, period + (wraps ? LOGITLOSS_BLOCK : 0), wraps ? 1 : a_step(input));
    if (wraps)
        for (ptrdiff_t i = 0; i < LOGITLOSS_BLOCK; i++)
            memcpy(b.memory + (period + i) * operand->stride, b.memory + i % period * operand->stride,
                   (size_t)operand->stride);
    remember(&b);
    operand->repeat = repeat;
    operand->period = period;
    return b;
}

static double element(const logitloss_operand *operand, double scalar, ptrdiff_t i)
{
    if (!operand->data)
        return scalar;
    return get(operand->data + i / operand->repeat % operand->period * operand->stride, operand->type);
}

typedef struct {
    long double value, scale;
} truth;

/* 0 * inf is 0 here, as it is for the loss. */
static long double times(long double a, long double b)
{
    return (a == 0 && !isnan(b)) || (b == 0 && !isnan(a)) ? 0 : a * b;
}

static truth closed_form(int form, double z, double x, double q, double w)
{
    if (w == 0)
        return (truth){0, 0};
    const long double m = fabsl((long double)x), e = expl(-m);
    const long double a = times(w, 1 - (long double)z), b = times(times(w, q), z);
    const long double small = log1pl(e), large = small + m;
    const long double near = 1 / (1 + e), far = e / (1 + e);
    truth t;
    long double first, second;
    if (form == 0) {
        first = times(a, x > 0 ? large : small);
        second = times(b, x > 0 ? small : large);
    } else if (form == 1) {
        first = times(a, x >= 0 ? near : far);
        second = -times(b, x >= 0 ? far : near);
    } else {
        first = times(a, far * near);
        second = times(b, far * near);
    }
    t.value = first + second;
    t.scale = fabsl(first) + fabsl(second);
    if (isnan(z) || isnan(x) || isnan(q) || isnan(w))
        t.value = NAN;
    return t;
}

static void compare(int form, double got, double z, double x, double q, double w, double divisor)
{
#ifdef WITHOUT_VALUES
    return;
#endif
    const truth t = closed_form(form, z, x, q, w);
    const long double largest = is_float ? FLT_MAX : DBL_MAX, tiny = is_float ? 0x1p-149L : 0x1p-1074L;
    const long double epsilon = is_float ? FLT_EPSILON : DBL_EPSILON;
    const int is_finite = isfinite(z) && isfinite(q) && isfinite(w);
#define AT "form %d, label %a, logit %a, pos_weight %a, weight %a: got %a", form, z, x, q, w, got
    if (isnan(t.value)) {
        if (!isnan(got) && (isnan(z) || isnan(x) || isnan(q) || isnan(w)))
            CHECK(isnan(got), AT);
        return;
    }
    if (w == 0) {
        CHECK(got == 0, AT);
        return;
    }
    const int is_label = z >= 0 && z <= 1;
    const long double costs = (1 + fabsl(w)) * (fabsl(1 - (long double)z) + fabsl(q * (long double)z));
    if (!is_finite || (!is_label && costs > largest / 8))
        return;
    if (isinf(t.value)) {
        CHECK(got == (double)t.value, AT);
        return;
    }
    CHECK(!isnan(got) || t.scale > largest / 8, AT);
    if (t.scale > largest / 8 || fabsl(t.value / divisor) > largest / 8)
        return;
    if (is_label && q >= 0 && w >= 0 && form != 1)
        CHECK(got >= 0, AT);
    long double quantum = tiny * (divisor < 1 && form == 1 ? 1 / divisor + 1 : 1);
    /* The kernel's range beyond the subnormals is laid out for labels in [0, 1]. */
    if (!is_label)
        quantum *= 1 + costs;
    CHECK(fabsl(got - t.value / divisor) <= 4 * epsilon * t.scale / divisor + 3 * quantum, AT);
}

typedef struct {
    const char *name;
    logitloss_run *run32, *run64;
    int available;
} target;

static logitloss_sum run_in_parts(logitloss_run *run, const logitloss_task *task, ptrdiff_t n, ptrdiff_t part)
{
    logitloss_sum total = {0, 0};
    for (ptrdiff_t start = 0; start < n; start += part)
        logitloss_add(&total, run(task, start, n - start < part ? n : start + part));
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bytes stream = {data, size, 0}, *input = &stream;
    logitloss_task task;
    memset(&task, 0, sizeof task);
    is_float = (int)take(input, 1) & 1;
    task.operation = (logitloss_operation)(take(input, 1) % 3);
    const ptrdiff_t n = take(input, 2) % MAX_SIZE;
    task.reduce = task.operation != LOGITLOSS_GRAD_AND_HESS && take(input, 1) & 1;
    const uint32_t divisors = take(input, 1) % 4;
    task.gradient_divisor = divisors == 0 || task.operation != LOGITLOSS_VALUE_AND_GRAD ? 1
                            : divisors == 1 ? 1 + take(input, 2)
                            : divisors == 2 ? (1 + take(input, 2)) / 65536.0
                                            : 3;
    task.logits.repeat = task.labels.repeat = 1;
    task.logits.period = task.labels.period = n ? n : 1;
    block operands[4];
    operands[0] = make_operand(input, &task.logits, n, a_step(input));
    operands[1] = make_operand(input, &task.labels, n, a_step(input));
    operands[2] = make_coefficient(input, &task.pos_weight, &task.pos_weight_scalar, n, 0);
    operands[3] = make_coefficient(input, &task.weight, &task.weight_scalar, n, 1);

    const ptrdiff_t itemsize = is_float ? 4 : 8;
    logitloss_result *results[2] = {&task.first, &task.second};
    block outputs[2] = {{NULL, NULL, 0}, {NULL, NULL, 0}};
    for (int r = 0; r < 2; r++) {
        if (r && task.operation == LOGITLOSS_LOSS)
            continue;
        const int is_wanted = !(r == 0 && task.reduce && take(input, 1) & 1);
        ptrdiff_t step = a_step(input);
        step = step ? step : 1;
        outputs[r] = allocate((size_t)(n ? ((n - 1) * labs(step) + 1) * itemsize : 0));
        memset(outputs[r].memory, 0xA5, outputs[r].bytes);
        results[r]->stride = step * itemsize;
        results[r]->data = is_wanted ? outputs[r].memory + (step < 0 && n ? (n - 1) * -step * itemsize : 0) : NULL;
        remember(&outputs[r]);
    }
    /* Sometimes an output is an input. */
    logitloss_operand *aliased = NULL;
    if (take(input, 1) % 4 == 0) {
        logitloss_operand *candidates[4] = {&task.logits, &task.labels, &task.pos_weight, &task.weight};
        const int which = (int)take(input, 1) % 4;
        logitloss_operand *candidate = candidates[which];
        if (candidate->data && candidate->type == (is_float ? LOGITLOSS_FLOAT32 : LOGITLOSS_FLOAT64)
            && candidate->repeat == 1 && candidate->period >= n && candidate->stride && task.first.data) {
            aliased = candidate;
            task.first.data = (char *)candidate->data;
            task.first.stride = candidate->stride;
            task.in_place = 1;
        }
    }

    const target targets[] = {
        {"baseline", logitloss_run_float32_baseline, logitloss_run_float64_baseline, 1},
#ifdef LOGITLOSS_X86
        {"avx2", logitloss_run_float32_avx2, logitloss_run_float64_avx2, logitloss_has_avx2()},
        {"avx512", logitloss_run_float32_avx512, logitloss_run_float64_avx512, logitloss_has_avx512()},
#endif
    };
    const ptrdiff_t part = LOGITLOSS_BLOCK * (1 + (ptrdiff_t)take(input, 1) % 4);
    double *saved = malloc(sizeof(double) * (size_t)(n + 1) * 4);
    CHECK(saved, "out of memory");
    for (ptrdiff_t i = 0; i < n; i++) {
        saved[4 * i] = element(&task.labels, 0, i);
        saved[4 * i + 1] = element(&task.logits, 0, i);
        saved[4 * i + 2] = element(&task.pos_weight, task.pos_weight_scalar, i);
        saved[4 * i + 3] = element(&task.weight, task.weight_scalar, i);
    }
    for (size_t t = 0; t < sizeof targets / sizeof *targets; t++) {
        if (!targets[t].available)
            continue;
        logitloss_run *run = is_float ? targets[t].run32 : targets[t].run64;
        const logitloss_sum total = run_in_parts(run, &task, n, n ? n : 1);

        long double sum = 0, magnitude = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            const double *s = saved + 4 * i;
            for (int r = 0; r < 2; r++) {
                if (!results[r]->data || (r && task.operation == LOGITLOSS_LOSS))
                    continue;
                const int form = r + (task.operation == LOGITLOSS_GRAD_AND_HESS);
                const double got = get(results[r]->data + i * results[r]->stride,
                                       is_float ? LOGITLOSS_FLOAT32 : LOGITLOSS_FLOAT64);
                compare(form, got, s[0], s[1], s[2], s[3], form == 1 ? task.gradient_divisor : 1);
                if (r == 0) {
                    sum += got;
                    magnitude += fabsl(got);
                }
            }
        }
#ifndef WITHOUT_VALUES
        if (task.reduce && task.first.data && isfinite(magnitude) && magnitude < DBL_MAX / 4)
            CHECK(fabsl(total.hi + (long double)total.lo - sum) <= magnitude * (is_float ? n * 0x1p-53L : 0x1p-60L * (n + 1)),
                  "sum of %td: %a + %a, true %La", n, total.hi, total.lo, sum);
#endif

        /* In parts: the same bits. */
        if (!aliased) {
            block whole[2];
            for (int r = 0; r < 2; r++) {
                whole[r] = allocate(outputs[r].bytes);
                if (outputs[r].bytes)
                    memcpy(whole[r].memory, outputs[r].memory, outputs[r].bytes);
            }
            run_in_parts(run, &task, n, part);
            for (int r = 0; r < 2; r++) {
                CHECK(!outputs[r].bytes || !memcmp(whole[r].memory, outputs[r].memory, outputs[r].bytes),
                      "%s: output %d of %td in parts of %td", targets[t].name, r, n, part);
                release(&whole[r]);
            }
        }
        /* Nothing between the elements of a strided output has changed. */
        for (int r = 0; r < 2; r++) {
            if (!results[r]->data || !outputs[r].bytes || (aliased && r == 0))
                continue;
            for (ptrdiff_t i = 0; i < n; i++)
                memset(results[r]->data + i * results[r]->stride, 0xA5, (size_t)itemsize);
            CHECK(!memcmp(outputs[r].memory, outputs[r].before, outputs[r].bytes), "between the outputs");
        }
        for (int o = 0; o < 4; o++) {
            if (!operands[o].bytes)
                continue;
            if (aliased && (char *)aliased->data >= operands[o].memory
                && (char *)aliased->data < operands[o].memory + operands[o].bytes)
                memcpy(operands[o].memory, operands[o].before, operands[o].bytes);
            else
                CHECK(!memcmp(operands[o].memory, operands[o].before, operands[o].bytes), "input %d", o);
        }
    }
    free(saved);
    for (int o = 0; o < 4; o++)
        release(&operands[o]);
    for (int r = 0; r < 2; r++)
        release(&outputs[r]);
    return 0;
}

#ifdef STANDALONE
/* Random bytes for so many seconds. */
int main(int argc, char **argv)
{
    const double seconds = argc > 1 ? atof(argv[1]) : 10;
    uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const time_t start = time(NULL);
    long runs = 0;
    static uint8_t data[8192];
    do {
        for (int burst = 0; burst < 100; burst++, runs++) {
            for (size_t i = 0; i < sizeof data; i++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                data[i] = (uint8_t)(state >> 56);
            }
            /* As many bytes as an input of that many has; what is missing reads as 0. */
            LLVMFuzzerTestOneInput(data, (size_t)(state >> 20) % sizeof data);
        }
    } while (difftime(time(NULL), start) < seconds);
    printf("%ld inputs in %.0f seconds, seed %s\n", runs, difftime(time(NULL), start), argc > 2 ? argv[2] : "1");
    return 0;
}
#endif
