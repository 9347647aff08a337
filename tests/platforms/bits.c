/*
 * The bits of a fixed set of results, and how many differ between two platforms.
 *
 *   bits list                 the instruction sets that run here, and whether they are fused
 *   bits TARGET FILE          the results of one of them, the same bytes on every platform
 *                             that computes the same
 *   bits compare FILE FILE    exits with 1 if there is any difference
 *
 * Inputs are made of integers, so that no C library has a part in them.  A result that is
 * NaN is that and no more: its sign and payload are the processor's.
 */
#include "parallel.h"
#include "targets.h"
#include "task.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANDOM_SIZE = 8000, MOST_SPECIAL = 16000, RESULT_BYTES = 8 };

static logitloss_target target;
static FILE *file;

/* Results */

static void put(uint64_t bits)
{
    unsigned char bytes[RESULT_BYTES];
    for (int i = 0; i < RESULT_BYTES; i++)
        bytes[i] = (unsigned char)(bits >> 8 * i);
    fwrite(bytes, 1, sizeof bytes, file);
}

static void put_double(double value)
{
    uint64_t bits = 0x7ff8000000000000u;
    if (value == value)
        memcpy(&bits, &value, sizeof bits);
    put(bits);
}

static void put_element(const char *data, logitloss_type type)
{
    if (type == LOGITLOSS_FLOAT64) {
        double value;
        memcpy(&value, data, sizeof value);
        put_double(value);
    } else if (type == LOGITLOSS_FLOAT32) {
        float value;
        memcpy(&value, data, sizeof value);
        put_double(value);
    } else {
        uint16_t bits;
        memcpy(&bits, data, sizeof bits);
        const uint16_t infinity = type == LOGITLOSS_FLOAT16 ? 0x7c00 : 0x7f80;
        put((bits & 0x7fff) > infinity ? 0x7fff : bits);
    }
}

/* Inputs: doubles, each then an element of any type that holds it or rounds it. */

static uint64_t state;

static uint64_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 11;
}

static double power_of_2(int exponent)
{
    double result = 1;
    for (; exponent > 0; exponent--)
        result *= 2;
    for (; exponent < 0; exponent++)
        result /= 2;
    return result;
}

/* A number of either sign with any mantissa, of an exponent in this range. */
static double draw_number(int low, int high)
{
    const double mantissa = 1 + (double)draw() / 9007199254740992.0;
    const double size = mantissa * power_of_2(low + (int)(draw() % (uint64_t)(high - low)));
    return draw() & 1 ? -size : size;
}

static double draw_label(void)
{
    const uint64_t kind = draw() % 4;
    return kind < 2 ? (double)kind : (double)draw() / 9007199254740992.0;
}

static char *array_of(const double *values, ptrdiff_t n, logitloss_type type, int is_swapped)
{
    const ptrdiff_t size = logitloss_itemsizes[type];
    char *data = malloc((size_t)(n * size) + 1);
    if (!data)
        exit(2);
    for (ptrdiff_t i = 0; i < n; i++) {
        char *element = data + i * size;
        if (type == LOGITLOSS_LONGDOUBLE) {
            const long double wide = values[i];
            memset(element, 0, (size_t)size);
            memcpy(element, &wide, sizeof wide);
        } else if (type == LOGITLOSS_UINT8) {
            *(unsigned char *)element = (unsigned char)values[i];
        } else if (type == LOGITLOSS_INT32) {
            const int32_t integer = (int32_t)values[i];
            memcpy(element, &integer, sizeof integer);
        } else {
            logitloss_write(values[i], type, element);
        }
        for (ptrdiff_t byte = 0; is_swapped && byte < size / 2; byte++) {
            const char kept = element[byte];
            element[byte] = element[size - 1 - byte];
            element[size - 1 - byte] = kept;
        }
    }
    return data;
}

typedef struct {
    const logitloss_task *task;
    logitloss_run *run;
    logitloss_sums sums[LOGITLOSS_MAX_SLICES];
} slices;

static void run_slice(void *context, size_t index)
{
    slices *all = context;
    const ptrdiff_t width = logitloss_slice(all->task->size), start = (ptrdiff_t)index * width;
    const ptrdiff_t stop = start + width < all->task->size ? start + width : all->task->size;
    all->sums[index] = all->run(all->task, start, stop);
}

