"""What QEMU asks: the vhost-user protocol as a state machine without any I/O.

`state.VhostUserBackend` takes one parsed message at a time and says what has to be done
(`actions`), then what is to be answered. `ring` and `memory` hold what it was told, `features`
what is offered and why. Nothing here opens, reads, waits for or closes anything: descriptors are
opaque values of a type that only the caller knows.
"""
