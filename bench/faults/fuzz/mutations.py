"""Ways to spoil a valid file so that its outer parse often still succeeds: trees, texts, bytes, safetensors headers, state dicts.

Every way draws from the `random.Random` it is given, and says what it did.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OTHER_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "text", "search", "full", "a" * 300, "a" * 5000, "nan", "1e999", "../..", "~nobody-of-that-name/x"),
    *("nonsense://x", "a\nb", "a\0b", "\ud800", "\x1b[31mred", "\u202e", "t0000", "/dev/zero", "a,b", "1,2", ","),
    *(0, -1, 1, 2, 3, 5, 7, 64, 1000, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 10**30, 10**400),
    *(0.0, -0.5, 0.5, 1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *([], [1], [1, 2], ["a"], [None], [[]], [1e30, -1], {}, {"a": 1}, {"": 1}, {"1": {"2": 3}}),
    *(
        {"choice": [1, 2]},
        {"choice": []},
        {"log": [0, 1]},
        {"log": [1e-5, 1e-3]},
        {"float": [1, 0]},
        {"int": [1, 3]},
        {"int": [1, 3], "preset": 9},
    ),
)
"""Values of every type, in and out of every range."""

Path_ = tuple[str | int, ...]


def nested(depth: int) -> Any:
    """Lists in lists."""
    tree: Any = []
    for _ in range(depth):
        tree = [tree]
    return tree


def places(tree: Any, path: Path_ = ()) -> list[Path_]:
    """Every node's path but the root's."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(*path, key), *places(value, (*path, key))]]


def node_at(tree: Any, path: Path_) -> Any:
    """What stands there."""
    for key in path:
        tree = tree[key]
    return tree


