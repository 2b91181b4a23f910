#!/usr/bin/env bash
# Starts the profile `models` of docker-compose.yml against a hub and a registry of this test, behind
# nginx with TLS on the address of the host in Docker's network, and downloads through both gateways
# with huggingface_hub and skopeo. Needs docker-registry, nginx, openssl, skopeo, a Python with
# huggingface_hub in PYTHON, and target/debug/potluck-stand-in.
set -euo pipefail
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=potluck-models-test COMPOSE_PROFILES=models
compose=${COMPOSE:-docker compose}
python=${PYTHON:-python3}
work=$(mktemp -d)
started=()
network() { $compose -f docker-compose.yml -f "$work/override.yml" "$@"; }
fail() { printf 'FAILED: %s\n' "$1" >&2; network logs --tail 40 >&2 || true; exit 1; }
cleanup() {
  network down --volumes --timeout 15 >/dev/null 2>&1 || true
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT

# The repository: two files in Git LFS and a small one.
mkdir -p "$work/repo"
head -c 50000000 /dev/urandom >"$work/repo/model-00001.safetensors"
head -c 20000000 /dev/urandom >"$work/repo/model-00002.safetensors"
echo '{"architectures": []}' >"$work/repo/config.json"

host=$(ip -4 -o addr show docker0 | awk '{ split($4, a, "/"); print a[1] }')
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
hub=$(free_port) registry=$(free_port) tls=$(free_port)
target/debug/potluck-stand-in --listen "127.0.0.1:$hub" --repository "models/org/repo=$work/repo" >"$work/hub.log" &
started+=($!)
cat >"$work/registry.yml" <<END
version: 0.1
log: { level: error }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: 127.0.0.1:$registry }
END
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
started+=($!)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=origin.test \
  -addext subjectAltName=DNS:origin.test -addext basicConstraints=critical,CA:FALSE \
  -keyout "$work/key.pem" -out "$work/certificate.pem" 2>/dev/null
chmod a+rx "$work"
cat >"$work/nginx.conf" <<END
pid $work/nginx.pid;
error_log $work/nginx.log;
daemon off;
events {}
http {
  access_log off;
  client_body_temp_path $work/body; proxy_temp_path $work/proxy; fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
  server {
    listen $host:$tls ssl;
    server_name origin.test;
    ssl_certificate $work/certificate.pem;
    ssl_certificate_key $work/key.pem;
    location /v2/ { proxy_pass http://127.0.0.1:$registry; proxy_set_header Host \$http_host; proxy_set_header X-Forwarded-Proto https; }
    location / { proxy_pass http://127.0.0.1:$hub; proxy_redirect http://localhost/ https://origin.test:$tls/; proxy_redirect http://localhost:$hub/ https://origin.test:$tls/; proxy_redirect http://localhost:80/ https://origin.test:$tls/; }
  }
}
END
nginx -c "$work/nginx.conf" &
started+=($!)

cat >"$work/override.yml" <<END
version: "2.4"
services:
  gateway1: &trust
    extra_hosts: [ "origin.test:$host" ]
    environment: { SSL_CERT_FILE: /certificate.pem }
    volumes: [ "$work/certificate.pem:/certificate.pem:ro" ]
  gateway2: *trust
END
sed -i "1{/^version/d}" "$work/override.yml"
export POTLUCK_GATEWAY_HF=https://origin.test:$tls POTLUCK_GATEWAY_OCI=docker.io=https://origin.test:$tls
before=$SECONDS
network up -d
for service in index gateway1 gateway2; do
  for attempt in $(seq 60); do
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$(network ps -q "$service")")" = healthy ] && continue 2
    sleep 1
  done
  fail "$service is not healthy"
done
printf 'ready after %d s\n' $((SECONDS - before))

# sent: bytes of content that the hub sent so far.
sent() { curl -fsS "http://127.0.0.1:$hub/_log" | python3 -c 'import json, sys; print(sum(entry["bytes"] for entry in json.load(sys.stdin)))'; }
for port in 8080 8081; do
  HF_HUB_DISABLE_PROGRESS_BARS=1 HF_ENDPOINT=http://127.0.0.1:$port HF_HOME=$work/cache-$port "$python" - "$work/copy-$port" <<'END'
import sys
from huggingface_hub import snapshot_download
snapshot_download("org/repo", local_dir=sys.argv[1])
END
  for file in "$work"/repo/*; do
    cmp "$file" "$work/copy-$port/$(basename "$file")" || fail "a file through port $port differs"
  done
  printf 'after the client of port %d the hub has sent %d of 70,000,022 bytes\n' "$port" "$(sent)"
done
[ "$(sent)" -lt 77000000 ] || fail "the hub sent more than 1.1 copies"

mkdir -p "$work/files/dir"
python3 - "$work/image" <<'END'
import hashlib, json, os, sys
root = sys.argv[1]
os.makedirs(f"{root}/blobs/sha256")
def put(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    open(f"{root}/blobs/sha256/{digest}", "wb").write(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put(b"{}", "config.v1+json"), "layers": [put(os.urandom(10 << 20), "layer.v1.tar")]}
manifest = put(json.dumps(manifest).encode(), "manifest.v1+json")
manifest["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
json.dump({"schemaVersion": 2, "manifests": [manifest]}, open(f"{root}/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{root}/oci-layout", "w"))
END
skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false "oci:$work/image:v1" "docker://127.0.0.1:$registry/library/sample:v1"
for port in 8080 8081; do
  skopeo --insecure-policy copy -q --src-tls-verify=false "docker://127.0.0.1:$port/sample:v1" "dir:$work/image-$port" ||
    fail "skopeo through port $port"
  layer=$(ls -S "$work/image/blobs/sha256" | head -n 1)
  cmp "$work/image/blobs/sha256/$layer" "$work/image-$port/$layer" || fail "a layer through port $port differs"
done
printf 'models: passed\n'
