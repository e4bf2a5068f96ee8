/* Shared by all kernels. Every source is compiled twice, for plain C and for AVX2 + FMA; OP(name) tells them apart.
 *
 * A kernel is a function of its arguments (a struct of 8-byte fields) and of its thread's place in the team: all
 * threads of the team run it, each takes its share, and `barrier` separates phases. */
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
/* before a loop of a constant number of turns: arrays that it indexes can then be registers */
#define UNROLL _Pragma("GCC unroll 16")
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* What the threads of one call share. `next` hands out tasks; a barrier sets it back to 0. */
typedef struct {
    int arrived, sleepers;
    unsigned phase;
    long next;
} shared_state;

typedef struct {
    int index, count;
    shared_state *shared;
} team;

typedef void (*kernel)(const void *arguments, team *t);

void octavo_barrier(team *t);
/* Memory for one thread's intermediate values: it grows, stays with the thread, and holds nothing from call to call. */
void *octavo_scratch(size_t bytes);

INLINE void barrier(team *t) {
    if (t->count > 1) octavo_barrier(t);
    else t->shared->next = 0;
}
INLINE long next_task(team *t) { return __atomic_fetch_add(&t->shared->next, 1, __ATOMIC_RELAXED); }
/* the first of a thread's contiguous share of `total` */
INLINE long share(long total, long index, long count) { return total * index / count; }

/* Eight floats. GCC and Clang lower these to what the target has. Loads need no alignment. */
typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint32_t v8u __attribute__((vector_size(32)));
typedef float v8f_any __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t v8h_any __attribute__((vector_size(16), aligned(2), may_alias));
typedef int8_t v8b_any __attribute__((vector_size(8), aligned(1), may_alias));

INLINE v8f load8(const float *p) { return *(const v8f_any *)p; }
INLINE void store8(float *p, v8f v) { *(v8f_any *)p = v; }
INLINE v8f all8(float x) { return (v8f){x, x, x, x, x, x, x, x}; }
INLINE v8f select8(v8i mask, v8f yes, v8f no) { return (v8f)(((v8i)yes & mask) | ((v8i)no & ~mask)); }
INLINE v8f more8(v8f a, v8f b) {
#ifdef __AVX2__
    return (v8f)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select8(a > b, a, b);
#endif
}
INLINE v8i more8i(v8i a, v8i b) {
#ifdef __AVX2__
    return (v8i)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    v8i mask = a > b;
    return (a & mask) | (b & ~mask);
#endif
}
INLINE float sum8(v8f v) {
#ifdef __AVX2__
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#endif
}
INLINE float max8(v8f v) {
#ifdef __AVX2__
    __m128 s = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
#else
    float a = MAX(MAX(v[0], v[4]), MAX(v[2], v[6])), b = MAX(MAX(v[1], v[5]), MAX(v[3], v[7]));
    return MAX(a, b);
#endif
}

/* How keys and values are stored. */
enum { F32, BF16, F16 };
INLINE long size_of(long type) { return type == F32 ? 4 : 2; }

INLINE v8f f16_to_f32(const uint16_t *p) {
#ifdef __AVX2__
    return (v8f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    v8u h = __builtin_convertvector(*(const v8h_any *)p, v8u);
    v8u magnitude = h & 0x7fff;
    v8f x = (v8f)(magnitude << 13) * 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormals included */
    v8u special = (v8u)(magnitude >= 0x7c00) & 0x7f800000u;
    return (v8f)((v8u)x | special | ((h & 0x8000) << 16));
#endif
}
/* one float16, at any address */
INLINE float f16_value(const void *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f; /* moves the exponent's bias from 15 to 127, subnormals included */
    memcpy(&bits, &x, 4);
    bits |= ((h & 0x7fff) >= 0x7c00 ? 0x7f800000u : 0) | (uint32_t)(h & 0x8000) << 16;
    memcpy(&x, &bits, 4);
    return x;
}
INLINE uint16_t f32_to_f16(float x) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and more */
    if (magnitude < 0x38800000u) {                                  /* subnormal: the sum's low bits are the result */
        float y;
        memcpy(&y, &magnitude, 4);
        y += 0.5f;
        memcpy(&bits, &y, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    magnitude += 0xfffu + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}
INLINE uint16_t f32_to_bf16(float x) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 64); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
/* `type` is a constant wherever this is inlined */
INLINE v8f widen8(const void *p, long i, const long type) {
    if (type == F32) return load8((const float *)p + i);
    if (type == F16) return f16_to_f32((const uint16_t *)p + i);
    return (v8f)(__builtin_convertvector(*(const v8h_any *)((const uint16_t *)p + i), v8u) << 16);
}
INLINE void narrow(void *p, long i, float x, long type) {
    if (type == F32) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = type == F16 ? f32_to_f16(x) : f32_to_bf16(x);
}

/* exp(x), relative error below 3e-7 for x in [-87, 88]; smaller x give 0. Cody-Waite reduction, degree-5 polynomial. */
INLINE v8f exp8(v8f x) {
    v8i tiny = x < all8(-87.3f);
    x = select8(tiny, all8(-87.3f), x);
    x = select8(x > all8(88.3f), all8(88.3f), x);
    v8f scaled = x * 1.44269504f, magic = all8(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    v8f shifted = scaled + magic, n = shifted - magic;
    v8f r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    v8f p = all8(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    v8i power = ((v8i)shifted - (v8i)magic + 127) << 23;
    return (v8f)((v8i)(p * (v8f)power) & ~tiny);
}

/* log(x) for normal positive x, relative error below 2e-7 away from 1 and absolute 1e-7 near it. */
INLINE v8f log8(v8f x) {
    v8i bits = (v8i)x;
    v8i e = (bits - 0x3f3504f3) >> 23; /* x = m 2^e with m in [sqrt(1/2), sqrt(2)) */
    v8f m = (v8f)(bits - (e << 23)), n = __builtin_convertvector(e, v8f);
    v8f r = m - 1.0f, z = r * r;
    v8f p = all8(7.0376836292e-2f);
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    v8f tail = p * r * z - n * 2.12194440e-4f - z * 0.5f;
    return (r + tail) + n * 0.693359375f;
}

#endif
