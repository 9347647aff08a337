/* Of Microsoft's C library what the kernel uses, so that clang-cl compiles without its headers. */
#pragma once
double exp(double);
double fabs(double);
double fma(double, double, double);
double frexp(double, int *);
double ldexp(double, int);
double log1p(double);
float fabsf(float);
float fmaf(float, float, float);
#define NAN __builtin_nanf("")
#define isnan(value) __builtin_isnan(value)
#define isfinite(value) __builtin_isfinite(value)
