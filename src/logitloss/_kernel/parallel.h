/* Work shared among threads: by OpenMP if the extension was built with it, otherwise by the
 * operating system's pool, which adds no library to the process. */
#ifndef LOGITLOSS_PARALLEL_H
#define LOGITLOSS_PARALLEL_H

#include <stddef.h>

#if defined(_OPENMP) || defined(__APPLE__) || defined(_WIN32)
enum { LOGITLOSS_HAS_THREADS = 1 };
#else
enum { LOGITLOSS_HAS_THREADS = 0 };
#endif

typedef void logitloss_part(void *context, size_t part);

/* Calls `work` for parts 0 .. parts - 1, on as many threads or fewer, and returns when all are done. */
void logitloss_share(int parts, logitloss_part *work, void *context);

#endif
