"""The scripts that a node runs, run by a real shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from snakemake_executor_plugin_skypilot.scripts import environment_path, run_script, setup_script


def _run(script: str, home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


def _stand_in_for_uv(home: Path) -> Path:
    """A uv that makes a `python` and notes what it was asked for."""
    uv, asked = home / ".local/bin/uv", home / "asked"
    uv.parent.mkdir(parents=True)
    uv.write_text(
        f'#!/bin/bash\necho "$@" >>{asked}\n'
        'if [ "$1" = venv ]; then mkdir -p "${@: -1}/bin"; ln -s /bin/true "${@: -1}/bin/python"; fi\n'
        'if [ -e "$HOME/broken" ]; then exit 2; fi\n'
    )
    uv.chmod(0o755)
    return asked


def test_environment_is_made_once(tmp_path: Path) -> None:
    """What broke off is made anew, what is complete is left alone, and other requirements are another environment."""
    asked = _stand_in_for_uv(tmp_path)
    requirements = tmp_path / "my requirements.lock"
    requirements.write_text("snakemake==9.27.0\n")
    path = environment_path(requirements, "3.12")
    script = setup_script(requirements.name, path, "3.12", "echo also this")

    (tmp_path / "broken").touch()
    assert _run(script, tmp_path, tmp_path).returncode == 2
    (tmp_path / "broken").unlink()
    first = _run(script, tmp_path, tmp_path)
    assert (first.returncode, first.stdout) == (0, "also this\n"), first.stderr
    lines = asked.read_text().splitlines()
    assert "venv --quiet --python 3.12" in lines[-2] and "--requirement my requirements.lock" in lines[-1]
    assert _run(script, tmp_path, tmp_path).returncode == 0
    assert asked.read_text().splitlines() == lines

    requirements.write_text("snakemake==9.28.0\n")
    assert environment_path(requirements, "3.12") != path != environment_path(requirements, "3.11")


def test_job_script(tmp_path: Path) -> None:
    """What an earlier job left is removed, then the environment, the prelude and the command."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results/it's old").mkdir()
    (tmp_path / "-n").touch()
    (tmp_path / "kept").touch()
    bin_folder = tmp_path / "environment/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "which-one").write_text("#!/bin/sh\necho $FIRST of the environment\n")
    (bin_folder / "which-one").chmod(0o755)
    script = run_script("which-one; ls", ["results/it's old", "-n"], "$HOME/environment", "export FIRST=prelude")
    said = _run(script, tmp_path, tmp_path).stdout.split("\n")
    assert said == ["prelude of the environment", "environment", "kept", "results", ""]
    assert not (tmp_path / "results/it's old").exists()


def test_a_failing_job_fails(tmp_path: Path) -> None:
    """At whatever place: the prelude, a pipe, the command."""
    for script in (
        run_script("true", [], None, "false"),
        run_script("false | cat", [], None, None),
        run_script("exit 3", [], None, None),
        setup_script(None, None, "3.12", "false\ntrue"),
    ):
        assert _run(script, tmp_path, tmp_path).returncode != 0


def test_nothing_to_set_up() -> None:
    """Then there is no set-up."""
    assert setup_script(None, None, "3.12", None) == ""
