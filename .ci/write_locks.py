"""Resolve pyproject.toml and write the pins: requirements.lock, requirements-cloud.lock, environment.yml (`make lock`).

pip resolves as if nothing were installed, and installs nothing. Its own version is left to the environment, and so are
torch's CUDA libraries: torch pins them itself, and the CPU builds have none.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = re.compile(r"outlier-moe|pip|triton|(nvidia|cuda)-.*")

LOCK_HEADER = """\
# The whole tree of {extras}, as pip resolved it. Written by `make lock`; do not edit.
"""

ENVIRONMENT_HEADER = """\
# The full set, SkyPilot included, for conda users: `conda env create --file environment.yml`.
# The pins are those of requirements-cloud.lock. Written by `make lock`; do not edit.
name: outlier-moe
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      - --editable .
"""


def resolve(python: Path, extras: str) -> list[str]:
    """The pins of the package with some of its extras, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report, "--editable", f"{ROOT}[{extras}]"], check=True)
        installs = json.loads(report.read_text())["install"]
    versions = {normalised(install["metadata"]["name"]): install["metadata"]["version"] for install in installs}
    # A local version (+cpu, +cu130) is one machine's build; without it every machine takes its own.
    return [f"{name}=={versions[name].split('+')[0]}" for name in sorted(versions) if not LEFT_OUT.fullmatch(name)]


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def write_lock(path: Path, extras: str, pins: list[str]) -> None:
    """Write the pins as a requirements file."""
    header = LOCK_HEADER.format(extras=f"outlier-moe[{extras}]")
    path.write_text(header + "".join(f"{pin}\n" for pin in pins))


def main() -> None:
    """Resolve both sets before either file is touched."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        core, cloud = resolve(python, "dev"), resolve(python, "cloud,slurm,test")
    write_lock(ROOT / "requirements.lock", "dev", core)
    write_lock(ROOT / "requirements-cloud.lock", "cloud,slurm,test", cloud)
    Path(ROOT, "environment.yml").write_text(ENVIRONMENT_HEADER + "".join(f"      - {pin}\n" for pin in cloud))
    print(f"requirements.lock: {len(core)} pins; requirements-cloud.lock, environment.yml: {len(cloud)}")


if __name__ == "__main__":
    main()
