#pragma once
#include <stddef.h>
int memcmp(const void *, const void *, size_t);
int strcmp(const char *, const char *);
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
