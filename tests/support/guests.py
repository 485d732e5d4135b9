"""Guests for tests: a few dozen bytes of 16-bit code each, for machine `pc`.

The same code comes as a ROM for `-bios`, which skips SeaBIOS and is ready tens of milliseconds after
`cont`, and as a boot sector for a disk. Whoever is ready prints `R` on the first serial port.

Ports, of PIIX4's power management at 0x600: 0x600 PM1 status (bit 8: the button was pressed; written
to clear), 0x602 PM1 enable, 0x604 PM1 control, 0x608 the timer (24 bits at 3.579545 MHz).
"""

import sys


def _code(listing: str) -> bytes:
    """Return the bytes of a listing: hexadecimal, with what it does after a semicolon."""
    return bytes.fromhex("".join(line.partition(";")[0] for line in listing.splitlines()))


_POWER_MANAGEMENT = _code("""
    ba f8 0c             ; mov dx, 0xcf8          PCI configuration address ...
    66 b8 40 0b 00 80    ; mov eax, 0x80000b40    ... of function 0:1.3, PMBASE
    66 ef                ; out dx, eax
    ba fc 0c             ; mov dx, 0xcfc
    66 b8 01 06 00 00    ; mov eax, 0x601         the ports of power management begin at 0x600
    66 ef                ; out dx, eax
    ba f8 0c             ; mov dx, 0xcf8
    66 b8 80 0b 00 80    ; mov eax, 0x80000b80    PMREGMISC
    66 ef                ; out dx, eax
    ba fc 0c             ; mov dx, 0xcfc
    b0 01                ; mov al, 1              switch them on
    ee                   ; out dx, al
""")

# SeaBIOS opens the way from the PIC through the local APIC at 0xfee00000; a ROM that wants interrupts
# has to. Out of reach in real mode, so the limit of FS is lifted. Stands at 0xf000:0.
_INTERRUPTS = _code("""
    2e 0f 01 16 3a 00    ; lgdt cs:[0x3a]
    0f 20 c0             ; mov eax, cr0
    0c 01                ; or al, 1
    0f 22 c0             ; mov cr0, eax           protected mode
    bb 08 00             ; mov bx, 8
    8e e3                ; mov fs, bx             4 GiB
    24 fe                ; and al, 0xfe
    0f 22 c0             ; mov cr0, eax           real mode
    66 bb 00 00 e0 fe    ; mov ebx, 0xfee00000
    64 67 66 c7 83 f0 00 00 00 ff 01 00 00    ; mov dword fs:[ebx + 0xf0], 0x1ff     enable the APIC
    64 67 66 c7 83 50 03 00 00 00 07 00 00    ; mov dword fs:[ebx + 0x350], 0x700    LINT0 is the PIC
    eb 16                ; jmp +22                past this listing
    0f 00 40 00 0f 00    ; at 0x3a: 16 bytes of descriptors at 0xf0040
    00 00 00 00 00 00 00 00
    ff ff 00 00 00 93 cf 00
""")

_ENABLE_BUTTON = _code("""
    ba 02 06             ; mov dx, 0x602
    b8 00 01             ; mov ax, 0x100
    ef                   ; out dx, ax
""")

_PRINT_R = _code("""
    ba f8 03             ; mov dx, 0x3f8          COM1
    b0 52                ; mov al, 'R'
    ee                   ; out dx, al
""")

_PRINT_1 = _code("""
    ba f8 03             ; mov dx, 0x3f8
    b0 31                ; mov al, '1'
    ee                   ; out dx, al
""")

_AWAIT_PRESS = _code("""
    ba 00 06             ; mov dx, 0x600
    ed                   ; in ax, dx
    f6 c4 01             ; test ah, 1
    74 f7                ; jz -9                  to the first line
""")

_FORGET_PRESS = _code("""
    ba 00 06             ; mov dx, 0x600
    b8 00 01             ; mov ax, 0x100
    ef                   ; out dx, ax
""")

_POWER_OFF = _code("""
    ba 04 06             ; mov dx, 0x604
    b8 00 20             ; mov ax, 0x2000         SLP_EN, with the sleep type of S5
    ef                   ; out dx, ax
""")

