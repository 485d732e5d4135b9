"""A guest that uses its network card: it sends Ethernet frames, and prints whose frames it receives.

It is a ROM for `-bios` as those of `guests.py`, for machine `pc` with a card at port 0x300:

    -netdev tap,id=net0,ifname=...,script=no,downscript=no -device ne2k_isa,netdev=net0,mac=...

It has to be the VM's only ne2k_isa: a second one would be at the same port, and then neither works.

It prints `R` when the card is ready. Then, 20 times a second, it broadcasts a frame of 60 bytes with
EtherType 0x88b5 ("local experimental") whose payload is its MAC, read from the card, so one ROM does for
all VMs. For each such frame that it receives it prints a line with the last two bytes of the source
address, which are the VM's instance and interface: `a0` for 02:11:9b:af:00:00 (newvm0), `b0` for newvm1,
`c1` for the second interface of newvm2. Other frames are taken from the card and ignored. The power
button powers it off; between two ticks of its clock it sleeps.

The card is an NE2000. 0x300 is its command: bits 6 and 7 say which page of registers is at 0x301 to
0x30f, the lowest six what to do (0x21 stop, 0x22 run, 0x0a run and let memory be read at 0x310, 0x12
run and let it be written there, 0x26 run and send). Pages of its memory have 256 bytes: the frame that is
sent, always the same one, stands at page 0x40, and what is received goes to a ring, 0x46 to 0x7f. Each
frame in it begins on a page with four bytes: status, page of the next frame, length. CURR is where the
card will put the next one, BNRY the last page that was read. If a guest is too slow QEMU's card drops
what comes in before CURR reaches BNRY, and goes on when BNRY moves: there is no overflow to recover from.
"""

import guests

MODEL = "ne2k_isa"
ETHER_TYPE = 0x88B5

# IRQ 0 is to wake the guest from hlt 20 times a second. The handler does nothing.
_CLOCK = guests._code("""
    fa                   ; cli
    31 c0                ; xor ax, ax
    8e d8                ; mov ds, ax
    8e c0                ; mov es, ax
    8e d0                ; mov ss, ax
    bc 00 7c             ; mov sp, 0x7c00
    fc                   ; cld
    e8 01 00             ; call +1                push the address of the next line
    cf                   ; iret                   the handler
    8f 06 20 00          ; pop word [0x20]        vector 8, offset
    8c 0e 22 00          ; mov [0x22], cs         and segment
    b0 11 e6 20          ; mov al, 0x11; out 0x20, al    set up the first PIC
    b0 08 e6 21          ; mov al, 8; out 0x21, al       IRQ 0 is interrupt 8
    b0 04 e6 21          ; mov al, 4; out 0x21, al       the second is on IRQ 2
    b0 03 e6 21          ; mov al, 3; out 0x21, al       8086 mode, end of interrupt by itself
    b0 fe e6 21          ; mov al, 0xfe; out 0x21, al    IRQ 0 only
    b0 34 e6 43          ; mov al, 0x34; out 0x43, al    timer 0 begins anew by itself
    b0 0b e6 40          ; mov al, 0x0b; out 0x40, al
    b0 e9 e6 40          ; mov al, 0xe9; out 0x40, al    after 0xe90b of 1193182 Hz: 50 ms
""")

# Leaves the MAC at 0x7e00.
_CARD = guests._code("""
    ba 1f 03             ; mov dx, 0x31f
    ec                   ; in al, dx
    ee                   ; out dx, al                         reset
    b2 00 b0 21 ee       ; mov dl, 0; mov al, 0x21; out dx, al      stop
    b2 0e b0 49 ee       ; mov dl, 0xe; mov al, 0x49; out dx, al    DCR: memory is read and written in words
    b2 0c b0 04 ee       ; mov dl, 0xc; mov al, 4; out dx, al       RCR: receive broadcasts
    b2 0d b0 00 ee       ; mov dl, 0xd; mov al, 0; out dx, al       TCR: no loopback
    b2 01 b0 46 ee       ; mov dl, 1; mov al, 0x46; out dx, al      PSTART: the ring begins here
    b2 02 b0 80 ee       ; mov dl, 2; mov al, 0x80; out dx, al      PSTOP: and ends before this
    b2 03 b0 46 ee       ; mov dl, 3; mov al, 0x46; out dx, al      BNRY
    b2 04 b0 40 ee       ; mov dl, 4; mov al, 0x40; out dx, al      TPSR: the page to send from
    b2 05 b0 3c ee       ; mov dl, 5; mov al, 60; out dx, al        TBCR: the bytes to send
    b2 06 b0 00 ee       ; mov dl, 6; mov al, 0; out dx, al
    b2 0f b0 00 ee       ; mov dl, 0xf; mov al, 0; out dx, al       IMR: no interrupts
    b2 00 b0 61 ee       ; mov dl, 0; mov al, 0x61; out dx, al      registers of page 1
    b2 07 b0 47 ee       ; mov dl, 7; mov al, 0x47; out dx, al      CURR
    b2 00 b0 22 ee       ; mov dl, 0; mov al, 0x22; out dx, al      registers of page 0; run
    b2 08 b0 00 ee       ; mov dl, 8; mov al, 0; out dx, al         RSAR: memory from 0, where the MAC is
    b2 09 b0 00 ee       ; mov dl, 9; mov al, 0; out dx, al
    b2 0a b0 0c ee       ; mov dl, 0xa; mov al, 12; out dx, al      RBCR: 12 bytes of it
    b2 0b b0 00 ee       ; mov dl, 0xb; mov al, 0; out dx, al
    b2 00 b0 0a ee       ; mov dl, 0; mov al, 0x0a; out dx, al      read
    b2 10                ; mov dl, 0x10
    bf 00 7e             ; mov di, 0x7e00
    b9 06 00             ; mov cx, 6
    ed                   ; in ax, dx              each byte of the MAC stands there twice
    aa                   ; stosb
    e2 fc                ; loop -4                to the in
""")

