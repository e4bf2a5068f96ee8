/* y[t, n] = sum_b sx[t, b] (d[n, b] sum_k qx[t, k] qw[n, k] + low[n, b] sum_k qx[t, k]) + bias[n]: weights of 4 bits in
 * blocks b of 32 along k, each with a float16 step d and a least value `low`; activations of 8 bits with a scale for
 * each block, so that a token's few large values cost the others nothing.
 *
 * Weights lie in panels of 8 outputs, a lane for each. A block of a panel is 160 bytes: 4 vectors of nibbles, 8 steps,
 * 8 least values. Lane n of vector v has in its low halves the weights of k = 8 v to 8 v + 3, in its high halves the
 * next four. vpmaddubsw adds products in pairs to int16, where the eight pairs of a block have room: 8 * 2 * 15 * 127.
 * A result depends on its own token and output only, in a fixed order, so it is the same in every batch. */
#include "common.h"

#define BLOCK 32
#define PANEL 8
#define BYTES 160  /* of a block of a panel */
#define LOWS 144   /* where its least values are; the steps are 16 bytes before */
#define AHEAD 2560 /* bytes to prefetch before they are needed */
#define STREAM 2   /* up to so many tokens the nibbles are taken apart on the fly */
#define TILE 4     /* tokens that meet a vector of weights at once */
#define ALONE 4    /* up to so many tokens every thread quantises them for itself, which is quicker than to meet */
#define MBLOCK 64  /* tokens whose activations stay in the second-level cache */
#define OWN_K 4096

/* x [m, k], w [panels, k / 32, 160], bias [n] or null, y [m, n]; scratch: m (k + k / 4) + 128 bytes, of the team */
typedef struct {
    const float *x;
    const uint8_t *w;
    const float *bias;
    float *y;
    void *scratch;
    int64_t m, k, n;
} int4_linear_arguments;

/* quantised activations [m, k]; for each block its scale and its sum times that, [m, k / 32][2] */
typedef struct {
    const int8_t *q;
    const float *scales;
} activations;

/* float [k] → int8 [k]; the largest magnitude of a block becomes 127 */
INLINE void quantize_row(const float *x, long k, int8_t *q, float *scales) {
    v8f magic = all8(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the rounded number */
    for (long b = 0; b < k / BLOCK; b++, x += BLOCK, q += BLOCK) {
        v8f v[4], top = all8(0), sum = all8(0);
        UNROLL for (int i = 0; i < 4; i++) {
            v[i] = load8(x + 8 * i);
            top = more8((v8f)((v8i)v[i] & 0x7fffffff), top);
        }
        float scale = max8(top) / 127.0f, inverse = 1.0f / MAX(scale, 1e-30f);
        UNROLL for (int i = 0; i < 4; i++) {
            v8f shifted = v[i] * inverse + magic;
            *(v8b_any *)(q + 8 * i) = __builtin_convertvector((v8i)shifted - (v8i)magic, v8b_any);
            sum += shifted - magic;
        }
        scales[2 * b] = scale;
        scales[2 * b + 1] = sum8(sum) * scale;
    }
}

INLINE void finish(const int4_linear_arguments *a, long t, long n, const float *sums, long count) {
    for (long o = 0; o < count; o++) a->y[t * a->n + n + o] = a->bias ? sums[o] + a->bias[n + o] : sums[o];
}

#ifdef __AVX2__
/* sum += pairs of w * the four bytes at q; one piece, for the compiler would do all products first, which are more than
 * the registers */
#define DOT4(sum, w, q)                                                                       \
    do {                                                                                      \
        __m256i products;                                                                     \
        __asm__("vpbroadcastd %2, %1\n\tvpmaddubsw %1, %3, %1\n\tvpaddw %1, %0, %0"           \
                : "+x"(sum), "=&x"(products)                                                  \
                : "m"(*(const int32_any *)(q)), "x"(w));                                      \
    } while (0)
typedef int32_t int32_any __attribute__((aligned(1), may_alias));

INLINE __m256 halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p)); }

INLINE void store(const int4_linear_arguments *a, long t, long n, __m256 sum) {
    if (a->n - n < PANEL) {
        float sums[PANEL];
        _mm256_storeu_ps(sums, sum);
        finish(a, t, n, sums, a->n - n);
        return;
    }
    if (a->bias) sum = _mm256_add_ps(sum, _mm256_loadu_ps(a->bias + n));
    _mm256_storeu_ps(a->y + t * a->n + n, sum);
}

