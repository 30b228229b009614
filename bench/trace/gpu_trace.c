// Loaded into any CUDA program by CUDA_INJECTION64_PATH: writes when each kernel, copy, memset and graph ran on the
// GPU to the file TRACE_FILE, a line each: start and end in nanoseconds, kind. A graph is one line, as a trace of its
// kernels slows it down, unless TRACE_KERNELS is set: then each of its kernels is, with its name behind the kind.
#include <cupti.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { BUFFER_BYTES = 8 << 20, BUFFER_ALIGNMENT = 8 };

static FILE *trace;

static void write_line(uint64_t start, uint64_t end, const char *kind, const char *name) {
    fprintf(trace, "%llu %llu %s %s\n", (unsigned long long)start, (unsigned long long)end, kind, name);
}

static void write_record(const CUpti_Activity *record) {
    switch (record->kind) {
        case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
            const CUpti_ActivityKernel10 *kernel = (const CUpti_ActivityKernel10 *)record;
            write_line(kernel->start, kernel->end, "kernel", kernel->name);
            break;
        }
        case CUPTI_ACTIVITY_KIND_MEMCPY: {
            const CUpti_ActivityMemcpy6 *copy = (const CUpti_ActivityMemcpy6 *)record;
            write_line(copy->start, copy->end, "copy", "");
            break;
        }
        case CUPTI_ACTIVITY_KIND_MEMSET: {
            const CUpti_ActivityMemset4 *set = (const CUpti_ActivityMemset4 *)record;
            write_line(set->start, set->end, "memset", "");
            break;
        }
        case CUPTI_ACTIVITY_KIND_GRAPH_TRACE: {
            const CUpti_ActivityGraphTrace2 *graph = (const CUpti_ActivityGraphTrace2 *)record;
            write_line(graph->start, graph->end, "graph", "");
            break;
        }
        default:
            break;
    }
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *max_records) {
    *buffer = aligned_alloc(BUFFER_ALIGNMENT, BUFFER_BYTES);
    *size = *buffer == NULL ? 0 : BUFFER_BYTES;
    *max_records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    (void)context, (void)stream, (void)size;
    CUpti_Activity *record = NULL;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) write_record(record);
    free(buffer);
}

static void finish(void) {
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    fclose(trace);
}

// What the driver calls when it has loaded the library; other than 1 is a failure.
int InitializeInjection(void) {
    // Graphs last: they are left out for their kernels.
    static const CUpti_ActivityKind kinds[] = {
        CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
        CUPTI_ACTIVITY_KIND_MEMCPY,
        CUPTI_ACTIVITY_KIND_MEMSET,
        CUPTI_ACTIVITY_KIND_GRAPH_TRACE,
    };
    const size_t num_kinds = sizeof kinds / sizeof kinds[0] - (getenv("TRACE_KERNELS") != NULL);
    const char *path = getenv("TRACE_FILE");
    trace = fopen(path == NULL ? "gpu_trace.txt" : path, "w");
    if (trace == NULL) return 0;
    if (cuptiActivityRegisterCallbacks(give_buffer, take_buffer) != CUPTI_SUCCESS) return 0;
    for (size_t i = 0; i < num_kinds; i++) {
        if (cuptiActivityEnable(kinds[i]) != CUPTI_SUCCESS) return 0;
    }
    atexit(finish);
    return 1;
}
