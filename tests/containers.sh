#!/usr/bin/env bash
# Starts the networks of docker-compose.yml under their own project name, the open one and then the
# private one: searches and downloads, stops a sharing peer, restarts, compares the bytes, and removes
# everything.
set -euo pipefail
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=potluck-test
compose=${COMPOSE:-docker compose}
network() { $compose "$@"; }
fail() { printf 'FAILED: %s\n' "$1" >&2; network logs --tail 40 >&2 || true; exit 1; }
down() { COMPOSE_PROFILES=open,private network down --volumes --timeout 15 >/dev/null 2>&1 || true; }
# healthy SERVICE...: waits until all are.
healthy() {
  local service attempt container
  for service in "$@"; do
    for attempt in $(seq 60); do
      container=$(network ps -q "$service")
      [ "$(docker inspect -f '{{.State.Health.Status}}' "$container")" = healthy ] && continue 2
      sleep 1
    done
    fail "$service is not healthy"
  done
}
trap down EXIT
down

# The profile does not matter here, and takes half the time.
profile=${PROFILE:-dev}
network build --quiet --build-arg PROFILE="$profile" 2>/dev/null || network build --build-arg PROFILE="$profile"
before=$SECONDS
network up -d
healthy index peer1 peer2 peer3 peer4
printf 'ready after %d s\n' $((SECONDS - before))

cli() { network run --rm -T cli "$@"; }

# A peer shares in the background after its start: wait until all three have registered.
for attempt in $(seq 60); do
  cli --json query numbers.txt 2>/dev/null | grep -o '"complete":true' | wc -l | grep -qx 3 && break
  [ "$attempt" = 60 ] && fail "numbers.txt does not have three providers"
  sleep 1
done

cli search numbers
cli get numbers.txt -o /downloads/numbers.txt
wanted=$(network exec -T peer1 sha256sum /samples/numbers.txt | cut -d' ' -f1)
got=$(network run --rm -T --entrypoint sha256sum cli /downloads/numbers.txt | cut -d' ' -f1)
[ "$wanted" = "$got" ] || fail "what was fetched differs from what was shared"

# A running peer of the network also downloads, and shares the result.
network exec -T peer4 potluck --peer unix:/var/lib/potluck/peer/control.sock get cookbook
network exec -T peer4 sh -c 'cd /var/lib/potluck/peer/files/cookbook && test -L favourite.txt && test -d empty && grep -q Stone favourite.txt' ||
  fail "the collection was not restored"

# The other two peers are enough when one of three has stopped.
network kill peer2 >/dev/null 2>&1
cli get numbers.txt -o /downloads/again.txt
got=$(network run --rm -T --entrypoint sha256sum cli /downloads/again.txt | cut -d' ' -f1)
[ "$wanted" = "$got" ] || fail "what was fetched from two peers differs"

down

# The private network: no container is told a secret but through the volume with the code.
export COMPOSE_PROFILES=private
before=$SECONDS
network up -d
healthy private-index private-peer1 private-peer2
printf 'private network ready after %d s\n' $((SECONDS - before))
running=$(network ps --services --filter status=running | sort | tr '\n' ' ')
[ "$running" = "private-index private-peer1 private-peer2 " ] || fail "these run: $running"
[ "$(network exec -T private-index stat -c '%a %U' /codes/code)" = "600 potluck" ] ||
  fail "others can read the join code"

peer2() { network exec -T private-peer2 potluck "$@"; }
for attempt in $(seq 60); do
  peer2 --json query numbers.txt 2>/dev/null | grep -q '"complete":true' && break
  [ "$attempt" = 60 ] && fail "numbers.txt has no provider in the private network"
  sleep 1
done
peer2 search numbers
peer2 get numbers.txt
wanted=$(network exec -T private-peer1 sha256sum /samples/numbers.txt | cut -d' ' -f1)
got=$(network exec -T private-peer2 sha256sum /var/lib/potluck/peer/files/numbers.txt | cut -d' ' -f1)
[ "$wanted" = "$got" ] || fail "what was fetched in the private network differs"

# A container without credentials is refused by the index and by a peer, and so is a member of another
# network.
refused() {
  local words=$1
  shift
  "$@" >/dev/null 2>"$errors" && fail "an outsider may: $*"
  grep -q "$words" "$errors" || fail "an outsider is told: $(cat "$errors")"
}
errors=$(mktemp)
refused "private network" cli health private-index:1313
refused "private network" cli health private-peer1:12349
refused "private network" cli --index private-index:1313 search numbers
refused "another network" network run --rm -T --entrypoint sh cli -ec '
  cd /tmp
  potluck network create kitchen --index https://127.0.0.1:1313 >code
  potluck index --network kitchen --store memory -q >/dev/null &
  until potluck network join --code-file code; do sleep 0.2; done
  potluck search numbers --index https://private-index:1313'
rm "$errors"

# After a restart with a new code, the same two members and peers are there.
members() { network exec -T private-index potluck network members --json | cut -d, -f1 | sort; }
before=$(members)
network restart private-index private-peer1 private-peer2 >/dev/null 2>&1
healthy private-index private-peer1 private-peer2
[ "$(members)" = "$before" ] && [ "$(members | wc -l)" = 2 ] || fail "the members changed: $(members)"
peer2 search numbers

printf 'container networks: 2 passed, 0 failed\n'