/* total += step * scale * products + low * scale * (the activations' sum), for one token's block */
INLINE __m256 add_block(__m256 total, __m256i products, __m256 step, __m256 low, const float *scales) {
    __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    total = _mm256_fmadd_ps(_mm256_mul_ps(whole, _mm256_broadcast_ss(scales)), step, total);
    return _mm256_fmadd_ps(low, _mm256_broadcast_ss(scales + 1), total);
}

#define EACH_TOKEN UNROLL for (int i = 0; i < tokens; i++)

/* `tokens` (1 to STREAM, a constant) by a panel, straight from memory */
INLINE void stream_tile(const int4_linear_arguments *a, activations act, const uint8_t *w, long n, const int tokens) {
    const long k = a->k, blocks = k / BLOCK;
    const __m256i low_halves = _mm256_set1_epi8(15);
    __m256 total[STREAM];
    EACH_TOKEN total[i] = _mm256_setzero_ps();
    for (long b = 0; b < blocks; b++, w += BYTES) {
        __builtin_prefetch(w + AHEAD), __builtin_prefetch(w + AHEAD + 64), __builtin_prefetch(w + AHEAD + 128);
        __m256i sum[STREAM];
        EACH_TOKEN sum[i] = _mm256_setzero_si256();
        const int8_t *q = act.q + b * BLOCK;
        UNROLL for (int v = 0; v < 4; v++) {
            __m256i both = _mm256_load_si256((const __m256i *)(w + 32 * v));
            __m256i first = _mm256_and_si256(both, low_halves);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_halves);
            EACH_TOKEN {
                DOT4(sum[i], first, q + i * k + 8 * v);
                DOT4(sum[i], second, q + i * k + 8 * v + 4);
            }
        }
        const __m256 step = halves(w + LOWS - 16), low = halves(w + LOWS);
        EACH_TOKEN total[i] = add_block(total[i], sum[i], step, low, act.scales + 2 * (i * blocks + b));
    }
    EACH_TOKEN store(a, i, n, total[i]);
}

/* a panel's nibbles as bytes, [k / 4][8][4], and its steps and least values as floats, [k / 32][2][8] */
INLINE void widen(const uint8_t *w, long blocks, uint8_t *wide, float *steps) {
    const __m256i low_halves = _mm256_set1_epi8(15);
    for (long b = 0; b < blocks; b++, w += BYTES, wide += 256, steps += 16) {
        __builtin_prefetch(w + AHEAD), __builtin_prefetch(w + AHEAD + 64), __builtin_prefetch(w + AHEAD + 128);
        for (int v = 0; v < 4; v++) {
            __m256i both = _mm256_load_si256((const __m256i *)(w + 32 * v));
            __m256i second = _mm256_srli_epi16(both, 4);
            _mm256_store_si256((__m256i *)(wide + 64 * v), _mm256_and_si256(both, low_halves));
            _mm256_store_si256((__m256i *)(wide + 64 * v + 32), _mm256_and_si256(second, low_halves));
        }
        _mm256_store_ps(steps, halves(w + LOWS - 16));
        _mm256_store_ps(steps + 8, halves(w + LOWS));
    }
}

/* `tokens` (1 to TILE, a constant) from t on by a panel, from widened weights */
INLINE void panel_tile(const int4_linear_arguments *a, activations act, const uint8_t *wide, const float *steps, long t,
                       long n, const int tokens) {
    const long k = a->k, blocks = k / BLOCK;
    const int8_t *q = act.q + t * k;
    const float *scales = act.scales + 2 * t * blocks;
    __m256 total[TILE];
    EACH_TOKEN total[i] = _mm256_setzero_ps();
    for (long b = 0; b < blocks; b++, wide += 256, q += BLOCK) {
        __m256i sum[TILE];
        EACH_TOKEN sum[i] = _mm256_setzero_si256();
        UNROLL for (int g = 0; g < 8; g++) {
            const __m256i weights = _mm256_load_si256((const __m256i *)(wide + 32 * g));
            EACH_TOKEN DOT4(sum[i], weights, q + i * k + 4 * g);
        }
        const __m256 step = _mm256_load_ps(steps + 16 * b), low = _mm256_load_ps(steps + 16 * b + 8);
        EACH_TOKEN total[i] = add_block(total[i], sum[i], step, low, scales + 2 * (i * blocks + b));
    }
    EACH_TOKEN store(a, t + i, n, total[i]);
}

