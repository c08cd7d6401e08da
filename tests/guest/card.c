#define _GNU_SOURCE
#include "card.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <drm_fourcc.h>

#define MAX_MODES 256

int card;

void fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	fputs("drmdraw: ", stderr);
	vfprintf(stderr, format, arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	va_end(arguments);
	exit(1);
}

void ask(unsigned long request, void *argument, const char *name)
{
	while (ioctl(card, request, argument) < 0)
		if (errno != EINTR && errno != EAGAIN)
			fail("%s", name);
}

void open_card(void)
{
	card = open("/dev/dri/card0", O_RDWR | O_CLOEXEC);
	if (card < 0)
		fail("/dev/dri/card0");
	/* A drmdraw that was just killed may not be gone yet: only one can be master. */
	for (unsigned tries = 0; ioctl(card, DRM_IOCTL_SET_MASTER, 0) < 0; tries++) {
		if (tries == 200)
			fail("becoming DRM master (does another drmdraw --stay?)");
		usleep(10000);
	}
}

struct buffer new_buffer(unsigned width, unsigned height, bool framebuffer)
{
	struct drm_mode_create_dumb dumb = {.width = width, .height = height, .bpp = 32};
	struct drm_mode_map_dumb map = {0};
	struct buffer buffer;

	ASK(DRM_IOCTL_MODE_CREATE_DUMB, &dumb);
	buffer = (struct buffer){.handle = dumb.handle, .pitch = dumb.pitch};
	map.handle = dumb.handle;
	ASK(DRM_IOCTL_MODE_MAP_DUMB, &map);
	buffer.pixels = mmap(NULL, dumb.size, PROT_READ | PROT_WRITE, MAP_SHARED, card, (off_t)map.offset);
	if (buffer.pixels == MAP_FAILED)
		fail("mapping a dumb buffer of %ux%u", width, height);
	if (framebuffer) {
		struct drm_mode_fb_cmd2 fb = {
			.width = width,
			.height = height,
			.pixel_format = DRM_FORMAT_XRGB8888,
			.handles = {dumb.handle},
			.pitches = {dumb.pitch},
		};
		ASK(DRM_IOCTL_MODE_ADDFB2, &fb);
		buffer.fb = fb.fb_id;
	}
	return buffer;
}

/* A mode of exactly this size. The timings are made up: virtio-gpu has none. */
static struct drm_mode_modeinfo made_mode(unsigned width, unsigned height)
{
	struct drm_mode_modeinfo mode = {
		.hdisplay = (uint16_t)width,
		.hsync_start = (uint16_t)(width + 8),
		.hsync_end = (uint16_t)(width + 16),
		.htotal = (uint16_t)(width + 24),
		.vdisplay = (uint16_t)height,
		.vsync_start = (uint16_t)(height + 8),
		.vsync_end = (uint16_t)(height + 16),
		.vtotal = (uint16_t)(height + 24),
		.vrefresh = 60,
		.type = DRM_MODE_TYPE_USERDEF,
	};

	mode.clock = (uint32_t)mode.htotal * mode.vtotal * 60 / 1000;
	snprintf(mode.name, sizeof mode.name, "%ux%u", width, height);
	return mode;
}

struct head find_head(unsigned output, unsigned width, unsigned height)
{
	static struct drm_mode_modeinfo modes[MAX_MODES];
	uint32_t connectors[MAX_HEADS], crtcs[MAX_HEADS], encoders[MAX_HEADS];
	struct drm_mode_card_res resources = {
		.connector_id_ptr = (uintptr_t)connectors,
		.crtc_id_ptr = (uintptr_t)crtcs,
		.count_connectors = MAX_HEADS,
		.count_crtcs = MAX_HEADS,
	};
	struct drm_mode_get_connector connector = {
		.modes_ptr = (uintptr_t)modes,
		.encoders_ptr = (uintptr_t)encoders,
		.count_modes = MAX_MODES,
		.count_encoders = MAX_HEADS,
	};
	struct drm_mode_get_encoder encoder = {0};
	struct head head = {.output = output};

	ASK(DRM_IOCTL_MODE_GETRESOURCES, &resources);
	if (output >= resources.count_connectors || resources.count_connectors > MAX_HEADS) {
		errno = ENODEV;
		fail("there is no output %u, only %u", output, resources.count_connectors);
	}
	head.connector = connector.connector_id = connectors[output];
	ASK(DRM_IOCTL_MODE_GETCONNECTOR, &connector);
	encoder.encoder_id = encoders[0];
	ASK(DRM_IOCTL_MODE_GETENCODER, &encoder);
	if (!encoder.possible_crtcs) {
		errno = ENODEV;
		fail("output %u has no CRTC", output);
	}
	head.crtc = crtcs[__builtin_ctz(encoder.possible_crtcs)];
	if (connector.count_modes && !width) {
		head.mode = modes[0];
		return head;
	}
	/* An output without a monitor can be driven all the same: that is how a second head is tested. */
	head.mode = made_mode(width ? width : 1024, width ? height : 768);
	for (unsigned i = 0; i < connector.count_modes && i < MAX_MODES; i++)
		if (modes[i].hdisplay == head.mode.hdisplay && modes[i].vdisplay == head.mode.vdisplay) {
			head.mode = modes[i];
			break;
		}
	return head;
}
