/* y[t, n] = sx[t] sw[n] sum_k qx[t, k] qw[n, k] + b[n]: 8-bit weights, activations of 12 bits, exact integer sums.
 *
 * Activations are held as int16, so more than 8 bits of them cost nothing, and a token's few large ones leave the others
 * their digits; they are as large as sums in 32 bits allow. Weights are widened to int16, and vpmaddwd adds products in
 * pairs to int32. A result depends on its own token and output only, so it is the same in every batch.
 *
 * Few tokens: the weights stream past once, so memory sets the pace. Many: four weight rows are widened once into the
 * first-level cache and meet all tokens there. */
#include "common.h"

#define KPAD 16    /* activations are padded with zeros to whole vectors */
#define STREAM 4   /* up to so many tokens the weights are widened on the fly */
#define AHEAD 1024 /* bytes to prefetch before they are needed */
#define ALONE 4    /* up to so many tokens every thread quantises them for itself, which is quicker than to meet */
#define MBLOCK 48  /* tokens whose activations stay in the second-level cache */
#define NTASK 32   /* outputs of a task */

typedef int16_t v8s_any __attribute__((vector_size(16), aligned(2), may_alias));

INLINE long padded(long k) { return (k + KPAD - 1) / KPAD * KPAD; }

/* what the largest activation becomes: sums of k products of it and 127 fit 32 bits */
INLINE float largest_of(long k) { return (float)MIN(2047, INT32_MAX / 127 / MAX(1, k)); }

