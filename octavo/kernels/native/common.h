/* Shared by all kernels. Every source is compiled twice, for plain C and for AVX2 + FMA; OP(name) tells them apart. */
#ifndef OCTAVO_COMMON_H
#define OCTAVO_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#define OP(name) octavo_##name##_avx2
#else
#define OP(name) octavo_##name##_plain
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Eight floats. GCC and Clang lower these to what the target has. Loads need no alignment. */
typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v8f_any __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t v8h_any __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t v8u __attribute__((vector_size(32)));

INLINE v8f load8(const float *p) { return *(const v8f_any *)p; }
INLINE void store8(float *p, v8f v) { *(v8f_any *)p = v; }
INLINE v8f all8(float x) { return (v8f){x, x, x, x, x, x, x, x}; }
INLINE float sum8(v8f v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
INLINE float max8(v8f v) {
    float a = MAX(MAX(v[0], v[4]), MAX(v[2], v[6])), b = MAX(MAX(v[1], v[5]), MAX(v[3], v[7]));
    return MAX(a, b);
}
INLINE v8f bf16_to_f32(const uint16_t *p) { return (v8f)(__builtin_convertvector(*(const v8h_any *)p, v8u) << 16); }
INLINE uint16_t f32_to_bf16(float x) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 64); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

/* exp(x), relative error below 3e-7 for x in [-87, 88]; smaller x give 0. Cody-Waite reduction, degree-5 polynomial. */
INLINE v8f exp8(v8f x) {
    v8i tiny = x < all8(-87.3f);
    x = (v8f)(((v8i)x & ~tiny)) + (v8f)((v8i)all8(-87.3f) & tiny);
    v8i large = x > all8(88.3f);
    x = (v8f)(((v8i)x & ~large)) + (v8f)((v8i)all8(88.3f) & large);
    v8f scaled = x * 1.44269504f, magic = all8(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    v8f n = (scaled + magic) - magic;
    v8f r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    v8f p = all8(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    v8i power = (__builtin_convertvector(n, v8i) + 127) << 23;
    return (v8f)((v8i)(p * (v8f)power) & ~tiny);
}

/* The pool that torch computes with, handed over at load; without it everything runs on the caller's thread. */
typedef void (*task_fn)(void *);
typedef void (*parallel_fn)(task_fn, void *, unsigned, unsigned);
extern parallel_fn octavo_parallel;
extern int (*octavo_thread_num)(void);
extern int octavo_threads;

/* A region's share of the work. `body(data, thread, threads)` runs once on each thread. */
typedef struct {
    void (*body)(void *data, int thread, int threads);
    void *data;
    int threads;
} region;
void octavo_region(void *argument);

INLINE void run_region(void (*body)(void *, int, int), void *data, int threads) {
    if (threads <= 1 || !octavo_parallel) {
        body(data, 0, 1);
        return;
    }
    region r = {body, data, threads};
    octavo_parallel(octavo_region, &r, (unsigned)threads, 0);
}

/* Memory for one call's intermediate values: grows, stays with the calling thread. */
void *octavo_scratch(size_t bytes);

#endif
