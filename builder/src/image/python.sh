# Runs on the host after finish.sh. $1: the root, $2: the version, for example 3.11.
set -eu
root=$1
version=$2
ln -sfn "python$version" "$root/usr/bin/python3"
ln -sfn python3 "$root/usr/bin/python"
# Without these every start on a read-only root compiles the library again: 120 ms instead of 20.
# -f: files that are there carry source times, which no copy or unpack keeps.
chroot "$root" "/usr/bin/python$version" -m compileall -q -f --invalidation-mode unchecked-hash \
    "/usr/lib/python$version" >/dev/null || true
[ -d "$root/usr/lib/python$version/__pycache__" ]
