#pragma once
#include <stddef.h>
typedef struct file FILE;
FILE *fopen(const char *, const char *);
int fclose(FILE *);
int printf(const char *, ...);
size_t fread(void *, size_t, size_t, FILE *);
size_t fwrite(const void *, size_t, size_t, FILE *);
