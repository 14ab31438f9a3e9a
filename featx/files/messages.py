"""Messages of protocol buffers, by a schema in text that names the fields that are read."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

Message: TypeAlias = Any
"""A message, whose class is made at run time."""
Fields = dict[str, list[tuple[int, str, str, bool]]]


def parse_schema(text: str) -> Fields:
    """Return by message its fields: number, name, type, and whether there are several.

    A line is a message, a colon and its fields, each with number, name and type; a star stands for
    several. A map is a list of entries.
    """
    messages = {}
    for line in text.strip().splitlines():
        message, _, listed = line.partition(": ")
        fields = [field.split() for field in listed.split(", ")]
        messages[message] = [
            (int(number), name, kind.rstrip("*"), kind.endswith("*"))
            for number, name, kind in fields
        ]
    return messages


@cache
def message_class(package: str, text: str, name: str) -> Message:
    """Return the class of a message of a schema, which needs a package name of its own."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", syntax="proto3")
    file.package = package
    types = descriptor_pb2.FieldDescriptorProto
    messages = parse_schema(text)
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for number, field, kind, several in fields:
            added = described.field.add(name=field, number=number)
            added.label = types.LABEL_REPEATED if several else types.LABEL_OPTIONAL
            if kind in messages:
                added.type, added.type_name = types.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                added.type = getattr(types, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
