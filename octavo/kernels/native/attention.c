/* Causal attention over paged keys and values (Kwon et al. 2023), with the softmax computed online (Milakov and
 * Gimelshein 2018; Dao et al. 2022). A group is the query heads that share one key head; it shares every read.
 *
 * Sequences with one query: a task is (sequence, key head, CHUNK keys), and parts are merged afterwards. Others: a task
 * is (sequence, key head, block of queries), which meets tiles of keys and values widened to float32. Tasks' bounds
 * depend on the sequence alone, so a result is the same in every batch. */
#include "common.h"

#define CHUNK 128
#define TILE 64    /* keys */
#define STRIP 6    /* query rows of the inner kernel, by 16 columns: 12 sums in registers */
#define ROWS 192   /* query rows of a task, about: tokens times heads of a group */
#define NEVER -1e30f

/* q, out [t, heads, d]; caches [pages, kv_heads, page_size, d]; block_table [r, blocks]; starts [r + 1]; lens [r].
 * parts: r kv_heads ceil(longest / CHUNK) (d + 2) group floats, if any sequence has one query. */
typedef struct {
    const float *q;
    const void *k_cache, *v_cache;
    const int32_t *block_table, *starts, *lens;
    float *out, *parts;
    int64_t r, heads, kv_heads, d, page_size, blocks, max_chunks, type;
    double scale;
} paged_attention_arguments;

INLINE long place(const paged_attention_arguments *a, long row, long head, long key) {
    long page = a->block_table[row * a->blocks + key / a->page_size];
    return ((page * a->kv_heads + head) * a->page_size + key % a->page_size) * a->d;
}

INLINE v8f sums_of_8(const v8f v[8]) {
#ifdef __AVX2__
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v[0], (__m256)v[1]), _mm256_hadd_ps((__m256)v[2], (__m256)v[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v[4], (__m256)v[5]), _mm256_hadd_ps((__m256)v[6], (__m256)v[7]));
    return (v8f)_mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#else
    v8f s;
    UNROLL for (int i = 0; i < 8; i++) s[i] = sum8(v[i]);
    return s;
#endif
}

/* ---- one query a sequence ---- */

/* scores of `heads` (a constant) heads with 8 keys at offsets at[]; q [heads, d], scores [heads][CHUNK] */
INLINE void dots8(const paged_attention_arguments *a, const float *q, const long at[8], float *scores, const int heads,
                  const long type) {
    for (int half = 0; half < 8; half += 4) { /* 4 keys by 3 heads: 12 sums in registers */
        v8f acc[4][4];
        UNROLL for (int j = 0; j < 4; j++)
            UNROLL for (int h = 0; h < heads; h++) acc[j][h] = all8(0);
        for (long i = 0; i < a->d; i += 8)
            UNROLL for (int j = 0; j < 4; j++) {
                v8f k = widen8(a->k_cache, at[half + j] + i, type);
                UNROLL for (int h = 0; h < heads; h++) acc[j][h] += k * load8(q + h * a->d + i);
            }
        UNROLL for (int h = 0; h < heads; h++) {
            v8f four[8] = {acc[0][h], acc[1][h], acc[2][h], acc[3][h], acc[0][h], acc[1][h], acc[2][h], acc[3][h]};
            v8f sums = sums_of_8(four) * (float)a->scale;
            memcpy(scores + h * CHUNK + half, &sums, 16);
        }
    }
}

/* out [heads, d] = weights [heads][CHUNK] times `count` values */
INLINE void mix(const paged_attention_arguments *a, const float *weights, const long *at, long count, float *out,
                const int heads, const long type) {
    for (long i = 0; i < a->d; i += 16) {
        v8f acc[4][2];
        UNROLL for (int h = 0; h < heads; h++) acc[h][0] = acc[h][1] = all8(0);
        for (long j = 0; j < count; j++) {
            v8f v0 = widen8(a->v_cache, at[j] + i, type), v1 = widen8(a->v_cache, at[j] + i + 8, type);
            UNROLL for (int h = 0; h < heads; h++) {
                v8f w = all8(weights[h * CHUNK + j]);
                acc[h][0] += w * v0;
                acc[h][1] += w * v1;
            }
        }
        UNROLL for (int h = 0; h < heads; h++) {
            store8(out + h * a->d + i, acc[h][0]);
            store8(out + h * a->d + i + 8, acc[h][1]);
        }
    }
}

