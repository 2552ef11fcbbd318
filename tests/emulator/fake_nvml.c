/* A libnvidia-ml.so.1 that knows one GPU: what the hardware routes show of it is compared to the letter. */
#include <string.h>

struct memory {
    unsigned long long total, free, used;
};
struct utilization {
    unsigned gpu, memory;
};

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device);
int nvmlDeviceGetUUID(void *device, char *out, unsigned size);
int nvmlDeviceGetName(void *device, char *out, unsigned size);
int nvmlDeviceGetMemoryInfo(void *device, struct memory *out);
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *out);
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor);

static int gpu;

int nvmlInit_v2(void)
{
    return 0;
}

int nvmlShutdown(void)
{
    return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device)
{
    *device = &gpu;
    return strcmp(bus, "0000:00:00.0") == 0 ? 0 : 6;
}

static int put(const void *device, char *out, unsigned size, const char *text)
{
    if (device != &gpu || strlen(text) >= size)
        return 7;
    strcpy(out, text);
    return 0;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned size)
{
    return put(device, out, size, "GPU-01234567-89ab-cdef-0123-456789abcdef");
}

int nvmlDeviceGetName(void *device, char *out, unsigned size)
{
    return put(device, out, size, "NVIDIA \"Test\" 1");
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *out)
{
    *out = (struct memory){25757220864, 20000000000, 5757220864};
    return device != &gpu;
}

int nvmlDeviceGetUtilizationRates(void *device, struct utilization *out)
{
    *out = (struct utilization){37, 12};
    return device != &gpu;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    *major = 8;
    *minor = 9;
    return device != &gpu;
}