_HALT = _code("""
    fa                   ; cli
    f4                   ; hlt
    eb fd                ; jmp -3                 to the hlt
""")

_ECHO_KEYS = _code("""
    e4 64                ; in al, 0x64            the keyboard controller has something
    a8 01                ; test al, 1
    74 08                ; jz +8                  past this listing
    e4 60                ; in al, 0x60
    ba f8 03             ; mov dx, 0x3f8
    ee                   ; out dx, al
    eb f2                ; jmp -14                to the first line
""")

_WAIT = _code("""
    ba 08 06             ; mov dx, 0x608
    66 ed                ; in eax, dx
    66 89 c3             ; mov ebx, eax
    66 ed                ; in eax, dx
    66 29 d8             ; sub eax, ebx
    66 25 ff ff ff 00    ; and eax, 0xffffff
    66 3d c8 62 10 00    ; cmp eax, 1073864       0.3 s
    72 ed                ; jb -19                 to the second in
""")

# Non-volatile byte 0x50 outlives a reset and is nobody else's.
_RESET_ONCE = _code("""
    b0 50                ; mov al, 0x50
    e6 70                ; out 0x70, al
    e4 71                ; in al, 0x71
    3c 5a                ; cmp al, 0x5a
    74 0e                ; je +14                 past this listing: it was reset before
    b0 50                ; mov al, 0x50
    e6 70                ; out 0x70, al
    b0 5a                ; mov al, 0x5a
    e6 71                ; out 0x71, al
    ba f9 0c             ; mov dx, 0xcf9
    b0 06                ; mov al, 6
    ee                   ; out dx, al             hard reset
""")

# Non-volatile byte 0x51 outlives S3, at whose end QEMU 7.2 resets the machine: the ROM begins once more. A
# guest that is woken by QMP is told that its power button was pressed (hw/acpi/core.c, acpi_notify_wakeup).
_SLEEP_ONCE = _code("""
    b0 51                ; mov al, 0x51
    e6 70                ; out 0x70, al
    e4 71                ; in al, 0x71
    3c 5a                ; cmp al, 0x5a
    74 0f                ; je +15                 past this listing: it slept before
    b0 51                ; mov al, 0x51
    e6 70                ; out 0x70, al
    b0 5a                ; mov al, 0x5a
    e6 71                ; out 0x71, al
    ba 04 06             ; mov dx, 0x604
    b8 00 24             ; mov ax, 0x2400         SLP_EN, with the sleep type of S3
    ef                   ; out dx, ax
""")

_ECHO = _code("""
    ba fd 03             ; mov dx, 0x3fd          line status of COM1
    ec                   ; in al, dx
    a8 01                ; test al, 1             is there something to read
    74 14                ; jz +20                 past this listing
    ba f8 03             ; mov dx, 0x3f8
    ec                   ; in al, dx
    88 c3                ; mov bl, al
    ba fd 03             ; mov dx, 0x3fd
    ec                   ; in al, dx
    a8 20                ; test al, 0x20          is there room for more
    74 fb                ; jz -5                  to the in
    88 d8                ; mov al, bl
    ba f8 03             ; mov dx, 0x3f8
    ee                   ; out dx, al
    eb e2                ; jmp -30                to the first line
""")

_COUNT = _code("""
    ba fd 03             ; mov dx, 0x3fd          line status of COM1
    ec                   ; in al, dx
    a8 01                ; test al, 1             is there something to read
    74 0e                ; jz +14                 past this listing
    ba f8 03             ; mov dx, 0x3f8
    ec                   ; in al, dx
    fe 06 00 06          ; inc byte [0x600]
    a0 00 06             ; mov al, [0x600]
    ee                   ; out dx, al
    eb ea                ; jmp -22                to the first line
""")

_BEFORE_A = _code("""
    c6 06 00 06 60       ; mov byte [0x600], 'a' - 1
""")

