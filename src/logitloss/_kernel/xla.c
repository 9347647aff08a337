/*
 * The kernel as a custom call of XLA's typed foreign function interface, for JAX on CPUs.
 *
 * The structures are those parts of version 0.1 of that interface that are needed.  Later
 * minor versions only add fields at their ends.  The answer to a query of the metadata
 * names the version.  An XLA that no longer supports it refuses to register the call, and
 * JAX runs the formula.  Nothing of XLA is needed to build this file.
 */
#include "xla.h"

#if defined(_WIN32) || defined(__STDC_NO_ATOMICS__)

void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64)
{
    (void)float32, (void)float64;
    return NULL;
}

#else

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef __SSE2__
#include <xmmintrin.h>
#else
#include <fenv.h>
#endif

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

enum { METADATA_EXTENSION = 1, EXECUTE_STAGE = 3, INVALID_ARGUMENT = 3 };

/* The kernel's types by XLA's numbers for them, which begin with its bool. */
static const logitloss_type types[] = {
    LOGITLOSS_TYPES, LOGITLOSS_BOOL, LOGITLOSS_INT8, LOGITLOSS_INT16, LOGITLOSS_INT32, LOGITLOSS_INT64,
    LOGITLOSS_UINT8, LOGITLOSS_UINT16, LOGITLOSS_UINT32, LOGITLOSS_UINT64, LOGITLOSS_FLOAT16,
    LOGITLOSS_FLOAT32, LOGITLOSS_FLOAT64, LOGITLOSS_TYPES, LOGITLOSS_TYPES, LOGITLOSS_TYPES,
    LOGITLOSS_BFLOAT16,
};

static logitloss_type type_of(const buffer *values)
{
    const int known = values->type > 0 && values->type < (int)(sizeof types / sizeof *types);
    return known ? types[values->type] : LOGITLOSS_TYPES;
}

/* What jax.py passes; attributes come in alphabetical order. */
enum { ORDERS, REDUCTION, ATTRIBUTES };
enum { LABELS, LOGITS, POS_WEIGHT, WEIGHT, ARGUMENTS };

enum {
    /* Elements for each thread that is worth waking: see docs/design.md. */
    ELEMENTS_PER_THREAD = 16384,
};

typedef struct {
    const logitloss_task *task;
    logitloss_run *run;
    ptrdiff_t width, slices;
    atomic_ptrdiff_t next, finished, owners;
    logitloss_sums sums[LOGITLOSS_MAX_SLICES];
} job;

static logitloss_run *run_float32, *run_float64;

static void work(job *job)
{
    for (ptrdiff_t i; (i = atomic_fetch_add(&job->next, 1)) < job->slices;) {
        const ptrdiff_t start = i * job->width, stop = start + job->width;
        job->sums[i] = job->run(job->task, start, stop < job->task->size ? stop : job->task->size);
        atomic_fetch_add(&job->finished, 1);
    }
}

static void release(job *job)
{
    if (atomic_fetch_sub(&job->owners, 1) == 1)
        free(job);
}

/* XLA's threads flush subnormal numbers to zero, but the kernel relies on them.  On x86 the
 * register of SSE is all there is to it: the functions of C take a twentieth of the shortest call. */
#ifdef __SSE2__
typedef unsigned environment;

static environment leave_flush_to_zero(void)
{
    enum { AS_A_PROCESS_BEGINS = 0x1f80 };
    const environment before = _mm_getcsr();
    _mm_setcsr(AS_A_PROCESS_BEGINS);
    return before;
}

static void return_to(environment before) { _mm_setcsr(before); }
#else
typedef fenv_t environment;

static environment leave_flush_to_zero(void)
{
    environment before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}

static void return_to(environment before) { fesetenv(&before); }
#endif

