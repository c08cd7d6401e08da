/*
 * Holds the layouts of protocol/vgpuwire to the kernel's own headers. Nothing but assertions: a
 * wrong size or offset fails the build and names the struct and the field.
 */
#include <stddef.h>

#include <linux/udmabuf.h>
#include <linux/vfio.h>
#include <linux/virtio_gpu.h>
#include <linux/virtio_ring.h>

#include "layout_gen.h"

#define SIZE(s, value) _Static_assert(sizeof(struct s) == (value), "size of " #s);
#define NUMBER(name, value) _Static_assert(name == (value), "number of " #name);
#define FIELD(s, f, value) _Static_assert(offsetof(struct s, f) == (value), #s "." #f);

VGPU_LAYOUT(SIZE, FIELD)
VGPU_NUMBERS(NUMBER)

/* Before Linux 7.2 struct virtio_gpu_config ends at num_capsets. */
#ifdef VIRTIO_GPU_F_BLOB_ALIGNMENT
VGPU_LAYOUT_NEWER(SIZE, FIELD)
#endif

/* Before Linux 6.19 VFIO has no dma-bufs. */
#ifdef VFIO_DEVICE_FEATURE_DMA_BUF
VGPU_LAYOUT_DMA_BUF(SIZE, FIELD)
VGPU_NUMBERS_DMA_BUF(NUMBER)
#endif
