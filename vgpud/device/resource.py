"""Resources by id, and what they may cost the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID, uuid4

from vgpud.device.pixels import BYTES_PER_PIXEL, Backing, Surface
from vgpud.errors import GuestError
from vgpud.usage import Usage
from vgpuwire import Ctrl

MAX_RESOURCES: Final = 1 << 16
"""A resource costs the host about 1 KiB beside its pixels: 64 MiB at most. Without a count, a
guest makes 67 million resources of one pixel within the 256 MiB."""

MAX_ALL_ENTRIES: Final = 1 << 20
"""Entries of all backings together: 4 GiB of scattered pages. One costs the host 40 bytes (as it
came, and resolved), so 40 MiB at most; without a bound 65,536 resources with 16,384 entries each,
all of the same page, take 40 GiB (row A03)."""

MAX_IMAGE: Final = (1 << 32) - 1
"""Bytes of one image, as QEMU's calc_image_hostmem(): no size is ever cut to 32 bits."""


class Resource:
    """What images and blobs have in common: an id, the guest's pages, the heads that show it."""

    __slots__ = ("backing", "entries", "resource_id", "scanouts", "uuid")

    def __init__(self, resource_id: int) -> None:
        self.resource_id = resource_id
        self.backing: Backing | None = None
        self.entries = 0
        self.scanouts: set[int] = set()
        self.uuid: UUID | None = None

    def assign_uuid(self) -> UUID:
        """The resource's UUID, the same at each call (virtio 1.3, 5.7.6.8)."""
        if self.uuid is None:
            self.uuid = uuid4()
        return self.uuid


class Image(Resource):
    """A 2D resource: the host has its pixels. `size` is their bytes in the budget."""

    __slots__ = ("size", "surface")

    def __init__(self, resource_id: int, surface: Surface, size: int) -> None:
        super().__init__(resource_id)
        self.surface = surface
        self.size = size


class Blob(Resource):
    """A blob in guest memory: its `size` bytes stay with the guest."""

    __slots__ = ("size",)

    def __init__(self, resource_id: int, size: int) -> None:
        super().__init__(resource_id)
        self.size = size


class Budget:
    """Host memory for the 2D resources of one guest, in bytes; the sum stays below `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.refused = 0

    def image_size(self, width: int, height: int) -> int:
        """Bytes of a width x height image; raises GuestError(ERR_OUT_OF_MEMORY) where the
        budget does not hold it. An empty image has no memory that could be shown: the same."""
        size = width * height * BYTES_PER_PIXEL
        if size == 0 or size > MAX_IMAGE or self.used + size >= self.limit:
            self.refused += size > 0
            raise GuestError(
                Ctrl.RESP_ERR_OUT_OF_MEMORY,
                f"{width}x{height} does not fit: {self.used} of {self.limit} bytes are in use",
            )
        return size


class ResourceTable:
    """The guest's resources by id."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.entries = 0
        self.refused = [0, 0]
        """How often there were too many resources, and too many entries."""
        self._by_id: dict[int, Image | Blob] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Image | Blob]:
        return iter(self._by_id.values())

    def get(self, resource_id: int) -> Image | Blob | None:
        return self._by_id.get(resource_id)

    def require(self, resource_id: int) -> Image | Blob:
        """Raises GuestError(ERR_INVALID_RESOURCE_ID) where there is none."""
        resource = self._by_id.get(resource_id)
        if resource is None:
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, f"no resource {resource_id}")
        return resource

    def require_image(self, resource_id: int) -> Image:
        """Raises GuestError(ERR_INVALID_RESOURCE_ID) where there is none, or it is a blob."""
        resource = self.require(resource_id)
        if not isinstance(resource, Image):
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, f"{resource_id} is a blob")
        return resource

    def require_blob(self, resource_id: int) -> Blob:
        """Raises GuestError(ERR_INVALID_RESOURCE_ID) where there is none, or it is an image."""
        resource = self.require(resource_id)
        if not isinstance(resource, Blob):
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, f"{resource_id} is no blob")
        return resource

    def require_free(self, resource_id: int) -> None:
        """Raises GuestError where the id is 0 (it means "none") or taken, or none is left."""
        if resource_id == 0 or resource_id in self._by_id:
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, f"id {resource_id} is not free")
        if len(self._by_id) >= MAX_RESOURCES:
            self.refused[0] += 1
            raise GuestError(Ctrl.RESP_ERR_OUT_OF_MEMORY, f"{MAX_RESOURCES} resources exist")

    def add(self, resource: Image | Blob) -> None:
        self._by_id[resource.resource_id] = resource
        if isinstance(resource, Image):
            self.budget.used += resource.size

    def require_entries(self, count: int) -> None:
        """Raises GuestError(ERR_OUT_OF_MEMORY) where so many entries more are too many."""
        if self.entries + count > MAX_ALL_ENTRIES:
            self.refused[1] += 1
            raise GuestError(Ctrl.RESP_ERR_OUT_OF_MEMORY, f"{self.entries} entries are in use")

    def usage(self) -> dict[str, Usage]:
        """Quotas that are answered with ERR_OUT_OF_MEMORY; bytes and counts."""
        budget, (resources, entries) = self.budget, self.refused
        return {
            "hostmem_bytes": Usage(budget.used, budget.limit, budget.refused),
            "resources": Usage(len(self), MAX_RESOURCES, resources),
            "entries": Usage(self.entries, MAX_ALL_ENTRIES, entries),
        }

    def attach(self, resource: Image | Blob, backing: Backing, entries: int) -> None:
        entries = max(entries, backing.segments)
        resource.backing, resource.entries = backing, entries
        self.entries += entries

    def detach(self, resource: Image | Blob) -> None:
        self.entries -= resource.entries
        resource.backing, resource.entries = None, 0

    def remove(self, resource: Image | Blob) -> None:
        self.detach(resource)
        del self._by_id[resource.resource_id]
        if isinstance(resource, Image):
            self.budget.used -= resource.size

    def clear(self) -> None:
        self._by_id.clear()
        self.budget.used = self.entries = 0
