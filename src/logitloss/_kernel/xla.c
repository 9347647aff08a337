/*
 * The kernel as a custom call of XLA's typed foreign function interface, for JAX on CPUs.
 *
 * The structures are those of version 0.1 of that interface, as far as they are needed:
 * later minor versions only add fields at their ends.  The answer to a query of the
 * metadata names the version, and an XLA that has given it up refuses to register the
 * call; then JAX runs the formula.  Nothing of XLA is needed to build this file.
 */
#include "xla.h"

#if defined(_WIN32) || defined(__STDC_NO_ATOMICS__)

void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64)
{
    (void)float32, (void)float64;
    return NULL;
}

#else

#include <fenv.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct error error;
typedef struct context context;

typedef struct extension {
    size_t struct_size;
    int type;
    struct extension *next;
} extension;

typedef struct {
    size_t struct_size;
    extension *extensions;
    int major_version, minor_version;
} api_version;

typedef struct {
    extension base;
    struct {
        size_t struct_size;
        api_version version;
        uint32_t traits;
    } *metadata;
} metadata_extension;

typedef struct {
    size_t struct_size;
    extension *extensions;
    const char *message;
    int code;
} error_create_args;

typedef struct {
    size_t struct_size;
    extension *extensions;
    error *error;
} error_destroy_args;

typedef struct {
    size_t struct_size;
    extension *extensions;
    context *context;
    int64_t *threads;
} num_threads_args;

typedef struct {
    size_t struct_size;
    extension *extensions;
    context *context;
    void (*task)(void *);
    void *data;
} schedule_args;

typedef struct {
    size_t struct_size;
    extension *extensions;
    api_version version;
    const void *internal;
    error *(*error_create)(error_create_args *);
    void *error_get_message;
    void (*error_destroy)(error_destroy_args *);
    void *handler_register, *stream_get, *type_register, *context_get, *state_set, *state_get;
    void *memory_allocate, *memory_free;
    error *(*schedule)(schedule_args *);
    error *(*num_threads)(num_threads_args *);
} api;

typedef struct {
    size_t struct_size;
    extension *extensions;
    int type;
    void *data;
    int64_t rank, *shape;
} buffer;

typedef struct {
    size_t struct_size;
    extension *extensions;
    int64_t count;
    int *types;
    buffer **buffers;
} buffers;

typedef struct {
    int type;
    void *value;
} scalar;

typedef struct {
    size_t struct_size;
    extension *extensions;
    int64_t count;
    int *types;
    void **names;
    scalar **scalars;
} attributes;

typedef struct {
    size_t struct_size;
    extension *extensions;
    const api *api;
    context *context;
    int stage;
    buffers arguments, results;
    attributes attributes;
} call;

enum { METADATA_EXTENSION = 1, EXECUTE_STAGE = 3, FLOAT32 = 11, INVALID_ARGUMENT = 3, RESOURCE_EXHAUSTED = 8 };

/* The kernel's types by XLA's numbers for them, which begin with its bool. */
static const struct {
    logitloss_type type;
    ptrdiff_t stride;
} types[] = {
    {0}, {LOGITLOSS_UINT8, 1}, {LOGITLOSS_INT8, 1}, {LOGITLOSS_INT16, 2}, {LOGITLOSS_INT32, 4},
    {LOGITLOSS_INT64, 8}, {LOGITLOSS_UINT8, 1}, {LOGITLOSS_UINT16, 2}, {LOGITLOSS_UINT32, 4},
    {LOGITLOSS_UINT64, 8}, {0}, {LOGITLOSS_FLOAT32, 4}, {LOGITLOSS_FLOAT64, 8},
};

/* What jax.py passes; attributes come in alphabetical order. */
enum { DIVISOR, OPERATION, POS_WEIGHT_PERIOD, POS_WEIGHT_REPEAT, REDUCE, WEIGHT_PERIOD, WEIGHT_REPEAT, ATTRIBUTES };
enum { LABELS, LOGITS, POS_WEIGHT, WEIGHT, ARGUMENTS };

enum {
    /* Elements for each thread that is worth waking: see docs/design.md. */
    ELEMENTS_PER_THREAD = 16384,
};

typedef struct {
    logitloss_task task;
    logitloss_run *run;
    ptrdiff_t size, width, slices;
    atomic_ptrdiff_t next, finished, owners;
    logitloss_sum sums[LOGITLOSS_MAX_SLICES];
} job;

static logitloss_run *run_float32, *run_float64;

static void work(job *job)
{
    for (ptrdiff_t i; (i = atomic_fetch_add(&job->next, 1)) < job->slices;) {
        const ptrdiff_t start = i * job->width, stop = start + job->width;
        job->sums[i] = job->run(&job->task, start, stop < job->size ? stop : job->size);
        atomic_fetch_add(&job->finished, 1);
    }
}

static void release(job *job)
{
    if (atomic_fetch_sub(&job->owners, 1) == 1)
        free(job);
}

/* XLA's threads flush subnormal numbers to zero, but the kernel relies on them. */
static fenv_t leave_flush_to_zero(void)
{
    fenv_t environment;
    fegetenv(&environment);
    fesetenv(FE_DFL_ENV);
    return environment;
}

