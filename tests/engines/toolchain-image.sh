#!/bin/sh
# Packs what builds Rust: a C compiler from this Debian system, the toolchain in /rust, and cargo's
# registry in /registry. Usage: toolchain-image.sh OUTPUT.tar
set -eu
output=$1
sysroot=/rust
collect2=$(gcc -print-prog-name=collect2)
{
    printf '%s\n' /bin /lib /lib64 /bin/sh /usr/bin/dash /usr/bin/chmod /usr/bin/cc /etc/alternatives/cc
    # Their names differ between releases.
    dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' 'cpp*' 'gcc*' 'libc6*' 'libgcc*' |
        sed -n 's/^installed //p' | xargs dpkg -L
    for program in /bin/sh /bin/chmod "$(readlink -f /usr/bin/gcc)" "$collect2" \
            "$sysroot/bin/rustc" "$sysroot/bin/cargo"; do
        ldd "$program" | grep -o '/[^ ]*'
    done | while read -r library; do echo "$library"; readlink -f "$library"; done
} |
    # One name for each file, or tar would write through /bin and /lib, which are links.
    sed -E 's#^/(bin|lib|lib64)/#/usr/\1/#' |
    grep -v -e '^/usr/share/' -e '^/usr/include/' -e "^$sysroot" -e 'lib[atlu]*san' -e '/lto1' -e lto-dump | sort -u |
    while read -r path; do
        if [ -L "$path" ] || [ -f "$path" ]; then echo "${path#/}"; fi
    done |
    tar -C / --no-recursion -cf "$output" -T -
tar -C "$sysroot" --transform 's,^,usr/local/rust/,S' -rf "$output" bin/cargo bin/rustc lib
tar -C / --transform 's,^,usr/local/cargo/,S' -rf "$output" registry/index registry/cache
