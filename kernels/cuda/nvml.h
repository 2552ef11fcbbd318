/* The GPU as its management library sees it. */
#ifndef LATENTD_CUDA_NVML_H
#define LATENTD_CUDA_NVML_H

#include "backend.h"

struct nvml;

/* Loads libnvidia-ml.so.1 and finds the GPU at PCI_BUS_ID ("0000:1b:00.0"). NULL with words in ERR when
 * either is missing: only the hardware routes need it. */
struct nvml *nvml_open(const char *pci_bus_id, struct error *err);
void nvml_close(struct nvml **n);
/* 1, or 0 when the library refuses. Fields that a GPU does not report are 0. Any thread. */
int nvml_read(const struct nvml *n, struct device_info *out);

#endif
