/* y[t, n] = sx[t] sw[n] sum_k qx[t, k] qw[n, k] + b[n]: 8-bit weights and activations, exact integer sums.
 *
 * Activations are quantised to 8 bits and held as int16; weights are widened to int16 in registers, and vpmaddwd adds
 * products in pairs to int32. A result depends on its own token and output only, so it is the same in every batch. */
#include "common.h"

#define KPAD 16          /* activations are padded with zeros to whole vectors */
#define MBLOCK 48        /* tokens whose activations stay in the second-level cache */

INLINE long padded(long k) { return (k + KPAD - 1) / KPAD * KPAD; }

/* float [K] -> int16 [padded K], returns the scale: the largest magnitude becomes 127. */
INLINE float quantize_row(const float *x, long k, int16_t *q) {
    v8f top = all8(0);
    long i = 0;
    for (; i + 8 <= k; i += 8) {
        v8f v = (v8f)((v8i)load8(x + i) & 0x7fffffff);
        v8i more = v > top;
        top = (v8f)(((v8i)v & more) | ((v8i)top & ~more));
    }
    float largest = max8(top);
    for (; i < k; i++) largest = MAX(largest, fabsf(x[i]));
    float scale = largest / 127.0f, inverse = 1.0f / MAX(scale, 1e-30f);
    v8f magic = all8(12582912.0f);
    for (i = 0; i + 8 <= k; i += 8) {
        v8f rounded = (load8(x + i) * inverse + magic) - magic;
        typedef int16_t v8s __attribute__((vector_size(16), aligned(2), may_alias));
        *(v8s *)(q + i) = __builtin_convertvector(__builtin_convertvector(rounded, v8i), v8s);
    }
    for (; i < k; i++) q[i] = (int16_t)((x[i] * inverse + 12582912.0f) - 12582912.0f);
    for (; i < padded(k); i++) q[i] = 0;
    return scale;
}

typedef struct {
    const float *x, *sw, *bias;
    const int8_t *w;
    float *y, *sx;
    int16_t *q;
    long m, k, n;
} job;

INLINE void finish(const job *j, long t, long n, int32_t sum) {
    float y = (float)sum * j->sx[t] * j->sw[n];
    j->y[t * j->n + n] = j->bias ? y + j->bias[n] : y;
}

#ifdef __AVX2__
INLINE __m256i widen(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

/* the sums of four vectors, in order */
INLINE __m128i sums4(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

/* `tokens` (1 to 3, a constant) by 4 outputs; the last k % 16 weights of a row are read through a zeroed copy */
INLINE void tile(const job *j, long t, long n, const int tokens) {
    const long k = j->k, kp = padded(k), whole = k / KPAD * KPAD;
    __m256i acc[3][4];
    for (int i = 0; i < tokens; i++)
        for (int o = 0; o < 4; o++) acc[i][o] = _mm256_setzero_si256();
    const int8_t *w[4];
    for (int o = 0; o < 4; o++) w[o] = j->w + (n + o) * k;
    const int16_t *q = j->q + t * kp;
    for (long c = 0; c < whole; c += KPAD) {
        __m256i a[3];
        for (int i = 0; i < tokens; i++) a[i] = _mm256_loadu_si256((const __m256i *)(q + i * kp + c));
        for (int o = 0; o < 4; o++) {
            __m256i wide = widen(w[o] + c);
            for (int i = 0; i < tokens; i++) acc[i][o] = _mm256_add_epi32(acc[i][o], _mm256_madd_epi16(a[i], wide));
        }
    }
    if (whole < k)
        for (int o = 0; o < 4; o++) {
            int8_t rest[KPAD] = {0};
            memcpy(rest, w[o] + whole, (size_t)(k - whole));
            __m256i wide = widen(rest);
            for (int i = 0; i < tokens; i++) {
                __m256i a = _mm256_loadu_si256((const __m256i *)(q + i * kp + whole));
                acc[i][o] = _mm256_add_epi32(acc[i][o], _mm256_madd_epi16(a, wide));
            }
        }
    __m128 scales = _mm_loadu_ps(j->sw + n);
    for (int i = 0; i < tokens; i++) {
        __m128 y = _mm_cvtepi32_ps(sums4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
        y = _mm_mul_ps(_mm_mul_ps(y, _mm_set1_ps(j->sx[t + i])), scales);
        if (j->bias) y = _mm_add_ps(y, _mm_loadu_ps(j->bias + n));
        _mm_storeu_ps(j->y + (t + i) * j->n + n, y);
    }
}

INLINE int32_t dot(const int16_t *q, const int8_t *w, long k) {
    __m256i acc = _mm256_setzero_si256();
    long c = 0;
    for (; c + KPAD <= k; c += KPAD)
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)(q + c)), widen(w + c)));
    int32_t lanes[8], sum = 0;
    _mm256_storeu_si256((__m256i *)lanes, acc);
    for (int i = 0; i < 8; i++) sum += lanes[i];
    for (; c < k; c++) sum += q[c] * w[c];
    return sum;
}

