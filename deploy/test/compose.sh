#!/usr/bin/env bash
# Proves Dockerfile and docker-compose.yml with a real Docker: up, write, kill a container, write, read all,
# down, up, read all. Run it as root on Debian. It installs what is missing, starts a Docker of its own if
# none answers, and removes all that it made but those packages.
#
#   BASE_PORT=4000          clients are published on BASE_PORT+1 to BASE_PORT+3
#   ANTIPHON_BINARY=path    take this release binary instead of building one in the first stage
#
# Where no image registry is reached, the base images are stand-ins: debootstrap for the one, the same with
# a C compiler and this machine's Rust toolchain and downloaded crates for the other.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
base_port=${BASE_PORT:-4000}
project=antiphon-test-$$
work=$(mktemp -d)
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
secret=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
dockerd_pid=
had_bridge=1
images=()
started=

export COMPOSE_PROJECT_NAME=$project ANTIPHON_IMAGE=$project
export M1_PORT=$((base_port + 1)) M2_PORT=$((base_port + 2)) M3_PORT=$((base_port + 3))
# The classic builder is what every version has.
export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
# Empty ones, as a .env beside the compose file would fill in those that are unset.
export ANTIPHON_CLUSTER='' ANTIPHON_LOG='' ANTIPHON_KEYS_DIR=''
export ANTIPHON_CLUSTER_SECRET_FILE='' ANTIPHON_API_KEYS_FILE=''
export ANTIPHON_CLUSTER_SECRET=$secret ANTIPHON_API_KEYS=$key

step() { echo "== $*"; }
fail() {
  echo "FAIL: $*" >&2
  exit 1
}

# Runs a command whose output matters only if it fails.
quietly() {
  if ! "$@" >"$work/output" 2>&1; then
    tail -n 40 "$work/output" >&2
    fail "$*"
  fi
}

clean_up() {
  local code=$?
  trap - EXIT
  set +e
  if [ -n "$started" ]; then
    [ "$code" = 0 ] || docker-compose logs --no-color --tail 20 >&2
    docker-compose down -v --timeout 20 >/dev/null 2>&1
  fi
  for image in "${images[@]}"; do docker rmi -f "$image" >/dev/null 2>&1; done
  if [ -n "$dockerd_pid" ]; then
    kill "$dockerd_pid" 2>/dev/null
    wait "$dockerd_pid" 2>/dev/null
    # dockerd leaves its network namespaces mounted.
    umount "$work"/exec/netns/* 2>/dev/null
    [ "$had_bridge" = 1 ] || ip link delete docker0 2>/dev/null
  fi
  rm -rf --one-file-system "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

install_missing() {
  local missing=() pair
  for pair in dockerd:docker.io docker:docker.io docker-compose:docker-compose debootstrap:debootstrap \
    curl:curl python3:python3; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} = 0 ] && return
  step "install ${missing[*]}"
  quietly apt-get update
  quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

start_docker() {
  docker info >/dev/null 2>&1 && return
  step "no Docker answers: start one with its own data"
  [ -e /sys/class/net/docker0 ] || had_bridge=0
  export DOCKER_HOST=unix://$work/docker.sock
  dockerd --host "$DOCKER_HOST" --data-root "$work/docker" --exec-root "$work/exec" \
    --pidfile "$work/docker.pid" >"$work/dockerd.log" 2>&1 &
  dockerd_pid=$!
  for _ in $(seq 60); do
    docker info >/dev/null 2>&1 && return
    kill -0 "$dockerd_pid" 2>/dev/null || break
    sleep 1
  done
  tail -n 20 "$work/dockerd.log" >&2
  fail "dockerd did not start"
}

# The mirror and the suite that this machine's apt is set to, in either of its two forms.
apt_source() {
  # Not all of these files need be there.
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
    awk '
      /^deb / { line = $0; sub(/\[[^]]*\] */, "", line); split(line, word, " ")
                if (word[3] == "bookworm" && word[4] == "main") found[++count] = word[2] }
      /^URIs:/ { uri = $2 }
      /^Suites:/ && $2 == "bookworm" { found[++count] = uri }
      END { print found[1] }'
}