/* `heads` heads meet keys [begin, end): unnormalised output [heads, d], and for each head (largest score, sum) */
INLINE void chunk_heads(const paged_attention_arguments *a, const float *q, const long *at, long count, float *out,
                        float *stats, const int heads, const long type) {
    float scores[4 * CHUNK];
    for (long j = 0; j < count; j += 8) dots8(a, q, at + j, scores + j, heads, type);
    for (int h = 0; h < heads; h++) {
        float *s = scores + h * CHUNK;
        for (long j = count; j & 7; j++) s[j] = NEVER;
        v8f top = all8(NEVER), sum = all8(0);
        for (long j = 0; j < count; j += 8) top = more8(load8(s + j), top);
        float largest = max8(top);
        for (long j = 0; j < count; j += 8) {
            v8f w = exp8(load8(s + j) - largest);
            store8(s + j, w);
            sum += w;
        }
        stats[2 * h] = largest;
        stats[2 * h + 1] = sum8(sum);
    }
    mix(a, scores, at, count, out, heads, type);
}

INLINE void chunk_typed(const paged_attention_arguments *a, const float *q, const long *at, long count, float *out,
                        float *stats, const long type) {
    const long group = a->heads / a->kv_heads;
    long h = 0;
    for (; h + 4 <= group && group - h != 6; h += 4)
        chunk_heads(a, q + h * a->d, at, count, out + h * a->d, stats + 2 * h, 4, type);
    for (; h + 3 <= group; h += 3) chunk_heads(a, q + h * a->d, at, count, out + h * a->d, stats + 2 * h, 3, type);
    if (group - h == 2) chunk_heads(a, q + h * a->d, at, count, out + h * a->d, stats + 2 * h, 2, type);
    if (group - h == 1) chunk_heads(a, q + h * a->d, at, count, out + h * a->d, stats + 2 * h, 1, type);
}

INLINE float *part_of(const paged_attention_arguments *a, long row, long head, long chunk) {
    const long group = a->heads / a->kv_heads;
    return a->parts + ((row * a->kv_heads + head) * a->max_chunks + chunk) * group * (a->d + 2);
}

static void decode_chunk(const paged_attention_arguments *a, long row, long head, long chunk) {
    const long group = a->heads / a->kv_heads, begin = chunk * CHUNK, count = MIN(CHUNK, a->lens[row] - begin);
    long at[CHUNK];
    for (long j = 0; j < count; j++) at[j] = place(a, row, head, begin + j);
    for (long j = count; j & 7; j++) at[j] = at[count - 1];
    const float *q = a->q + (a->starts[row] * a->heads + head * group) * a->d;
    float *out = part_of(a, row, head, chunk), *stats = out + group * a->d;
    if (a->type == F32) chunk_typed(a, q, at, count, out, stats, F32);
    else if (a->type == F16) chunk_typed(a, q, at, count, out, stats, F16);
    else chunk_typed(a, q, at, count, out, stats, BF16);
}

static void merge_chunks(const paged_attention_arguments *a, long row, long head) {
    const long group = a->heads / a->kv_heads, d = a->d, chunks = (a->lens[row] + CHUNK - 1) / CHUNK;
    for (long h = 0; h < group; h++) {
        float *out = a->out + (a->starts[row] * a->heads + head * group + h) * d, largest = NEVER, sum = 0;
        for (long c = 0; c < chunks; c++)
            largest = MAX(largest, part_of(a, row, head, c)[group * d + 2 * h]);
        for (long i = 0; i < d; i += 8) store8(out + i, all8(0));
        for (long c = 0; c < chunks; c++) {
            const float *part = part_of(a, row, head, c), *stats = part + group * d + 2 * h;
            const float factor = exp8(all8(stats[0] - largest))[0];
            sum += factor * stats[1];
            for (long i = 0; i < d; i += 8) store8(out + i, load8(out + i) + factor * load8(part + h * d + i));
        }
        for (long i = 0; i < d; i += 8) store8(out + i, load8(out + i) * (1.0f / sum));
    }
}

