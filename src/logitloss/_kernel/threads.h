/* What the OpenMP runtime knows about threads, and what it does not: limits of a thread, and forks. */
#ifndef LOGITLOSS_THREADS_H
#define LOGITLOSS_THREADS_H

#include "compiler.h"

#ifdef _OPENMP
#include <omp.h>
#define LOGITLOSS_OPENMP _OPENMP
#else
#define LOGITLOSS_OPENMP 0
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_num_procs(void) { return 1; }
#endif

/* Whether the runtime is Clang's, which aborts the process, at once or later, for an
 * OMP_NUM_THREADS that it cannot read. */
#if defined(_OPENMP) && defined(__clang__)
enum { LOGITLOSS_CLANG_OPENMP = 1 };
#else
enum { LOGITLOSS_CLANG_OPENMP = 0 };
#endif

/* The most threads for calls from this thread; 0 if it has no limit of its own. */
static THREAD_LOCAL int logitloss_thread_limit = 0;

/* A forked child inherits the OpenMP runtime's state but not its threads, and with
 * libgomp it would wait for them forever.  It must run serially. */
static volatile int logitloss_is_forked_child = 0;

#ifdef _WIN32
static inline void logitloss_watch_forks(void) {}
#else
#include <pthread.h>
static void logitloss_after_fork_in_child(void) { logitloss_is_forked_child = 1; }
static inline void logitloss_watch_forks(void)
{
    pthread_atfork(0, 0, logitloss_after_fork_in_child);
}
#endif

#endif
