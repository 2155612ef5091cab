"""Distributions for tests: real wheels, installed by unpacking them as the wheel format says."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nightshift_skills.plugins.discovery import discover


def install(
    site: Path,
    name: str,
    files: Mapping[str, str],
    entry_points: Mapping[str, str],
    *,
    also_listed: Sequence[str] = (),
) -> None:
    """What an installer leaves behind of a pure wheel: the files, METADATA, entry_points.txt, RECORD."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    points = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
    written = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[nightshift.skills]\n{points}",
    }
    record = "".join(f"{path},,\n" for path in also_listed)
    for path, text in written.items():
        place = site / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    (site / info / "RECORD").write_text(f"{record}{info}/RECORD,,\n")


def digest_of(name: str) -> str:
    """What an operator would pin."""
    return next(found for found in discover() if found.name == name).package().digest