/* On as many threads as there are slices. */
static logitloss_sums execute(const logitloss_task *task, void *context)
{
    static slices all;
    const ptrdiff_t width = logitloss_slice(task->size), count = (task->size + width - 1) / width;
    logitloss_sums total = {{0, 0}, {0, 0}};
    all.task = task;
    all.run = (logitloss_run *)context;
    logitloss_share((int)count, run_slice, &all);
    for (ptrdiff_t i = 0; i < count; i++)
        logitloss_add_both(&total, &all.sums[i]);
    return total;
}

typedef struct {
    ptrdiff_t n;
    const double *labels, *logits, *pos_weight, *weight; /* the last two may be absent */
    logitloss_type label_type, type;
    int is_swapped;
} inputs;

static logitloss_array described(const double *values, const inputs *in, logitloss_type type, const ptrdiff_t *stride)
{
    const logitloss_array none = {NULL, type, 0, 0, NULL, NULL};
    if (!values)
        return none;
    const logitloss_array array = {array_of(values, in->n, type, in->is_swapped), type, in->is_swapped, 1, &in->n, stride};
    return array;
}

/* Every derivative and reduction of one set of inputs. */
static void put_all(const inputs *in)
{
    const ptrdiff_t stride = logitloss_itemsizes[in->type], label_stride = logitloss_itemsizes[in->label_type];
    static const logitloss_reduction reductions[] = {LOGITLOSS_NONE, LOGITLOSS_SUM, LOGITLOSS_MEAN, LOGITLOSS_WEIGHTED_MEAN};
    logitloss_arrays arrays;
    memset(&arrays, 0, sizeof arrays);
    arrays.labels = described(in->labels, in, in->label_type, &label_stride);
    arrays.logits = described(in->logits, in, in->type, &stride);
    arrays.pos_weight = described(in->pos_weight, in, in->type, &stride);
    arrays.weight = described(in->weight, in, in->type, &stride);
    arrays.pos_weight_value = 2.5;
    arrays.weight_value = 1;
    logitloss_run *run = in->type == LOGITLOSS_FLOAT64 ? target.run_float64 : target.run_float32;
    for (int r = 0; r < 4; r++)
        for (int orders = 1; orders < 8; orders++) {
            /* Reductions have parts of their own for the loss, and for what is divided. */
            if (reductions[r] != LOGITLOSS_NONE && orders != 1 && orders != 3 && orders != 6)
                continue;
            static logitloss_task task;
            for (int order = 0; order < 3; order++) {
                const int is_written = orders >> order & 1 && (order || reductions[r] == LOGITLOSS_NONE);
                const logitloss_array none = {NULL, in->type, 0, 0, NULL, NULL};
                const logitloss_array result = {
                    is_written ? malloc((size_t)(in->n * stride)) : NULL, in->type, 0, 1, &in->n, &stride};
                arrays.results[order] = is_written ? result : none;
            }
            if (!logitloss_plan(&task, &arrays, in->type, orders))
                exit(2);
            const double value = logitloss_compute(&task, reductions[r], 1, execute, (void *)run);
            if (reductions[r] != LOGITLOSS_NONE && orders & LOGITLOSS_LOSS)
                put_double(value);
            for (int order = 0; order < 3; order++) {
                for (ptrdiff_t i = 0; arrays.results[order].data && i < in->n; i++)
                    put_element(arrays.results[order].data + i * stride, in->type);
                free(arrays.results[order].data);
            }
        }
    free(arrays.labels.data);
    free(arrays.logits.data);
    free(arrays.pos_weight.data);
    free(arrays.weight.data);
}

static const double infinity = 1e300 * 1e300;

/* Every combination of values at which a format or the formula stops resolving something. */
static void put_special(logitloss_type type)
{
    const double nan = infinity - infinity;
    const double logits[] = {0.0, -0.0, 1e-310, -1e-40, 1e-10, 0.3, -0.7, 2.3, -5, 11, -17, 25, 31.9, -32.1, 60, -86.9, 88,
                             -95, 103.9, -150, 255, -257, 700, -745, 1500, -1e4, 1e30, -1e300, infinity, -infinity, nan};
    const double labels[] = {0, 1, 0.5, 0.1, 1e-7, 0.9999, 2, -1, nan};
    const double pos_weights[] = {0, 1e-8, 0.3, 1, 3, 1e8, -2, infinity, nan};
    const double weights[] = {1, 0, 0.7, -3, infinity, nan};
    enum { LOGITS = sizeof logits / 8, LABELS = sizeof labels / 8, POS = sizeof pos_weights / 8, WEIGHTS = sizeof weights / 8 };
    static double z[MOST_SPECIAL], x[MOST_SPECIAL], q[MOST_SPECIAL], w[MOST_SPECIAL];
    inputs in = {0, z, x, q, w, type, type, 0};
    for (int i = 0; i < LOGITS * LABELS * POS * WEIGHTS; i++) {
        x[in.n] = logits[i % LOGITS];
        z[in.n] = labels[i / LOGITS % LABELS];
        q[in.n] = pos_weights[i / LOGITS / LABELS % POS];
        w[in.n++] = weights[i / LOGITS / LABELS / POS];
    }
    put_all(&in);
}

