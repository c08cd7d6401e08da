"""One script for each row of the conformance tables that QEMU's own device can show.

The ids are those of the tables E, D, C, U, A, T, S, F, L, N, K, R (tests/conformance).
"""

from dataclasses import dataclass

from tests.diff.script import Script, parse
from tests.qtest import gpu
from tests.support.virtio_pci import GPU_EDID, GPU_RESOURCE_UUID, INDIRECT_DESC


@dataclass(frozen=True)
class Row:
    """`setup` must succeed, `probe` is what the row is about (both as script text)."""

    id: str
    what: str
    probe: str
    setup: str = ""
    features: int = GPU_EDID | INDIRECT_DESC
    not_old: bool = False
    """The own device of QEMU before 10.0.13 does not survive it."""
    allowed: str = ""
    """Why the answers may differ, where the model does not cover it."""

    @property
    def first(self) -> int:
        """The number of the probe's first step."""
        return len([line for line in self.setup.split(";") if line.strip()])

    def script(self) -> Script:
        whole = parse(f"{self.setup};{self.probe}")
        return Script(whole.steps, self.id, features=self.features)


SILENT = (
    "QEMU sets NEEDS_RESET in the device's status; a back-end cannot, it tells QEMU by the ring's "
    "err descriptor, which QEMU logs"
)
NESTED = "QEMU takes a descriptor with INDIRECT in an indirect table for a plain one; vgpud, as "
NESTED += "2.7.5.3.1 has it, for a broken ring"
FAR = "QEMU reads up to 4096 bytes from where no memory is through a bounce buffer; for vgpud the "
FAR += "ring is broken"

NEW = "create_2d 1 1 64 48"
BACKED = f"{NEW};attach 1 0x400000:12288"
DRAWN = f"{BACKED};transfer 1 0 0 64 48 0"
SHOWN = f"{DRAWN};set_scanout 0 1 0 0 64 48"
WHOLE = "flush 1 0 0 64 48"
ON_SCREEN = f"{SHOWN};{WHOLE}"
TWICE = f"{SHOWN};set_scanout 1 1 8 8 32 32;{WHOLE}"
UNPLUGGED = "0x200000000"
CURSOR = "create_2d 1 1 64 64;attach 1 0x400000:16384;transfer 1 0 0 64 64 0"


def _entries(count: int) -> str:
    return " ".join(f"{0x40_0000 + 4096 * (n % 1024):#x}:1" for n in range(count))


