#!/usr/bin/env bash
# Two clusters mirrored both ways: each takes over what is written in the other, and nothing comes back.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

start east west
mirror east west
mirror west east

write east "from east"
write west "from west"
write east "from east again"
expect_everywhere 3
