"""TFRecord files written by other hands than those that read them: protobuf's own encoder, a checksum by the book."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@cache
def _example_class() -> Any:
    """tf.train.Example, as in tensorflow/core/example/{example,feature}.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str | None]) -> Any:
        made = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = 3 if field in ("value", "feature") else 1
            made.field.add(name=field, number=number, type=kind, label=label, type_name=of)
        return made

    message("BytesList", ("value", 1, 12, None))
    message("FloatList", ("value", 1, 2, None))
    message("Int64List", ("value", 1, 3, None))
    feature = message(
        "Feature",
        ("bytes_list", 1, 11, ".tf.BytesList"),
        ("float_list", 2, 11, ".tf.FloatList"),
        ("int64_list", 3, 11, ".tf.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", 1, 11, ".tf.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".tf.Feature")
    message("Example", ("features", 1, 11, ".tf.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def example(features: Mapping[str, bytes | int | float]) -> bytes:
    """A serialised tf.train.Example."""
    made = _example_class()()
    for name, value in features.items():
        feature = made.features.feature[name]
        kind = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}[type(value)]
        kind.value.append(value)
    return bytes(made.SerializeToString())


def framed(*contents: bytes) -> bytes:
    """A TFRecord file."""
    parts = []
    for content in contents:
        length = struct.pack("<Q", len(content))
        parts += [length, struct.pack("<I", _masked(length)), content, struct.pack("<I", _masked(content))]
    return b"".join(parts)


def _masked(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
