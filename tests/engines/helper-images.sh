#!/bin/sh
# Makes the images of the containers beside pause from the programs of this Debian system, in the
# folder $1: busybox.tar has busybox alone, nginx.tar has Debian's nginx and ipcmk as well.
set -eu
mkdir -p "$1/busybox/bin" "$1/nginx/etc/nginx"
# nginx may run as any user.
mkdir -m 1777 "$1/nginx/tmp"
cd "$1"
cp /bin/busybox busybox/bin
# It names itself among its applets.
for name in $(busybox --list | grep -vx busybox); do ln -s busybox "busybox/bin/$name"; done

cp -a busybox/bin nginx
for program in /usr/sbin/nginx /usr/bin/ipcmk; do
    cp "$program" nginx/bin
    # The kernel's own library has no path.
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        mkdir -p "nginx${library%/*}"
        cp "$library" "nginx$library"
    done
done
echo root:x:0:0::/:/bin/sh > nginx/etc/passwd
echo root:x:0: > nginx/etc/group
cat > nginx/etc/nginx/nginx.conf <<'CONF'
daemon off;
user root;
worker_processes 2;
error_log stderr;
pid /tmp/nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {
        listen 80;
        root /usr/share/nginx/html;
    }
}
CONF

umoci init --layout layout
for name in busybox:static nginx:debian; do
    image=${name%:*}
    umoci new --image "layout:$image"
    umoci insert --image "layout:$image" "$image" /
    umoci config --image "layout:$image" --config.env PATH=/bin --config.cmd "$image"
    skopeo --insecure-policy copy --quiet "oci:layout:$image" "docker-archive:$image.tar:localhost/$name"
done
