/* One function, three pools of threads. */
#include "parallel.h"

#if defined(_OPENMP)

/* A separate function, out of line, because Clang starts the OpenMP runtime at the beginning of a
 * function that has a parallel region, and not only when it reaches the region. */
void logitloss_share(int parts, logitloss_part *work, void *context)
{
#pragma omp parallel for num_threads(parts) schedule(static)
    for (int part = 0; part < parts; part++)
        work(context, (size_t)part);
}

#elif defined(__APPLE__)

#include <dispatch/dispatch.h>

void logitloss_share(int parts, logitloss_part *work, void *context)
{
    dispatch_apply_f((size_t)parts, dispatch_get_global_queue(QOS_CLASS_USER_INITIATED, 0), context, work);
}

#elif defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

typedef struct {
    logitloss_part *work;
    void *context;
    volatile LONG next;
    LONG parts;
} job;

static void take_parts(job *job)
{
    for (LONG part; (part = InterlockedIncrement(&job->next) - 1) < job->parts;)
        job->work(job->context, (size_t)part);
}

static VOID CALLBACK help(PTP_CALLBACK_INSTANCE instance, PVOID data, PTP_WORK work)
{
    (void)instance, (void)work;
    take_parts(data);
}

/* This thread does the parts that no helper has taken by the time it reaches them. */
void logitloss_share(int parts, logitloss_part *work, void *context)
{
    job job = {work, context, 0, parts};
    PTP_WORK helpers = CreateThreadpoolWork(help, &job, NULL);
    for (int i = 1; helpers && i < parts; i++)
        SubmitThreadpoolWork(helpers);
    take_parts(&job);
    if (helpers) {
        WaitForThreadpoolWorkCallbacks(helpers, TRUE);
        CloseThreadpoolWork(helpers);
    }
}

#else

void logitloss_share(int parts, logitloss_part *work, void *context)
{
    for (int part = 0; part < parts; part++)
        work(context, (size_t)part);
}

#endif