static void block(const job *j, long t0, long t1, long n0, long n1) {
    long n = n0;
    for (; n + 4 <= n1; n += 4) {
        long t = t0;
        for (; t + 3 <= t1; t += 3) tile(j, t, n, 3);
        if (t1 - t == 2) tile(j, t, n, 2);
        if (t1 - t == 1) tile(j, t, n, 1);
    }
    for (; n < n1; n++)
        for (long t = t0; t < t1; t++) finish(j, t, n, dot(j->q + t * padded(j->k), j->w + n * j->k, j->k));
}
#else
static void block(const job *j, long t0, long t1, long n0, long n1) {
    for (long n = n0; n < n1; n++)
        for (long t = t0; t < t1; t++) {
            const int16_t *q = j->q + t * padded(j->k);
            const int8_t *w = j->w + n * j->k;
            int32_t sum = 0;
            for (long c = 0; c < j->k; c++) sum += q[c] * w[c];
            finish(j, t, n, sum);
        }
}
#endif

static void quantize_share(void *data, int thread, int threads) {
    const job *j = data;
    for (long t = j->m * thread / threads; t < j->m * (thread + 1) / threads; t++)
        j->sx[t] = quantize_row(j->x + t * j->k, j->k, j->q + t * padded(j->k));
}

static void multiply_share(void *data, int thread, int threads) {
    const job *j = data;
    long quads = (j->n + 3) / 4;
    long n0 = MIN(j->n, quads * thread / threads * 4), n1 = MIN(j->n, quads * (thread + 1) / threads * 4);
    for (long t = 0; t < j->m; t += MBLOCK) block(j, t, MIN(j->m, t + MBLOCK), n0, n1);
}

/* x [m, k], w [n, k], sw [n], bias [n] or null -> y [m, n] */
EXPORT void OP(int8_linear)(const float *x, const int8_t *w, const float *sw, const float *bias, float *y, long m,
                            long k, long n) {
    size_t activations = ((size_t)(m * padded(k)) * 2 + 63) & ~(size_t)63;
    int16_t *q = octavo_scratch(activations + (size_t)m * 4);
    job j = {x, sw, bias, w, y, (float *)((char *)q + activations), q, m, k, n};
    run_region(quantize_share, &j, m * k >= 1 << 16 ? octavo_threads : 1);
    run_region(multiply_share, &j, m * k * n >= 1 << 16 ? octavo_threads : 1);
}

/* float [n, k] -> int8 [n, k] and scale [n], as `quantize_rows` does */
typedef struct { const float *x; int8_t *w; float *scale; long n, k; } pack_job;
static void pack_share(void *data, int thread, int threads) {
    const pack_job *j = data;
    for (long n = j->n * thread / threads; n < j->n * (thread + 1) / threads; n++) {
        const float *x = j->x + n * j->k;
        float largest = 0;
        for (long i = 0; i < j->k; i++) largest = MAX(largest, fabsf(x[i]));
        float scale = largest / 127.0f, inverse = 1.0f / MAX(scale, 1e-30f);
        for (long i = 0; i < j->k; i++) j->w[n * j->k + i] = (int8_t)((x[i] * inverse + 12582912.0f) - 12582912.0f);
        j->scale[n] = scale;
    }
}
EXPORT void OP(quantize_weight)(const float *x, int8_t *w, float *scale, long n, long k) {
    pack_job j = {x, w, scale, n, k};
    run_region(pack_share, &j, octavo_threads);
}