static void put_random(logitloss_type type, logitloss_type label_type, int has_arrays, int is_swapped)
{
    static double z[RANDOM_SIZE], x[RANDOM_SIZE], q[RANDOM_SIZE], w[RANDOM_SIZE];
    const int is_integer = label_type > LOGITLOSS_LONGDOUBLE;
    inputs in = {RANDOM_SIZE, z, x, has_arrays ? q : NULL, has_arrays ? w : NULL, label_type, type, is_swapped};
    state = 1;
    for (ptrdiff_t i = 0; i < in.n; i++) {
        z[i] = is_integer ? (double)(draw() & 1) : draw_label();
        /* Half of the blocks hold ordinary logits alone. */
        x[i] = i / LOGITLOSS_BLOCK % 2 ? draw_number(-12, 5) : draw_number(-40, 12);
        q[i] = draw_number(-10, 10);
        w[i] = draw() % 8 ? draw_number(-6, 6) : 0;
        q[i] = q[i] < 0 ? -q[i] : q[i];
        w[i] = w[i] < 0 ? -w[i] : w[i];
    }
    put_all(&in);
}

/* Coefficients with which careful.c computes. */
static void put_careful(logitloss_type type)
{
    static double z[RANDOM_SIZE], x[RANDOM_SIZE], q[RANDOM_SIZE], w[RANDOM_SIZE];
    const int reach = type == LOGITLOSS_FLOAT64 ? 1000 : 120;
    inputs in = {RANDOM_SIZE, z, x, q, w, type, type, 0};
    state = 2;
    for (ptrdiff_t i = 0; i < in.n; i++) {
        z[i] = draw_label();
        x[i] = draw_number(-10, type == LOGITLOSS_FLOAT64 ? 11 : 8);
        q[i] = draw_number(-reach, reach);
        w[i] = draw_number(-reach, reach);
    }
    put_all(&in);
}

static void put_everything(void)
{
    static const logitloss_type types[] = {LOGITLOSS_FLOAT16, LOGITLOSS_BFLOAT16, LOGITLOSS_FLOAT32, LOGITLOSS_FLOAT64};
    for (int i = 0; i < 4; i++) {
        put_special(types[i]);
        put_random(types[i], types[i], 0, 0);
        put_random(types[i], types[i], 1, 0);
        put_random(types[i], LOGITLOSS_UINT8, 0, 0);
        put_random(types[i], LOGITLOSS_INT32, 1, 1);
        put_random(types[i], LOGITLOSS_FLOAT64, 1, 1);
        put_random(types[i], LOGITLOSS_LONGDOUBLE, 1, 0);
        put_careful(types[i]);
    }
}

static int compare(const char *first, const char *second)
{
    unsigned char ours[RESULT_BYTES], theirs[RESULT_BYTES];
    long differing = 0, count = 0;
    FILE *a = fopen(first, "rb"), *b = fopen(second, "rb");
    if (!a || !b)
        return 2;
    for (;; count++) {
        const size_t read = fread(ours, 1, sizeof ours, a);
        if (fread(theirs, 1, sizeof theirs, b) != read) {
            printf("not as many results\n");
            return 1;
        }
        if (!read)
            break;
        differing += memcmp(ours, theirs, sizeof ours) != 0;
    }
    printf("%ld of %ld differ\n", differing, count);
    return differing != 0;
}

int main(int argc, char **argv)
{
    logitloss_target targets[LOGITLOSS_MAX_TARGETS];
    const int count = logitloss_list_targets(targets);
    if (argc == 2 && !strcmp(argv[1], "list")) {
        for (int i = 0; i < count; i++)
            printf("%s %s\n", targets[i].name, targets[i].is_fused ? "fused" : "unfused");
        return 0;
    }
    if (argc == 4 && !strcmp(argv[1], "compare"))
        return compare(argv[2], argv[3]);
    if (argc != 3)
        return 2;
    for (int i = 0; i < count; i++)
        if (!strcmp(argv[1], targets[i].name)) {
            target = targets[i];
            file = fopen(argv[2], "wb");
            if (!file)
                return 2;
            put_everything();
            return fclose(file) ? 2 : 0;
        }
    return 2;
}
