#!/usr/bin/env bash
# Sends requests made up from the OpenAPI document to a live member: none may end in a 500, in a status or
# body that the document lacks, or without an answer. Takes about a minute; needs python3 with venv, and
# PyPI. SCHEMATHESIS_SEED makes up others, SCHEMATHESIS_SECONDS says for how long.
# Usage: tests/api/schemathesis.sh [path of the antiphon binary]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

binary="${1:-target/debug/antiphon}"
seconds="${SCHEMATHESIS_SECONDS:-60}"
version="4.32.5"
work="$(mktemp -d)"
pid=""
clean_up() {
  if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap clean_up EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$version"

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
port="$(free_port)"
# No bound on rates is in the way: what is looked for are answers, not refusals.
"$binary" serve --port "$port" --data-dir "$work/data" --api-keys fuzz --min-free-bytes 0 \
  --request-timeout-ms 3000 >"$work/log" 2>&1 &
pid=$!
url="http://127.0.0.1:$port"
for _ in $(seq 100); do
  if python3 -c "import urllib.request as r; r.urlopen('$url/v0/ready', timeout=1)" 2>/dev/null; then break; fi
  sleep 0.1
done

# `timeout` is the outer bound; schemathesis ends by itself before.
cd "$work"
timeout "$((seconds * 3))" "$work/venv/bin/schemathesis" run "$url/v0/openapi.json" \
  --header "Authorization: Bearer fuzz" \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
  --phases examples,coverage,fuzzing --mode all --max-time "$seconds" \
  --max-examples 200 --request-timeout 40 --suppress-health-check all --seed "${SCHEMATHESIS_SEED:-1}" || {
  status=$?
  echo "---- log of the member:"
  tail -50 "$work/log"
  exit "$status"
}
if grep -q "panicked at" "$work/log"; then
  grep -A5 "panicked at" "$work/log"
  exit 1
fi
kill -0 "$pid"
