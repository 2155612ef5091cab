"""Generate the Python code of the protos into a folder (default: gen/).

Usage: python scripts/generate_protos.py [--check]

The proto tree is the Python package (nightshift.<service>.v1), so nothing in the generated
imports needs rewriting. --check generates into a temporary folder and compares: exit 1 where
the committed code differs.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def plugin(name: str) -> Path:
    """The protoc plugin of the environment that runs this script, whose bin/ need not be on PATH."""
    return Path(sysconfig.get_path("scripts")) / name


def generate(target: Path) -> None:
    """Write *_pb2.py, *_pb2_grpc.py and their typed stubs below `target`; raise on protoc errors."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    include = str(Path(protoc.__file__).parent / "_proto")
    arguments = [
        "protoc",
        *(f"--plugin={plugin(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        f"-I{PROTOS}",
        f"-I{include}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out={target}",
        f"--mypy_grpc_out={target}",
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for folder in {path.parent for path in target.rglob("*.py")}:
        while folder != target:
            (folder / "__init__.py").touch()
            folder = folder.parent
    (target / "nightshift" / "py.typed").touch()


def differences(fresh: Path, committed: Path) -> list[str]:
    """Names of generated files that are missing, extra or different in `committed`."""

    def names(root: Path) -> set[Path]:
        return {p.relative_to(root) for p in root.rglob("*.py*") if "__pycache__" not in p.parts}

    both = names(fresh) & names(committed)
    changed = {n for n in both if not filecmp.cmp(fresh / n, committed / n, shallow=False)}
    return sorted(str(n) for n in (names(fresh) ^ names(committed)) | changed)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    committed = ROOT / "gen"
    if not arguments.check:
        committed.mkdir(exist_ok=True)
        generate(committed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        changed = differences(Path(folder), committed)
    for name in changed:
        print(f"gen/{name} differs from the protos: run 'make protos'", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
