# Runs on the host when every file of a runtime image is in place. $1: the root. Supplies what
# maintainer scripts would have made, since none of them ran.
set -eu
root=$1

cat >"$root/etc/passwd" <<'EOF'
root:x:0:0:root:/root:/usr/sbin/nologin
fn:x:1000:1000:function:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
EOF
cat >"$root/etc/group" <<'EOF'
root:x:0:
fn:x:1000:
nogroup:x:65534:
EOF
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
ln -sf /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime"

# Every mount point must exist: the root is read-only and shared by all instances.
for dir in proc sys dev run run/fn fn fn/code fn/deps build usr/lib/coracle mnt opt root; do
    mkdir -p "$root/$dir"
done
mkdir -p -m 1777 "$root/tmp" "$root/var/tmp"
# Node looks for packages in node_modules beside a file and in every directory above it.
ln -sfn deps/node_modules "$root/fn/node_modules"

# The host's bundle where it has one, since sites may sit behind a private authority.
bundle="$root/etc/ssl/certs/ca-certificates.crt"
mkdir -p "${bundle%/*}"
if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
    cat /etc/ssl/certs/ca-certificates.crt >"$bundle.new"
elif [ -d "$root/usr/share/ca-certificates/mozilla" ]; then
    cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$bundle.new"
else
    echo "no certificate bundle: neither the host nor the image has one" >&2
    exit 1
fi
rm -f "$bundle"
mv "$bundle.new" "$bundle"
# OpenSSL's default file; its default directory needs hash links that only a maintainer script makes.
if [ -d "$root/usr/lib/ssl" ]; then
    ln -sfn /etc/ssl/certs/ca-certificates.crt "$root/usr/lib/ssl/cert.pem"
fi

# An instance has no use for package management, and less to attack without it.
rm -rf "$root"/var/lib/dpkg "$root"/var/lib/apt "$root"/var/cache/apt "$root"/var/cache/debconf \
    "$root"/var/log/* "$root"/etc/apt "$root"/usr/share/doc "$root"/usr/share/man \
    "$root"/usr/share/info "$root"/usr/share/lintian "$root"/usr/share/locale \
    "$root"/usr/share/perl5 "$root"/usr/share/debconf
rm -f "$root"/usr/bin/dpkg* "$root"/usr/bin/debconf* "$root"/usr/sbin/dpkg* "$root"/usr/sbin/debconf* \
    "$root"/usr/bin/deb-systemd* "$root"/usr/bin/update-alternatives "$root"/usr/sbin/start-stop-daemon

# Directories stay searchable for the instance's unprivileged ids; nothing gives privileges.
find "$root" -xdev -perm /6000 \( -type f -o -type d \) -exec chmod a-s {} +
find "$root" -xdev -type d -exec chmod a+rx {} +
find "$root" -xdev -type f -exec chmod a+r {} +