static void help(void *data)
{
    const environment before = leave_flush_to_zero();
    work(data);
    return_to(before);
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

/* Runs a job on this thread and on those of XLA's pool that are free.  A thread that comes too
 * late finds nothing left to do, so no call waits for a thread that has not begun. */
static void share(const call *call, job *job)
{
    int64_t threads = job->task->size / ELEMENTS_PER_THREAD, available = 1;
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

static logitloss_sums execute(const logitloss_task *task, void *context)
{
    logitloss_run *run = task->type == LOGITLOSS_FLOAT64 ? run_float64 : run_float32;
    const ptrdiff_t width = logitloss_slice(task->size), slices = (task->size + width - 1) / width;
    logitloss_sums total = {{0, 0}, {0, 0}};
    job *job = slices > 1 ? malloc(sizeof *job) : NULL;
    if (!job) {
        for (ptrdiff_t start = 0; start < task->size; start += width) {
            const ptrdiff_t stop = start + width;
            const logitloss_sums sums = run(task, start, stop < task->size ? stop : task->size);
            logitloss_add_both(&total, &sums);
        }
        return total;
    }
    job->task = task;
    job->run = run;
    job->width = width;
    job->slices = slices;
    atomic_init(&job->next, 0);
    atomic_init(&job->finished, 0);
    atomic_init(&job->owners, 1);
    share(context, job);
    for (ptrdiff_t i = 0; i < slices; i++)
        logitloss_add_both(&total, &job->sums[i]);
    release(job);
    return total;
}

/* The shapes and strides of a call's arrays, as the kernel needs them. */
typedef struct {
    ptrdiff_t shape[LOGITLOSS_MAX_AXES], strides[LOGITLOSS_MAX_AXES];
} layout;

/* XLA's arrays are contiguous.  Returns 0 for one that the kernel does not know. */
static int describe(logitloss_array *array, layout *layout, const buffer *values)
{
    *array = (logitloss_array){values->data, type_of(values), 0, (int)values->rank, layout->shape, layout->strides};
    if (array->type == LOGITLOSS_TYPES || values->rank > LOGITLOSS_MAX_AXES)
        return 0;
    ptrdiff_t stride = logitloss_itemsizes[array->type];
    for (int axis = array->ndim - 1; axis >= 0; axis--) {
        layout->shape[axis] = (ptrdiff_t)values->shape[axis];
        layout->strides[axis] = stride;
        stride *= layout->shape[axis];
    }
    return 1;
}

static int64_t integer(const call *call, int attribute)
{
    return *(int64_t *)call->attributes.scalars[attribute]->value;
}

static error *fail(const api *api, const char *message)
{
    return api->error_create(&(error_create_args){sizeof(error_create_args), NULL, message, INVALID_ARGUMENT});
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
    if ((call->arguments.count != ARGUMENTS && call->arguments.count != ARGUMENTS - 1)
        || call->attributes.count != ATTRIBUTES)
        return fail(call->api, "logitloss: compiled by another version");

    buffer **results = call->results.buffers, **arguments = call->arguments.buffers;
    const int orders = (int)integer(call, ORDERS);
    const logitloss_reduction reduction = (logitloss_reduction)integer(call, REDUCTION);
    layout layouts[ARGUMENTS + 3];
    logitloss_arrays arrays = {.weight_value = 1};
    int are_known = describe(&arrays.labels, &layouts[LABELS], arguments[LABELS])
                    && describe(&arrays.logits, &layouts[LOGITS], arguments[LOGITS])
                    && describe(&arrays.pos_weight, &layouts[POS_WEIGHT], arguments[POS_WEIGHT]);
    if (call->arguments.count == ARGUMENTS)
        are_known = are_known && describe(&arrays.weight, &layouts[WEIGHT], arguments[WEIGHT]);
    const int is_number = reduction != LOGITLOSS_NONE && orders & LOGITLOSS_LOSS;
    int index = is_number;
    for (int order = index; are_known && order < 3; order++)
        if (orders >> order & 1)
            are_known = describe(&arrays.results[order], &layouts[ARGUMENTS + order], results[index++]);
    logitloss_task task;
    if (is_number)
        are_known = are_known && type_of(results[0]) <= LOGITLOSS_FLOAT64;
    const logitloss_type type = are_known ? logitloss_result_type(arrays.labels.type, arrays.logits.type)
                                          : LOGITLOSS_TYPES;
    if (type == LOGITLOSS_TYPES || !logitloss_plan(&task, &arrays, type, orders))
        return fail(call->api, "logitloss: unknown types or shapes");

    const environment before = leave_flush_to_zero();
    const double value = logitloss_compute(&task, reduction, 1, execute, call);
    if (is_number)
        logitloss_write(value, type_of(results[0]), results[0]->data);
    return_to(before);
    return NULL;
}

void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64)
{
    run_float32 = float32;
    run_float64 = float64;
    return (void *)handler;
}

#endif
