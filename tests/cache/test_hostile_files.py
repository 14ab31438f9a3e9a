"""Crafted files: each is refused before its data is read, soon, and within a bound of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Each crafts one file from a good one; those that Keras 3.15 rejects in weights files are among
# them: external links, external storage, virtual datasets, and shapes that no file can hold.
CRAFTS = {
    "external link": "link(lambda g: g.__setitem__('avg', h5py.ExternalLink('o.h5', '/x')))",
    "external link to a device": (
        "link(lambda g: g.__setitem__('avg', h5py.ExternalLink('/dev/zero', '/x')))"
    ),
    "soft link": "link(lambda g: g.__setitem__('avg', h5py.SoftLink('/key')))",
    "soft link to itself": "link(lambda g: g.__setitem__('avg', h5py.SoftLink('/features/avg')))",
    "external storage": (
        "link(lambda g: g.create_dataset('avg', (7, 4), '<f4', external=[('/etc/passwd', 0, 112)]))"
    ),
    "virtual dataset": "virtual()",
    "gzip bomb": (
        "link(lambda g: g.create_dataset('avg', (7, 1 << 26), '<f4', compression='gzip'))"
    ),
    "shape bomb": "link(lambda g: g.create_dataset('avg', (7, 1 << 55), '<f4'))",
    "rows beyond the file": "link(lambda g: g.create_dataset('avg', (1 << 40, 4), '<f4'))",
    "variable-length text": "link(lambda g: g.create_dataset('avg', (7, 4), h5py.string_dtype()))",
    "references": "link(lambda g: g.create_dataset('avg', (7, 4), h5py.ref_dtype))",
    "compound type": "link(lambda g: g.create_dataset('avg', (7, 4), [('a', '<f4')]))",
    "a group in place of an array": "link(lambda g: g.create_group('avg'))",
    "a great attribute": "attribute('spec', np.zeros(1 << 12, 'S8'))",
    "an attribute of text without end": "attribute('spec', 'x' * (1 << 15))",
    "a foreign type": "attribute('type', np.bytes_('pickle'))",
    "a later version": "attribute('version', np.int64(2))",
    "a thousand nested groups": "nested()",
    "no HDF5": "path.write_bytes(b'\\x80\\x04cos\\nsystem\\n')",
    "only a signature": "path.write_bytes(b'\\x89HDF\\r\\n\\x1a\\n')",
}

PROGRAM = """
import json, sys, time
from pathlib import Path
import h5py, numpy as np
from featx.cache.layout import CacheLayout
from featx.cache.shard import read_shard, write_shard
from featx.exceptions import CacheFormatError

folder, craft = Path(sys.argv[1]), sys.argv[2]
digest = "ab" * 32
path = write_shard(CacheLayout(folder), folder, spec_digest=digest,
                   keys=np.zeros((7, 32), np.uint8),
                   features={"avg": np.zeros((7, 4), np.float32)}, provenance={})
read_shard(path, digest)

def stamp(item):
    item.attrs["type"] = np.bytes_("featx-features")
    item.attrs["version"] = np.int64(1)
    item.attrs["sha256"] = np.bytes_("0" * 64)

def link(make):
    with h5py.File(path, "a") as file:
        group = file["features"]
        del group["avg"]
        make(group)
        if isinstance(group.get("avg", getlink=True), h5py.HardLink):
            stamp(group["avg"])

def virtual():
    layout = h5py.VirtualLayout((7, 4), "<f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(7, 4), dtype="<f4")
    link(lambda group: group.create_virtual_dataset("avg", layout))

def nested():
    def make(group):
        for _ in range(1000):
            group = group.create_group("avg")
    link(make)

def attribute(name, value):
    with h5py.File(path, "a") as file:
        del file.attrs[name]
        file.attrs[name] = value

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")][0]

eval(craft)
before = peak()
try:
    read_shard(path, digest)
    message = ""
except CacheFormatError as error:
    message = str(error)
print(json.dumps([message, peak() - before, path.name]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", CRAFTS)
def test_a_crafted_shard_is_refused_soon_and_cheaply(kind, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), CRAFTS[kind]],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, megabytes, name = json.loads(done.stdout)
    assert name in message
    assert megabytes < 100