_PROMPT = _code("""
    ba fd 03             ; mov dx, 0x3fd          line status of COM1
    ec                   ; in al, dx
    a8 01                ; test al, 1             is there something to read
    74 14                ; jz +20                 past this listing
    ba f8 03             ; mov dx, 0x3f8
    ec                   ; in al, dx
    ee                   ; out dx, al             the echo
    3c 0d                ; cmp al, return
    75 ef                ; jne -17                to the first line
    b0 0a                ; mov al, newline
    ee                   ; out dx, al
    b0 23                ; mov al, '#'
    ee                   ; out dx, al
    b0 20                ; mov al, ' '
    ee                   ; out dx, al
    eb e4                ; jmp -28                to the first line
""")

_PANIC = _code("""
    ba 05 05             ; mov dx, 0x505          pvpanic
    b0 01                ; mov al, 1
    ee                   ; out dx, al
""")

_PANIC_FOR_EVER = _code("""
    ba 05 05             ; mov dx, 0x505
    b0 01                ; mov al, 1
    ee                   ; out dx, al
    eb fd                ; jmp -3                 to the out
""")

_CHATTER = _code("""
    ba f8 03             ; mov dx, 0x3f8
    b0 20                ; mov al, ' '
    ee                   ; out dx, al
    fe c0                ; inc al
    3c 7f                ; cmp al, 0x7f
    72 f9                ; jb -7                  to the out
    b0 0a                ; mov al, newline
    ee                   ; out dx, al
    eb f2                ; jmp -14                to the second line
""")

# Waits until the first IDE disk is ready to pass 512 bytes. DX is its status port, and its data port then.
_AWAIT_DATA = _code("""
    ec                   ; in al, dx              status
    a8 80                ; test al, BSY
    75 fb                ; jnz -5                 to the in
    a8 08                ; test al, DRQ
    74 f7                ; jz -9                  to the in
    ba f0 01             ; mov dx, 0x1f0          data
""")

# Has the first IDE disk take the sector whose number is in BX (ATA: WRITE SECTORS, 28 bits of address).
_BEGIN_WRITE = _code("""
    ba f2 01             ; mov dx, 0x1f2
    b0 01 ee             ; mov al, 1; out dx, al             one sector
    42 88 d8 ee          ; inc dx; mov al, bl; out dx, al
    42 88 f8 ee          ; inc dx; mov al, bh; out dx, al
    42 b0 00 ee          ; inc dx; mov al, 0; out dx, al
    42 b0 e0 ee          ; inc dx; mov al, 0xe0; out dx, al  first drive, by sector
    42 b0 30 ee          ; inc dx; mov al, 0x30; out dx, al  WRITE SECTORS
""")

# Sector after sector of the first IDE disk, by programmed I/O:
# each gets the first 512 bytes of this ROM. A dot on COM1 for every 256; `!` if the disk reports an error.
# A sector is written when the disk says so by its interrupt, as for an operating system: that it is not
# busy does not tell, since QEMU 7.2 takes BSY away from a write that failed some time before it pauses.
_FILL_DISK = (
    _code("""
    fa                   ; cli                    the BIOS would take the interrupts
    8c c8                ; mov ax, cs
    8e d8                ; mov ds, ax
    fc                   ; cld
    ba d1 04             ; mov dx, 0x4d1
    b0 40 ee             ; mov al, 0x40; out dx, al          IRQ 14 by level
    31 db                ; xor bx, bx             the sector
""")
    + _BEGIN_WRITE
    + _AWAIT_DATA
    + _code("""
    31 f6                ; xor si, si
    b9 00 01             ; mov cx, 256
    f3 6f                ; rep outsw
    e4 a0                ; in al, 0xa0            what the second PIC is asked for
    a8 40                ; test al, IRQ 14
    74 fa                ; jz -6                  to the in
    ba f7 01             ; mov dx, 0x1f7
    ec                   ; in al, dx              status; takes the interrupt back
    a8 21                ; test al, DF or ERR
    75 13                ; jnz +19                to what prints `!`
    43                   ; inc bx
    84 db                ; test bl, bl
    75 06                ; jnz +6                 past the dot
    ba f8 03             ; mov dx, 0x3f8
    b0 2e ee             ; mov al, '.'; out dx, al
    81 fb 00 0c          ; cmp bx, 3072           FILLED
    72 b4                ; jb -76                 to one sector
    eb 0a                ; jmp +10                past this listing
    ba f8 03             ; mov dx, 0x3f8
    b0 21 ee             ; mov al, '!'; out dx, al
    fa f4 eb fd          ; cli; hlt; jmp -3       to the hlt
""")
)

