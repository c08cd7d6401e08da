/* The DRM device: buffers, modes and heads. Every failure ends the program with one line on stderr. */
#ifndef CARD_H
#define CARD_H
#include <stdbool.h>
#include <stdint.h>

#include <drm.h>
#include <drm_mode.h>

#define MAX_HEADS 16

struct buffer {
	uint32_t handle, fb, pitch; /* fb: 0 if it is no framebuffer; pitch in bytes */
	uint8_t *pixels;
};

struct head {
	unsigned output;
	uint32_t connector, crtc;
	struct drm_mode_modeinfo mode;
	struct buffer buffers[2];
};

/* The opened device, for read(2) of its events. */
extern int card;

/* Prints the message and errno's text, and exits with 1. */
void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...);

/* An ioctl on the card that must succeed. */
void ask(unsigned long request, void *argument, const char *name);
#define ASK(request, argument) ask(request, argument, #request)

/* Opens the card and becomes its master. */
void open_card(void);

/* A mapped dumb buffer of 32 bits a pixel, made a framebuffer too if asked. */
struct buffer new_buffer(unsigned width, unsigned height, bool framebuffer);

/* The connector number `output` with a mode of this size, or its preferred one if width is 0. */
struct head find_head(unsigned output, unsigned width, unsigned height);

#endif
