"""What a stage takes before it begins, in processor time: `python benchmarks/start_up.py`.

Each stage's modules are imported by a process of its own, turn and turn about: as Python does it, and while no garbage
is collected (`outlier_moe.machine.start_up`), as the scripts of the workflow do it. Medians.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

STAGES = {
    "fetch_model": "outlier_moe.sources.gguf_conversion",
    "tokenize_corpus": "outlier_moe.sources.tokenization",
    "record_outliers": "outlier_moe.recording.record",
    "compare_models": "outlier_moe.statistics.comparison",
    "bootstrap_comparison": "outlier_moe.statistics.study_bootstrap",
    "test_models": "outlier_moe.statistics.study_tests",
    "verify_models": "outlier_moe.statistics.study_checks",
    "write_report": "outlier_moe.report.page",
}
PLAIN = "import {module}"
UNCOLLECTED = "from outlier_moe.machine.start_up import uncollected\nwith uncollected():\n    import {module}"


def processor_time(code: str) -> float:
    """What a process that runs some code takes, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print("| stage | plain, s | uncollected, s |\n|---|---|---|")
    for stage, module in STAGES.items():
        turns = [[processor_time(code.format(module=module)) for code in (PLAIN, UNCOLLECTED)] for _ in range(repeats)]
        plain, uncollected = map(statistics.median, zip(*turns, strict=True))
        print(f"| `{stage}` | {plain:.2f} | {uncollected:.2f} |", flush=True)


if __name__ == "__main__":
    main()
