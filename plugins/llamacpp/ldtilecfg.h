// Included before each file of llama.cpp, by `make setup`: GCC before 11.5, 12.4, 13.3 and 14 tells its optimizer that
// LDTILECFG reads 8 bytes of the 64 (GCC bug 114098). It leaves out the stores of the others, no tile has a shape, and
// the first product on a processor with AMX ends in SIGILL. Here the instruction reads all of them.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
