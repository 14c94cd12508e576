#!/usr/bin/env bash
# A hub that mirrors every spoke, and spokes that mirror the hub alone: what one spoke writes reaches the others by
# way of the hub, and the records still tell where they were first written.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

start hub shop-1 shop-2 shop-3
for spoke in shop-1 shop-2 shop-3; do
  mirror "$spoke" hub
  mirror hub "$spoke"
done

write hub "from the hub"
for spoke in shop-1 shop-2 shop-3; do
  write "$spoke" "from $spoke"
done
expect_everywhere 4