static void help(void *data)
{
    const fenv_t environment = leave_flush_to_zero();
    work(data);
    fesetenv(&environment);
    release(data);
}

/* Whether `status` says that the call failed. */
static int failed(const api *api, error *status)
{
    if (!status)
        return 0;
    api->error_destroy(&(error_destroy_args){sizeof(error_destroy_args), NULL, status});
    return 1;
}

/* Runs a job on this thread and on those of XLA's pool that are free: one that comes too
 * late finds nothing left to do, so that nobody waits for a thread that has not begun. */
static void share(const call *call, job *job)
{
    int64_t threads = job->size / ELEMENTS_PER_THREAD, available = 1;
    num_threads_args query = {sizeof query, NULL, call->context, &available};
    if (threads > 1 && !failed(call->api, call->api->num_threads(&query)) && threads > available)
        threads = available;
    for (int64_t i = 1; i < threads; i++) {
        schedule_args request = {sizeof request, NULL, call->context, help, job};
        atomic_fetch_add(&job->owners, 1);
        if (failed(call->api, call->api->schedule(&request)))
            release(job);
    }
    work(job);
    while (atomic_load(&job->finished) < job->slices)
        sched_yield();
}

static int64_t integer(const call *call, int attribute)
{
    return *(int64_t *)call->attributes.scalars[attribute]->value;
}

static logitloss_operand operand(const call *call, int argument, ptrdiff_t repeat, ptrdiff_t period)
{
    const buffer *values = call->arguments.buffers[argument];
    return (logitloss_operand){values->data, types[values->type].stride, repeat, period, types[values->type].type};
}

/* A coefficient without a period is a number. */
static void set_coefficient(logitloss_operand *result, double *value, const call *call, int argument, int attribute)
{
    const buffer *values = call->arguments.buffers[argument];
    const ptrdiff_t period = integer(call, attribute), repeat = integer(call, attribute + 1);
    if (period)
        *result = operand(call, argument, repeat, period);
    else
        *value = values->type == FLOAT32 ? *(float *)values->data : *(double *)values->data;
}

static error *fail(const api *api, int code, const char *message)
{
    return api->error_create(&(error_create_args){sizeof(error_create_args), NULL, message, code});
}

static error *handler(call *call)
{
    for (extension *extension = call->extensions; extension; extension = extension->next)
        if (extension->type == METADATA_EXTENSION) {
            api_version *version = &((metadata_extension *)extension)->metadata->version;
            version->major_version = 0;
            version->minor_version = 1;
            return NULL;
        }
    if (call->stage != EXECUTE_STAGE)
        return NULL;
    if (call->arguments.count != ARGUMENTS || call->attributes.count != ATTRIBUTES)
        return fail(call->api, INVALID_ARGUMENT, "logitloss: compiled by another version");

    buffer **results = call->results.buffers;
    const buffer *logits = call->arguments.buffers[LOGITS];
    const ptrdiff_t stride = types[logits->type].stride;
    const double divisor = *(double *)call->attributes.scalars[DIVISOR]->value;
    ptrdiff_t size = 1;
    for (int64_t axis = 0; axis < logits->rank; axis++)
        size *= logits->shape[axis];

    job *job = malloc(sizeof *job);
    if (!job)
        return fail(call->api, RESOURCE_EXHAUSTED, "logitloss: out of memory");
    logitloss_task *task = &job->task;
    *task = (logitloss_task){
        .operation = (logitloss_operation)integer(call, OPERATION),
        .logits = operand(call, LOGITS, 1, size ? size : 1),
        .labels = operand(call, LABELS, 1, size ? size : 1),
        .gradient_divisor = divisor,
        .reduce = integer(call, REDUCE) != 0,
    };
    set_coefficient(&task->pos_weight, &task->pos_weight_scalar, call, POS_WEIGHT, POS_WEIGHT_PERIOD);
    set_coefficient(&task->weight, &task->weight_scalar, call, WEIGHT, WEIGHT_PERIOD);
    if (!task->reduce)
        task->first = (logitloss_result){results[0]->data, stride};
    if (task->operation != LOGITLOSS_LOSS)
        task->second = (logitloss_result){results[1]->data, stride};

    job->run = logits->type == FLOAT32 ? run_float32 : run_float64;
    job->size = size;
    job->width = logitloss_slice(size);
    job->slices = (size + job->width - 1) / job->width;
    atomic_init(&job->next, 0);
    atomic_init(&job->finished, 0);
    atomic_init(&job->owners, 1);
    const fenv_t environment = leave_flush_to_zero();
    share(call, job);

    if (task->reduce) {
        logitloss_sum total = {0, 0};
        for (ptrdiff_t i = 0; i < job->slices; i++)
            logitloss_add(&total, job->sums[i]);
        const double value = logitloss_value(total) / divisor;
        if (results[0]->type == FLOAT32)
            *(float *)results[0]->data = (float)value;
        else
            *(double *)results[0]->data = value;
    }
    fesetenv(&environment);
    release(job);
    return NULL;
}

void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64)
{
    run_float32 = float32;
    run_float64 = float64;
    return (void *)handler;
}

#endif