# Puts the frame to be sent, 30 words, into the card's memory.
_FRAME = guests._code("""
    b2 08 b0 00 ee       ; mov dl, 8; mov al, 0; out dx, al         RSAR: memory from page 0x40
    b2 09 b0 40 ee       ; mov dl, 9; mov al, 0x40; out dx, al
    b2 0a b0 3c ee       ; mov dl, 0xa; mov al, 60; out dx, al      RBCR: 60 bytes of it
    b2 0b b0 00 ee       ; mov dl, 0xb; mov al, 0; out dx, al
    b2 00 b0 12 ee       ; mov dl, 0; mov al, 0x12; out dx, al      write
    b2 10                ; mov dl, 0x10
    b8 ff ff             ; mov ax, 0xffff
    ef ef ef             ; out dx, ax; out dx, ax; out dx, ax    to everybody
    be 00 7e             ; mov si, 0x7e00
    b9 03 00             ; mov cx, 3
    f3 6f                ; rep outsw              from this MAC
    b8 88 b5             ; mov ax, 0xb588         EtherType 0x88b5
    ef                   ; out dx, ax
    be 00 7e             ; mov si, 0x7e00
    b9 03 00             ; mov cx, 3
    f3 6f                ; rep outsw              this MAC as the payload
    b9 14 00             ; mov cx, 20
    31 c0                ; xor ax, ax
    ef                   ; out dx, ax             and zeros
    e2 fd                ; loop -3                to the out
""")

# BL is the page of the ring to be read next. Ends when the button is pressed, past this listing.
_TALK = guests._code("""
    b3 47                ; mov bl, 0x47
    fb                   ; sti
    f4                   ; hlt                    until the clock ticks
    ba 00 03             ; mov dx, 0x300
    b0 26                ; mov al, 0x26
    ee                   ; out dx, al             send
    ba 00 06             ; mov dx, 0x600
    ed                   ; in ax, dx
    f6 c4 01             ; test ah, 1             was the button pressed?
    75 65                ; jnz +101               past this listing
    ba 00 03             ; mov dx, 0x300
    b0 62                ; mov al, 0x62
    ee                   ; out dx, al             registers of page 1
    b2 07                ; mov dl, 7
    ec                   ; in al, dx              CURR
    88 c7                ; mov bh, al
    b2 00                ; mov dl, 0
    b0 22                ; mov al, 0x22
    ee                   ; out dx, al             registers of page 0
    38 fb                ; cmp bl, bh
    74 dc                ; je -36                 to the hlt: nothing (more) was received
    b2 0a b0 12 ee       ; mov dl, 0xa; mov al, 18; out dx, al      RBCR: 18 bytes, up to the EtherType
    b2 0b b0 00 ee       ; mov dl, 0xb; mov al, 0; out dx, al
    b2 08 b0 00 ee       ; mov dl, 8; mov al, 0; out dx, al         RSAR: from this page of the ring
    b2 09 88 d8 ee       ; mov dl, 9; mov al, bl; out dx, al
    b2 00 b0 0a ee       ; mov dl, 0; mov al, 0x0a; out dx, al      read
    b2 10                ; mov dl, 0x10
    bf 00 7e             ; mov di, 0x7e00
    b9 09 00             ; mov cx, 9
    f3 6d                ; rep insw
    8a 1e 01 7e          ; mov bl, [0x7e01]       the page of the next frame
    88 d8                ; mov al, bl
    fe c8                ; dec al
    3c 46                ; cmp al, 0x46
    73 02                ; jae +2
    b0 7f                ; mov al, 0x7f           before the first page is the last one
    ba 03 03             ; mov dx, 0x303
    ee                   ; out dx, al             BNRY: everything before the next frame was read
    81 3e 10 7e 88 b5    ; cmp word [0x7e10], 0xb588
    75 a6                ; jne -90                to the look at the button
    ba f8 03             ; mov dx, 0x3f8
    a0 0e 7e             ; mov al, [0x7e0e]       fifth byte of the source address
    04 61                ; add al, 'a'
    ee                   ; out dx, al
    a0 0f 7e             ; mov al, [0x7e0f]       sixth
    04 30                ; add al, '0'
    ee                   ; out dx, al
    b0 0a                ; mov al, newline
    ee                   ; out dx, al
    eb 92                ; jmp -110               to the look at the button
""")

TALKER = (
    _CLOCK + _CARD + _FRAME + guests._ENABLE_BUTTON + guests._PRINT_R + _TALK + guests._POWER_OFF + guests._HALT
)


def rom() -> bytes:
    """Return the guest as an image for `-bios`, laid out as those of `guests.rom`."""
    jump = guests._code("ea 00 00 00 f0   ; jmp 0xf000:0")
    code = guests._INTERRUPTS + guests._POWER_MANAGEMENT + TALKER
    return (code.ljust(0xFFF0, b"\0") + jump).ljust(0x10000, b"\0")


def token(mac: str) -> bytes:
    """Return the line that the guest prints for each frame from a MAC."""
    instance, interface = bytes.fromhex(mac.replace(":", ""))[4:]
    return bytes([ord("a") + instance, ord("0") + interface]) + b"\n"
