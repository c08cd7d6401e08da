"""The conformance tables: every row, what QEMU does with it, what vgpud does, and why they differ.

The ids are those of the peer analysis (tables E to V of its section 2); QEMU is its in-process
`virtio-gpu`, 11.1. A test shows a row by carrying its id in its name, as in
`test_T06_rows_below_the_rectangle_stay`; `shown_by` finds them in the whole of tests/, so a row
has its test the moment somebody writes one. Tests that are named otherwise are listed as `also`.
A row without a test says why.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]

TABLES: Final = {
    "E": "envelope, parsing, fences",
    "D": "GET_DISPLAY_INFO, GET_EDID",
    "C": "RESOURCE_CREATE_2D",
    "U": "RESOURCE_UNREF",
    "A": "ATTACH_BACKING, DETACH_BACKING",
    "T": "TRANSFER_TO_HOST_2D",
    "S": "SET_SCANOUT",
    "B": "SET_SCANOUT_BLOB",
    "F": "RESOURCE_FLUSH",
    "L": "RESOURCE_CREATE_BLOB",
    "M": "MAP_BLOB, UNMAP_BLOB",
    "N": "RESOURCE_ASSIGN_UUID",
    "P": "capsets",
    "K": "cursor queue",
    "R": "reset and stop",
    "V": "the GPU socket",
}

LAST: Final = {
    "E": 22,
    "D": 7,
    "C": 13,
    "U": 7,
    "A": 22,
    "T": 17,
    "S": 11,
    "B": 16,
    "F": 15,
    "L": 21,
    "M": 7,
    "N": 3,
    "P": 2,
    "K": 16,
    "R": 10,
    "V": 18,
}
"""The last row of each table; T06b is one more."""

IDS: Final = frozenset(
    {f"{table}{number:02}" for table, last in LAST.items() for number in range(1, last + 1)}
    | {"T06b"}
)

RENDERER: Final = "later: there is no renderer"


@dataclass(frozen=True)
class Row:
    """`qemu` and `ours` in few words; `ours` is empty where it is the same."""

    id: str
    input: str
    qemu: str
    ours: str = ""
    because: str = ""
    """Why vgpud differs."""
    untested: str = ""
    """Why there is no test."""
    also: tuple[str, ...] = ()
    """Tests, as path in tests/ and name, that do not carry the id."""

    @property
    def table(self) -> str:
        return self.id[0]

    @property
    def same(self) -> bool:
        return not self.ours

    @property
    def later(self) -> bool:
        return self.untested.startswith("later")


_ID: Final = re.compile(rf"(?<=_)([{''.join(TABLES)}]\d\d[a-z]?)(?=_)")


@cache
def _functions(path: Path) -> tuple[str, ...]:
    """The test functions of a file, as pytest names them."""
    names = []
    for node in ast.parse(path.read_text()).body:
        scope = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(one, kinds) and one.name.startswith("test_"):
                names.append(f"{scope}{one.name}")
    return tuple(names)


def tests_named() -> Iterator[str]:
    """Every test of the project, as pytest's node id."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for name in _functions(path):
            yield f"{path.relative_to(TESTS.parent)}::{name}"


@cache
def names_by_id() -> dict[str, tuple[str, ...]]:
    """Every id that a test's name carries, known or not: its tests as pytest's node ids."""
    found: dict[str, list[str]] = {}
    for test in tests_named():
        for row in _ID.findall(test.rpartition("::")[2]):
            found.setdefault(row, []).append(test)
    return {row: tuple(names) for row, names in found.items()}


def shown_by(row: Row) -> tuple[str, ...]:
    """Its tests as pytest's node ids."""
    also = tuple(f"tests/{name}" for name in row.also)
    return names_by_id().get(row.id, ()) + also


def exists(test: str) -> bool:
    """Whether there is a test of that node id."""
    path, _, name = test.partition("::")
    file = TESTS.parent / path
    return file.exists() and name in _functions(file)


