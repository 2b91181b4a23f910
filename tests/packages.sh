#!/usr/bin/env bash
# Installs the Debian package in a clean container, uses it, upgrades it, and purges it:
# tests/packages.sh PACKAGE.deb [NEWER.deb]. Without a newer one, installs the same again. Needs Docker.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$(readlink -f "$1")
newer=$(readlink -f "${2:-$1}")
image=${IMAGE:-debian:bookworm-slim}
name=potluck-package-test-$$
inside() { docker exec "$name" sh -ec "$*"; }
fail() { printf 'FAILED: %s\n' "$1" >&2; exit 1; }
cleanup() { docker rm -f "$name" >/dev/null 2>&1 || true; }
trap cleanup EXIT

# What the programs are made of.
files=$(mktemp -d)
dpkg-deb -x "$package" "$files"
python3 - "$files/usr/share/potluck/sbom.cdx.json" <<'PYTHON' || fail "the list of components is wrong"
import json, sys, tomllib
listed = {(it["name"], it["version"]) for it in json.load(open(sys.argv[1]))["components"]}
locked = [it for it in tomllib.load(open("Cargo.lock", "rb"))["package"] if it["name"] == "tonic"]
assert locked and all((it["name"], it["version"]) in listed for it in locked), "tonic is missing"
assert "potluck-testkit" not in {name for name, _ in listed}, "tests are listed"
PYTHON
rm -rf "$files"

# The units, where systemd is installed. 2.0 of 10 is the most exposure that they may have.
if command -v systemd-analyze >/dev/null; then
  units=$(mktemp -d)
  dpkg-deb -x "$package" "$units"
  for unit in "$units"/usr/lib/systemd/system/*.service "$units"/lib/systemd/system/*.service; do
    [ -e "$unit" ] || continue
    systemd-analyze security --offline=true --no-pager --threshold=20 "$unit" >/dev/null || fail "$unit is exposed"
    sed -i 's#^ExecStart=/usr/bin/[a-z-]*#ExecStart=/bin/true#' "$unit"
    systemd-analyze verify --man=no "$unit" || fail "$unit is not valid"
  done
  rm -rf "$units"
fi

docker run -d --name "$name" "$image" sleep 3600 >/dev/null
docker cp -q "$package" "$name:/package.deb"
docker cp -q "$newer" "$name:/newer.deb"

inside 'dpkg -i /package.deb'
inside 'test "$(stat -c %U /var/lib/potluck)" = potluck' || fail "the state folder is not the user's"
for program in potluck potluck-index potluck-peer; do inside "$program --version"; done
inside 'test -s /usr/share/bash-completion/completions/potluck'
inside 'zcat /usr/share/man/man1/potluck-get.1.gz | grep -q "potluck.get"' || fail "no manual page"

# The services, as the units run them, but without systemd.
inside 'install -d -o potluck -g potluck /var/lib/potluck/index /var/lib/potluck/peer /var/lib/potluck/gateway
  as() { setpriv --reuid potluck --regid potluck --clear-groups "$@"; }
  setpriv --reuid potluck --regid potluck --clear-groups \
    potluck-index --config /etc/potluck/index.toml >/tmp/index.out 2>/tmp/index.log &
  echo $! >/tmp/index.pid
  as potluck-peer --config /etc/potluck/peer.toml >/tmp/peer.out 2>/tmp/peer.log &
  as potluck gateway --config /etc/potluck/gateway.toml >/tmp/gateway.out 2>/tmp/gateway.log &
  for try in $(seq 100); do potluck health http://127.0.0.1:9349/readyz >/dev/null 2>&1 && break; sleep 0.1; done
  potluck health http://127.0.0.1:9313/readyz
  for try in $(seq 100); do grep -q "listening on 127.0.0.1:8080" /tmp/gateway.out && break; sleep 0.1; done
  grep "listening on" /tmp/gateway.out || { cat /tmp/gateway.log; exit 1; }
  seq 1 300000 >/tmp/numbers.txt
  chmod 644 /tmp/numbers.txt
  as potluck --peer unix:/var/lib/potluck/peer/control.sock share /tmp/numbers.txt
  cd /tmp && potluck get numbers.txt -o copy.txt && cmp numbers.txt copy.txt'

# A reload, as the unit does it.
inside 'echo "max-watchers = 7" >>/etc/potluck/index.toml
  kill -HUP "$(cat /tmp/index.pid)"
  for try in $(seq 100); do grep -q max-watchers /tmp/index.log && exit 0; sleep 0.1; done
  cat /tmp/index.log; exit 1' || fail "a reload did not change a limit"

# An upgrade keeps what the operator changed, and the data.
inside 'dpkg -i /newer.deb && grep -q max-watchers /etc/potluck/index.toml' || fail "the upgrade lost settings"
inside 'potluck --index 127.0.0.1:1313 query numbers.txt | grep -q numbers.txt' || fail "the index forgot a file"

inside 'dpkg --purge potluck'
inside 'test ! -e /etc/potluck -a ! -e /usr/bin/potluck' || fail "a purge left files"
inside 'test -d /var/lib/potluck/peer' || fail "a purge removed downloads"
echo 'the package installs, runs, reloads, upgrades and purges'
