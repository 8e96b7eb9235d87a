# Runs on the host before any package is extracted. $1: the new root.
# A merged /usr, which plain extraction does not make by itself: tar follows these links.
set -eu
for dir in bin sbin lib lib64; do
    mkdir -p "$1/usr/$dir"
    [ -e "$1/$dir" ] || ln -s "usr/$dir" "$1/$dir"
done
