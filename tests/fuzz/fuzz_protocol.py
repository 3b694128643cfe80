"""One target of protocol.py under atheris: fuzz_protocol.py NAME LIBFUZZER_ARGUMENT...

Branches of veilsum's Python are what is covered; its native core is fuzzed by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["veilsum"]):
    from fuzz.protocol import TARGETS


def main() -> None:
    name, *arguments = sys.argv[1:]
    (target,) = (target() for target in TARGETS if target.name == name)
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
