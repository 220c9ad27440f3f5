"""GGUF files that are a little wrong: made from a seed, so that a find can be made again.

Half of them are put together from fields that are odd now and then, half are good files with damage.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import TYPES, head, pair, split, string

# Numbers at which readers stumble.
ODD = [0, 1, 2, 7, 8, 31, 32, 33, 63, 64, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20]
ODD += [(1 << bits) + change for bits in (16, 30, 31, 32, 40, 62, 63, 64) for change in (-1, 0, 1)]
ODD += [(1 << 64) - size for size in (1, 8, 16, 32, 256)]
KEYS = [
    "general.architecture",
    "general.alignment",
    "general.name",
    "llama.block_count",
    "split.count",
    "a",
    "é",
    "x" * 70,
]


def odd(dice: random.Random, usual: int, bits: int, chance: float) -> int:
    """Return ``usual``, or now and then something else; as an unsigned number of so many bits."""
    return (dice.choice(ODD) if dice.random() < chance else usual) & ((1 << bits) - 1)


def a_string(dice: random.Random, raw: bytes, chance: float) -> bytes:
    """Return a string whose length may be wrong."""
    return struct.pack("<Q", odd(dice, len(raw), 64, chance)) + raw


def a_value(dice: random.Random, kind: int, chance: float) -> bytes:
    """Return the bytes of a value of a type."""
    if kind == 8:
        return a_string(dice, dice.randbytes(dice.randrange(12)), chance)
    codes = {number: code for number, code in TYPES.values()}
    return dice.randbytes(struct.calcsize("<" + codes.get(kind, "B")))


def a_pair(dice: random.Random, chance: float) -> bytes:
    """Return a key-value."""
    if dice.random() < 0.2:
        alignment = odd(dice, dice.choice([1, 2, 4, 8, 16, 32, 64, 128]), 32, chance)
        kind = "u32" if dice.random() > chance else dice.choice(["i32", "[u32]"])
        value = [alignment] if kind == "[u32]" else alignment & 0x7FFFFFFF if kind == "i32" else alignment
        return pair("general.alignment", kind, value)
    name = dice.choice(KEYS) if dice.random() < 0.3 else f"key.{dice.randrange(50)}"
    if dice.random() < chance:
        name = ""
    raw = a_string(dice, name.encode() if dice.random() > chance else dice.randbytes(5), chance)
    kind = odd(dice, dice.choice([number for number, _code in TYPES.values()]), 32, chance)
    if dice.random() < 0.3:
        count = dice.randrange(6)
        items = b"".join(a_value(dice, kind, chance) for _index in range(count))
        return raw + struct.pack("<IIQ", 9, kind, odd(dice, count, 64, chance)) + items
    return raw + struct.pack("<I", kind) + a_value(dice, kind, chance)


# Type -> elements and bytes of a block, for a few of each sort.
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 14: (256, 210), 24: (1, 1), 28: (1, 8)}


def assembled(dice: random.Random) -> bytes:
    """Return a file put together from fields that are odd now and then."""
    chance = dice.choice([0.0, 0.01, 0.03, 0.1])
    pairs = [a_pair(dice, chance) for _index in range(dice.randrange(8))]
    alignment = 32
    for raw in pairs:
        if raw.startswith(string("general.alignment") + struct.pack("<I", 4)):
            alignment = struct.unpack("<I", raw[-4:])[0]
    if not 0 < alignment <= 1 << 12 or alignment & (alignment - 1):
        alignment = 32
    infos, offset, end = [], 0, 0
    for number in range(dice.randrange(6)):
        kind = dice.choice(list(BLOCKS))
        elements, size = BLOCKS[kind]
        shape = [elements * dice.randrange(1, 4)] + [
            dice.randrange(0 if chance else 1, 4) for _more in range(dice.randrange(4))
        ]
        total = size * shape[0] // elements
        for ne in shape[1:]:
            total *= ne
        shape = [odd(dice, ne, 64, chance) for ne in shape]
        name = f"blk.{number}.weight" if dice.random() > chance else dice.choice(["", "blk.0.weight", "n" * 64, "a\0b"])
        infos.append(
            a_string(dice, name.encode(), chance)
            + struct.pack(f"<I{len(shape)}Q", odd(dice, len(shape), 32, chance), *shape)
            + struct.pack("<IQ", odd(dice, kind, 32, chance), odd(dice, offset, 64, chance))
        )
        end = offset + total
        offset = (end + alignment - 1) // alignment * alignment
    raw = head(0, 0, odd(dice, dice.choice([2, 3]), 32, chance))[:8]
    raw += struct.pack("<QQ", odd(dice, len(infos), 64, chance), odd(dice, len(pairs), 64, chance))
    raw += b"".join(pairs) + b"".join(infos)
    if infos:
        raw += bytes(-len(raw) % alignment) + bytes(end)
    return raw[: -dice.randrange(1, 9)] if dice.random() < chance else raw + bytes(dice.randrange(3))


def damaged(dice: random.Random, seed: bytes) -> bytes:
    """Return ``seed`` with one to four changes."""
    raw = bytearray(seed)
    for _change in range(dice.randrange(1, 5)):
        at = dice.randrange(len(raw) + 1) if dice.random() < 0.5 else dice.randrange(min(len(raw), 256) + 1)
        how = dice.randrange(7)
        if how == 0 and at < len(raw):
            raw[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            raw[at : at + 8] = struct.pack("<Q", odd(dice, 0, 64, 1))
        elif how == 2:
            raw[at : at + 4] = struct.pack("<I", odd(dice, 0, 32, 1))
        elif how == 3:
            del raw[at : at + dice.randrange(1, 40)]
        elif how == 4:
            other = dice.randrange(len(raw) + 1)
            raw[at:at] = raw[other : other + dice.randrange(1, 60)]
        elif how == 5:
            del raw[at:]
        else:
            raw[at:at] = dice.randbytes(dice.randrange(1, 9))
        if not raw:
            break
    return bytes(raw)


def mutants(seed: int) -> Callable[[], bytes]:
    """Return a function that makes the next file each time."""
    dice = random.Random(seed)
    seeds = [raw for count in (1, 2) for raw in split(count, tensors=2)]

    def following() -> bytes:
        if dice.random() < 0.5:
            return assembled(dice)
        if dice.random() < 0.2:
            seeds[dice.randrange(len(seeds))] = assembled(dice)
        return damaged(dice, dice.choice(seeds))

    return following
