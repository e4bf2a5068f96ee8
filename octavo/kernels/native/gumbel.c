/* argmax of logits / temperature + Gumbel noise over the tokens that a mask allows, with the noise of
 * octavo.kernels.sampling.philox; or of the logits alone. Blocks of which the mask allows none cost nothing.
 *
 * A first pass in float32 finds the best score of each block of tokens; the blocks that come within its error of the
 * best one are scored again in double precision, so that the choice is that of exact arithmetic. */
#include "common.h"

#define BLOCK 32 /* tokens: eight Philox counters of four words, and one word of the mask */

INLINE void mul_wide(v8u a, uint32_t b, v8u *high, v8u *low) {
#ifdef __AVX2__
    __m256i x = (__m256i)a, y = _mm256_set1_epi32((int)b);
    __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
    *high = (v8u)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *low = (v8u)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#else
    for (int i = 0; i < 8; i++) {
        uint64_t product = (uint64_t)a[i] * b;
        (*high)[i] = (uint32_t)(product >> 32);
        (*low)[i] = (uint32_t)product;
    }
#endif
}

/* Ten rounds of Philox-4x32 on the counters (first + 0..7, position, 0, 0): words[lane] of each. */
INLINE void philox8(uint32_t first, uint32_t position, uint64_t seed, v8u words[4]) {
    v8u c0 = first + (v8u){0, 1, 2, 3, 4, 5, 6, 7}, c1 = position + (v8u){0}, c2 = {0}, c3 = {0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        v8u high0, low0, high1, low1;
        mul_wide(c0, 0xD2511F53u, &high0, &low0);
        mul_wide(c2, 0xCD9E8D57u, &high1, &low1);
        c0 = high1 ^ c1 ^ k0;
        c2 = high0 ^ c3 ^ k1;
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

INLINE v8f to_float(v8u x) { /* nearest float of 32 bits, as two exact halves */
    return __builtin_convertvector((v8i)(x >> 16), v8f) * 65536.0f + __builtin_convertvector((v8i)(x & 0xffff), v8f);
}

/* -log(-log(u)), u = (word + 1/2) / 2^32, within 3e-6. Near u = 1 log(u) comes from 1 - u, which is exact there. */
INLINE v8f gumbel8(v8u word) {
    v8f u = (to_float(word) + 0.5f) * 0x1p-32f, rest = (to_float(~word) + 0.5f) * 0x1p-32f;
    v8i upper = u > all8(0.5f);
    v8f y = select8(upper, 1.0f - rest, u);
    v8f correction = select8(upper, ((y - 1.0f) + rest) / y, all8(0));
    return -log8(correction - log8(y));
}

/* logits [n]; mask [ceil(n / 32)], bit i of word w allows the token 32 w + i, or NULL; best [ceil(n / 32)] is scratch;
 * out: the token, 0 if none is allowed */
typedef struct {
    const float *logits;
    const uint32_t *mask;
    float *best;
    int64_t *out;
    int64_t n, seed, position, noisy;
    double inverse_temperature;
} gumbel_argmax_arguments;

/* Whether a token of eight may have a score of more than `so_far`. Its noise -log(-log(u)) is at most -log(1 - u), and a
 * float's bits, read as a number, are its base-2 logarithm to within 0.09 below: so no logarithm has to be computed. */
INLINE v8i may_beat8(v8f score, v8u word, float so_far) {
    v8f rest = (to_float(~word) + 0.5f) * 0x1p-32f;
    v8f log2_rest = __builtin_convertvector((v8i)rest, v8f) * 0x1p-23f - 127.0f;
    float margin = 0.02f + 4e-6f * fabsf(so_far); /* of the arithmetic here, and of the borderline cases below */
    return ~(v8i)(log2_rest >= (score - (so_far - margin)) * 1.44269504f);
}

INLINE int any8(v8i mask) {
#ifdef __AVX2__
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    int32_t any = 0;
    for (int i = 0; i < 8; i++) any |= mask[i];
    return any != 0;
#endif
}

/* The block's best score, or -inf if all are known to be below `so_far`. To lanes: token 4 i + lane at [lane][i]. */
INLINE float block_best(const gumbel_argmax_arguments *a, long b, float so_far) {
    const long first = b * BLOCK;
    const uint32_t allowed = a->mask ? a->mask[b] : ~0u;
    if (!allowed) return -INFINITY;
    float logits[BLOCK], by_lane[4][8];
    const float *from = a->logits + first;
    if (allowed != ~0u || a->n - first < BLOCK) {
        for (long i = 0; i < BLOCK; i++)
            logits[i] = first + i < a->n && (allowed >> i & 1) ? from[i] : -INFINITY;
        from = logits;
    }
    if (!a->noisy) {
        v8f best = load8(from);
        for (int i = 8; i < BLOCK; i += 8) best = more8(load8(from + i), best);
        return max8(best);
    }
    for (int i = 0; i < 8; i++)
        for (int lane = 0; lane < 4; lane++) by_lane[lane][i] = from[4 * i + lane];
    v8u words[4];
    philox8((uint32_t)(first / 4), (uint32_t)a->position, (uint64_t)a->seed, words);
    v8f scores[4];
    v8i may = {0};
    for (int lane = 0; lane < 4; lane++) {
        scores[lane] = load8(by_lane[lane]) * (float)a->inverse_temperature;
        may |= may_beat8(scores[lane], words[lane], so_far);
    }
    if (!any8(may)) return -INFINITY;
    v8f best = all8(-INFINITY);
    for (int lane = 0; lane < 4; lane++) best = more8(scores[lane] + gumbel8(words[lane]), best);
    return max8(best);
}

/* the block's best token in double precision, if it is better than *score */
static void block_exact(const gumbel_argmax_arguments *a, long b, double *score, int64_t *token) {
    const long first = b * BLOCK;
    const uint32_t allowed = a->mask ? a->mask[b] : ~0u;
    v8u words[4];
    if (a->noisy) philox8((uint32_t)(first / 4), (uint32_t)a->position, (uint64_t)a->seed, words);
    for (long i = 0; i < MIN(BLOCK, a->n - first); i++) {
        if (!(allowed >> i & 1)) continue;
        double mine = a->logits[first + i];
        if (a->noisy) {
            double u = ((double)words[i & 3][i >> 2] + 0.5) * 0x1p-32;
            mine = mine * a->inverse_temperature - log(-log(u));
        }
        if (mine > *score) *score = mine, *token = first + i;
    }
}

EXPORT void OP(gumbel_argmax)(const gumbel_argmax_arguments *a, team *t) {
    const long blocks = (a->n + BLOCK - 1) / BLOCK;
    float so_far = -INFINITY;
    for (long b = share(blocks, t->index, t->count); b < share(blocks, t->index + 1, t->count); b++)
        a->best[b] = block_best(a, b, so_far), so_far = MAX(so_far, a->best[b]);
    barrier(t);
    if (t->index) return;
    float best = -INFINITY;
    for (long b = 0; b < blocks; b++) best = MAX(best, a->best[b]);
    const float border = best - (1e-5f + 1e-6f * fabsf(best));
    double score = -INFINITY;
    *a->out = 0;
    for (long b = 0; b < blocks; b++)
        if (a->best[b] >= border) block_exact(a, b, &score, a->out);
}