runtime_stand_in() {
  local mirror
  mirror=$(apt_source)
  [ -n "$mirror" ] || fail "no mirror for bookworm in /etc/apt"
  step "stand-in for the runtime image: debootstrap (about a minute)"
  quietly debootstrap --variant=minbase bookworm "$work/tree" "$mirror"
  rm -rf "$work"/tree/var/cache/apt/archives/*.deb
  RUNTIME_IMAGE=$project-runtime
  images+=("$RUNTIME_IMAGE")
  tar -C "$work/tree" -c . | docker import - "$RUNTIME_IMAGE" >/dev/null
}

rust_stand_in() {
  step "stand-in for the Rust image: the same with gcc, this machine's toolchain and its crates"
  local tree=$work/tree sysroot cargo_home=${CARGO_HOME:-$HOME/.cargo}
  quietly cargo fetch --locked
  quietly chroot "$tree" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends gcc libc6-dev ca-certificates
  # Also those certificates that only this machine trusts: crates that are missing come through the host.
  cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
  sysroot=$(rustc --print sysroot)
  mkdir -p "$tree/usr/local/rust" "$tree/usr/local/cargo/registry"
  tar -C "$sysroot" -c --exclude=./share . | tar -C "$tree/usr/local/rust" -x
  cp -r "$cargo_home/registry/cache" "$cargo_home/registry/index" "$tree/usr/local/cargo/registry/"
  RUST_IMAGE=$project-rust
  images+=("$RUST_IMAGE")
  tar -C "$tree" -c . | docker import -c 'ENV CARGO_HOME=/usr/local/cargo' \
    -c 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    - "$RUST_IMAGE" >/dev/null
}

# The default of a build argument of the Dockerfile.
default_of() { sed -n "s/^ARG $1=//p" Dockerfile; }

can_pull() { timeout 120 docker pull "$1" >/dev/null 2>&1; }

build_image() {
  RUNTIME_IMAGE=$(default_of RUNTIME_IMAGE)
  RUST_IMAGE=$(default_of RUST_IMAGE)
  local stand_in=
  if ! can_pull "$RUNTIME_IMAGE"; then
    stand_in=1
    runtime_stand_in
  fi
  if [ -n "${ANTIPHON_BINARY:-}" ]; then
    step "build the image: the second stage only, around $(basename "$ANTIPHON_BINARY") (ANTIPHON_BINARY)"
    mkdir "$work/context"
    install -m 0755 "$ANTIPHON_BINARY" "$work/context/antiphon"
    install -m 0644 LICENSE-MIT LICENSE-APACHE "$work/context"
    # The Dockerfile itself without its first stage, so that no copy of it can differ.
    awk '/^FROM .* AS build$/ { skip = 1; next } /^FROM / { skip = 0 } !skip' Dockerfile |
      sed 's|^COPY --from=build /antiphon |COPY antiphon |' >"$work/context/Dockerfile"
    images+=("$project")
    quietly docker build --build-arg "RUNTIME_IMAGE=$RUNTIME_IMAGE" -t "$project" "$work/context"
    return
  fi
  if [ -n "$stand_in" ] || ! can_pull "$RUST_IMAGE"; then
    [ -d "$work/tree" ] || fail "one base image could be pulled and the other not"
    rust_stand_in
    rm -rf --one-file-system "$work/tree"
  fi
  step "build the image: both stages (several minutes)"
  local arguments=(--network host --build-arg "RUST_IMAGE=$RUST_IMAGE" --build-arg "RUNTIME_IMAGE=$RUNTIME_IMAGE")
  # The first stage gets a name, so that it can be removed.
  images+=("$project" "$project-build")
  quietly docker build "${arguments[@]}" --target build -t "$project-build" .
  quietly docker build "${arguments[@]}" -t "$project" .
}

container() { docker-compose ps -q "$1"; }

# Waits until Docker calls the members' containers healthy.
wait_healthy() {
  local member state
  for member in "$@"; do
    for _ in $(seq 120); do
      state=$(docker inspect -f '{{.State.Health.Status}}' "$(container "$member")")
      [ "$state" = healthy ] && continue 2
      sleep 1
    done
    docker inspect -f '{{json .State.Health}}' "$(container "$member")" >&2
    fail "$member is $state, not healthy"
  done
}

url() { echo "http://127.0.0.1:$((base_port + ${1#m}))/v0"; }
call() { curl -sS --fail-with-body --max-time 20 -H "authorization: Bearer $key" -H 'content-type: application/json' "$@"; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# write <member> <first> <last>: one record for each number, confirmed one by one.
write() {
  local number
  for number in $(seq "$2" "$3"); do
    call -o "$work/answer" "$(url "$1")/topics/orders" -d "{\"records\":[{\"data\":{\"id\":$number}}]}" ||
      fail "write $number through $1: $(cat "$work/answer")"
  done
}

# expect <last> <member>...: each member reads exactly the records 1 to <last>, and all the same answers.
expect() {
  local last=$1 member
  shift
  for member in "$@"; do
    call -o "$work/read-$member" "$(url "$member")/topics/orders/diff" -d '{"limit":1000}' ||
      fail "read through $member: $(cat "$work/read-$member")"
    python3 - "$work/read-$member" "$last" >"$work/records-$member" <<'PYTHON' || fail "$member reads something else"
import json, sys
records = json.load(open(sys.argv[1]))["records"]
found = [(record["$seq"], record["data"]) for record in records]
wanted = [(n, {"id": n}) for n in range(1, int(sys.argv[2]) + 1)]
if found != wanted:
    sys.exit(f"wanted 1 to {sys.argv[2]}, found {found}")
print(json.dumps(records, sort_keys=True, indent=1))
PYTHON
    # All that a record holds, its time too, from now on and at every member.
    [ -e "$work/records" ] || cp "$work/records-$member" "$work/records"
    cmp "$work/records" "$work/records-$member" || fail "$member has other records than were read before"
  done
}

for member in m1 m2 m3; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$((base_port + ${member#m}))") 2>/dev/null; then
    fail "port $((base_port + ${member#m})) is in use: choose others with BASE_PORT"
  fi
done
install_missing
start_docker
build_image

step "without keys compose says what to set"
touch "$work/empty.env"
if (unset ANTIPHON_API_KEYS && docker-compose --env-file "$work/empty.env" config) >"$work/output" 2>&1; then
  fail "compose takes an environment without keys"
fi
grep -q 'ANTIPHON_API_KEYS.*deploy/.env.example' "$work/output" || fail "$(cat "$work/output")"

step "up: three members, secret and keys by environment"
started=1
quietly docker-compose up -d --no-build
wait_healthy m1 m2 m3
[ "$(docker-compose exec -T m1 id -u)" = 10001 ] || fail "the member does not run as user 10001"
status=$(curl -s -o /dev/null -w '%{http_code}' -X POST "$(url m1)/topics/orders/diff")
[ "$status" = 401 ] || fail "a request without a key is answered $status"

step "write through m1"
call -o /dev/null -X PUT "$(url m1)/topics/orders"
write m1 1 20

leader=$(call "$(url m1)/ready" | field leader)
others=()
for member in m1 m2 m3; do [ "$member" = "$leader" ] || others+=("$member"); done
step "kill the leader's container, $leader; write through ${others[0]}, read through both others"
quietly docker kill "$(container "$leader")"
write "${others[0]}" 21 40
expect 40 "${others[@]}"

step "start $leader again; read all on every member"
quietly docker start "$(container "$leader")"
wait_healthy "$leader"
expect 40 m1 m2 m3

step "end a member's process: the restart policy brings it back"
victim=$(container "${others[1]}")
kill -KILL "$(docker inspect -f '{{.State.Pid}}' "$victim")"
for _ in $(seq 30); do
  [ "$(docker inspect -f '{{.RestartCount}}' "$victim")" = 1 ] && break
  sleep 1
done
[ "$(docker inspect -f '{{.RestartCount}}' "$victim")" = 1 ] || fail "${others[1]} was not restarted"
wait_healthy m1 m2 m3
expect 40 m1 m2 m3

step "stop: every member ends by itself within its grace period"
quietly docker-compose stop
for member in m1 m2 m3; do
  code=$(docker inspect -f '{{.State.ExitCode}}' "$(docker-compose ps -aq "$member")")
  [ "$code" = 0 ] || fail "$member ended with $code"
done

step "down, and up on the same volumes, secret and keys by files"
quietly docker-compose down
mkdir "$work/keys"
printf '%s\n' "$secret" >"$work/keys/secret"
printf '%s\n' "$key" >"$work/keys/keys"
chown -R 10001 "$work/keys"
chmod 0400 "$work"/keys/*
export ANTIPHON_CLUSTER_SECRET='' ANTIPHON_API_KEYS='' ANTIPHON_KEYS_DIR=$work/keys
export ANTIPHON_CLUSTER_SECRET_FILE=/etc/antiphon/secret ANTIPHON_API_KEYS_FILE=/etc/antiphon/keys
quietly docker-compose up -d --no-build
wait_healthy m1 m2 m3

step "read all on every member, and write on"
expect 40 m1 m2 m3
write m2 41 41
call -o "$work/answer" "$(url m3)/topics/orders?touch=false"
[ "$(field head_seq <"$work/answer")" = 41 ] || fail "head_seq is not 41: $(cat "$work/answer")"

step "down -v"
quietly docker-compose down -v
[ -z "$(docker volume ls -q --filter "name=${project}_")" ] || fail "volumes are left"
echo PASS
