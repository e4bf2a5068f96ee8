/* The thread pool of the host program, and scratch memory. Compiled once. */
#include <stdlib.h>

#include "common.h"

parallel_fn octavo_parallel = 0;
int (*octavo_thread_num)(void) = 0;
int octavo_threads = 1;

void octavo_region(void *argument) {
    region *r = argument;
    r->body(r->data, octavo_thread_num(), r->threads);
}

EXPORT void octavo_configure(void *parallel, void *thread_num, int threads) {
    octavo_parallel = (parallel_fn)parallel;
    octavo_thread_num = (int (*)(void))thread_num;
    octavo_threads = threads;
}

EXPORT int octavo_has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

void *octavo_scratch(size_t bytes) {
    static _Thread_local void *memory = 0;
    static _Thread_local size_t size = 0;
    if (bytes > size) {
        free(memory);
        size = bytes + bytes / 4;
        memory = aligned_alloc(64, (size + 63) & ~(size_t)63);
        if (!memory) abort();
    }
    return memory;
}
