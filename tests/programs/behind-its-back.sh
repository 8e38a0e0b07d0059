#!/bin/sh
# Keeps every promise it gives, and after the first one counts a link of lost+found
# too many in the mounted ext4, past the kernel: as if a directory had been removed
# there and one of the writes that say so had been lost. Nobody looks there but fsck.
set -eu
. ./plugpull.sh
dir=$1
plugpull_open

promise() {
    printf 'note %s\n' "$1" >"$dir/.$1"
    value=$(sha256sum <"$dir/.$1")
    plugpull_begin "$1" "${value%% *}"
    sync "$dir/.$1"
    mv "$dir/.$1" "$dir/$1"
    sync "$dir"
    plugpull_ack "$1"
}

promise 1
device=$(df --output=source "$dir" | tail -n 1)
debugfs -w -R 'set_inode_field <11> links_count 3' "$device"
sync
promise 2
