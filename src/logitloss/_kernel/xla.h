#ifndef LOGITLOSS_XLA_H
#define LOGITLOSS_XLA_H

#include "blocks.h"

/* A pointer to the custom call, which runs these kernels, or NULL where there is none. */
void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64);

#endif
