"""Write docs/methods.md: every method with its kind, callers, tier and skill, read from the descriptors.

Usage: python scripts/method_table.py [--check]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor

from nightshift.type.v1 import policy_pb2

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "methods.md"
HEAD = """# Every method, what it is and who may call it

Generated from the method options by `make protos`; do not edit. "Callers" names the least that is
needed: a higher role includes the lower ones, "any" means every known identity. An acting method is reached
through its skill alone.

| method | kind | callers | tier | single use | skill |
|---|---|---|---|---|---|
"""


def files() -> list[FileDescriptor]:
    """Descriptors of all protos, in the order of their paths."""
    protos = ROOT / "protos"
    names = sorted(str(p.relative_to(protos))[: -len(".proto")] for p in protos.rglob("*.proto"))
    return [importlib.import_module(n.replace("/", ".") + "_pb2").DESCRIPTOR for n in names]


def table() -> str:
    """The page's text."""
    rows = []
    for file in files():
        for service in file.services_by_name.values():
            for method in service.methods:
                policy = method.GetOptions().Extensions[policy_pb2.policy]
                kind = policy_pb2.MethodKind.Name(policy.kind).removeprefix("METHOD_KIND_").lower()
                tier = policy_pb2.Tier.Name(policy.tier).removeprefix("TIER_") if policy.tier else ""
                skills = ", ".join(f"`{s}`" for s in [policy.skill, *policy.also_skills] if s)
                skills += ", plug-ins" if policy.plugins else ""
                rows.append(
                    f"| `{service.full_name}/{method.name}` | {kind} | {', '.join(policy.callers) or 'any'} "
                    f"| {tier} | {'yes' if policy.single_use else ''} | {skills} |"
                )
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    text = table()
    if not arguments.check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print("docs/methods.md differs from the protos: run 'make protos'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
