"""How fast vgpud is, beside QEMU's own C back-end: `make bench`."""
