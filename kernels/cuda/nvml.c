/* NVML, opened at run time, so that the binary starts without it. The declarations repeat the few that are
 * used of nvml.h (NVIDIA Management Library, API version 12); the library keeps them for good, with versions
 * in the names. */
#include "nvml.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef struct nvml_device *nvml_device;

struct nvml_memory {
    unsigned long long total, free, used;
};

struct nvml_utilization {
    unsigned gpu, memory;
};

struct nvml {
    void *library;
    nvml_device device;
    int (*shutdown)(void);
    int (*uuid)(nvml_device, char *, unsigned);
    int (*name)(nvml_device, char *, unsigned);
    int (*memory)(nvml_device, struct nvml_memory *);
    int (*utilization)(nvml_device, struct nvml_utilization *);
    int (*capability)(nvml_device, int *major, int *minor);
};

/* POSIX lets dlsym's pointer be a function's; ISO C has no words for it. */
static int find(void *library, const char *name, void *function, struct error *err)
{
    void *p = dlsym(library, name);
    if (!p)
        return error_set(err, ERR_NOT_FOUND, "libnvidia-ml.so.1 has no %s", name);
    memcpy(function, &p, sizeof p);
    return 0;
}

static int start(struct nvml *n, const char *pci_bus_id, struct error *err)
{
    int (*init)(void) = NULL, (*by_bus)(const char *, nvml_device *) = NULL;
    int rc = find(n->library, "nvmlInit_v2", &init, err);
    if (!rc)
        rc = find(n->library, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus, err);
    if (!rc)
        rc = find(n->library, "nvmlDeviceGetUUID", &n->uuid, err);
    if (!rc)
        rc = find(n->library, "nvmlDeviceGetName", &n->name, err);
    if (!rc)
        rc = find(n->library, "nvmlDeviceGetMemoryInfo", &n->memory, err);
    if (!rc)
        rc = find(n->library, "nvmlDeviceGetUtilizationRates", &n->utilization, err);
    if (!rc)
        rc = find(n->library, "nvmlDeviceGetCudaComputeCapability", &n->capability, err);
    if (!rc && (rc = init()) != 0)
        return error_set(err, ERR_IO, "nvmlInit returned %d", rc);
    if (!rc) {
        rc = find(n->library, "nvmlShutdown", &n->shutdown, err);
        int status = rc ? 0 : by_bus(pci_bus_id, &n->device);
        if (status)
            rc = error_set(err, ERR_IO, "NVML does not know the GPU %s (%d)", pci_bus_id, status);
    }
    return rc;
}

struct nvml *nvml_open(const char *pci_bus_id, struct error *err)
{
    struct nvml *n = calloc(1, sizeof *n);
    if (!n) {
        error_set(err, ERR_NOMEM, "no memory for NVML");
        return NULL;
    }
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!n->library)
        error_set(err, ERR_NOT_FOUND, "libnvidia-ml.so.1 cannot be loaded: %s", dlerror());
    if (!n->library || start(n, pci_bus_id, err))
        nvml_close(&n);
    return n;
}

void nvml_close(struct nvml **out)
{
    struct nvml *n = *out;
    if (!n)
        return;
    if (n->shutdown)
        n->shutdown();
    if (n->library)
        dlclose(n->library);
    free(n);
    *out = NULL;
}

int nvml_read(const struct nvml *n, struct device_info *out)
{
    struct nvml_memory memory = {0, 0, 0};
    struct nvml_utilization use = {0, 0};
    memset(out, 0, sizeof *out);
    if (n->uuid(n->device, out->id, sizeof out->id) || n->name(n->device, out->name, sizeof out->name) ||
        n->memory(n->device, &memory) || n->capability(n->device, &out->major, &out->minor))
        return 0;
    if (n->utilization(n->device, &use)) /* not on every card, not in every container */
        memset(&use, 0, sizeof use);
    out->memory_total = (size_t)memory.total;
    out->memory_free = (size_t)memory.free;
    out->utilization_compute = (int)use.gpu;
    out->utilization_memory = (int)use.memory;
    return 1;
}