# Counts in its memory, and writes each number into a sector of the first IDE disk: that of the number modulo
# LEDGER. A dot on COM1 for every 256.
_WRITE_LEDGER = (
    _code("""
    31 c0                ; xor ax, ax
    8e d8                ; mov ds, ax
    fc                   ; cld
    ba d1 04             ; mov dx, 0x4d1
    b0 40 ee             ; mov al, 0x40; out dx, al          IRQ 14 by level
    66 ff 06 00 06       ; inc dword [0x600]      the number, 0 in a new memory
    8b 1e 00 06          ; mov bx, [0x600]
    80 e7 03             ; and bh, 3              the sector
""")
    + _BEGIN_WRITE
    + _AWAIT_DATA
    + _code("""
    be 00 06             ; mov si, 0x600
    b9 00 01             ; mov cx, 256
    f3 6f                ; rep outsw
    e4 a0                ; in al, 0xa0            what the second PIC is asked for
    a8 40                ; test al, IRQ 14
    74 fa                ; jz -6                  to the in
    ba f7 01             ; mov dx, 0x1f7
    ec                   ; in al, dx              status; takes the interrupt back
    a8 21                ; test al, DF or ERR
    75 0f                ; jnz +15                to what prints `!`
    a0 00 06             ; mov al, [0x600]
    84 c0                ; test al, al
    75 06                ; jnz +6                 past the dot
    ba f8 03             ; mov dx, 0x3f8
    b0 2e ee             ; mov al, '.'; out dx, al
    eb a9                ; jmp -87                to the inc
    ba f8 03             ; mov dx, 0x3f8
    b0 21 ee             ; mov al, '!'; out dx, al
    fa f4 eb fd          ; cli; hlt; jmp -3       to the hlt
""")
)

LEDGER = 1024
"""Sectors that `ledger` writes to, in turn."""


def ledger(image: bytes) -> int:
    """Return the last number that `ledger` has written to its disk; no sector may have an older one."""
    numbers = [int.from_bytes(image[at : at + 4], "little") for at in range(0, LEDGER * 512, 512)]
    last = max(numbers)
    for sector, number in enumerate(numbers):
        wanted = last - (last - sector) % LEDGER
        assert number == max(wanted, 0), (
            f"sector {sector} has {number} in place of {wanted}: something was lost"
        )
    return last


FILLED = 3072 * 512
"""Bytes that `filler` writes."""

# Reads the first sector of the first IDE disk by programmed I/O for ever (ATA: READ SECTORS).
_READ_DISK = (
    _code("""
    31 c0                ; xor ax, ax
    8e c0                ; mov es, ax
    fc                   ; cld
    ba f2 01             ; mov dx, 0x1f2
    b0 01 ee             ; mov al, 1; out dx, al             one sector
    42 b0 00 ee          ; inc dx; mov al, 0; out dx, al     number 0
    42 ee                ; inc dx; out dx, al
    42 ee                ; inc dx; out dx, al
    42 b0 e0 ee          ; inc dx; mov al, 0xe0; out dx, al  first drive, by sector
    42 b0 20 ee          ; inc dx; mov al, 0x20; out dx, al  READ SECTORS
""")
    + _AWAIT_DATA
    + _code("""
    bf 00 7e             ; mov di, 0x7e00
    b9 00 01             ; mov cx, 256
    f3 6d                ; rep insw
    eb d4                ; jmp -44                to the one sector
""")
)

