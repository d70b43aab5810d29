"""Files to read domains from."""

import json
import random

import pytest

from acclimate import AcclimateError
from acclimate.domain import Domain

WORDS = [*"cdfghlmnprst"]
WORDS = [first + vowel + last for first in WORDS for vowel in "ae" for last in "nt"]  # made-up words


def sentence(seed: int, length: int = 30) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length)) + f" number {seed}."


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(path, count=100):
    return lines(path, [{"text": sentence(i)} for i in range(count)])


def load(source, name="law", **options):
    return Domain.load(name, str(source), **options)


def refused(source, **options):
    """The error's one line."""
    with pytest.raises(AcclimateError) as caught:
        load(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def tiny_pdf(pages, encrypt=False):
    """A PDF of one line of text per page, written by hand."""
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{' '.join(f'{4 + 2 * i} 0 R' for i in range(len(pages)))}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R >>"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n{trailer}\nstartxref\n{len(out)}\n%%EOF\n".encode()
