/* The loops of blocks.c, for each type they compute in and each instruction set. */
#ifndef LOGITLOSS_BLOCKS_H
#define LOGITLOSS_BLOCKS_H

#include "task.h"

/* Works through elements start .. stop and returns the sums that the task asks for.
 * `start` is a multiple of LOGITLOSS_BLOCK.  Needs no GIL and is thread-safe. */
typedef logitloss_sums logitloss_run(const logitloss_task *task, ptrdiff_t start, ptrdiff_t stop);

logitloss_run logitloss_run_float32_baseline, logitloss_run_float64_baseline;
#ifdef LOGITLOSS_X86
logitloss_run logitloss_run_float32_avx2, logitloss_run_float64_avx2;
logitloss_run logitloss_run_float32_avx512, logitloss_run_float64_avx512;
#endif

#endif
