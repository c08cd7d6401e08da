"""A vhost-user-gpu back-end daemon for QEMU."""

__version__ = "0.1.0"
