#!/usr/bin/env python3
"""Prints a CycloneDX 1.6 list of everything that the programs contain: packaging/sbom.py

What only tests use is left out. The same Cargo.lock gives the same list.
"""
import json
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"potluck-cli", "potluck-index", "potluck-peer"}


def output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def purl(package: dict) -> str:
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package: dict, checksums: dict) -> dict:
    entry = {"type": "library", "bom-ref": purl(package), "name": package["name"],
             "version": package["version"], "purl": purl(package)}
    if license := package["license"]:
        # Old manifests write `A/B` for `A OR B`.
        parts = [part.strip() for part in license.split("/")]
        entry["licenses"] = [{"expression": " OR ".join(parts)}]
    if checksum := checksums.get((package["name"], package["version"])):
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if repository := package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": repository}]
    return entry


def main() -> None:
    target = output("rustc", "--print=host-tuple").strip()
    metadata = json.loads(
        output("cargo", "metadata", "--locked", "--format-version=1", "--filter-platform", target))
    packages = {package["id"]: package for package in metadata["packages"]}
    used = {node["id"]: [dep["pkg"] for dep in node["deps"]
                         if any(kind["kind"] in (None, "build") for kind in dep["dep_kinds"])]
            for node in metadata["resolve"]["nodes"]}
    roots = [key for key in metadata["workspace_members"] if packages[key]["name"] in PROGRAMS]
    found, waiting = set(), list(roots)
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting += used[key]
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(it["name"], it["version"]): it.get("checksum") for it in lock["package"]}
    shipped = sorted((packages[key] for key in found), key=purl)
    version = packages[roots[0]]["version"]
    top = {"type": "application", "bom-ref": "potluck", "name": "potluck", "version": version}
    depends = [{"ref": "potluck", "dependsOn": sorted(purl(packages[key]) for key in roots)}]
    depends += [{"ref": purl(package), "dependsOn": sorted({purl(packages[key]) for key in used[package["id"]]})}
                for package in shipped]
    print(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
                      "metadata": {"component": top},
                      "components": [component(package, checksums) for package in shipped],
                      "dependencies": depends}, indent=1))


if __name__ == "__main__":
    main()
