"""Uploads: the one picture in a request's body, which is the picture itself or a form with one file in it. Pure."""

import re
from email.message import Message

from agents.http.errors import BadRequest
from agents.images.decode import MAX_BYTES

MAX_UPLOAD_BYTES = MAX_BYTES + 64 * 1024
"""Of a body: the largest picture, and a form around it."""

PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/avif")
FORM = "multipart/form-data"

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=?]{1,70}")
_HEAD_BYTES = 8 * 1024


def is_upload(content_type: str) -> bool:
    """Is this a type that an upload can have?"""
    return _type(content_type) in (*PICTURES, FORM)


def uploaded(content_type: str, body: bytes) -> bytes:
    """The picture's bytes. File names and fields are not looked at. Raises BadRequest for a form that has not exactly
    one file, or is none."""
    if _type(content_type) != FORM:
        return body
    boundary = _parameter(content_type, "boundary")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadRequest(400, "bad-form", "The form's boundary is missing, or none.")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("ascii"))
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise BadRequest(400, "bad-form", "The form is cut off.")
    files = [content for head, content in map(_part, parts[1:-1]) if _is_file(head)]
    if len(files) != 1:
        raise BadRequest(422, "bad-form", f"Send one file; the form has {len(files)}.")
    return files[0]


def _part(part: bytes) -> tuple[str, bytes]:
    head, found, content = part.partition(b"\r\n\r\n")
    if not found or len(head) > _HEAD_BYTES:
        raise BadRequest(400, "bad-form", "A part of the form has no head, or one too long.")
    return head.decode("utf-8", "replace"), content


def _is_file(head: str) -> bool:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return bool(re.search(r";\s*filename\*?=", value, re.IGNORECASE))
    return False


def _type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _parameter(content_type: str, name: str) -> str:
    message = Message()
    message["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    value = message.get_param(name, "")
    return value if isinstance(value, str) else ""
