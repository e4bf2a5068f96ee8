/* Normalization, gate, rotation and lookup: work that goes row by row. */
#include "common.h"

/* y = (x + residual) / rms * weight, and residual = x + residual; residual may be null. [t, h] each, weight [h]. */
typedef struct {
    const float *x;
    float *residual;
    const float *weight;
    float *y;
    int64_t t, h;
    double eps;
} rms_norm_arguments;

EXPORT void OP(rms_norm)(const rms_norm_arguments *a, team *t) {
    const long h = a->h, whole = h & ~7L;
    for (long row = share(a->t, t->index, t->count); row < share(a->t, t->index + 1, t->count); row++) {
        const float *x = a->x + row * h;
        float *y = a->y + row * h, *r = a->residual ? a->residual + row * h : 0;
        v8f squares = all8(0);
        float rest = 0;
        for (long i = 0; i < whole; i += 8) {
            v8f v = load8(x + i);
            if (r) store8(r + i, v = v + load8(r + i));
            squares += v * v;
        }
        for (long i = whole; i < h; i++) {
            float v = r ? (r[i] += x[i]) : x[i];
            rest += v * v;
        }
        float inverse = 1.0f / sqrtf((sum8(squares) + rest) / (float)h + (float)a->eps);
        const float *from = r ? r : x;
        for (long i = 0; i < whole; i += 8) store8(y + i, load8(from + i) * inverse * load8(a->weight + i));
        for (long i = whole; i < h; i++) y[i] = from[i] * inverse * a->weight[i];
    }
}

/* x [t, 2 n] -> y [t, n] = silu(first half) * second half */
typedef struct {
    const float *x;
    float *y;
    int64_t t, n;
} silu_and_mul_arguments;

INLINE v8f silu8(v8f x) { return x / (1.0f + exp8(-x)); }

EXPORT void OP(silu_and_mul)(const silu_and_mul_arguments *a, team *t) {
    const long n = a->n, whole = n & ~7L;
    for (long row = share(a->t, t->index, t->count); row < share(a->t, t->index + 1, t->count); row++) {
        const float *gate = a->x + row * 2 * n, *up = gate + n;
        float *y = a->y + row * n;
        for (long i = 0; i < whole; i += 8) store8(y + i, silu8(load8(gate + i)) * load8(up + i));
        for (long i = whole; i < n; i++) y[i] = silu8(all8(gate[i]))[0] * up[i];
    }
}

/* See octavo.kernels.rope_and_cache. Caches [pages, kv_heads, page_size, head_dim]; q [t, heads, head_dim]. */
typedef struct {
    const float *qkv, *cos_sin;
    const int32_t *positions;
    const int64_t *slots;
    void *k_cache, *v_cache;
    float *q;
    int64_t t, heads, kv_heads, head_dim, page_size, type;
} rope_and_cache_arguments;

INLINE void rotate(const float *x, const float *cos, float *y, long half) {
    const float *sin = cos + half;
    long i = 0;
    for (; i + 8 <= half; i += 8) {
        v8f a = load8(x + i), b = load8(x + half + i), c = load8(cos + i), s = load8(sin + i);
        store8(y + i, a * c - b * s);
        store8(y + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        float a = x[i], b = x[half + i];
        y[i] = a * cos[i] - b * sin[i];
        y[half + i] = b * cos[i] + a * sin[i];
    }
}

EXPORT void OP(rope_and_cache)(const rope_and_cache_arguments *a, team *t) {
    const long d = a->head_dim, page = a->page_size * d, heads = a->heads, kv_heads = a->kv_heads;
    float *turned = octavo_scratch((size_t)d * sizeof(float));
    for (long row = share(a->t, t->index, t->count); row < share(a->t, t->index + 1, t->count); row++) {
        const float *x = a->qkv + row * (heads + 2 * kv_heads) * d, *cos = a->cos_sin + (long)a->positions[row] * d;
        for (long h = 0; h < heads; h++) rotate(x + h * d, cos, a->q + (row * heads + h) * d, d / 2);
        if (a->slots[row] < 0) continue;
        const long base = a->slots[row] / a->page_size * kv_heads * page + a->slots[row] % a->page_size * d;
        for (long h = 0; h < kv_heads; h++) {
            const float *v = x + (heads + kv_heads + h) * d;
            rotate(x + (heads + h) * d, cos, turned, d / 2);
            for (long i = 0; i < d; i++) narrow(a->k_cache, base + h * page + i, turned[i], a->type);
            for (long i = 0; i < d; i++) narrow(a->v_cache, base + h * page + i, v[i], a->type);
        }
    }
}

/* Rows of an int8 matrix [n, k] with a scale for each: ids [t] -> y [t, k]. The caller checked the ids. */
typedef struct {
    const int8_t *weight;
    const float *scale;
    const int64_t *ids;
    float *y;
    int64_t t, k;
} int8_rows_arguments;

EXPORT void OP(int8_rows)(const int8_rows_arguments *a, team *t) {
    for (long row = share(a->t, t->index, t->count); row < share(a->t, t->index + 1, t->count); row++) {
        const int8_t *w = a->weight + a->ids[row] * a->k;
        const float scale = a->scale[a->ids[row]];
        for (long i = 0; i < a->k; i++) a->y[row * a->k + i] = (float)w[i] * scale;
    }
}

/* y [m, k] = the rows ids [m] of a float matrix */
typedef struct {
    const float *w;
    const int64_t *ids;
    float *y;
    int64_t m, k;
} float_rows_arguments;

EXPORT void OP(float_rows)(const float_rows_arguments *a, team *t) {
    for (long row = share(a->m, t->index, t->count); row < share(a->m, t->index + 1, t->count); row++)
        memcpy(a->y + row * a->k, a->w + a->ids[row] * a->k, (size_t)a->k * sizeof(float));
}
