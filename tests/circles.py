#!/usr/bin/env python3
"""Finds dependency cycles between the source files of each crate, direct or through other files.

    tests/circles.py [CRATE_FOLDER ...] [--edges]

A file depends on another if it names an item of it: in a `use`, or by a path that starts with
`crate`, `self`, `super` or a module it imported. Re-exports are followed to the file that defines
the item. Tests (`#[cfg(test)]`, files named `tests.rs` or `contract.rs`) do not count. Exits with 1
if there is a cycle.
"""

import os
import re
import sys

CRATES = ["src", "gateway/src", "origins/src", "swarm/src", "index-service/src", "peer-service/src", "cli/src"]
TEST_FILES = {"tests.rs", "contract.rs"}
DEFINES = re.compile(r"\b(?:struct|enum|union|fn|trait|type|const|static|macro_rules!|mod)\s+([A-Za-z_]\w*)")
IDENT = r"[A-Za-z_]\w*"


def code_only(text):
    """The text without comments, string contents, and items behind `#[cfg(test)]`."""
    text = re.sub(r'//[^\n]*|/\*.*?\*/|r#"(?:.*?)"#|b?"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'',
                  lambda m: '""' if m.group().endswith(('"', '"#')) else " ", text, flags=re.S)
    while match := re.search(r"#\[cfg\([^\]]*\btest\b[^\]]*\)\]", text):
        end = match.end()
        depth = 0
        while end < len(text):
            if text[end] == "{":
                depth += 1
            elif text[end] == "}":
                depth -= 1
                if depth == 0:
                    end += 1
                    break
            elif text[end] == ";" and depth == 0:
                end += 1
                break
            end += 1
        text = text[:match.start()] + text[end:]
    return text


def use_paths(tree, prefix=()):
    """(path, name) of each leaf of a use tree; name is the local name, or `*` for a glob."""
    tree = tree.strip()
    if "{" in tree:
        head, rest = tree.split("{", 1)
        parts = [p.strip() for p in head.split("::") if p.strip()]
        body = rest.rsplit("}", 1)[0]
        depth, start = 0, 0
        for i, c in enumerate(body + ","):
            if c == "{":
                depth += 1
            elif c == "}":
                depth -= 1
            elif c == "," and depth == 0:
                if body[start:i].strip():
                    yield from use_paths(body[start:i], (*prefix, *parts))
                start = i + 1
        return
    path, _, alias = tree.partition(" as ")
    parts = (*prefix, *[p.strip() for p in path.split("::") if p.strip()])
    if parts and parts[-1] == "self":
        parts = parts[:-1]
    yield parts, alias.strip() or (parts[-1] if parts else "")


class Crate:
    """The modules of one crate, and their dependencies."""

    def __init__(self, root):
        self.root, self.files, self.code, self.uses, self.defines = root, {}, {}, {}, {}
        for folder, _, names in os.walk(root):
            for name in names:
                if not name.endswith(".rs") or name in TEST_FILES:
                    continue
                path = os.path.join(folder, name)
                parts = os.path.relpath(path, root)[:-3].split(os.sep)
                if parts[-1] in ("mod", "lib"):
                    parts.pop()
                if "tests" in parts:
                    continue
                self.files[tuple(parts)] = path
        if ("main",) in self.files and () not in self.files:
            self.files[()] = self.files.pop(("main",))
        for module, path in self.files.items():
            code = code_only(open(path, encoding="utf-8").read())
            self.code[module] = code
            self.defines[module] = set(DEFINES.findall(code))
            self.uses[module] = [leaf for tree in re.findall(r"\buse\s+([^;]+);", code) for leaf in use_paths(tree)]

    def absolute(self, module, path):
        """The path from the crate's root, or None if it leads out of the crate."""
        base = list(module)
        if path[0] == "crate":
            return tuple(path[1:])
        if path[0] == "self":
            return (*base, *path[1:])
        if path[0] == "super":
            while path and path[0] == "super":
                if not base:
                    return None
                base.pop()
                path = path[1:]
            return (*base, *path)
        if (*base, path[0]) in self.files:
            return (*base, *path)
        return None

    def owner(self, path, seen=frozenset()):
        """The module that defines the item at an absolute path."""
        if path in seen:
            return None
        seen = seen | {path}
        cut = len(path)
        while cut > 0 and path[:cut] not in self.files:
            cut -= 1
        module, rest = path[:cut], path[cut:]
        if module not in self.files:
            return None
        if not rest or rest[0] in self.defines[module]:
            return module
        for target, name in self.uses[module]:
            if name == rest[0] and target:
                absolute = self.absolute(module, target)
                return self.owner((*absolute, *rest[1:]), seen) if absolute is not None else None
        for target, name in self.uses[module]:
            if name == "*" and target[:-1]:
                absolute = self.absolute(module, target[:-1])
                if absolute is not None and rest[0] in self.defines.get(absolute, ()):
                    return absolute
        return module

    def needs(self, module):
        """The modules that one module names, without itself."""
        code, found = self.code[module], set()
        public = {leaf for tree in re.findall(r"\bpub(?:\([^)]*\))?\s+use\s+([^;]+);", code) for leaf in use_paths(tree)}
        imported = {}
        for target, name in self.uses[module]:
            if not target or (target, name) in public:
                continue
            absolute = self.absolute(module, target[:-1] if name == "*" else target)
            if absolute is None:
                continue
            if absolute in self.files:
                imported[name] = absolute
            else:
                found.add(self.owner(absolute))
            if name == "*":
                found.add(absolute)
        body = re.sub(r"\buse\s+[^;]+;", "", code)
        for text in set(re.findall(rf"(?<![\w:])({IDENT}(?:::{IDENT})+)", body)):
            path = tuple(text.split("::"))
            if path[0] in imported:
                found.add(self.owner((*imported[path[0]], *path[1:])))
            elif (absolute := self.absolute(module, path)) is not None:
                found.add(self.owner(absolute))
        return {m for m in found if m is not None and m != module}


def circles(graph):
    """The strongly connected components of more than one node (Tarjan)."""
    index, low, stack, on, out = {}, {}, [], set(), []
    sys.setrecursionlimit(10_000)

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on.add(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in on:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while True:
                top = stack.pop()
                on.discard(top)
                group.append(top)
                if top == node:
                    break
            if len(group) > 1:
                out.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return out


def main():
    roots = [a for a in sys.argv[1:] if not a.startswith("--")] or CRATES
    bad = 0
    for root in roots:
        crate = Crate(root)
        graph = {module: crate.needs(module) for module in crate.files}
        found = circles(graph)
        bad += len(found)
        print(f"{root}: {len(graph)} files, {sum(map(len, graph.values()))} uses, "
              f"{len(found)} circles, {sum(map(len, found))} files in them")
        for group in found:
            print("  circle of", len(group))
            for module in group:
                others = [o for o in sorted(graph[module]) if o in group]
                print("   ", os.path.relpath(crate.files[module], root), "->",
                      ", ".join(os.path.relpath(crate.files[o], root) for o in others))
        if "--edges" in sys.argv:
            for module in sorted(graph):
                print("   ", "::".join(module) or "(root)", "->", ", ".join("::".join(o) or "(root)" for o in sorted(graph[module])))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
