/* Teams of threads, tapes of kernels, and scratch memory. Compiled once. */
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common.h"

#define SPINS 2000 /* some 30 to 80 microseconds */

typedef void (*task_fn)(void *);
/* The OpenMP pool that the host program computes with, handed over at load; without it all is done by the caller. */
static void (*pool_run)(task_fn, void *, unsigned, unsigned) = 0;
static int (*pool_index)(void) = 0;
static int (*pool_count)(void) = 0;

EXPORT void octavo_configure(void *run, void *index, void *count) {
    pool_run = (void (*)(task_fn, void *, unsigned, unsigned))run;
    pool_index = (int (*)(void))index;
    pool_count = (int (*)(void))count;
}

EXPORT int octavo_has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return 0;
#endif
}

/* One kernel with its arguments. threads: 1 or as many as there are. */
typedef struct {
    kernel run;
    const void *arguments;
    int64_t threads;
} entry;

typedef struct {
    const entry *entries;
    long count;
    shared_state shared;
} tape;

static void play(tape *t, team *mine) {
    team alone = {0, 1, mine->shared};
    for (long i = 0; i < t->count; i++) {
        const entry *e = t->entries + i;
        if (e->threads > 1) e->run(e->arguments, mine);
        else if (mine->index == 0) e->run(e->arguments, &alone);
        /* what one thread does next to another single-threaded kernel needs no meeting */
        if (i + 1 < t->count && (e->threads > 1 || e[1].threads > 1)) barrier(mine);
    }
}

static void play_share(void *argument) {
    tape *t = argument;
    team mine = {pool_index(), pool_count(), &t->shared};
    play(t, &mine);
}

/* Run kernels in order on `threads` threads. */
EXPORT void octavo_play(const entry *entries, long count, int threads) {
    tape t = {entries, count, {0}};
    if (threads > 1 && pool_run) {
        pool_run(play_share, &t, (unsigned)threads, 0);
    } else {
        team alone = {0, 1, &t.shared};
        play(&t, &alone);
    }
}

EXPORT void octavo_run(kernel run, const void *arguments, int threads) {
    entry e = {run, arguments, threads};
    octavo_play(&e, 1, threads);
}

/* Sleep while *phase is `seen`; wake all who do. Others than Linux give up their time slice instead. */
#if defined(__linux__)
static void wait_for_change(unsigned *phase, unsigned seen) {
    syscall(SYS_futex, phase, FUTEX_WAIT_PRIVATE, seen, 0, 0, 0);
}
static void wake_all(unsigned *phase) { syscall(SYS_futex, phase, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0); }
#else
static void wait_for_change(unsigned *phase, unsigned seen) { (void)phase, (void)seen, sched_yield(); }
static void wake_all(unsigned *phase) { (void)phase; }
#endif

/* Spins, as the others are mostly a microsecond away; sleeps when they are not, for then they wait for this core. */
void octavo_barrier(team *t) {
    shared_state *s = t->shared;
    unsigned phase = __atomic_load_n(&s->phase, __ATOMIC_RELAXED);
    if (__atomic_fetch_add(&s->arrived, 1, __ATOMIC_ACQ_REL) == t->count - 1) {
        s->next = 0;
        s->arrived = 0;
        __atomic_store_n(&s->phase, phase + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&s->sleepers, __ATOMIC_SEQ_CST)) wake_all(&s->phase);
        return;
    }
    for (int spins = 0; spins < SPINS; spins++) {
        if (__atomic_load_n(&s->phase, __ATOMIC_ACQUIRE) != phase) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    __atomic_fetch_add(&s->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&s->phase, __ATOMIC_SEQ_CST) == phase) wait_for_change(&s->phase, phase);
    __atomic_fetch_sub(&s->sleepers, 1, __ATOMIC_SEQ_CST);
}

void *octavo_scratch(size_t bytes) {
    static _Thread_local void *memory = 0;
    static _Thread_local size_t size = 0;
    if (bytes > size) {
        free(memory);
        size = (bytes + bytes / 4 + 63) & ~(size_t)63;
        memory = aligned_alloc(64, size);
        if (!memory) abort();
    }
    return memory;
}