def spoil_tree(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """A copy with one node, sometimes two, changed."""
    tree, said = copy.deepcopy(tree), []
    for _ in range(1 if rng.random() < 0.75 else 2):
        if not (paths := places(tree)):
            break
        path = rng.choice(paths)
        said.append(f"{'.'.join(map(str, path))}: {_spoil_node(rng, tree, path, paths)}")
    return tree, "; ".join(said)


def _spoil_node(rng: random.Random, tree: Any, path: Path_, paths: list[Path_]) -> str:
    above, key = node_at(tree, path[:-1]), path[-1]
    way = rng.choice(("other", "other", "other", "other", "removed", "misspelt", "nested", "number", "swapped", "listed", "extra"))
    if way == "removed":
        del above[key]
    elif way == "misspelt" and isinstance(above, dict):
        at = rng.randrange(len(str(key)) + 1)
        above[str(key)[:at] + rng.choice(("x", "", ".", " ", "é", "_")) + str(key)[at + 1 :]] = above.pop(key)
    elif way == "nested":
        above[key] = {str(key): above[key]} if rng.random() < 0.7 else nested(rng.choice((3, 30, 100)))
    elif way == "number" and isinstance(above[key], (int, float)):
        above[key] = rng.choice((-1, 0, 0.5, 2, 3, 1000, -1e-3)) * above[key] if rng.random() < 0.7 else str(above[key])
    elif way == "swapped":
        other = rng.choice(paths)
        above[key] = copy.deepcopy(node_at(tree, other))
        return f"the value of {'.'.join(map(str, other))}"
    elif way == "listed":
        above[key] = [above[key]]
    elif way == "extra" and isinstance(above, dict):
        above[rng.choice(("extra", "_class_name", "", "0", "lr", "a b"))] = copy.deepcopy(rng.choice(OTHER_VALUES))
    else:
        above[key] = copy.deepcopy(rng.choice(OTHER_VALUES))
        return f"{above[key]!r:.60}"
    return way


def spoil_bytes(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Flipped, cut, doubled, emptied, padded, or something else altogether."""
    way = rng.choice(
        ("flip", "flip", "flip", "flips", "cut", "cut", "empty", "pad", "zeros", "drop", "repeat", "shuffle", "random", "lines")
    )
    changed = bytearray(content)
    size = len(content)
    at = rng.randrange(size) if size else 0
    if way in ("flip", "flips"):
        for _ in range(1 if way == "flip" else rng.choice((2, 8, 64))):
            if size:
                # Headers are where it hurts.
                changed[rng.randrange(min(size, rng.choice((16, 64, 512, size))))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del changed[at:]
    elif way == "empty":
        changed.clear()
    elif way == "pad":
        changed += rng.choice((b"\0", b"\n", b"\xff", b"{}", content[: min(size, 1000)]))
    elif way == "zeros":
        end = min(size, at + rng.choice((1, 8, 100)))
        changed[at:end] = bytes(end - at)
    elif way == "drop":
        del changed[at : at + rng.choice((1, 3, 100))]
    elif way == "repeat":
        changed[at:at] = content[at : at + rng.choice((1, 20, 400))]
    elif way == "shuffle":
        middle = bytearray(content[at : at + 64])
        rng.shuffle(middle)
        changed[at : at + 64] = middle
    elif way == "lines":
        lines = content.splitlines(keepends=True)
        rng.shuffle(lines)
        changed = bytearray(b"".join(lines))
    else:
        changed = bytearray(rng.randbytes(rng.choice((1, 8, 200))))
    return bytes(changed), f"bytes {way}"


JSON_TEXTS = (
    *(b"", b"null", b"[]", b"{}", b"[1, 2]", b'"text"', b"3", b"NaN", b"{", b"{'a': 1}", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b"\0"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"1e999", b'{"a": 1, "a": 2}', b'"\xed\xa0\x80"', b'{"\\ud800": "\\ud800"}'),
)


def spoil_json(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A JSON file changed as a tree, as bytes, or put into another encoding."""
    way = rng.random()
    if way < 0.68:
        tree, said = spoil_tree(rng, json.loads(content))
        return json.dumps(tree).encode(), said
    if way < 0.82:
        return spoil_bytes(rng, content)
    if way < 0.94:
        text = rng.choice(JSON_TEXTS)
        return text, f"JSON {text[:20]!r}"
    encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig"))
    return content.decode().encode(encoding), encoding


def spoil_safetensors(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The header changed (shapes, types and offsets that lie), or the bytes, or another format under the name."""
    way = rng.random()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    if way < 0.55:
        tree, said = spoil_tree(rng, json.loads(header))
        header = json.dumps(tree).encode()
        return struct.pack("<Q", len(header)) + header + data, f"header {said}"
    if way < 0.65:
        lie = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**40, 2**63))
        return struct.pack("<Q", lie) + header + data, f"header length {lie}"
    if way < 0.72:
        text = rng.choice(JSON_TEXTS)
        return struct.pack("<Q", len(text)) + text + data, f"header {text[:20]!r}"
    if way < 0.8:
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(2)}, buffer)
        return buffer.getvalue(), "torch's format"
    return spoil_bytes(rng, content)


class Touch:
    """A pickle of this touches a file where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def malicious(rng: random.Random, marker: Path, tensors: dict[str, Tensor]) -> tuple[bytes, str]:
    """A file that runs code in whoever unpickles it: by itself, within torch's zip, or beside whole weights."""
    way = rng.choice(("pickle", "zip", "legacy", "beside", "key"))
    buffer = io.BytesIO()
    if way == "pickle":
        return pickle.dumps(Touch(marker), protocol=rng.choice((0, 2, 4))), "a malicious pickle"
    if way == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Touch(marker), protocol=2))
            archive.writestr("archive/version", "3\n")
    elif way == "key":
        entries: list[tuple[object, object]] = [*tensors.items(), (("a", "b"), Touch(marker))]
        torch.save(dict(entries), buffer)
    else:
        torch.save({**tensors, "extra": Touch(marker)}, buffer, _use_new_zipfile_serialization=way == "beside")
    return buffer.getvalue(), f"malicious ({way})"


def spoil_state_dict(rng: random.Random, tensors: dict[str, Tensor], wrap: Callable[[Any], Any] = lambda state: state) -> tuple[bytes, str]:
    """A state dict, or what `wrap` puts it in, as torch saves it: with names, shapes, types or values that are not the network's."""
    spoilt: Any = dict(tensors)
    name = rng.choice(list(spoilt))
    old: Tensor = spoilt[name]
    replacements: dict[str, Callable[[], Any]] = {
        "flat": lambda: old.flatten()[: rng.randrange(old.numel() + 1)],
        "scalar": lambda: torch.tensor(1.0),
        "empty": lambda: torch.zeros(0),
        "half": lambda: old.half(),
        "double": lambda: old.double(),
        "int": lambda: old.to(torch.int8),
        "bool": lambda: old > 0,
        "complex": lambda: old.to(torch.complex64),
        "sparse": lambda: old.to_sparse(),
        "float8": lambda: old.to(torch.float8_e4m3fn),
        "quantized": lambda: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "meta": lambda: old.to("meta"),
        "nan": lambda: old * float("nan"),
        "one axis more": lambda: old[None],
        "turned": lambda: old.transpose(0, -1).contiguous(),
        "expanded": lambda: torch.zeros(1).expand(2**20, 2**12),
        "number": lambda: 3.5,
        "text": lambda: "x",
        "none": lambda: None,
        "dict": lambda: {"a": old},
        "parameter": lambda: torch.nn.Parameter(old),
    }
    way = rng.choice([*replacements, "removed", "renamed", "extra", "number key", "wrapped", "list", "nothing", "tensor"])
    if way in replacements:
        spoilt[name] = replacements[way]()
    elif way == "removed":
        del spoilt[name]
    elif way == "renamed":
        spoilt[rng.choice(("module." + name, name + "x", "", "a\nb", name.upper()))] = spoilt.pop(name)
    elif way == "extra":
        spoilt[rng.choice(("label_emb.weight", "output_blocks.x.1.conv", "output_blocks.99.1.conv.weight", "output_blocks.", "out.2"))] = (
            old
        )
    elif way == "number key":
        spoilt[3] = spoilt.pop(name)
    else:
        spoilt = {"wrapped": {"state_dict": spoilt}, "list": list(spoilt.values()), "nothing": {}, "tensor": old}[way]
    buffer = io.BytesIO()
    torch.save(wrap(spoilt), buffer, _use_new_zipfile_serialization=way in ("sparse", "nested") or rng.random() < 0.7)
    return buffer.getvalue(), f"{name} {way}"