/* ---- many queries a sequence ---- */

/* c [rows][16] at stride ldc = scaled c + a [rows][depth] b [depth][16]; `rows` is a constant; scales null: c = a b */
INLINE void multiply(const float *a, long lda, const float *b, long ldb, long depth, float *c, long ldc,
                     const float *scales, const int rows) {
    v8f acc[STRIP][2];
    UNROLL for (int i = 0; i < rows; i++) {
        acc[i][0] = scales ? load8(c + i * ldc) * scales[i] : all8(0);
        acc[i][1] = scales ? load8(c + i * ldc + 8) * scales[i] : all8(0);
    }
    for (long k = 0; k < depth; k++) {
        v8f b0 = load8(b + k * ldb), b1 = load8(b + k * ldb + 8);
        UNROLL for (int i = 0; i < rows; i++) {
            v8f x = all8(a[i * lda + k]);
            acc[i][0] += x * b0;
            acc[i][1] += x * b1;
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        store8(c + i * ldc, acc[i][0]);
        store8(c + i * ldc + 8, acc[i][1]);
    }
}

typedef struct {
    float *q, *out, *largest, *sum; /* [rows, d], [rows, d], [rows], [rows] */
    float *keys, *values;           /* [d][TILE], [TILE][d] */
} workspace;

INLINE void transpose8(const v8f rows[8], float *to, long stride) {
#ifdef __AVX2__
    __m256 a[8], b[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps((__m256)rows[i], (__m256)rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps((__m256)rows[i], (__m256)rows[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    UNROLL for (int i = 0; i < 4; i++) {
        store8(to + i * stride, (v8f)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20));
        store8(to + (i + 4) * stride, (v8f)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31));
    }
#else
    UNROLL for (int i = 0; i < 8; i++)
        UNROLL for (int j = 0; j < 8; j++) to[i * stride + j] = rows[j][i];
#endif
}

/* keys and values [begin, begin + TILE) of a head; those from `end` on are zeros */
INLINE void load_tile(const paged_attention_arguments *a, long row, long head, long begin, long end, workspace *w,
                      const long type) {
    for (long j = 0; j < TILE; j += 8) {
        long at[8];
        for (long i = 0; i < 8; i++) at[i] = begin + j + i < end ? place(a, row, head, begin + j + i) : -1;
        for (long c = 0; c < a->d; c += 8) {
            v8f rows[8];
            UNROLL for (int i = 0; i < 8; i++) {
                rows[i] = at[i] < 0 ? all8(0) : widen8(a->k_cache, at[i] + c, type);
                store8(w->values + (j + i) * a->d + c, at[i] < 0 ? all8(0) : widen8(a->v_cache, at[i] + c, type));
            }
            transpose8(rows, w->keys + c * TILE + j, TILE);
        }
    }
}

/* `rows` (a constant) query rows from r on meet a tile; row r's query stands at first + r / group */
INLINE void strip(const paged_attention_arguments *a, workspace *w, long r, long first, long group, long begin,
                  const int rows) {
    float scores[STRIP][TILE], scales[STRIP];
    const long d = a->d;
    for (long j = 0; j < TILE; j += 16)
        multiply(w->q + r * d, d, w->keys + j, TILE, d, &scores[0][j], TILE, 0, rows);
    for (int i = 0; i < rows; i++) {
        const long visible = first + (r + i) / group + 1 - begin;
        for (long j = MAX(0, visible); j < TILE; j++) scores[i][j] = NEVER;
        v8f top = all8(w->largest[r + i]), sum = all8(0);
        for (long j = 0; j < TILE; j += 8) top = more8(load8(&scores[i][j]), top);
        const float largest = max8(top);
        for (long j = 0; j < TILE; j += 8) {
            v8f x = exp8(load8(&scores[i][j]) - largest);
            store8(&scores[i][j], x);
            sum += x;
        }
        scales[i] = exp8(all8(w->largest[r + i] - largest))[0];
        w->sum[r + i] = w->sum[r + i] * scales[i] + sum8(sum);
        w->largest[r + i] = largest;
    }
    for (long j = 0; j < d; j += 16)
        multiply(scores[0], TILE, w->values + j, d, TILE, w->out + r * d + j, d, scales, rows);
}

static void strips(const paged_attention_arguments *a, workspace *w, long rows, long first, long group, long begin) {
    /* rows before the tile's first key see nothing of it */
    long r = MAX(0, begin - first) * group;
    for (; r + STRIP <= rows; r += STRIP) strip(a, w, r, first, group, begin, STRIP);
    if (rows - r >= 4) strip(a, w, r, first, group, begin, 4), r += 4;
    if (rows - r >= 2) strip(a, w, r, first, group, begin, 2), r += 2;
    if (rows - r >= 1) strip(a, w, r, first, group, begin, 1);
}

INLINE long block_tokens(const paged_attention_arguments *a) {
    return MAX(1, ROWS / (a->heads / a->kv_heads));
}

/* queries [token, token + block) of a sequence's new ones, one group */
static void extend_block(const paged_attention_arguments *a, long row, long head, long token) {
    const long group = a->heads / a->kv_heads, d = a->d, new = a->starts[row + 1] - a->starts[row];
    const long tokens = MIN(block_tokens(a), new - token), rows = tokens * group;
    const long first = a->lens[row] - new + token, end = first + tokens;
    workspace w;
    w.q = octavo_scratch((size_t)(2 * rows * d + 2 * rows + 2 * TILE * d) * sizeof(float));
    w.out = w.q + rows * d;
    w.keys = w.out + rows * d;
    w.values = w.keys + TILE * d;
    w.largest = w.values + TILE * d;
    w.sum = w.largest + rows;
    for (long r = 0; r < rows; r++) {
        const float *q = a->q + ((a->starts[row] + token + r / group) * a->heads + head * group + r % group) * d;
        for (long i = 0; i < d; i += 8) {
            store8(w.q + r * d + i, load8(q + i) * (float)a->scale);
            store8(w.out + r * d + i, all8(0));
        }
        w.largest[r] = NEVER;
        w.sum[r] = 0;
    }
    for (long begin = 0; begin < end; begin += TILE) {
        if (a->type == F32) load_tile(a, row, head, begin, end, &w, F32);
        else if (a->type == F16) load_tile(a, row, head, begin, end, &w, F16);
        else load_tile(a, row, head, begin, end, &w, BF16);
        strips(a, &w, rows, first, group, begin);
    }
    for (long r = 0; r < rows; r++) {
        float *out = a->out + ((a->starts[row] + token + r / group) * a->heads + head * group + r % group) * d;
        for (long i = 0; i < d; i += 8) store8(out + i, load8(w.out + r * d + i) * (1.0f / w.sum[r]));
    }
}

EXPORT void OP(paged_attention)(const paged_attention_arguments *a, team *t) {
    const long block = block_tokens(a);
    long task = next_task(t), seen = 0, decodes = 0;
    for (long row = 0; row < a->r; row++) {
        const long new = a->starts[row + 1] - a->starts[row], len = a->lens[row];
        decodes += new == 1;
        const long parts = new == 1 ? (len + CHUNK - 1) / CHUNK : (new + block - 1) / block, here = parts * a->kv_heads;
        for (; task < seen + here; task = next_task(t)) {
            const long part = (task - seen) / a->kv_heads, head = (task - seen) % a->kv_heads;
            if (new == 1) decode_chunk(a, row, head, part);
            else extend_block(a, row, head, (parts - 1 - part) * block); /* the longest first */
        }
        seen += here;
    }
    if (!decodes) return;
    barrier(t);
    for (long i = share(a->r * a->kv_heads, t->index, t->count); i < share(a->r * a->kv_heads, t->index + 1, t->count); i++) {
        const long row = i / a->kv_heads;
        if (a->starts[row + 1] - a->starts[row] == 1) merge_chunks(a, row, i % a->kv_heads);
    }
}
