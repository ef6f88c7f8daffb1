/* A CUDA driver and an NVML without hardware, for torch's own start-up code and ours.

   FAKE_GPUS     how many GPUs there are
   FAKE_DRIVER   the newest CUDA that the driver runs: 12040
   FAKE_MIG      slices of each GPU; CUDA shows one of them at most, as NVIDIA's does
   FAKE_INIT     status of cuInit, where it shall fail

   CUDA_VISIBLE_DEVICES is read as the CUDA programming guide has it: names of GPUs, UUIDs or their
   beginnings (of one alone); the first invalid one ends the list, and a GPU named twice leaves
   none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static void identity(char *text, int gpu, int slice) {
    if (slice < 0) sprintf(text, "GPU-%08x-0000-0000-0000-000000000000", gpu + 1);
    else sprintf(text, "MIG-%08x-%04x-0000-0000-000000000000", gpu + 1, slice);
}

static int seen[64], slice_seen[64];

static int visible(void) {
    int gpus = number("FAKE_GPUS", 1), mig = number("FAKE_MIG", 0), n = 0;
    const char *mask = getenv("CUDA_VISIBLE_DEVICES");
    if (!mask) {
        for (n = 0; n < (mig ? (gpus > 0) : gpus); n++) seen[n] = n, slice_seen[n] = mig ? 0 : -1;
        return n;
    }
    char copy[4096], *rest = copy, *entry;
    int by_number = *mask != 'G' && *mask != 'M'; /* the first entry's kind is that of all */
    snprintf(copy, sizeof copy, "%s", mask);
    while ((entry = strsep(&rest, ","))) {
        int found = -1, slice = mig ? 0 : -1;
        char *end, name[64];
        while (*entry == ' ') entry++;
        long index = strtol(entry, &end, 10);
        if (by_number) found = end != entry && index >= 0 && index < gpus ? (int)index : -1;
        else if (strlen(entry) > 4) {
            for (int g = 0; g < gpus; g++) {
                identity(name, g, -1);
                if (!mig && !strncmp(name, entry, strlen(entry))) found = found == -1 ? g : -2;
                for (int s = 0; s < mig; s++) {
                    identity(name, g, s);
                    if (!strcmp(name, entry)) found = g, slice = s;
                }
            }
        }
        if (found < 0) break;
        for (int i = 0; i < n; i++) if (seen[i] == found && slice_seen[i] == slice) return 0;
        seen[n] = found, slice_seen[n++] = slice;
        if (mig) break;
    }
    return n;
}

int cuInit(unsigned flags) {
    if (number("FAKE_INIT", 0)) return number("FAKE_INIT", 0);
    return visible() ? 0 : 100;
}
int cuDriverGetVersion(int *version) { *version = number("FAKE_DRIVER", 13020); return 0; }
int cuDeviceGetCount(int *count) { *count = visible(); return 0; }
int cuDeviceGet(int *device, int n) { *device = n; return n < visible() ? 0 : 101; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    char text[64];
    visible();
    identity(text, seen[device], slice_seen[device]);
    const char *digit = text + 4;
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        if (*digit == '-') digit++;
        sscanf(digit, "%2x", &byte);
        uuid[i] = byte, digit += 2;
    }
    return 0;
}
int cuDeviceGetName(char *name, int length, int device) {
    visible();
    snprintf(name, length, "NVIDIA Fake%s", slice_seen[device] < 0 ? "" : " MIG 1g.10gb");
    return 0;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == 100 ? "no CUDA-capable device is detected" : "fake error";
    return 0;
}
int cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_FAKE"; return 0; }
int cuGetProcAddress(const char *name, void **address, int version, unsigned long long flags) {
    *address = 0;
    return 500;
}
int cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long long flags,
                        int *status) {
    *address = 0;
    if (status) *status = 1;
    return 500;
}
int cuGetExportTable(const void **table, const void *id) { *table = 0; return 1; }

int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(int *count) { *count = number("FAKE_GPUS", 1); return 0; }
int nvmlDeviceGetHandleByIndex_v2(int n, void **handle) {
    *handle = (void *)(long)(n + 1);
    return n < number("FAKE_GPUS", 1) ? 0 : 2;
}
int nvmlDeviceGetUUID(void *handle, char *text, int length) {
    identity(text, (int)(long)handle - 1, -1);
    return 0;
}
