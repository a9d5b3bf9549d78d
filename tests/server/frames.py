# SPDX-License-Identifier: Apache-2.0
"""The binary frames of clients, as far as tests speak them: docs/tarn.proto in a few lines of Python."""
import hashlib
import os
import struct

ROOT = b"\0" * 15 + b"\1"
TYPE = "application/vnd.tarn.frames"
CREATE, CONTENT, ATTR, LINK, UNLINK, RENAME = 1, 2, 3, 4, 5, 6
OK, MERGED, STALE, EXISTS, NOT_EMPTY, CYCLE, QUOTA, BLOCKS_MISSING, BUSY = 0, 1, 3, 4, 6, 7, 8, 9, 20


def varint(v):
    out = bytearray()
    while v > 127:
        out.append(v & 127 | 128)
        v >>= 7
    out.append(v)
    return bytes(out)


def message(*fields):
    """(number, bytes or int); what is empty or 0 is left out."""
    return b"".join((varint(n << 3 | 2) + varint(len(v)) + v) if isinstance(v, bytes) else varint(n << 3) + varint(v) for n, v in fields if v)


def parse(data):
    """number -> list of values."""
    out, at, end = {}, 0, len(data)
    while at < end:
        key = shift = 0
        while True:
            byte = data[at]
            at += 1
            key |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        kind = key & 7
        if kind == 1:
            value = struct.unpack_from("<q", data, at)[0]
            at += 8
        else:
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            if kind == 2:
                n = value
                value = data[at:at + n]
                at += n
        out.setdefault(key >> 3, []).append(value)
    return out


def frame(kind, payload):
    return bytes([kind]) + struct.pack("<I", len(payload)) + payload


def frames(data):
    at = 0
    while at < len(data):
        n = struct.unpack_from("<I", data, at + 1)[0]
        yield data[at], data[at + 5:at + 5 + n]
        at += 5 + n
    assert at == len(data)


def one(fields, n, default=b""):
    return fields.get(n, [default])[0]


def create(name, parent=ROOT, data=None, op=None, node=None):
    """A directory, or with data (at most 128 KiB) a file: (operation id, node id, bytes of the request)."""
    op, node = op or os.urandom(16), node or os.urandom(16)
    if data is None:
        return op, node, frame(7, message((1, op), (2, CREATE), (5, node), (6, parent), (7, name), (17, message((2, 2), (3, 0o755)))))
    content = message((1, hashlib.sha256(data).digest() if data else b""), (2, len(data)), (4, 1))
    return op, node, frame(7, message((1, op), (2, CREATE), (3, 4), (5, node), (6, parent), (7, name), (17, message((2, 1), (3, 0o644))), (18, content))) + frame(8, data)


def rename(node, parent, name, placement, parent2, name2, op=None):
    op = op or os.urandom(16)
    return op, frame(7, message((1, op), (2, RENAME), (5, node), (6, parent), (7, name), (8, parent2), (9, name2), (10, placement)))


def unlink(node, parent, name, placement, version=b"", op=None):
    op = op or os.urandom(16)
    return op, frame(7, message((1, op), (2, UNLINK), (5, node), (6, parent), (7, name), (10, placement), (11, version)))


def results(data):
    """[(operation id, code, seq)]"""
    out = []
    for kind, payload in frames(data):
        assert kind == 9
        f = parse(payload)
        out.append((one(f, 1), one(f, 2, 0), one(f, 3, 0)))
    return out


def events(data):
    """(upto cursor or None, [(seq, mark, operation id, [node ids])])"""
    upto, out = None, []
    for kind, payload in frames(data):
        f = parse(payload)
        if kind == 5:
            c = parse(one(f, 2))
            upto = (one(c, 1, b"\0" * 16), one(c, 2, 0), one(c, 3, b"\0" * 8))
        elif kind == 6:
            out.append((one(f, 1, 0), one(f, 2), one(f, 3), [one(parse(one(parse(c), 1)), 1) for c in f.get(8, [])]))
    return upto, out
