#!/bin/sh
# Makes a disk with the system in the folder $1, and with a copy of what $2 shows.
set -eu
cd "$1"
mkdir -p work merged
mount -t overlay -o lowerdir=../root,upperdir=upper,workdir=work overlay merged
echo "$2" | tr , '\n' | while IFS=: read -r source place; do
    [ -n "$source" ] || continue
    mkdir -p "merged$place"
    mount --bind "$source" "merged$place"
done
mkfs.ext4 -q -d merged disk 12G
