#!/usr/bin/env bash
# Measures the index: bench/index/run.sh [--data FOLDER] [CASE...]. See README.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
programs=${PROGRAMS:-target/release/examples}
data=${TMPDIR:-/tmp}/potluck-bench-index
if [ "${1:-}" = --data ]; then
  data=$2
  shift 2
fi
cases=("$@")
[ ${#cases[@]} -gt 0 ] || cases=(open-small open-large batches calls watch stalls search)
mkdir -p "$data"

# restart NAME PEERS FILES: opens a store of PEERS times FILES registrations, made once.
restart() {
  echo "## $1 registrations"
  if [ ! -e "$data/$1/done" ]; then
    timeout 900 "$programs/restart" "$data/$1" "$2" "$3" >"$data/$1.log"
    touch "$data/$1/done"
  fi
  # Once to read the files into memory, so that the disk does not count.
  timeout 300 "$programs/restart" "$data/$1" >/dev/null
  timeout 300 "$programs/restart" "$data/$1"
}

echo "# $(date -u +%FT%TZ), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg)"
for case in "${cases[@]}"; do
  echo "# $case, load $(cut -d' ' -f1 /proc/loadavg)"
  case $case in
    open-small)
      restart 10000 1 10000
      restart 100000 10 10000
      restart 1000000 100 10000
      ;;
    open-large) restart 10000000 1000 10000 ;;
    batches) timeout 120 "$programs/load" 5 1000 batches ;;
    # Those that renew are the peers that registered.
    calls) timeout 180 "$programs/load" 5 1000 single,renew ;;
    watch) timeout 240 "$programs/load" 5 100000 watch ;;
    stalls) timeout 240 "$programs/stalls" 300000 10000 ;;
    search) timeout 300 "$programs/search" 1000000 ;;
    *)
      echo "$case: no such case; see bench/index/README.md" >&2
      exit 2
      ;;
  esac
done
echo "# end, load $(cut -d' ' -f1-3 /proc/loadavg)"
