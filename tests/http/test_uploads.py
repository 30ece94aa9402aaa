"""Uploads: the one file of a form, byte for byte, whatever is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.http.errors import BadRequest
from agents.http.uploads import is_upload, uploaded

KIND = "multipart/form-data; boundary=B"


def form(*parts: tuple[str, bytes], boundary: bytes = b"B", preamble: bytes = b"") -> bytes:
    made = b"".join(b"--" + boundary + b"\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts)
    return preamble + made + b"--" + boundary + b"--\r\n"


FILE = 'Content-Disposition: form-data; name="f"; filename="x.png"\r\nContent-Type: image/png'
FIELD = 'Content-Disposition: form-data; name="filename"'


@given(content=st.binary(max_size=200).filter(lambda content: b"\r\n--B" not in b"\r\n" + content))
def test_the_files_bytes_come_out_as_they_went_in(content: bytes):
    assert uploaded(KIND, form((FIELD, b"x"), (FILE, content), (FIELD, b""))) == content


def test_a_boundary_may_be_quoted_and_a_file_may_be_named_in_either_way():
    head = "content-disposition:form-data;name=f;FILENAME*=UTF-8''%e2%82%ac"
    assert (
        uploaded('Multipart/Form-Data; boundary="a:b"', form((head, b"x"), boundary=b"a:b", preamble=b"hi\r\n")) == b"x"
    )


def test_a_body_that_is_no_form_is_the_picture():
    assert uploaded("image/png", b"--B") == b"--B"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", form((FILE, b"x"))),
        ("multipart/form-data; boundary=", form((FILE, b"x"))),
        ("multipart/form-data; boundary=" + "B" * 71, form((FILE, b"x"), boundary=b"B" * 71)),
        (KIND, b""),
        (KIND, form((FILE, b"x"))[:-6]),
        (KIND, form((FIELD, b"x"))),
        (KIND, form()),
        (KIND, form((FILE, b"x"), (FILE, b"y"))),
        (KIND, b"--B\r\nno head\r\n--B--\r\n"),
        (KIND, form((FILE + "\r\nX: " + "x" * 9000, b"x"))),
    ],
)
def test_a_form_that_is_none_or_has_not_one_file_is_refused(kind: str, body: bytes):
    with pytest.raises(BadRequest):
        uploaded(kind, body)


def test_only_pictures_and_forms_are_uploads():
    assert all(map(is_upload, ("image/png", "Image/JPEG; q=1", KIND)))
    assert not any(map(is_upload, ("", "image/svg+xml", "text/html", "application/octet-stream", "multipart/mixed")))