# Has the first IDE disk forget its first 2048 sectors: DATA SET MANAGEMENT with TRIM (ATA8-ACS), whose list of
# ranges the disk fetches by itself, so PIIX3's bus master (function 0:1.1) gets ports from 0xc000 on. The list
# is at 0x8000, 48 bits of address and 16 of length for each range; what leads there, at 0x7e00.
_TRIM = _code("""
    31 c0                         ; xor ax, ax
    8e d8                         ; mov ds, ax
    66 c7 06 00 7e 00 80 00 00    ; mov dword [0x7e00], 0x8000
    66 c7 06 04 7e 00 02 00 80    ; mov dword [0x7e04], 0x80000200    512 bytes, the only ones
    66 c7 06 00 80 00 00 00 00    ; mov dword [0x8000], 0             from sector 0 on
    66 c7 06 04 80 00 00 00 08    ; mov dword [0x8004], 0x08000000    2048 of them
    ba f8 0c             ; mov dx, 0xcf8
    66 b8 20 09 00 80    ; mov eax, 0x80000920
    66 ef                ; out dx, eax            where the bus master's ports begin
    ba fc 0c             ; mov dx, 0xcfc
    66 b8 01 c0 00 00    ; mov eax, 0xc001
    66 ef                ; out dx, eax
    ba f8 0c             ; mov dx, 0xcf8
    66 b8 04 09 00 80    ; mov eax, 0x80000904
    66 ef                ; out dx, eax            the function's command
    ba fc 0c             ; mov dx, 0xcfc
    66 b8 05 00 00 00    ; mov eax, 5             ports and bus master on
    66 ef                ; out dx, eax
    ba 04 c0             ; mov dx, 0xc004
    66 b8 00 7e 00 00    ; mov eax, 0x7e00
    66 ef                ; out dx, eax
    ba f6 01 b0 e0 ee    ; mov dx, 0x1f6; mov al, 0xe0; out dx, al    first drive
    ba f1 01 b0 01 ee    ; mov dx, 0x1f1; mov al, 1; out dx, al       TRIM
    42 ee                ; inc dx; out dx, al                         a list of one sector
    ba f7 01 b0 06 ee    ; mov dx, 0x1f7; mov al, 6; out dx, al       DATA SET MANAGEMENT
    ba 00 c0 b0 01 ee    ; mov dx, 0xc000; mov al, 1; out dx, al      fetch it
    ba 02 c0             ; mov dx, 0xc002
    ec                   ; in al, dx
    a8 04                ; test al, 4             has the disk interrupted?
    74 fb                ; jz -5                  to the in
    ba f7 01             ; mov dx, 0x1f7
    ec                   ; in al, dx              status
    a8 21                ; test al, DF or ERR
    75 06                ; jnz +6                 past this listing
    ba f8 03             ; mov dx, 0x3f8
    b0 54                ; mov al, 'T'
    ee                   ; out dx, al
""")

TRIMMED = 2048 * 512
"""Bytes that `trimmer` discards."""

# The button raises IRQ 9. SCI_EN only makes it interrupt if it is set before the button is enabled.
_ENABLE_SCI = _code("""
    ba d1 04             ; mov dx, 0x4d1
    b0 02                ; mov al, 2
    ee                   ; out dx, al             IRQ 9 by level
    ba 04 06             ; mov dx, 0x604
    b8 01 00             ; mov ax, 1              SCI_EN
    ef                   ; out dx, ax
""")

_ENABLE_COM1 = _code("""
    ba f9 03             ; mov dx, 0x3f9
    b0 01                ; mov al, 1              COM1 raises IRQ 4 when there is something to read
    ee                   ; out dx, al
""")

_RETURN = _code("""
    b0 20 e6 20          ; mov al, 0x20; out 0x20, al                   the interrupt is over
    cf                   ; iret
""")

# Every 5 ms: the first timer counts down from 5966 at 1.193182 MHz (mode 2).
_ENABLE_TIMER = _code("""
    b0 34 e6 43          ; mov al, 0x34; out 0x43, al
    b0 4e e6 40          ; mov al, 0x4e; out 0x40, al
    b0 17 e6 40          ; mov al, 0x17; out 0x40, al
""")

_DOT_OR_OFF = (
    _code("""
    ba f8 03             ; mov dx, 0x3f8
    b0 2e ee             ; mov al, '.'; out dx, al
    ba 00 06             ; mov dx, 0x600
    ed                   ; in ax, dx
    f6 c4 01             ; test ah, 1             has the button been pressed?
    74 0b                ; jz +11                 past the next two
""")
    + _POWER_OFF
    + _HALT
)

