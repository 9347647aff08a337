/* What the compiler, the processor and the OpenMP runtime can tell at import. */
#ifndef LOGITLOSS_RUNTIME_H
#define LOGITLOSS_RUNTIME_H

#ifdef _OPENMP
#include <omp.h>
#define LOGITLOSS_OPENMP _OPENMP
#else
#define LOGITLOSS_OPENMP 0
static inline int omp_get_max_threads(void) { return 1; }
static inline int omp_get_num_procs(void) { return 1; }
#endif

/* Whether the processor and the operating system run code for these targets. */
#ifdef LOGITLOSS_X86
static inline int logitloss_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static inline int logitloss_has_avx512(void)
{
    return logitloss_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#else
static inline int logitloss_has_avx2(void) { return 0; }
static inline int logitloss_has_avx512(void) { return 0; }
#endif

/* The most threads for calls from this thread, 0 for no limit of its own. */
#ifdef _MSC_VER
static __declspec(thread) int logitloss_thread_limit = 0;
#else
static _Thread_local int logitloss_thread_limit = 0;
#endif

/* A forked child inherits the OpenMP runtime's state but not its threads, and with
 * libgomp waits for them for ever.  It must run serially. */
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
