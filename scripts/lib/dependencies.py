"""Judges the dependencies by deny.toml as far as that needs no advisory database: licences, sources, wildcards, duplicates.

What `cargo deny check bans licenses sources` would say, without compiling cargo-deny first.
"""

import json
import re
import subprocess
import sys
import tomllib

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def main():
    with open("deny.toml", "rb") as file:
        policy = tomllib.load(file)
    packages = {}
    for target in policy["graph"]["targets"]:
        command = ("cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target)
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        packages |= {package["id"]: package for package in told["packages"]}
    problems = [problem for package in packages.values() for problem in judge(package, set(policy["licenses"]["allow"]))]
    for problem in sorted(problems):
        print(f"dependencies: {problem}", file=sys.stderr)
    versions = {}
    for package in packages.values():
        versions.setdefault(package["name"], []).append(package["version"])
    for name, found in sorted(versions.items()):
        if len(found) > 1:
            print(f"dependencies: note: {name} in {len(found)} versions: {', '.join(sorted(found))}")
    print(f"dependencies: {len(packages)} packages, {len(problems)} problems")
    return 1 if problems else 0


def judge(package, allowed):
    """What is wrong with one package; our own are known by having no source."""
    name = f"{package['name']} {package['version']}"
    for dependency in package["dependencies"]:
        if package["source"] is None and dependency["req"] == "*" and dependency["source"] is not None:
            yield f"{name}: any version of {dependency['name']} would do; name one"
    if package["source"] not in (None, CRATES_IO):
        yield f"{name}: from {package['source']}, not from crates.io"
    licence = package["license"]
    if not licence or not permits(licence, allowed):
        yield f"{name}: licence {licence or 'unknown'} is not among those allowed in deny.toml"


def permits(expression, allowed):
    """Whether an SPDX expression can be met with allowed licences; crates of old separate alternatives with a slash."""
    words = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        met = combination()
        while words and words[0] == "OR":
            words.pop(0)
            met = combination() or met
        return met

    def combination():
        met = single()
        while words and words[0] == "AND":
            words.pop(0)
            met = single() and met
        return met

    def single():
        word = words.pop(0)
        if word == "(":
            met = alternatives()
            words.pop(0)
            return met
        if words and words[0] == "WITH":
            word = " ".join([word, words.pop(0), words.pop(0)])
        return word in allowed

    return alternatives() and not words


if __name__ == "__main__":
    sys.exit(main())
