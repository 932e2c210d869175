/* A CUDA driver without a GPU: memory is the host's, kernels are counted and not run.

   With it numba-cuda's own code runs: what allocates, copies, compiles, loads and launches. Functions
   that are not here do nothing and succeed. */

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;

static long launched, waited, sent;
static unsigned grid[2];
static address arguments[64];
static void *context = (void *)0x1000, *launched_on;
static _Thread_local void *stack[16];
static _Thread_local int depth;
static long handles = 0x10000;
static int watched;

void fake_watch(int parameters) { watched = parameters; }
long fake_launched(void) { return launched; }
long fake_waited(void) { return waited; }
long fake_sent(void) { return sent; }
unsigned fake_grid(int i) { return grid[i]; }
address fake_argument(int i) { return arguments[i]; }
void *fake_stream(void) { return launched_on; }

static int nothing(void) { return 0; }
static int handle(void **out) { *out = (void *)(handles += 16); return 0; }

static int version(int *out) { *out = 13000; return 0; }
static int count(int *out) { *out = 1; return 0; }
static int device(int *out, int i) { *out = i; return 0; }
static int name(char *out, int size, int i) { snprintf(out, size, "Fake"); return 0; }
static int uuid(char *out, int i) { memset(out, 7, 16); return 0; }
static int attribute(int *out, int which, int i) {
    /* multiprocessors, compute capability 8.0 */
    *out = which == 16 ? 100 : which == 75 ? 8 : which == 76 ? 0 : which == 10 ? 32 : 1;
    return 0;
}
static int retain(void **out, int i) { *out = context; return 0; }
static int push(void *c) { stack[depth++] = c; return 0; }
static int pop(void **out) {
    if (!depth) return 201;
    *out = stack[--depth];
    return 0;
}
static int get_current(void **out) { *out = depth ? stack[depth - 1] : 0; return 0; }
static int set_current(void *c) { stack[depth ? depth - 1 : depth++] = c; return 0; }
static int current_device(int *out) { *out = 0; return depth ? 0 : 201; }
static int wait(void) { waited++; return 0; }

static int allocate(address *out, size_t size) {
    void *memory;
    if (!depth) return 201;
    if (posix_memalign(&memory, 512, size ? size : 1)) return 2;
    memset(memory, 0x5a, size);
    *out = (address)memory;
    return 0;
}
static int release(address memory) { /* and show it to whoever still looks there */
    memset((void *)memory, 0x5a, malloc_usable_size((void *)memory));
    return 0;
}
static int free_memory(size_t *free, size_t *total) { *free = *total = 1ull << 36; return 0; }
static int send_and_wait(address to, const void *from, size_t size) {
    waited++, sent++;
    memcpy((void *)to, from, size);
    return 0;
}
static int send(address to, const void *from, size_t size, void *stream) {
    sent++;
    memcpy((void *)to, from, size);
    return depth ? 0 : 201;
}
static int fetch(void *to, address from, size_t size) {
    waited++;
    memcpy(to, (void *)from, size);
    return 0;
}
static int fill(address to, unsigned char value, size_t size) {
    memset((void *)to, value, size);
    return 0;
}

static int load(void **out) { return handle(out); }
static int one(int *out) { *out = 1; return 0; }
struct configuration { unsigned grid[3], block[3], shared; void *stream; };
static int launch(struct configuration *how, void *kernel, void **parameters, void **extra) {
    if (!depth) return 201;
    launched++;
    grid[0] = how->grid[0], grid[1] = how->block[0];
    launched_on = how->stream;
    for (int i = 0; i < watched; i++) arguments[i] = *(address *)parameters[i];
    return 0;
}
static int launch_plain(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared, void *stream,
                        void **parameters, void **extra) {
    struct configuration how = {{gx, gy, gz}, {bx, by, bz}, shared, stream};
    return launch(&how, kernel, parameters, extra);
}

static struct { const char *name; void *function; } functions[] = {
    {"cuDriverGetVersion", version}, {"cuDeviceGetCount", count}, {"cuDeviceGet", device},
    {"cuDeviceGetName", name}, {"cuDeviceGetUuid", uuid}, {"cuDeviceGetAttribute", attribute},
    {"cuDevicePrimaryCtxRetain", retain}, {"cuCtxPushCurrent", push}, {"cuCtxPopCurrent", pop},
    {"cuCtxGetCurrent", get_current}, {"cuCtxSetCurrent", set_current}, {"cuCtxGetDevice", current_device},
    {"cuCtxSynchronize", wait}, {"cuStreamSynchronize", wait}, {"cuEventSynchronize", wait},
    {"cuMemAlloc", allocate}, {"cuMemFree", release}, {"cuMemGetInfo", free_memory},
    {"cuMemcpyHtoD", send_and_wait}, {"cuMemcpyHtoDAsync", send}, {"cuMemcpyDtoH", fetch},
    {"cuMemcpyDtoHAsync", fetch}, {"cuMemsetD8", fill}, {"cuMemsetD8Async", fill},
    {"cuStreamCreate", handle}, {"cuEventCreate", handle}, {"cuModuleLoadDataEx", load},
    {"cuModuleGetFunction", handle}, {"cuLibraryLoadData", load}, {"cuLibraryGetKernel", handle},
    {"cuLibraryGetModule", handle}, {"cuKernelGetFunction", handle}, {"cuFuncGetAttribute", one},
    {"cuKernelGetAttribute", one}, {"cuLaunchKernelEx", launch}, {"cuLaunchKernel", launch_plain},
};

int cuGetProcAddress_v2(const char *, void **, int, unsigned long long, int *);

static void *find(const char *name) {
    if (!strcmp(name, "cuGetProcAddress")) return cuGetProcAddress_v2;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(name, functions[i].name)) return functions[i].function;
    return nothing;
}

int cuGetProcAddress_v2(const char *name, void **out, int v, unsigned long long f, int *found) {
    *out = find(name);
    if (found) *found = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **out, int v, unsigned long long f) {
    return cuGetProcAddress_v2(name, out, v, f, 0);
}
int cuInit(unsigned flags) { return 0; }
