"""Compile every launch for every capability, print what is wrong.

python -m tests.gates [attention ..] [--capability 80 ..] [--plans] [--jobs 2]
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from tests.compile_gates import CAPABILITIES
from tests.gates import STEMS, Launch, judge, launches

cached = cache(launches)


def wanted(stem: str, capability: int, plans: bool) -> list[tuple[int, Launch]]:
    """(number, launch) of every launch, or of the first of each plan."""
    numbered = list(enumerate(cached(stem, capability)))
    if not plans:
        return numbered
    first = {launch.plan: number for number, launch in reversed(numbered)}
    return [(number, launch) for number, launch in numbered if first[launch.plan] == number]


def one(way: tuple[str, int, int]) -> tuple[str, int, str, dict[str, int]]:
    """(name, capability, what is wrong or nothing, what it needs)."""
    stem, capability, number = way
    launch = cached(stem, capability)[number]
    try:
        code = judge(launch, capability)
    except AssertionError as error:
        return launch.name, capability, str(error).splitlines()[0], {}
    except Exception as error:  # the compiler's own
        return launch.name, capability, f"{type(error).__name__}: {error}"[:500], {}
    used = {"registers": code.registers, "shared": code.shared, "stack": code.stack}
    return launch.name, capability, "", used


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gates", description=__doc__)
    parser.add_argument("stems", nargs="*", metavar="kernel", help=", ".join(STEMS))
    parser.add_argument("--capability", type=int, nargs="*", default=CAPABILITIES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--plans", action="store_true", help="of each plan the first launch alone")
    parser.add_argument("--only", default="", help="launches whose names contain this")
    parser.add_argument("--json", help="write what each launch needs to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.stems) - set(STEMS):
        parser.error(f"no kernel {sorted(unknown)}; there are {', '.join(STEMS)}")
    begin = time.monotonic()
    ways = [
        (stem, capability, number)
        for stem in arguments.stems or STEMS
        for capability in arguments.capability
        for number, launch in wanted(stem, capability, arguments.plans)
        if arguments.only in launch.name
    ]
    wrong, every = 0, []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for name, capability, error, used in pool.map(one, ways, chunksize=4):
            every.append({"name": name, "capability": capability, "error": error, **used})
            if error:
                wrong += 1
                print(f"sm_{capability} {name}: {error}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(every, file, indent=0)
    print(f"{len(ways)} launches, {wrong} wrong, {time.monotonic() - begin:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
