"""Finds installed programs, and names the packages of missing ones."""

from __future__ import annotations

import shutil
import subprocess

from common.unavailable import Unavailable

PACKAGES = {"nginx": "nginx-light", "aria2c": "aria2", "transmission-create": "transmission-cli"}


def need(*programs: str) -> None:
    """Raises `Unavailable` unless all are installed."""
    for program in programs:
        if not find(program):
            raise Unavailable(f"no {program}: apt-get install {PACKAGES.get(program, program)}")


def find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def first_line(*command: str) -> str:
    """The version that a program reports."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return next((line for line in (result.stdout + result.stderr).splitlines() if any(c.isdigit() for c in line)), command[0])
