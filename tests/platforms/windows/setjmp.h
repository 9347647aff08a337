/* Clang's intrin.h wants the name. */
#pragma once
typedef int jmp_buf[64];
