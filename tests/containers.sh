#!/usr/bin/env bash
# Starts the network of docker-compose.yml under its own project name, searches and downloads, stops
# a sharing peer, downloads again, compares the bytes, and removes everything.
set -euo pipefail
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=potluck-test
compose=${COMPOSE:-docker compose}
network() { $compose "$@"; }
fail() { printf 'FAILED: %s\n' "$1" >&2; network logs --tail 40 >&2 || true; exit 1; }
down() { network down --volumes --timeout 15 >/dev/null 2>&1 || true; }
trap down EXIT
down

network build --quiet 2>/dev/null || network build
before=$SECONDS
network up -d
for service in index peer1 peer2 peer3 peer4; do
  for attempt in $(seq 60); do
    container=$(network ps -q "$service")
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$container")" = healthy ] && continue 2
    sleep 1
  done
  fail "$service is not healthy"
done
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

printf 'container network: 1 passed, 0 failed\n'
