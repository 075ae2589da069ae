/* Adds two vectors on each GPU that libcuda shows, and checks the sum: `devices N`, then `UUID ok` for each. With an
 * argument it then says `holding` and keeps the GPUs until it is killed.
 * Without a toolkit: libcuda is opened by name, the kernel is PTX that the driver compiles. The declarations are those
 * of CUDA's driver API, as its documentation gives them. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef int result;
typedef unsigned long long pointer;
enum { COUNT = 1 << 20, THREADS = 256 };

static const char ptx[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n"
    ".visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n) {\n"
    "  .reg .pred %p; .reg .b32 %r<5>; .reg .f32 %f<4>; .reg .b64 %d<8>;\n"
    "  ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; ld.param.u64 %d3, [c]; ld.param.u32 %r1, [n];\n"
    "  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r2, %r2, %r3, %r4;\n"
    "  setp.ge.u32 %p, %r2, %r1; @%p bra done;\n"
    "  mul.wide.u32 %d4, %r2, 4; add.s64 %d5, %d1, %d4; add.s64 %d6, %d2, %d4; add.s64 %d7, %d3, %d4;\n"
    "  ld.global.f32 %f1, [%d5]; ld.global.f32 %f2, [%d6]; add.f32 %f3, %f1, %f2; st.global.f32 [%d7], %f3;\n"
    "done: ret; }\n";

static void *library;
static int holds;

static void *need(const char *name)
{
    void *found = dlsym(library, name);
    if (!found) {
        printf("libcuda.so.1 has no %s\n", name);
        exit(3);
    }
    return found;
}

static void must(const char *what, result code)
{
    if (code) {
        printf("%s: CUDA error %d\n", what, code);
        exit(4);
    }
}

#define CALL(name, types, ...) must(#name, ((result(*) types)need(#name))(__VA_ARGS__))

static void compute(int device, const float *a, const float *b, float *c)
{
    void *context, *module, *kernel;
    pointer place[3];
    const size_t bytes = COUNT * sizeof *a;
    unsigned count = COUNT;
    CALL(cuDevicePrimaryCtxRetain, (void **, int), &context, device);
    CALL(cuCtxSetCurrent, (void *), context);
    CALL(cuModuleLoadData, (void **, const void *), &module, ptx);
    CALL(cuModuleGetFunction, (void **, void *, const char *), &kernel, module, "add");
    for (int i = 0; i < 3; i++)
        CALL(cuMemAlloc_v2, (pointer *, size_t), &place[i], bytes);
    CALL(cuMemcpyHtoD_v2, (pointer, const void *, size_t), place[0], a, bytes);
    CALL(cuMemcpyHtoD_v2, (pointer, const void *, size_t), place[1], b, bytes);
    void *arguments[] = { &place[0], &place[1], &place[2], &count };
    CALL(cuLaunchKernel, (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
         kernel, COUNT / THREADS, 1, 1, THREADS, 1, 1, 0, NULL, arguments, NULL);
    CALL(cuMemcpyDtoH_v2, (void *, pointer, size_t), c, place[2], bytes);
    if (!holds)
        CALL(cuDevicePrimaryCtxRelease_v2, (int), device);
}

int main(int argc, char **argv)
{
    (void)argv;
    holds = argc > 1;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        printf("%s\n", dlerror());
        return 2;
    }
    int devices = 0;
    CALL(cuInit, (unsigned), 0);
    CALL(cuDeviceGetCount, (int *), &devices);
    printf("devices %d\n", devices);
    static float a[COUNT], b[COUNT], c[COUNT];
    for (int i = 0; i < COUNT; i++) {
        a[i] = (float)i;
        b[i] = (float)(2 * i);
    }
    for (int n = 0; n < devices; n++) {
        unsigned char id[16];
        int device, wrong = 0;
        CALL(cuDeviceGet, (int *, int), &device, n);
        CALL(cuDeviceGetUuid, (unsigned char *, int), id, device);
        compute(device, a, b, c);
        for (int i = 0; i < COUNT; i++)
            wrong += c[i] != a[i] + b[i];
        printf("GPU-");
        for (int i = 0; i < 16; i++)
            printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", id[i]);
        printf(" %s\n", wrong ? "wrong sums" : "ok");
    }
    if (holds) {
        printf("holding\n");
        fflush(stdout);
        for (;;)
            pause();
    }
    return 0;
}
