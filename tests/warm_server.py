"""Imports modules once and forks for each program that it is asked to run: `python warm_server.py MODULE...`."""

import importlib
import json
import os
import runpy
import sys


def main() -> None:
    """Answer each line of the input, a request, with the exit status of what it asks for."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(module: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[str]) -> None:
    """Be what `python -m` would be, with its output and errors in files."""
    for number, path in enumerate([os.devnull, *streams]):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    main()
