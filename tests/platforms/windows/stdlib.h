#pragma once
#include <stddef.h>
void *malloc(size_t);
void exit(int);
void free(void *);