ROWS: Final = (
    # -- E
    Row("E01", "fewer than 24 readable bytes", "INVALID_PARAMETER without a fence"),
    Row("E02", "a header, and the command cut", "INVALID_PARAMETER with the fence"),
    Row("E03", "more readable bytes than the command has", "ignored"),
    Row("E04", "unknown type", "UNSPEC"),
    Row("E05", "3D command", "UNSPEC"),
    Row("E06", "cursor command on the control queue", "UNSPEC"),
    Row(
        "E07",
        "control command on the cursor queue",
        "taken for UPDATE_CURSOR",
        "ignored, used length 0",
        "it would show a pointer that nobody asked for",
    ),
    Row(
        "E08",
        "no writable descriptor",
        "executed, used length 0",
        also=("contract/test_native_queue.py::test_one_part_only",),
    ),
    Row(
        "E09",
        "fewer than 24 writable bytes",
        "the answer is cut",
        also=("contract/test_native_queue.py::test_a_response_is_cut_at_the_writable_part",),
    ),
    Row(
        "E10",
        "24 to 407 writable bytes for GET_DISPLAY_INFO",
        "the answer is cut",
        also=("contract/test_native_queue.py::test_a_response_is_cut_at_the_writable_part",),
    ),
    Row(
        "E11",
        "a writable descriptor before a readable one",
        "the device is broken",
        "this ring is broken",
        "the other ring does no harm; QEMU's err eventfd is signalled",
        also=(
            "contract/test_native_queue_hostile.py::test_bad_chain",
            "wire/test_faults.py::test_the_other_ring_lives_on_beside_a_broken_one",
        ),
    ),
    Row(
        "E12",
        "descriptor loop, index or indirect table out of bounds",
        "the device is broken",
        "this ring is broken",
        "as E11",
        also=(
            "contract/test_native_queue_hostile.py::test_bad_chain",
            "contract/test_native_queue_hostile.py::test_bad_indirect_table",
            "contract/test_native_queue_hostile.py::test_avail_index_jumps",
        ),
    ),
    Row(
        "E13",
        "descriptor outside guest memory",
        "the device is broken",
        "this ring is broken",
        "as E11",
        also=("contract/test_native_queue_hostile.py::test_bad_chain",),
    ),
    Row(
        "E14",
        "a request split over descriptors at any byte",
        "works",
        also=("contract/test_native_queue.py::test_a_request_may_be_split_at_every_byte",),
    ),
    Row(
        "E15",
        "FENCE",
        "flag, fence_id and ctx_id echoed",
        "also RING_IDX, if CONTEXT_INIT was acked",
        "the specification; QEMU's 2D device does not offer CONTEXT_INIT",
    ),
    Row("E16", "FENCE with RING_IDX on a 2D device", "answered, the ring is not echoed"),
    Row("E17", "FENCE on a command that fails", "echoed"),
    Row("E18", "unknown flags", "ignored, not echoed"),
    Row(
        "E19",
        "many commands at one kick",
        "one notification each, in order",
        "in order, one notification a batch",
        "EVENT_IDX and virtio allow it",
    ),
    Row(
        "E20",
        "unfenced flush while the display is busy",
        "executed again and again",
        "executed once, parked",
        "QEMU's is a livelock, mended in its master",
    ),
    Row(
        "E21",
        "a queue full of flushes, a slow display",
        "the control queue stops",
        "the ring goes on, flushes are parked",
        "one slow head must not stop the others",
    ),
    Row("E22", "order of the used ring", "order of completion"),
    # -- D
    Row(
        "D01",
        "GET_DISPLAY_INFO, fresh device, one head",
        "one enabled mode, the rest zeros",
        "asked of QEMU each time; parked",
        "only QEMU knows; at the deadline the last answer",
    ),
    Row("D02", "several heads enabled by the display", "enabled as the display says"),
    Row("D03", "the display is resized", "the next answer has the new size"),
    Row(
        "D04",
        "GET_EDID",
        "size 1024, valid blocks, zeros behind",
        "QEMU's, or 128 bytes of our own",
        "our own is as long as it says",
    ),
    Row("D05", "GET_EDID of a head that is not there", "INVALID_PARAMETER"),
    Row("D06", "GET_EDID, feature not acked", "answered"),
    Row(
        "D07",
        "GET_EDID, the display is silent",
        "cannot happen in process",
        "our own EDID at the deadline",
        "QEMU does not answer for every head",
    ),
    # -- C
    Row("C01", "id 0", "INVALID_RESOURCE_ID"),
    Row("C02", "id is taken", "INVALID_RESOURCE_ID, the old one stays"),
    Row("C03", "id 0 and a wrong format", "INVALID_RESOURCE_ID"),
    Row("C04", "unknown format", "INVALID_PARAMETER"),
    Row("C05", "each of the eight formats", "OK, four bytes a pixel"),
    Row("C06", "65536 x 65536", "OUT_OF_MEMORY"),
    Row("C07", "a width whose bits or bytes wrap (CVE-2026-3886)", "OUT_OF_MEMORY"),
    Row("C08", "8192 x 8192: exactly the quota", "OUT_OF_MEMORY"),
    Row("C09", "8192 x 8191", "OK"),
    Row(
        "C10",
        "many small ones up to the quota",
        "OUT_OF_MEMORY at 256 MiB",
        "and at 65,536 resources",
        "a resource costs more than its one pixel",
    ),
    Row("C11", "width or height 0", "OUT_OF_MEMORY"),
    Row("C12", "the id after OUT_OF_MEMORY", "is free"),
    Row("C13", "a new resource's pixels", "zeros"),
    # -- U
    Row("U01", "unknown id", "INVALID_RESOURCE_ID"),
    Row("U02", "idle resource", "OK, all is freed"),
    Row("U03", "shown on one head", "OK, the head goes off"),
    Row("U04", "shown on several heads", "OK, all go off"),
    Row("U05", "its image is the pointer", "OK, the pointer stays"),
    Row("U06", "its flush waits for the display", "freed after it"),
    Row("U07", "with a backing", "OK, nothing leaks (CVE-2021-3544)"),
    # -- A
    Row("A01", "unknown id", "INVALID_RESOURCE_ID"),
    Row("A02", "has a backing already", "UNSPEC, the old one stays"),
    Row(
        "A03",
        "16,384 entries",
        "OK",
        "OK; 1,048,576 in all backings",
        "64 bytes of QEMU's memory each, without a bound",
    ),
    Row("A04", "16,385 entries", "UNSPEC"),
    Row("A05", "4,294,967,295 entries", "UNSPEC, nothing allocated"),
    Row("A06", "fewer entries than claimed", "UNSPEC"),
    Row("A07", "no entries", "OK, can be attached later"),
    Row("A08", "an entry of length 0", "UNSPEC"),
    Row("A09", "address is no memory", "UNSPEC"),
    Row("A10", "address + length wraps", "UNSPEC"),
    Row("A11", "an entry across two regions", "OK"),
    Row(
        "A12",
        "address in a VFIO BAR",
        "a bounce of 4 KiB, or UNSPEC",
        "UNSPEC",
        "later: device memory that QEMU shares",
    ),
    Row(
        "A13",
        "address in ROM",
        "OK",
        "UNSPEC",
        "ROM is never in the memory table",
    ),
    Row("A14", "entries overlap or repeat", "OK"),
    Row("A15", "blob without entries, attach less than its size", "INVALID_PARAMETER"),
    Row(
        "A16",
        "blob, udmabuf refuses",
        "OK, then UNSPEC",
        "OK, shown by UPDATE",
        "a picture is better than none",
    ),
    Row("A17", "the same memory for two resources", "OK"),
    Row("A18", "DETACH, unknown id", "INVALID_RESOURCE_ID"),
    Row("A19", "DETACH without a backing", "UNSPEC", "OK", "as QEMU's master"),
    Row("A20", "DETACH while it is shown", "OK, the picture stays"),
    Row(
        "A21",
        "DETACH of a blob while it is shown",
        "the surface points at unmapped memory",
        "its heads go off",
        "QEMU's next picture is a crash",
    ),
    Row(
        "A22",
        "memory under a backing is unplugged",
        "kept by QEMU's reference",
        "UNSPEC until it is back",
        "QEMU unmaps what it unplugs",
    ),
    # -- T
    Row("T01", "unknown id", "INVALID_RESOURCE_ID"),
    Row("T02", "no backing", "UNSPEC", "INVALID_RESOURCE_ID", "as QEMU's master"),
    Row("T03", "blob, mapped", "OK, nothing done"),
    Row(
        "T04",
        "blob, not mapped",
        "UNSPEC",
        "OK, nothing done",
        "Linux 7.3 sends it for every frame",
    ),
    Row("T05", "whole rectangle", "all is copied"),
    Row("T06", "the upper rows", "exactly these rows"),
    Row("T06b", "full rows in the middle", "exactly these rows"),
    Row("T07", "narrow rectangle", "row by row, a stride apart"),
    Row("T08", "rectangle not inside", "INVALID_PARAMETER"),
    Row("T09", "x + width wraps", "INVALID_PARAMETER"),
    Row("T10", "empty, on the edge", "OK, nothing copied"),
    Row("T11", "empty", "OK, nothing copied"),
    Row("T12", "offset behind the backing", "OK, nothing copied"),
    Row(
        "T13",
        "backing too short",
        "OK, copied up to its last byte",
        "up to its last whole pixel",
        "half a pixel is no colour",
    ),
    Row(
        "T14",
        "offset of 2**32 and more",
        "cut to 32 bits",
        "nothing copied",
        "the field has 64 bits",
    ),
    Row(
        "T15",
        "offset + rows wraps 2**32",
        "goes on at the start",
        "nothing copied",
        "wrong rows are no picture",
    ),
    Row("T16", "the guest draws meanwhile", "torn, and safe"),
    Row("T17", "FENCE", "answered after the copy"),
    # -- S
    Row("S01", "no such head", "INVALID_SCANOUT_ID, before all else"),
    Row(
        "S02",
        "resource 0",
        "OK, off, each time",
        "OK, said once",
        "off is off",
    ),
    Row("S03", "unknown resource", "INVALID_RESOURCE_ID"),
    Row("S04", "no backing", "UNSPEC", "OK", "as QEMU's master"),
    Row("S05", "a blob", "QEMU crashes", "INVALID_RESOURCE_ID", "as QEMU's master"),
    Row("S06", "below 16 x 16", "INVALID_PARAMETER"),
    Row("S07", "rectangle not inside", "INVALID_PARAMETER"),
    Row("S08", "valid", "OK, shown"),
    Row("S09", "the same resource at another place", "no new surface"),
    Row("S10", "one resource on several heads", "OK"),
    Row("S11", "from one resource to another", "the old goes after the new is there"),
    # -- B
    Row("B01", "RESOURCE_BLOB not acked", "INVALID_PARAMETER"),
    Row("B02", "a 2D resource", "UNSPEC", "INVALID_RESOURCE_ID", "as QEMU's master"),
    Row("B03", "no backing", "UNSPEC", "INVALID_RESOURCE_ID", "as QEMU's master"),
    Row("B04", "unknown format", "INVALID_PARAMETER"),
    Row("B05", "stride below the width", "INVALID_PARAMETER"),
    Row("B06", "stride above INT_MAX", "INVALID_PARAMETER"),
    Row("B07", "start above UINT32_MAX", "INVALID_PARAMETER"),
    Row(
        "B08",
        "more than the blob holds",
        "INVALID_PARAMETER, full strides counted",
        "INVALID_PARAMETER, pixels counted",
        "else the right head of a tight buffer is refused",
    ),
    Row(
        "B09",
        "last row shorter than the stride",
        "INVALID_PARAMETER",
        "OK",
        "legal by the specification",
    ),
    Row("B10", "rectangle too small or not inside", "INVALID_PARAMETER"),
    Row("B11", "strides and offsets of planes 1 to 3", "ignored"),
    Row("B12", "width = height = 0", "INVALID_PARAMETER"),
    Row("B13", "valid, GL console", "dma-buf shown"),
    Row(
        "B14",
        "no dma-buf on a GL console",
        "OUT_OF_MEMORY",
        "shown by UPDATE",
        "a picture is better than none",
    ),
    Row("B15", "valid, no GL", "the blob is the surface", "UPDATE", "another process"),
    Row("B16", "virgl's order of checks", "bounds before the id", "2D's order", "no virgl"),
    # -- F
    Row("F01", "unknown id", "INVALID_RESOURCE_ID"),
    Row("F02", "no head shows it", "OK, nothing to do"),
    Row("F03", "rectangle not inside", "INVALID_PARAMETER"),
    Row("F04", "beside what the head shows", "OK, no update"),
    Row("F05", "partly on a head that is not at 0,0", "cut, and moved to the head"),
    Row("F06", "blob, rectangle on the edge", "OK, no update"),
    Row("F07", "blob beside all its heads", "INVALID_PARAMETER"),
    Row("F08", "blob without mapping", "INVALID_PARAMETER"),
    Row("F09", "no backing", "OK"),
    Row(
        "F10",
        "blob on a GL console",
        "the whole head is updated",
        "the rectangle is",
        "the message has one",
    ),
    Row(
        "F11",
        "two heads, one of them GL",
        "the other is not updated",
        "both are",
        "a return too early in QEMU",
    ),
    Row("F12", "width or height 0", "OK, no update"),
    Row("F13", "wider or higher than 32,767", "exact"),
    Row("F14", "formats with red first", "the right colours"),
    Row(
        "F15",
        "formats with alpha",
        "alpha is ignored",
        "the DRM format is the one without",
        "nothing is behind a head",
    ),
    # -- L
    Row("L01", "RESOURCE_BLOB not acked", "INVALID_PARAMETER"),
    Row("L02", "id 0", "INVALID_RESOURCE_ID"),
    Row("L03", "guest memory, any flags", "OK"),
    Row(
        "L04",
        "host memory on a 2D device",
        "OK",
        "INVALID_PARAMETER",
        "there is no host memory to share",
    ),
    Row("L05", "other memory or flags", "INVALID_PARAMETER"),
    Row("L06", "id is taken", "INVALID_RESOURCE_ID"),
    Row("L07", "no entries, size above 0", "OK, attach later"),
    Row("L08", "too many, short or wrong entries", "UNSPEC"),
    Row("L09", "entries below the size", "INVALID_PARAMETER"),
    Row("L10", "entries above the size", "OK"),
    Row("L11", "size 0", "OK, no mapping", "OK, never shown", "no pixel in it"),
    Row("L12", "size 2**63", "INVALID_PARAMETER"),
    Row("L13", "size not in pages", "OK"),
    Row("L14", "one entry below a page", "OUT_OF_MEMORY when shown", "UPDATE", "as B14"),
    Row("L15", "entry not on a page", "OK, then UNSPEC", "UPDATE", "as B14"),
    Row(
        "L16",
        "guest memory is no sealed memfd",
        "OK, then UNSPEC",
        "UPDATE",
        "as B14",
        also=(
            "unit/host/test_region_file.py::test_a_memfd_that_may_shrink_says_seal_off",
            "unit/host/test_region_file.py::test_a_file_on_a_disk",
        ),
    ),
    Row(
        "L17",
        "above 1,024 pieces",
        "OK, then UNSPEC",
        "merged, or UPDATE",
        "as B14",
        also=("contract/test_native_backing.py::test_adjacent_entries_are_merged",),
    ),
    Row(
        "L18",
        "entries in two memfds",
        "OK",
        also=("unit/host/test_udmabuf.py::test_runs_of_two_memfds_in_their_order",),
    ),
    Row(
        "L19",
        "huge pages",
        "OK",
        also=(
            "unit/host/test_region_file.py::test_a_memfd_of_huge_pages",
            "lab/inner/test_dmabuf.py::test_huge_pages",
        ),
    ),
    Row(
        "L20",
        "the quota",
        "blobs are not counted",
        "dma-bufs, their bytes and pieces are",
        "EMFILE, and pages that cannot be swapped",
        also=(
            "unit/host/test_dmabuf.py::test_a_quota_of_dmabufs",
            "unit/host/test_dmabuf.py::test_a_quota_of_bytes",
            "unit/host/test_dmabuf.py::test_a_quota_of_pieces",
        ),
    ),
    Row("L21", "ctx_id of a guest's blob", "ignored"),
    # -- M
    Row("M01", "MAP_BLOB, UNMAP_BLOB on a 2D device", "UNSPEC"),
    Row("M02", "behind the window's end", "INVALID_PARAMETER", untested=RENDERER),
    Row("M03", "unknown id", "INVALID_RESOURCE_ID", untested=RENDERER),
    Row("M04", "mapped twice", "UNSPEC", untested=RENDERER),
    Row("M05", "unmapped though not mapped", "UNSPEC", untested=RENDERER),
    Row("M06", "over another mapping", "OK", "INVALID_PARAMETER", "one hides the other", RENDERER),
    Row("M07", "reset with mappings", "all unmapped", untested=RENDERER),
    # -- N
    Row(
        "N01",
        "feature not acked",
        "UNSPEC: it has no such feature",
    ),
    Row(
        "N02",
        "unknown id",
        "UNSPEC: it has no such feature",
        "INVALID_RESOURCE_ID",
        "as rutabaga's device",
    ),
    Row(
        "N03",
        "asked again",
        "UNSPEC: it has no such feature",
        "the same UUID",
        "as rutabaga's device",
    ),
    # -- P
    Row("P01", "GET_CAPSET_INFO on a 2D device", "UNSPEC"),
    Row("P02", "GET_CAPSET on a 2D device", "UNSPEC"),
    # -- K
    Row("K01", "fewer than 56 bytes", "ignored"),
    Row("K02", "no such head", "ignored"),
    Row("K03", "UPDATE, resource 0", "hidden, the image is kept"),
    Row(
        "K04",
        "UPDATE, 64 x 64",
        "the image, as the resource has it",
        "the image, as B8G8R8A8",
        "a pointer in another format has the wrong colours in QEMU",
    ),
    Row("K05", "UPDATE, another size", "old image, new hot spot"),
    Row("K06", "UPDATE, unknown id", "old image, visible"),
    Row("K07", "UPDATE, blob of 16,384 bytes", "its first 16,384 bytes"),
    Row("K08", "UPDATE, blob without backing", "QEMU crashes", "ignored", "as master"),
    Row("K09", "UPDATE, smaller blob", "old image"),
    Row("K10", "MOVE", "visible where the resource is not 0"),
    Row("K11", "MOVE before any UPDATE", "moved"),
    Row("K12", "hot spot outside", "passed on"),
    Row("K13", "position outside", "passed on"),
    Row("K14", "FENCE", "no answer"),
    Row("K15", "writable descriptor", "untouched"),
    Row(
        "K16",
        "10,000 MOVEs at once",
        "each is done",
        "the last one is",
        "nobody sees the others, and each is a message",
    ),
    # -- R
    Row(
        "R01",
        "virtio reset",
        "nothing is left",
        "also without RESET_DEVICE: QEMU 7.2",
        "a base other than the one returned tells",
        also=("unit/backend/test_rings.py::test_a_base_that_moved_is_a_reset",),
    ),
    Row("R02", "reset while a flush waits", "dropped", "answered", "its ring is stopped first"),
    Row(
        "R03",
        "events_read over a reset",
        "kept",
        untested="QEMU keeps these fields itself and overwrites ours",
    ),
    Row("R04", "heads after a reset", "off, nothing said"),
    Row(
        "R05",
        "DRIVER_OK again",
        "works",
        also=(
            "wire/test_session.py::test_a_second_gpu_socket_without_a_restart_shows_the_picture",
        ),
    ),
    Row(
        "R06",
        "stop and cont",
        "state kept",
        "all is told to the new socket",
        "QEMU's display is another process",
        also=("wire/test_session.py::test_stop_and_cont_replay_the_picture_without_the_guest",),
    ),
    Row(
        "R07",
        "reset on virtio-mmio",
        "refused at start",
        untested="QEMU's own business: it has no vhost-user-gpu on mmio",
    ),
    Row(
        "R08",
        "the ring is stopped with commands in it",
        "cannot happen in process",
        "answered or left, exact base",
        "GET_VRING_BASE",
    ),
    Row(
        "R09",
        "another memory table under live backings",
        "cannot happen in process",
        "resolved again, or lost",
        "SET_MEM_TABLE",
    ),
    Row("R10", "migration", "saved", "refused", "later: DEVICE_STATE", "later: migration"),
    # -- V
    Row(
        "V01",
        "GET_PROTOCOL_FEATURES",
        "answers 3",
        "always first",
        "the specification",
        also=("wire/test_session.py::test_edid_is_our_own_where_qemu_has_none",),
    ),
    Row(
        "V02",
        "GET_DISPLAY_INFO",
        "408 bytes",
        "parked",
        "QEMU may be slow",
        also=("wire/test_session.py::test_display_info_and_edid_are_qemus",),
    ),
    Row("V03", "CURSOR_POS, _HIDE, _UPDATE", "checks the size, ignores wrong heads"),
    Row("V04", "SCANOUT", "allocates without a cap", "at most 16,384 a side", "QEMU aborts"),
    Row("V05", "UPDATE before SCANOUT", "QEMU crashes", "never sent", "QEMU crashes"),
    Row("V06", "DMABUF_SCANOUT", "x, y ignored", "whole buffers", "else the wrong part"),
    Row("V07", "DMABUF_UPDATE", "answers when shown", "one at a time", "one flag in QEMU"),
    Row(
        "V08",
        "GET_EDID of a wrong head",
        "no answer",
        "never waits for it",
        "a hang",
        also=("wire/test_session.py::test_heads_that_qemu_lacks_are_refused",),
    ),
    Row("V09", "DMABUF_SCANOUT2", "modifier used", "if acked", "the specification"),
    Row("V10", "unknown request", "ignored", untested="we send none"),
    Row(
        "V11",
        "a message of any size",
        "allocated without a cap",
        "tiles of 4 MiB",
        "QEMU aborts, and reads each under its big lock",
    ),
    Row(
        "V12",
        "QEMU is blocked",
        "reads nothing",
        "damage is merged",
        "nothing may wait for it",
        also=(
            "wire/test_session.py::test_a_display_that_reads_nothing_stops_neither_qemu_nor_the_pointer",
        ),
    ),
    Row(
        "V13",
        "after a stop",
        "closes the socket",
        "state kept",
        "stop is not reset",
        also=("wire/test_session.py::test_stop_and_cont_replay_the_picture_without_the_guest",),
    ),
    Row("V14", "an fd", "on the first byte of a header"),
    Row(
        "V15",
        "GET_CONFIG of 16 or 20 bytes",
        "overwrites three fields",
        "never fails",
        "zeros",
        also=(
            "unit/backend/test_state.py::test_config_of_any_part",
            "wire/test_session.py::test_config_has_the_size_that_was_asked_for",
        ),
    ),
    Row(
        "V16",
        "RING_RESET",
        "offered to the guest, not told to us",
        "a live queue may be set up again",
        "else it is stuck",
        also=("unit/backend/test_rings.py::test_a_live_ring_described_anew_is_stopped_first",),
    ),
    Row(
        "V17",
        "ADD_MEM_REG, three addresses",
        "all differ",
        "each in its place",
        "mmap_offset counts",
        also=("unit/backend/test_state.py::test_regions_one_by_one",),
    ),
    Row(
        "V18",
        "GPU_SET_SOCKET before all else",
        "so it is",
        "negotiated at once",
        "QEMU answers early",
        also=("unit/backend/test_state.py::test_display_before_everything_else_and_again",),
    ),
)
