# What the recipes beside this file share; it is sourced by them, not run.
#
# Each cluster is one member on loopback, to keep the picture small. In production a cluster has three, and a mirror
# names the addresses of all of them: `"urls": ["http://b1:4000", "http://b2:4000", "http://b3:4000"]`.
#
#   ANTIPHON    the binary (default: antiphon from the PATH)
#   BASE_PORT   the first cluster's port; each further one has the next (default: 4600)

set -euo pipefail
ANTIPHON=${ANTIPHON:-antiphon}
BASE_PORT=${BASE_PORT:-4600}
WORK_DIR=$(mktemp -d)
PIDS=()
NAMES=()

stop_all() {
  if ((${#PIDS[@]})); then
    kill "${PIDS[@]}" 2>/dev/null || true
    wait "${PIDS[@]}" 2>/dev/null || true
  fi
  rm -rf "$WORK_DIR"
}
trap stop_all EXIT

# The address of a cluster that was started.
url_of() {
  local i
  for i in "${!NAMES[@]}"; do
    if [[ ${NAMES[$i]} == "$1" ]]; then
      echo "http://127.0.0.1:$((BASE_PORT + i))"
      return
    fi
  done
  echo "no cluster is called $1" >&2
  return 1
}

# start NAME...: starts clusters and waits until they are ready.
start() {
  local name
  for name in "$@"; do
    NAMES+=("$name")
    "$ANTIPHON" serve --cluster "$name" --member m1 --data-dir "$WORK_DIR/$name" \
      --drain-ms 0 --host 127.0.0.1 --port "$((BASE_PORT + ${#NAMES[@]} - 1))" 2>"$WORK_DIR/$name.log" &
    PIDS+=($!)
  done
  for name in "$@"; do
    for _ in $(seq 100); do
      if "$ANTIPHON" health --ready --url "$(url_of "$name")" 2>/dev/null; then
        continue 2
      fi
      sleep 0.1
    done
    echo "cluster $name did not get ready; its log:" >&2
    cat "$WORK_DIR/$name.log" >&2
    return 1
  done
}

# mirror FROM TO: has cluster TO take over all topics of cluster FROM, now and as they appear, also what FROM got from
# others.
mirror() {
  curl --fail -sS -X PUT "$(url_of "$2")/v0/routers/from-$1" -H 'Content-Type: application/json' \
    -d "{\"source\": \"*\", \"dest\": \"*\", \"remote\": {\"urls\": [\"$(url_of "$1")\"], \"relays\": [\"*\"]}}" >/dev/null
  echo "$2 mirrors $1"
}

# write CLUSTER TEXT: writes one record to the topic `news` there.
write() {
  curl --fail -sS "$(url_of "$1")/v0/topics/news" -H 'Content-Type: application/json' \
    -d "{\"records\": [{\"data\": \"$2\"}]}" >/dev/null
  echo "written in $1: $2"
}

# expect_everywhere COUNT: waits until every cluster holds the same COUNT records of `news`, and shows them.
expect_everywhere() {
  local name first=${NAMES[0]} lines
  for name in "${NAMES[@]}"; do
    for _ in $(seq 100); do
      lines=$("$ANTIPHON" tail news --url "$(url_of "$name")" --from 0 --no-follow --json 2>/dev/null || true)
      if [[ $(grep -c . <<<"$lines") == "$1" ]]; then
        break
      fi
      sleep 0.1
    done
    echo "--- $name"
    "$ANTIPHON" tail news --url "$(url_of "$name")" --from 0 --no-follow
    if [[ $(grep -c . <<<"$lines") != "$1" ]]; then
      echo "$name should hold $1 records" >&2
      return 1
    fi
  done
  for name in "${NAMES[@]:1}"; do
    echo "--- $first and $name compared"
    "$ANTIPHON" mirror check "$(url_of "$first")" "$(url_of "$name")" news --wait-s 10
  done
}