ROWS = (
    Row("E01", "request shorter than the header", "display_info cut=23", not_old=True),
    Row("E02", "header whole, struct short", "create_2d 1 1 64 48 cut=39 fence=1,9,2,0"),
    Row("E03", "bytes behind the request", f"{NEW} extra=100"),
    Row("E04", "unknown types", "raw 0 8;raw 0x199 8;raw 0x400 8;raw 0x1100 8"),
    Row("E05", "3D commands on a 2D device", "raw 0x200 72;raw 0x204 72;raw 0x207 32"),
    Row("E06", "cursor commands on the control queue", "raw 0x300 32;raw 0x301 32"),
    Row("E07", "a control command on the cursor queue", "display_info queue=1"),
    Row("E08", "no writable descriptor: executed", f"{NEW} room=;unref 1"),
    Row("E09", "fewer than 24 writable bytes", f"{NEW} room=23;unref 1 room=1"),
    Row("E10", "fewer writable bytes than a display info", "display_info room=100"),
    Row("E11", "writable before readable", "broken order", allowed=SILENT),
    Row("E12", "a loop of descriptors", "broken loop", allowed=SILENT),
    Row("E12.index", "a descriptor beyond the queue", "broken index", allowed=SILENT),
    Row("E12.nested", "an indirect table in an indirect table", "broken nested", allowed=NESTED),
    Row("E12.odd", "an indirect table of 17 bytes", "broken odd_table", allowed=SILENT),
    Row("E13", "a descriptor outside of memory", "broken far", allowed=FAR),
    Row("E14", "a request in seven pieces", f"{NEW} split=1,4,11,23,24,39"),
    Row("E15", "fence", "raw 0x102 8 fence=1,0x123456789abcdef0,0x77,0;display_info fence=1,5,6,0"),
    Row("E16", "fence with RING_IDX 0", f"{NEW} fence=3,7,1,0"),
    Row("E17", "fence on an error", "unref 9 fence=1,0xffffffffffffffff,3,0"),
    Row("E18", "unknown flags", f"{NEW} fence=0x80000000,7,1,0"),
    Row("E19", "many commands in a kick", ";".join(["raw 0x199 0"] * 20)),
    Row("D01", "display info", "display_info"),
    Row("D04", "EDID of each head", "get_edid 0;get_edid 1;get_edid 2"),
    Row("D05", "EDID of a head that is not there", "get_edid 3;get_edid 16;get_edid 0xffffffff"),
    Row("D06", "EDID, not negotiated", "get_edid 0", features=0),
    Row("C01", "id 0", "create_2d 0 1 64 48"),
    Row("C02", "an id that exists", "create_2d 1 2 16 16;flush 1 0 0 64 48", NEW),
    Row("C03", "id 0 and a bad format", "create_2d 0 0 64 48"),
    Row("C04", "bad formats", ";".join(f"create_2d 1 {f} 64 48" for f in (0, 5, 66, 0xFFFFFFFF))),
    Row(
        "C05",
        "each format",
        ";".join(f"create_2d {f} {f} 64 64" for f in gpu.CHANNELS),
    ),
    Row("C06", "65536 x 65536", "create_2d 1 1 65536 65536"),
    Row("C07", "a width whose bits overflow", "create_2d 1 1 0x40000001 1", not_old=True),
    Row("C08", "exactly 256 MiB", "create_2d 1 1 8192 8192"),
    Row("C09", "just below 256 MiB", "create_2d 1 1 8192 8191"),
    Row(
        "C10",
        "small ones up to the limit; UNREF frees",
        "create_2d 3 1 4096 4096;create_2d 3 1 4096 4095;create_2d 4 1 64 64;create_2d 5 1 4096 1;"
        "unref 1;create_2d 6 1 4096 4095",
        "create_2d 1 1 4096 4096;create_2d 2 1 8192 4096",
    ),
    Row("C11", "no width, no height", "create_2d 1 1 0 5;create_2d 1 1 5 0;create_2d 1 1 0 0"),
    Row("C12", "the id is free after OUT_OF_MEMORY", NEW, "create_2d 1 1 8192 8192"),
    Row(
        "C13", "contents before a transfer", f"{WHOLE};dump", f"{BACKED};set_scanout 0 1 0 0 64 48"
    ),
    Row("U01", "unknown id, id 0", "unref 9;unref 0"),
    Row("U02", "an idle resource", f"unref 1;{NEW}", NEW),
    Row("U03", "a resource on a scanout", "unref 1;dump", f"{ON_SCREEN};dump"),
    Row("U04", "a resource on two scanouts", "unref 1;dump", f"{TWICE};dump"),
    Row("U05", "the pointer's resource", "unref 1", f"{CURSOR};update_cursor 0 1 1 1 0 0 room="),
    Row("U07", "with a backing", f"unref 1;{BACKED}", BACKED),
    Row("A01", "unknown id", "attach 9 0x400000:4096"),
    Row(
        "A02",
        "a second backing",
        f"attach 1 0x500000:12288;transfer 1 0 0 64 48 0;{WHOLE};dump",
        SHOWN,
    ),
    Row("A03", "16384 entries", f"attach 1 {_entries(16384)}", NEW),
    Row("A04", "16385 entries", f"attach 1 {_entries(16385)}", NEW),
    Row("A05", "0xffffffff entries", "attach 1 0x400000:4096 count=0xffffffff", NEW),
    Row("A06", "fewer entries than said", "attach 1 0x400000:4096 count=2", NEW),
    Row("A07", "no entries; attached again", "attach 1;attach 1 0x400000:4096", NEW),
    Row("A08", "an entry of length 0", "attach 1 0x400000:0", NEW),
    Row(
        "A09",
        "not RAM: 8192 bytes, 4096 bytes",
        f"attach 1 {UNPLUGGED}:8192;attach 1 {UNPLUGGED}:4096",
        NEW,
    ),
    Row(
        "A10",
        "wraps at 2^64",
        "attach 1 0xffffffffffffe000:16384;attach 1 0xfffffffffffff000:8192",
        NEW,
    ),
    Row(
        "A11",
        "one entry over two memory regions",
        f"transfer 1 0 0 64 48 0;{WHOLE};dump",
        f"{NEW};attach 1 0x1001ff000:12288;set_scanout 0 1 0 0 64 48",
    ),
    Row("A13", "RAM behind a chipset's shadow", "attach 1 0xc8000:4096", NEW),
    Row(
        "A14",
        "the same page three times",
        f"transfer 1 0 0 64 48 0;{WHOLE};dump",
        f"{NEW};attach 1 0x400000:4096 0x400000:4096 0x400000:4096;set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "A17", "the same memory for two", "attach 2 0x400000:12288", f"{BACKED};create_2d 2 1 64 48"
    ),
    Row("A18", "DETACH of an unknown id", "detach 9"),
    Row("A19", "DETACH without a backing", "detach 1", NEW),
    Row("A20", "DETACH while shown", "detach 1;dump", f"{ON_SCREEN};dump"),
    Row("T01", "unknown id", "transfer 9 0 0 64 48 0"),
    Row("T02", "no backing", "transfer 1 0 0 64 48 0", NEW),
    Row(
        "T05",
        "the whole",
        f"transfer 1 0 0 64 48 0;{WHOLE};dump",
        f"{BACKED};set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "T06",
        "5 full rows from the top",
        f"transfer 1 0 0 64 5 0;{WHOLE};dump",
        f"{BACKED};set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "T06b",
        "5 full rows from row 10",
        f"transfer 1 0 10 64 5 2560;{WHOLE};dump",
        f"{BACKED};set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "T07",
        "a part of the rows",
        f"transfer 1 7 11 13 17 2844;{WHOLE};dump",
        f"{BACKED};set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "T08",
        "outside",
        "transfer 1 65 0 0 1 0;transfer 1 0 49 1 0 0;transfer 1 0 0 65 1 0;"
        "transfer 1 0 0 1 49 0;transfer 1 1 0 64 1 0;transfer 1 0 1 1 48 0",
        BACKED,
    ),
    Row("T09", "x + width wraps", "transfer 1 0xffffffff 0 2 1 0", BACKED),
    Row("T10", "empty at the edge", "transfer 1 64 0 0 48 0;transfer 1 0 48 64 0 0", BACKED),
    Row("T11", "0 x 0", "transfer 1 0 0 0 0 0", BACKED),
    Row("T12", "offset behind the backing", f"transfer 1 0 0 64 48 12288;{WHOLE};dump", SHOWN),
    Row(
        "T13",
        "a backing that ends within a pixel",
        f"transfer 1 0 0 64 48 0;{WHOLE};dump",
        f"{NEW};attach 1 0x400000:5003;set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "T14",
        "offset 2^32",
        f"transfer 1 0 0 64 48 0x100000000;{WHOLE};dump",
        f"{BACKED};set_scanout 0 1 0 0 64 48",
    ),
    Row(
        "T15",
        "offset + rows over 2^32",
        f"transfer 1 1 0 63 48 0xffffff00;{WHOLE};dump",
        f"{BACKED};set_scanout 0 1 0 0 64 48",
    ),
    Row("T17", "a fenced transfer", "transfer 1 0 0 64 48 0 fence=1,77,0,0", BACKED),
    Row("S01", "no such scanout", "set_scanout 3 1 0 0 64 48;set_scanout 3 9 0 0 64 48", BACKED),
    Row(
        "S02",
        "resource 0, twice",
        "set_scanout 0 0 0 0 0 0;set_scanout 0 0 0 0 0 0;dump",
        f"{ON_SCREEN};dump",
    ),
    Row("S03", "unknown resource", "set_scanout 0 9 0 0 64 48"),
    Row("S04", "without a backing", "set_scanout 0 1 0 0 64 48", NEW),
    Row(
        "S06",
        "below 16 x 16",
        "set_scanout 0 1 0 0 15 16;set_scanout 0 1 0 0 16 15;"
        "set_scanout 0 1 0 0 0 0;set_scanout 0 1 0 0 16 16",
        BACKED,
    ),
    Row(
        "S07",
        "not inside",
        "set_scanout 0 1 1 0 64 48;set_scanout 0 1 0xffffffff 0 16 16;"
        "set_scanout 0 1 0 0 0xffffffff 48",
        BACKED,
    ),
    Row("S08", "the first time", f"set_scanout 0 1 0 0 64 48;{WHOLE};dump", DRAWN),
    Row(
        "S09",
        "the same size elsewhere",
        f"set_scanout 0 1 16 8 32 32;{WHOLE};dump",
        f"{DRAWN};set_scanout 0 1 0 0 32 32;{WHOLE}",
    ),
    Row("S10", "one resource on two scanouts", f"set_scanout 1 1 8 8 32 32;{WHOLE};dump", SHOWN),
    Row(
        "S11",
        "another resource",
        "set_scanout 0 2 0 0 40 40;flush 2 0 0 40 40;dump;flush 1 0 0 64 48",
        f"{ON_SCREEN};create_2d 2 4 40 40;attach 2 0x500000:6400;transfer 2 0 0 40 40 0",
    ),
    Row("B01", "SET_SCANOUT_BLOB, blobs off", "raw 0x10d 72"),
    Row("L01", "CREATE_BLOB, blobs off", "raw 0x10c 32"),
    Row("M01", "MAP_BLOB, UNMAP_BLOB on a 2D device", "raw 0x208 16;raw 0x209 8"),
    Row("P00", "capsets on a 2D device", "raw 0x108 8;raw 0x109 8"),
    Row("F01", "unknown id", "flush 9 0 0 64 48"),
    Row("F02", "not on a scanout", WHOLE, BACKED),
    Row("F03", "outside", "flush 1 1 0 64 48;flush 1 0 0 64 49;flush 1 0xffffffff 0 2 1", SHOWN),
    Row(
        "F04",
        "beside what the scanout shows",
        "flush 1 0 0 8 8;dump",
        f"{DRAWN};set_scanout 0 1 16 16 32 32;{WHOLE};dump",
    ),
    Row(
        "F05",
        "overlaps the scanout",
        "transfer 1 0 0 64 48 64;flush 1 0 0 24 24;dump",
        f"{DRAWN};set_scanout 0 1 16 16 32 32;{WHOLE};dump",
    ),
    Row("F09", "without a backing", f"{WHOLE};dump", f"{ON_SCREEN};detach 1"),
    Row("F12", "empty", "flush 1 0 0 0 0;flush 1 64 48 0 0", SHOWN),
    Row(
        "F13",
        "beyond 32767 pixels",
        "flush 1 0 39000 16 100;dump",
        "create_2d 1 1 16 40000;attach 1 0x400000:6400;transfer 1 0 39000 16 100 0;"
        "set_scanout 0 1 0 39000 16 100",
    ),
    Row(
        "F14",
        "all eight formats",
        ";".join(
            f"create_2d {f} {f} 16 16;attach {f} 0x400000:1024;transfer {f} 0 0 16 16 0;"
            f"set_scanout 0 {f} 0 0 16 16;flush {f} 0 0 16 16;dump"
            for f in gpu.CHANNELS
        ),
    ),
    Row("N01", "ASSIGN_UUID, not negotiated", "assign_uuid 1", NEW),
    Row("N02", "ASSIGN_UUID of an unknown id", "assign_uuid 9", features=GPU_RESOURCE_UUID),
    Row("N03", "ASSIGN_UUID", "assign_uuid 1;assign_uuid 1", NEW, features=GPU_RESOURCE_UUID),
    Row("K01", "a short cursor command", "update_cursor 0 1 1 1 0 0 cut=55 room="),
    Row("K02", "no such scanout", "update_cursor 3 1 1 1 0 0 room="),
    Row("K03", "UPDATE with resource 0", "update_cursor 0 1 1 0 2 3 room="),
    Row("K04", "UPDATE, 64 x 64", "update_cursor 0 1 1 1 0 0 room=", CURSOR),
    Row("K05", "UPDATE, another size", "update_cursor 0 1 1 1 0 0 room=", "create_2d 1 1 32 32"),
    Row("K06", "UPDATE, unknown id", "update_cursor 0 1 1 9 0 0 room="),
    Row("K10", "MOVE", "move_cursor 0 5 5 1 0 0 room=", CURSOR),
    Row("K12", "hot spot outside", "update_cursor 0 1 1 1 64 4000000000 room=", CURSOR),
    Row("K13", "far away", "move_cursor 0 0xffffffff 70000 1 0 0 room=", CURSOR),
    Row("K14", "a fenced cursor command", "move_cursor 0 5 5 0 0 0 fence=1,5,0,0 room="),
    Row("K15", "writable bytes stay untouched", "move_cursor 0 5 5 0 0 0 room=64"),
    Row("K16", "many moves", ";".join(["move_cursor 0 5 5 0 0 0 room="] * 12)),
    Row("R04", "a reset, seen before anything is set", "dump;set_scanout 2 0 0 0 0 0"),
)
