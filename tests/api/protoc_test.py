#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Our codec against protoc: what we write must decode under docs/tarn.proto without an unknown field, and what protoc encodes from that text must
be the very bytes that we wrote. usage: protoc_test.py WIRE_DUMP PROTO_FILE"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(dump, proto):
    if not shutil.which("protoc"):
        print("protoc is not installed")
        return 77
    seed = sys.argv[3] if len(sys.argv) > 3 else str(int.from_bytes(os.urandom(4), "big"))
    print(f"seed {seed}")
    checked = 0
    with tempfile.TemporaryDirectory(prefix="tarn-protoc-") as d:
        subprocess.run([dump, d, seed], check=True)
        base = ["protoc", f"--proto_path={Path(proto).parent}"]
        for path in sorted(Path(d).iterdir()):
            message = path.suffix[1:]
            payload = path.read_bytes()
            text = subprocess.run(base + [f"--decode=tarn.v1.{message}", proto], input=payload, capture_output=True, check=True).stdout
            unknown = re.search(rb"^\s*\d+:", text, re.M)
            assert not unknown, f"{path.name}: a field that docs/tarn.proto does not have:\n{text.decode()}"
            again = subprocess.run(base + [f"--encode=tarn.v1.{message}", proto], input=text, capture_output=True, check=True).stdout
            assert again == payload, f"{path.name}: protoc encodes it otherwise:\n{text.decode()}\n{payload.hex()}\n{again.hex()}"
            checked += 1
    print(f"{checked} messages equal")
    return 0 if checked else 1


sys.exit(main(sys.argv[1], sys.argv[2]))