_SLEEP = _code("""
    fb                   ; sti
    f4                   ; hlt
    eb fd                ; jmp -3                 to the hlt
""")


def _asleep(irq: int, ready: bytes, handler: bytes) -> bytes:
    """Code that gets ready with interrupts off, sleeps, and does what the handler says at each interrupt."""
    vector = 4 * (8 + irq if irq < 8 else 0x70 + irq - 8)
    masks = ~(1 << irq | 1 << 2) & 0xFFFF  # IRQ 2 is the second PIC
    prepare = _code(f"""
    fa                   ; cli
    31 c0                ; xor ax, ax
    8e d8                ; mov ds, ax
    8e d0                ; mov ss, ax
    bc 00 7c             ; mov sp, 0x7c00
    e8 00 00             ; call +0                push the address of the next line
    5b                   ; pop bx
    81 c3 {_word(49 + len(ready + _SLEEP))}    ; add bx, from the line before to the handler
    89 1e {_word(vector)}          ; mov [vector], bx
    8c 0e {_word(vector + 2)}          ; mov [vector + 2], cs
    b0 11 e6 20 e6 a0    ; mov al, 0x11; out 0x20, al; out 0xa0, al     set up both PICs
    b0 08 e6 21          ; mov al, 8; out 0x21, al                      IRQ 0 is interrupt 8
    b0 70 e6 a1          ; mov al, 0x70; out 0xa1, al                   IRQ 8 is interrupt 0x70
    b0 04 e6 21          ; mov al, 4; out 0x21, al                      the second is on IRQ 2
    b0 02 e6 a1          ; mov al, 2; out 0xa1, al
    b0 01 e6 21 e6 a1    ; mov al, 1; out 0x21, al; out 0xa1, al        8086 mode
    b0 {masks & 0xFF:02x} e6 21          ; out 0x21, al                 no IRQ but this one
    b0 {masks >> 8:02x} e6 a1          ; out 0xa1, al
    """)
    return prepare + ready + _SLEEP + handler


def _word(number: int) -> str:
    return number.to_bytes(2, "little").hex(" ")


def _say(text: str) -> bytes:
    """Code that prints on COM1: `mov dx, 0x3f8`, then `mov al, c` and `out dx, al` for each character."""
    return b"\xba\xf8\x03" + b"".join(b"\xb0" + bytes([char]) + b"\xee" for char in text.encode("ascii"))


def _on_second_port(code: bytes) -> bytes:
    """Code for COM1 as code for COM2, whose ports are 0x100 below."""
    for register in (0xF8, 0xF9, 0xFD):
        code = code.replace(bytes((0xBA, register, 3)), bytes((0xBA, register, 2)))
    return code


