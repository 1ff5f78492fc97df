// CUDA's built-in vector types, with CUDA's sizes and alignments, for kernels that are compiled for the CPU.
#pragma once

#define SIMT_VECTOR(T, name, alignment)                        \
    struct name##1 { T x; };                                   \
    struct alignas(2 * (alignment)) name##2 { T x, y; };       \
    struct name##3 { T x, y, z; };                             \
    struct alignas(4 * (alignment)) name##4 { T x, y, z, w; }; \
    static inline name##1 make_##name##1(T x) { return {x}; }  \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }           \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }   \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR(signed char, char, 1)
SIMT_VECTOR(unsigned char, uchar, 1)
SIMT_VECTOR(short, short, 2)
SIMT_VECTOR(unsigned short, ushort, 2)
SIMT_VECTOR(int, int, 4)
SIMT_VECTOR(unsigned int, uint, 4)
SIMT_VECTOR(float, float, 4)
#undef SIMT_VECTOR

struct alignas(16) ulonglong2 { unsigned long long x, y; };

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};
