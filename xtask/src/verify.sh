# Runs in a Debian system of its own: builds the image of /pause.tar again, as another user, below another
# folder, with another locale, umask and time zone.
. /etc/os-release
echo "$PRETTY_NAME:"
home="/home/Jane Doe"
mkdir --parents "$home/.cargo" "$home/pause"
ln --symbolic /registry "$home/.cargo/registry"
cd "$home/pause"
tar --create --directory /sources --exclude=./target --exclude=./.git . | tar --extract
chown --recursive --no-dereference 4711:4711 "$home"
umask 077
exec env --ignore-environment PATH=/rust/bin:/usr/bin HOME="$home" CARGO_NET_OFFLINE=true \
  LC_ALL=tr_TR.UTF-8 TZ=Asia/Kathmandu \
  setpriv --reuid 4711 --regid 4711 --clear-groups cargo xtask verify /pause.tar
