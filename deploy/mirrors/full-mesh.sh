#!/usr/bin/env bash
# Three clusters, each mirroring both others: a record has two ways to everywhere, and arrives once.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

start east west north
for from in "${NAMES[@]}"; do
  for to in "${NAMES[@]}"; do
    [[ $from == "$to" ]] || mirror "$from" "$to"
  done
done

for name in "${NAMES[@]}"; do
  write "$name" "from $name"
done
expect_everywhere 3