/* tokens t0 to t1, outputs n to n + 7 */
INLINE void panel(const int4_linear_arguments *a, activations act, const uint8_t *w, long t0, long t1, long n) {
    if (a->m == 1) return stream_tile(a, act, w, n, 1);
    if (a->m == 2) return stream_tile(a, act, w, n, 2);
    const long blocks = a->k / BLOCK;
    float *steps = octavo_scratch((size_t)blocks * (16 * sizeof(float) + 256));
    uint8_t *wide = (uint8_t *)(steps + 16 * blocks);
    widen(w, blocks, wide, steps);
    long t = t0;
    for (; t + TILE <= t1; t += TILE) panel_tile(a, act, wide, steps, t, n, TILE);
    if (t1 - t == 3) panel_tile(a, act, wide, steps, t, n, 3);
    if (t1 - t == 2) panel_tile(a, act, wide, steps, t, n, 2);
    if (t1 - t == 1) panel_tile(a, act, wide, steps, t, n, 1);
}
#else
static void panel(const int4_linear_arguments *a, activations act, const uint8_t *w, long t0, long t1, long n) {
    for (long t = t0; t < t1; t++) {
        float total[PANEL] = {0};
        for (long b = 0; b < a->k / BLOCK; b++)
            for (long o = 0; o < PANEL; o++) {
                const uint8_t *block = w + b * BYTES;
                int32_t sum = 0;
                for (long i = 0; i < BLOCK; i++) {
                    uint8_t both = block[i / 8 * 32 + o * 4 + i % 4];
                    sum += act.q[t * a->k + b * BLOCK + i] * (i / 4 % 2 ? both >> 4 : both & 15);
                }
                const float *scales = act.scales + 2 * (t * (a->k / BLOCK) + b);
                total[o] += (float)sum * scales[0] * f16_value(block + LOWS - 16 + 2 * o);
                total[o] += f16_value(block + LOWS + 2 * o) * scales[1];
            }
        finish(a, t, n, total, MIN(PANEL, a->n - n));
    }
}
#endif

/* [m, k] int8, then the blocks' scales and sums */
INLINE long scales_at(long m, long k) { return (m * k + 63) & ~63L; }

EXPORT void OP(int4_linear)(const int4_linear_arguments *a, team *t) {
    int8_t own_q[ALONE * OWN_K] __attribute__((aligned(64)));
    float own_scales[2 * ALONE * OWN_K / BLOCK];
    const int alone = a->m <= ALONE && a->k <= OWN_K;
    int8_t *q = alone ? own_q : a->scratch;
    float *scales = alone ? own_scales : (float *)((char *)a->scratch + scales_at(a->m, a->k));
    const long first = alone ? 0 : share(a->m, t->index, t->count);
    const long end = alone ? a->m : share(a->m, t->index + 1, t->count);
    for (long row = first; row < end; row++)
        quantize_row(a->x + row * a->k, a->k, q + row * a->k, scales + 2 * row * (a->k / BLOCK));
    if (!alone) barrier(t);
    const activations act = {q, scales};
    const long panels = (a->n + PANEL - 1) / PANEL, bytes = a->k / BLOCK * BYTES;
    for (long token = 0; token < a->m; token += MBLOCK)
        for (long p = share(panels, t->index, t->count); p < share(panels, t->index + 1, t->count); p++)
            panel(a, act, a->w + p * bytes, token, MIN(a->m, token + MBLOCK), p * PANEL);
}

/* y [m, k] = the rows ids [m] of such a matrix */
typedef struct {
    const uint8_t *w;
    const int64_t *ids;
    float *y;
    int64_t m, k;
} int4_rows_arguments;

EXPORT void OP(int4_rows)(const int4_rows_arguments *a, team *t) {
    const long blocks = a->k / BLOCK;
    for (long row = share(a->m, t->index, t->count); row < share(a->m, t->index + 1, t->count); row++) {
        const long o = a->ids[row] % PANEL;
        const uint8_t *block = a->w + a->ids[row] / PANEL * blocks * BYTES;
        for (long b = 0; b < blocks; b++, block += BYTES) {
            const float step = f16_value(block + LOWS - 16 + 2 * o), low = f16_value(block + LOWS + 2 * o);
            for (long i = 0; i < BLOCK; i++) {
                uint8_t both = block[i / 8 * 32 + o * 4 + i % 4];
                a->y[row * a->k + b * BLOCK + i] = step * (float)(i / 4 % 2 ? both >> 4 : both & 15) + low;
            }
        }
    }
}
