#!/usr/bin/env bash
# Images of a real registry through two gateways, with real clients: skopeo, containerd and, with
# --engine, a Docker engine of its own. Needs docker-registry, skopeo, curl and python3; the last two
# clients need root. Uses target/debug/potluck, or the program in POTLUCK.
set -euo pipefail
cd "$(dirname "$0")/.."
potluck=$(readlink -f "${POTLUCK:-target/debug/potluck}")
engine=${1:-}
# An engine without a bridge removes that of another one, so it gets a network of its own.
if [ "$engine" = --engine ] && [ -z "${IN_NAMESPACE:-}" ]; then
  exec env IN_NAMESPACE=1 unshare --net sh -c 'ip link set lo up && exec "$0" --engine' "$PWD/tests/images.sh"
fi
work=$(mktemp -d)
export HOME=$work/home XDG_DATA_HOME=$work/data XDG_CONFIG_HOME=$work/config
started=()
fail() { printf 'FAILED: %s\n' "$1" >&2; tail -n 5 "$work"/*.log >&2 || true; exit 1; }
cleanup() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  umount "$work"/docker/* 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

# start NAME COMMAND...: runs it in the background, with its output in NAME.log.
start() {
  local name=$1
  shift
  "$@" >"$work/$name.log" 2>&1 &
  started+=($!)
}
# address NAME: where a program of ours listens.
address() {
  local attempt
  for attempt in $(seq 100); do
    sed -n 's/^listening on //p' "$work/$1.log" | grep . && return
    sleep 0.2
  done
  fail "$1 does not start"
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# sent: bytes of blobs that the registry sent so far.
sent() {
  python3 - "$work/registry.log" <<'END'
import json, sys
total = 0
for line in open(sys.argv[1]):
    if line.startswith("{") and "response completed" in line:
        entry = json.loads(line)
        if entry["http.request.method"] == "GET" and "/blobs/" in entry["http.request.uri"]:
            total += entry.get("http.response.written", 0)
print(total)
END
}

# An image of two layers.
python3 - "$work/image" <<'END'
import hashlib, io, json, os, sys, tarfile
root = sys.argv[1]
os.makedirs(f"{root}/blobs/sha256")
def put(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    open(f"{root}/blobs/sha256/{digest}", "wb").write(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}
layers = []
for name, size in (("one", 160 << 20), ("two", 40 << 20)):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    layers.append(put(file.getvalue(), "layer.v1.tar"))
config = {"architecture": "amd64", "os": "linux", "config": {},
          "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}}
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put(json.dumps(config).encode(), "config.v1+json"), "layers": layers}
manifest = put(json.dumps(manifest).encode(), "manifest.v1+json")
manifest["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
json.dump({"schemaVersion": 2, "manifests": [manifest]}, open(f"{root}/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{root}/oci-layout", "w"))
END
size=$(du -bc "$work"/image/blobs/sha256/* | tail -n 1 | cut -f1)

port=$(free_port)
cat >"$work/registry.yml" <<END
version: 0.1
log: { level: info, formatter: json, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: 127.0.0.1:$port }
END
start registry docker-registry serve "$work/registry.yml"
registry=${started[-1]}
for attempt in $(seq 50); do curl -fsS "http://127.0.0.1:$port/v2/" >/dev/null 2>&1 && break; sleep 0.2; done
skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false "oci:$work/image:v1" "docker://127.0.0.1:$port/library/sample:v1"

start index "$potluck" index --listen 127.0.0.1:0 --store memory
index=$(address index)
for name in first second; do
  start $name "$potluck" gateway --listen 127.0.0.1:0 --home "$work/home-$name" --index "http://$index" \
    --oci "docker.io=http://127.0.0.1:$port" --oci "registry.example=http://127.0.0.1:$port"
done
first=$(address first)
second=$(address second)

# Both at once. The manifest and the blobs are compared with those of the image.
copy() { skopeo --insecure-policy copy -q --src-tls-verify=false "docker://$1/$2:v1" "dir:$work/$3"; }
copy "$first" sample a & one=$!
copy "$second" sample b & two=$!
wait $one || fail "skopeo through the first gateway"
wait $two || fail "skopeo through the second gateway"
for copied in a b; do
  for blob in "$work"/image/blobs/sha256/*; do
    name=$(basename "$blob")
    cmp -s "$blob" "$work/$copied/$name" || cmp -s "$blob" "$work/$copied/manifest.json" || fail "blob $name differs"
  done
done
cost=$(sent)
printf 'two gateways at once: an image of %d bytes, the registry sent %d (%d %%)\n' "$size" "$cost" $((cost * 100 / size))
[ $((cost * 100)) -le $((size * ${MAX_PERCENT:-120})) ] || fail "the registry sent more than ${MAX_PERCENT:-120} % of an image"
copy "$first" docker.io/sample named || fail "the name of the registry in the path"
skopeo list-tags --tls-verify=false "docker://$first/library/sample" | grep -q '"v1"' || fail "no tags"

# containerd, with the namespace in the query.
if command -v containerd >/dev/null && [ "$(id -u)" = 0 ]; then
  mkdir -p "$work/hosts/registry.example"
  cat >"$work/hosts/registry.example/hosts.toml" <<END
server = "https://registry.example"

[host."http://$first"]
  capabilities = ["pull", "resolve"]
END
  cat >"$work/containerd.toml" <<END
version = 2
root = "$work/containerd"
state = "$work/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$work/containerd.sock"
END
  start containerd containerd --config "$work/containerd.toml"
  for attempt in $(seq 50); do [ -S "$work/containerd.sock" ] && break; sleep 0.2; done
  ctr --address "$work/containerd.sock" content fetch --hosts-dir "$work/hosts" registry.example/library/sample:v1 >/dev/null ||
    fail "containerd"
  printf 'containerd: fetched\n'
fi

# An engine of its own, which knows the gateway as a mirror of Docker Hub.
if [ "$engine" = --engine ]; then
  mkdir -p "$work/docker"
  echo '{}' >"$work/docker.json"
  start dockerd dockerd --config-file "$work/docker.json" --data-root "$work/docker" --exec-root "$work/docker-exec" \
    --pidfile "$work/docker.pid" --host "unix://$work/docker.sock" --bridge none --iptables=false \
    --storage-driver vfs --registry-mirror "http://$first"
  export DOCKER_HOST=unix://$work/docker.sock
  for attempt in $(seq 100); do docker info >/dev/null 2>&1 && break; sleep 0.2; done
  docker pull -q sample:v1 || fail "the Docker engine"
  docker image inspect -f '{{len .RootFS.Layers}}' sample:v1 | grep -qx 2 || fail "the engine's image"
  printf 'Docker engine: pulled\n'
fi
[ "$(sent)" = "$cost" ] || fail "the registry was asked again for what the gateways have"

# The registry is gone: what is here is served and marked.
kill "$registry"
wait "$registry" 2>/dev/null || true
copy "$first" sample offline || fail "skopeo without the registry"
blob=$(ls -S "$work/image/blobs/sha256" | head -n 1)
curl -fsS -o /dev/null -D "$work/head.log" "http://$first/v2/library/sample/blobs/sha256:$blob"
grep -qi '^x-potluck-offline: 1' "$work/head.log" || fail "the answer is not marked"
printf 'images: passed\n'