GUESTS = {
    # Powers off when the button is pressed. Polls, so it keeps a processor of the host busy.
    "polite": _ENABLE_BUTTON + _PRINT_R + _AWAIT_PRESS + _POWER_OFF + _HALT,
    # The same from the outside, but asleep until then.
    "idle": _asleep(9, _ENABLE_SCI + _ENABLE_BUTTON + _PRINT_R, _POWER_OFF + _HALT),
    # As `idle`, with words for people.
    "listener": _asleep(
        9,
        _ENABLE_SCI + _ENABLE_BUTTON + _say("Ready. Press my power button.\r\n"),
        _say("Good night.\r\n") + _POWER_OFF + _HALT,
    ),
    # Sleeps and prints nothing.
    "mute": _HALT,
    # Sleeps and does not notice the button.
    "ignoring": _PRINT_R + _HALT,
    # Powers off at the second press. Prints `1` when it has seen the first.
    "twice": (
        _ENABLE_BUTTON + _PRINT_R + _AWAIT_PRESS + _FORGET_PRESS + _PRINT_1 + _AWAIT_PRESS + _POWER_OFF + _HALT
    ),
    # Fills the first `FILLED` bytes of its disk, prints `E`, and then is as `polite`.
    "filler": _PRINT_R + _FILL_DISK + _ENABLE_BUTTON + _say("E") + _AWAIT_PRESS + _POWER_OFF + _HALT,
    # Writes numbers to its disk for ever.
    "ledger": _PRINT_R + _WRITE_LEDGER,
    # Discards the first `TRIMMED` bytes of its disk, prints `T`, and then is as `polite`.
    "trimmer": _PRINT_R + _TRIM + _ENABLE_BUTTON + _AWAIT_PRESS + _POWER_OFF + _HALT,
    # Powers off by itself 0.3 s after its `R`.
    "selfoff": _PRINT_R + _WAIT + _POWER_OFF + _HALT,
    # Powers off at once, without a word.
    "instant": _POWER_OFF + _HALT,
    # Prints what it reads on its first serial port.
    "echo": _asleep(4, _ENABLE_COM1 + _PRINT_R, _ECHO + _RETURN),
    # Prints the next letter, from `a` on, for each byte that it reads: it knows in its memory which one.
    "counter": _asleep(4, _ENABLE_COM1 + _PRINT_R + _BEFORE_A, _COUNT + _RETURN),
    # As `echo`, on its second port, where it prints another `R`.
    "echo2": _asleep(3, _PRINT_R + _on_second_port(_ENABLE_COM1 + _PRINT_R), _on_second_port(_ECHO) + _RETURN),
    # Prints what it reads on its first one, and a prompt after each return.
    "prompt": _asleep(4, _ENABLE_COM1 + _PRINT_R, _PROMPT + _RETURN),
    # Resets the machine once; with -no-reboot QEMU ends. Comes back (a second `R`) as `idle`.
    "reset": _asleep(9, _ENABLE_SCI + _ENABLE_BUTTON + _PRINT_R + _RESET_ONCE, _POWER_OFF + _HALT),
    # Falls asleep (S3) after its `R`. Woken or reset it prints `RW` and is as `polite`, after 0.3 s in which it
    # hears nothing.
    "sleeper": (
        _PRINT_R
        + _SLEEP_ONCE
        + _WAIT
        + _ENABLE_BUTTON
        + _FORGET_PRESS
        + _say("W")
        + _AWAIT_PRESS
        + _POWER_OFF
        + _HALT
    ),
    # Says that it panicked, once. Needs `-device pvpanic`.
    "panic": _PRINT_R + _PANIC + _HALT,
    # Says so without end: an event each with `-device pvpanic -action panic=none`.
    "panics": _PRINT_R + _PANIC_FOR_EVER,
    # Prints what its keyboard sends: scan codes of set 2.
    "keyboard": _asleep(1, _PRINT_R, _ECHO_KEYS + _RETURN),
    # Reads the first sector of its disk for ever.
    "reader": _PRINT_R + _READ_DISK,
    # Prints a dot every 5 ms, and powers off when the button is pressed.
    "ticker": _asleep(0, _ENABLE_TIMER + _ENABLE_BUTTON + _PRINT_R, _DOT_OR_OFF + _RETURN),
    # Prints lines of 95 characters for ever.
    "chatter": _PRINT_R + _CHATTER,
}

ASLEEP = {"idle", "listener", "echo", "echo2", "counter", "prompt", "reset", "keyboard", "ticker"}
"""Guests that sleep until they are interrupted."""


def rom(name: str) -> bytes:
    """Return a guest as an image for `-bios`: 64 KiB, entered through the reset vector at 0xfff0."""
    jump = _code("ea 00 00 00 f0   ; jmp 0xf000:0")
    start = _INTERRUPTS if name in ASLEEP else b""
    return ((start + _POWER_MANAGEMENT + GUESTS[name]).ljust(0xFFF0, b"\0") + jump).ljust(0x10000, b"\0")


def boot_sector(name: str) -> bytes:
    """Return a guest as the first 512 bytes of a disk."""
    return GUESTS[name].ljust(510, b"\0") + b"\x55\xaa"


if __name__ == "__main__":
    # `guests.py NAME >FILE`: a boot sector to be written to the beginning of a disk image.
    sys.stdout.buffer.write(boot_sector(sys.argv[1]))
