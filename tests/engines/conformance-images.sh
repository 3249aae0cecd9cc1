#!/bin/sh
# Makes the images that critest asks for from the programs of this Debian system, and upstream's pause
# from its source $1, and puts them into the registry $2, where critest's registries are redirected to.
set -eu
source=$1 registry=$2
cd "$(mktemp --directory --tmpdir=/var/tmp)"

mkdir -p root/bin root/etc/nginx root/tmp root/usr/share/nginx/html root/var/run pause
cp /bin/busybox root/bin
# Links by the file, for a test covers one of the programs by a mount.
for name in $(busybox --list | grep -vx busybox); do ln root/bin/busybox "root/bin/$name"; done
# Debian's busybox does not have it.
printf '#!/bin/sh\nexec pidof "$1"\n' > root/bin/pgrep
chmod +x root/bin/pgrep
for program in /usr/sbin/nginx /usr/bin/ipcs; do
    rm -f "root/bin/${program##*/}"
    cp "$program" root/bin
    # The kernel's own library has no path.
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        mkdir -p "root${library%/*}"
        cp "$library" "root$library"
    done
done
echo hello > root/usr/share/nginx/html/index.html
sed 's#^pid .*#pid /var/run/nginx.pid;#' /var/tmp/helpers/nginx/etc/nginx/nginx.conf > root/etc/nginx/nginx.conf
sed 's/listen 80;/listen 12003;/' root/etc/nginx/nginx.conf > root/etc/nginx/host.conf
cat > root/etc/passwd <<'PASSWD'
root:x:0:0::/:/bin/sh
www-data:x:33:33::/:/bin/sh
nobody:x:65534:65534::/:/bin/sh
default-user:x:1000:1000::/:/bin/sh
PASSWD
cat > root/etc/group <<'GROUP'
root:x:0:
www-data:x:33:
default-user:x:1000:
nogroup:x:65534:
group-defined-in-image:x:50000:default-user
GROUP
cat > effective.c <<'C'
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\n", geteuid()) < 0; }
C
gcc -static -o root/bin/effective effective.c
chmod 4755 root/bin/effective
gcc -static -Os -DVERSION=upstream -o pause/pause "$source"

umoci init --layout layout
for base in root pause; do
    umoci new --image "layout:$base"
    umoci insert --image "layout:$base" "$base" /
    umoci config --image "layout:$base" --config.env PATH=/bin
done

# Pushes an image of what is in root/ or pause/.
push() {
    base=$1 name=$2
    shift 2
    # The label makes each one an image of its own.
    umoci config --image "layout:$base" --tag image --config.label "name=$name" "$@"
    skopeo copy --quiet oci:layout:image "docker://$registry/$name"
}
push pause upstream/pause:latest --config.user 65535:65535 --config.entrypoint /pause
push pause pause:3.9 --config.entrypoint /pause
push root e2e-test-images/busybox:1.29-2 --config.cmd sh
push root e2e-test-images/nginx:1.14-2 --config.cmd nginx
push root e2e-test-images/nonewprivs:1.3 --config.cmd effective
httpd='echo httpd; exec httpd -f -p 80 -h /usr/share/nginx/html'
push root e2e-test-images/httpd:2.4.39-4 --config.cmd sh --config.cmd -c --config.cmd "$httpd"
tools=k8s-staging-cri-tools
for arch in amd64 arm64; do
    push root "$tools/hostnet-nginx-$arch:latest" --config.cmd nginx --config.cmd -c --config.cmd /etc/nginx/host.conf
done
push root "$tools/test-image-user-uid:latest" --config.user 1002
push root "$tools/test-image-user-username:latest" --config.user www-data
push root "$tools/test-image-user-uid-group:latest" --config.user 1003:1004
push root "$tools/test-image-user-username-group:latest" --config.user www-data:100
push root "$tools/test-image-predefined-group:latest" --config.user 1000 --config.cmd sh
for name in latest:latest tag:test tag:all 1:latest 2:latest 3:latest tags:1; do
    push root "$tools/test-image-$name" --config.cmd sh
done
for tag in 2 3; do
    skopeo copy --quiet \
        "docker://$registry/$tools/test-image-tags:1" "docker://$registry/$tools/test-image-tags:$tag"
done
rm -rf "$PWD"
