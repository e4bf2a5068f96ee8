/* What logprobs need of rows of logits: the logarithm of the sum of exponentials, and how many beat a token. */
#include "common.h"

/* logits [rows, n], targets [rows]; out: logsumexp [rows], beaten_by [rows] */
typedef struct {
    const float *logits;
    const int64_t *targets;
    float *logsumexp;
    int64_t *beaten_by;
    int64_t rows, n;
} logit_scores_arguments;

#define PART 1024 /* terms that are added in float32; the sums of parts are added in double precision */

EXPORT void OP(logit_scores)(const logit_scores_arguments *a, team *t) {
    const long n = a->n, whole = n / 8 * 8;
    for (long row = share(a->rows, t->index, t->count); row < share(a->rows, t->index + 1, t->count); row++) {
        const float *x = a->logits + row * n, target = x[a->targets[row]];
        v8f most = all8(-INFINITY);
        v8i fewer = {0}; /* each lane counts down */
        for (long i = 0; i < whole; i += 8) {
            const v8f values = load8(x + i);
            most = more8(values, most);
            fewer += (v8i)(values > target);
        }
        float best = max8(most);
        long better = 0;
        for (int lane = 0; lane < 8; lane++) better -= fewer[lane];
        for (long i = whole; i < n; i++) best = MAX(best, x[i]), better += x[i] > target;
        double sum = 0;
        for (long from = 0; from < whole; from += PART) {
            v8f part = all8(0);
            for (long i = from; i < MIN(whole, from + PART); i += 8) part += exp8(load8(x + i) - best);
            sum += sum8(part);
        }
        for (long i = whole; i < n; i++) sum += exp((double)(x[i] - best));
        a->logsumexp[row] = (float)(best + log(sum));
        a->beaten_by[row] = better;
    }
}