/* float [K] -> int16 [padded K], returns the scale: the largest magnitude becomes `limit`; NaN if one is not finite. */
INLINE float quantize_row(const float *x, long k, int16_t *q, float limit) {
    v8i top = {0}, second = {0}; /* magnitudes as integers: in the same order, and NaN above all */
    long i = 0;
    for (; i + 16 <= k; i += 16) {
        top = more8i((v8i)load8(x + i) & 0x7fffffff, top);
        second = more8i((v8i)load8(x + i + 8) & 0x7fffffff, second);
    }
    v8i both = more8i(top, second);
    int32_t bits = 0;
    UNROLL for (int j = 0; j < 8; j++) bits = MAX(bits, both[j]);
    for (; i < k; i++) {
        int32_t one;
        memcpy(&one, x + i, 4);
        bits = MAX(bits, one & 0x7fffffff);
    }
    if (bits >= 0x7f800000) { /* infinity or NaN: so is every result */
        memset(q, 0, (size_t)padded(k) * sizeof(int16_t));
        return NAN;
    }
    float largest;
    memcpy(&largest, &bits, 4);
    const float scale = largest / limit, inverse = 1.0f / MAX(scale, 1e-30f);
    v8f magic = all8(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the rounded number */
    for (i = 0; i + 8 <= k; i += 8) {
        v8i rounded = (v8i)(load8(x + i) * inverse + magic) - (v8i)magic;
        *(v8s_any *)(q + i) = __builtin_convertvector(rounded, v8s_any);
    }
    for (; i < k; i++) q[i] = (int16_t)((x[i] * inverse + 12582912.0f) - 12582912.0f);
    for (; i < padded(k); i++) q[i] = 0;
    return scale;
}

/* x [m, k], w [n, k], sw [n], bias [n] or null, y [m, n]; scratch: 2 m (k + 31) + 4 m + 64 bytes, shared by the team */
typedef struct {
    const float *x;
    const int8_t *w;
    const float *sw, *bias;
    float *y;
    void *scratch;
    int64_t m, k, n;
} int8_linear_arguments;

/* the quantised activations of one call */
typedef struct {
    const int16_t *q;
    const float *sx;
} activations;

INLINE void finish(const int8_linear_arguments *a, activations act, long t, long n, int32_t sum) {
    float y = (float)sum * act.sx[t] * a->sw[n];
    a->y[t * a->n + n] = a->bias ? y + a->bias[n] : y;
}

#ifdef __AVX2__
INLINE __m256i widen(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
INLINE __m256i load(const int16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE __m256i dot2(__m256i acc, __m256i a, __m256i b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }

/* the sums of four vectors, in order */
INLINE __m128i sums4(const __m256i v[4]) {
    __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

INLINE void finish4(const int8_linear_arguments *a, activations act, long t, long n, const __m256i acc[4]) {
    __m128 y = _mm_cvtepi32_ps(sums4(acc));
    y = _mm_mul_ps(_mm_mul_ps(y, _mm_set1_ps(act.sx[t])), _mm_loadu_ps(a->sw + n));
    if (a->bias) y = _mm_add_ps(y, _mm_loadu_ps(a->bias + n));
    _mm_storeu_ps(a->y + t * a->n + n, y);
}

/* `tokens` (1 to STREAM, a constant) by 4 outputs, straight from memory: one row after the other, as one stream */
INLINE void stream_tile(const int8_linear_arguments *a, activations act, long n, const int tokens) {
    const long k = a->k, kp = padded(k), whole = k / 64 * 64;
    __m256i sums[STREAM][4];
    for (int o = 0; o < 4; o++) {
        const int8_t *w = a->w + (n + o) * k;
        __m256i even[STREAM], odd[STREAM];
        for (int i = 0; i < tokens; i++) even[i] = odd[i] = _mm256_setzero_si256();
        for (long c = 0; c < whole; c += 64) {
            __builtin_prefetch(w + c + AHEAD);
            for (long s = c; s < c + 64; s += 32) {
                __m256i first = widen(w + s), second = widen(w + s + 16);
                for (int i = 0; i < tokens; i++) even[i] = dot2(even[i], load(act.q + i * kp + s), first);
                for (int i = 0; i < tokens; i++) odd[i] = dot2(odd[i], load(act.q + i * kp + s + 16), second);
            }
        }
        for (long c = whole; c < k; c += 16) {
            int8_t rest[16] = {0};
            memcpy(rest, w + c, (size_t)MIN(16, k - c));
            __m256i wide = widen(rest);
            for (int i = 0; i < tokens; i++) even[i] = dot2(even[i], load(act.q + i * kp + c), wide);
        }
        for (int i = 0; i < tokens; i++) sums[i][o] = _mm256_add_epi32(even[i], odd[i]);
    }
    for (int i = 0; i < tokens; i++) finish4(a, act, i, n, sums[i]);
}

/* int8 [4][k] -> int16 [4][padded k] */
INLINE void widen4(const int8_t *w, long k, int16_t *wide) {
    const long kp = padded(k);
    for (int o = 0; o < 4; o++) {
        long c = 0;
        for (; c + 16 <= k; c += 16) {
            if (c % 64 == 0) __builtin_prefetch(w + (o + 4) * k + c);
            _mm256_storeu_si256((__m256i *)(wide + o * kp + c), widen(w + o * k + c));
        }
        for (; c < k; c++) wide[o * kp + c] = w[o * k + c];
        for (; c < kp; c++) wide[o * kp + c] = 0;
    }
}

/* acc += pairs of a * b; one piece, for the compiler would do all products first, which are more than the registers */
#define DOT2(acc, b, a, where)                                                    \
    do {                                                                          \
        __m256i products;                                                         \
        __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(products) : where(a), "x"(b)); \
    } while (0)
typedef __m256i vector_any __attribute__((aligned(2), may_alias));

/* `tokens` (1 to 3, a constant) by 4 outputs, from widened weights: 12 sums, 2 activations, a weight and a product
 * fill the 16 registers */
INLINE void panel_tile(const int8_linear_arguments *a, activations act, const int16_t *w, long t, long n,
                       const int tokens) {
    const long kp = padded(a->k);
    __m256i acc[3][4];
    for (int i = 0; i < tokens; i++)
        for (int o = 0; o < 4; o++) acc[i][o] = _mm256_setzero_si256();
    const int16_t *q = act.q + t * kp;
    for (long c = 0; c < kp; c += 16) {
        const __m256i a0 = load(q + c), a1 = tokens > 1 ? load(q + kp + c) : a0;
        for (int o = 0; o < 4; o++) {
            const __m256i weights = load(w + o * kp + c);
            DOT2(acc[0][o], weights, a0, "x");
            if (tokens > 1) DOT2(acc[1][o], weights, a1, "x");
            if (tokens > 2) DOT2(acc[2][o], weights, *(const vector_any *)(q + 2 * kp + c), "m");
        }
    }
    for (int i = 0; i < tokens; i++) finish4(a, act, t + i, n, acc[i]);
}

static void panel(const int8_linear_arguments *a, activations act, const int16_t *w, long t0, long t1, long n) {
    long t = t0;
    for (; t + 3 <= t1; t += 3) panel_tile(a, act, w, t, n, 3);
    if (t1 - t == 2) panel_tile(a, act, w, t, n, 2);
    if (t1 - t == 1) panel_tile(a, act, w, t, n, 1);
}

static void stream(const int8_linear_arguments *a, activations act, long n0, long n1) {
    for (long n = n0; n < n1; n += 4) {
        if (a->m == 1) stream_tile(a, act, n, 1);
        if (a->m == 2) stream_tile(a, act, n, 2);
        if (a->m == 3) stream_tile(a, act, n, 3);
        if (a->m == 4) stream_tile(a, act, n, 4);
    }
}

/* tokens t0 to t1, outputs n0 to n1 */
static void block(const int8_linear_arguments *a, activations act, long t0, long t1, long n0, long n1) {
    const long k = a->k, fours = n0 + (n1 - n0) / 4 * 4;
    if (a->m <= STREAM) {
        stream(a, act, n0, fours);
    } else {
        int16_t *wide = octavo_scratch((size_t)padded(k) * 4 * sizeof(int16_t));
        for (long n = n0; n < fours; n += 4) {
            widen4(a->w + n * k, k, wide);
            panel(a, act, wide, t0, t1, n);
        }
    }
    n0 = fours;
#else
static void block(const int8_linear_arguments *a, activations act, long t0, long t1, long n0, long n1) {
    const long k = a->k;
#endif
    for (long n = n0; n < n1; n++)
        for (long t = t0; t < t1; t++) {
            const int16_t *q = act.q + t * padded(k);
            const int8_t *w = a->w + n * k;
            int32_t sum = 0;
            for (long c = 0; c < k; c++) sum += q[c] * w[c];
            finish(a, act, t, n, sum);
        }
}

/* [m, padded k] int16, then [m] float */
INLINE size_t scales_at(long m, long k) { return ((size_t)(m * padded(k)) * sizeof(int16_t) + 63) & ~(size_t)63; }

EXPORT void OP(int8_linear)(const int8_linear_arguments *a, team *t) {
    int16_t own_q[ALONE * 4096] __attribute__((aligned(64)));
    float own_scales[ALONE];
    activations act;
    if (a->m <= ALONE && padded(a->k) <= 4096) {
        for (long row = 0; row < a->m; row++)
            own_scales[row] = quantize_row(a->x + row * a->k, a->k, own_q + row * padded(a->k), largest_of(a->k));
        act = (activations){own_q, own_scales};
    } else {
        int16_t *q = a->scratch;
        float *scales = (float *)((char *)a->scratch + scales_at(a->m, a->k));
        for (long row = share(a->m, t->index, t->count); row < share(a->m, t->index + 1, t->count); row++)
            scales[row] = quantize_row(a->x + row * a->k, a->k, q + row * padded(a->k), largest_of(a->k));
        act = (activations){q, scales};
        barrier(t);
    }
    const long tasks = (a->n + NTASK - 1) / NTASK;
    if (a->m <= STREAM) { /* contiguous shares: each thread reads one run of memory */
        block(a, act, 0, a->m, share(tasks, t->index, t->count) * NTASK,
              MIN(a->n, share(tasks, t->index + 1, t->count) * NTASK));
        return;
    }
    for (long token = 0; token < a->m; token += MBLOCK)
        block(a, act, token, MIN(a->m, token + MBLOCK), share(tasks, t->index, t->count) * NTASK,
              MIN(a->n, share(tasks, t->index + 1, t->count) * NTASK));
}

/* float x [n, k] -> int8 w [n, k] and scale [n], as `quantize_rows` does */
typedef struct {
    const float *x;
    int8_t *w;
    float *scale;
    int64_t n, k;
} quantize_weight_arguments;

EXPORT void OP(quantize_weight)(const quantize_weight_arguments *a, team *t) {
    int16_t *q = octavo_scratch((size_t)padded(a->k) * sizeof(int16_t));
    for (long n = share(a->n, t->index, t->count); n < share(a->n, t->index + 1, t->count); n++) {
        a->scale[n] = quantize_row(a->x + n * a->k, a->k, q, 127.0f);
        for (long i = 0; i < a->k; i++) a->w[n * a->k + i] = (int8_t)q[i];
    }
}
