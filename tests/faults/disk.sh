#!/usr/bin/env bash
# Disks that run full and disks that fail, under the stores of a controller.
#
#   tests/faults/disk.sh [RUNS]      default: 5 of each
#
# full:  a small ext4 fills up. Nothing more is acknowledged. Freed, a new process (the log: a
#        controller whose log failed ends) or the same one (artifacts) goes on.
# fsync: ext4 on a device that fails writes once its backing store is used up, so that fsync fails.
#        The log's process ends; an upload is refused. After a remount on a device that works again
#        everything acknowledged is there, and writing goes on.
#
# Prints a table: fault, store, runs, acknowledged in all, runs that lost something, runs that
# acknowledged on after the fault, runs that did not come back. Ends with status 1 if any is not 0.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
runs=${1:-5}

begin() { # store, from
    "$STORE_FAULTS" write "$1" "$work/fs" "$2" >"$work/out" 2>"$work/err" &
    writer=$!
}
end() {
    { kill -9 "$writer" && wait "$writer"; } 2>/dev/null || true
    writer=
}
gone() { ! kill -0 "$writer" 2>/dev/null; }
row() { printf '%-6s %-10s %5s %13s %5s %10s %10s\n' "$@"; }
check() { # store, count
    "$STORE_FAULTS" check "$1" "$work/fs" "$2" >"$work/check" 2>&1 && return
    sed 's/^/  /' "$work/check" >&2
    return 1
}

# Fills in lost, after and stuck for one run; the writer has failed or ended.
stops() { # store
    local then
    if [ "$1" = log ]; then
        until_true 60 gone
        wait "$writer" 2>/dev/null || true
        writer=
    fi
    count=$(acknowledged "$work/out")
    # A few more tries have to fail too.
    then=$(grep -c '^failed' "$work/out")
    if [ "$1" = artifacts ]; then
        more() { [ "$(grep -c '^failed' "$work/out")" -ge $((then + 5)) ]; }
        until_true 60 more
        [ "$(acknowledged "$work/out")" = "$count" ] || after=$((after + 1))
    fi
}

mkdir -p "$work/fs" "$work/backing"
bad=0
row fault store runs acknowledged lost 'went on' 'stuck'
for store in log artifacts; do
    all=0 lost=0 after=0 stuck=0
    for _ in $(seq 1 "$runs"); do
        truncate -s 64M "$work/disk.img"
        mkfs.ext4 -q -F -m 0 -E lazy_itable_init=0 "$work/disk.img"
        mount -o loop "$work/disk.img" "$work/fs"
        # So little is left that the store fills it; the log reuses what it compacted.
        [ "$store" = log ] && left=3072 || left=12288
        avail=$(df --output=avail -k "$work/fs" | tail -n 1)
        fallocate -l $((avail - left))K "$work/fs/ballast"
        begin "$store" 0
        until_true 120 has_failed "$work/out"
        stops "$store"
        all=$((all + count))
        rm "$work/fs/ballast"
        sync -f "$work/fs"
        if [ "$store" = log ]; then
            begin "$store" "$count"
            goes_on() { at_least "$work/out" 5; }
        else
            goes_on() { at_least "$work/out" $((count + 5)); }
        fi
        (until_true 60 goes_on) || stuck=$((stuck + 1))
        end
        check "$store" $((count + 5)) || lost=$((lost + 1))
        umount "$work/fs"
    done
    row full "$store" "$runs" "$all" "$lost" "$after" "$stuck"
    [ "$lost$after$stuck" = 000 ] || bad=1
done
for store in log artifacts; do
    all=0 lost=0 after=0 stuck=0
    for _ in $(seq 1 "$runs"); do
        mount -t tmpfs -o size=512M tmpfs "$work/backing"
        truncate -s 256M "$work/backing/disk.img"
        mkfs.ext4 -q -F -J size=8 -E lazy_itable_init=1 "$work/backing/disk.img"
        mount -o loop,errors=remount-ro "$work/backing/disk.img" "$work/fs"
        # Blocks that were never written find no place from here on.
        [ "$store" = log ] && left=3072 || left=12288
        used=$(df --output=used -k "$work/backing" | tail -n 1)
        mount -o "remount,size=$((used + left))K" "$work/backing"
        begin "$store" 0
        until_true 120 has_failed "$work/out"
        stops "$store"
        all=$((all + count))
        end
        umount "$work/fs"
        mount -o remount,size=512M "$work/backing"
        # What an operator would do; the journal is replayed.
        e2fsck -fy "$work/backing/disk.img" >/dev/null 2>&1 || [ $? -le 2 ]
        mount -o loop "$work/backing/disk.img" "$work/fs"
        check "$store" "$count" || lost=$((lost + 1))
        begin "$store" "$count"
        goes_on() { at_least "$work/out" 5; }
        (until_true 60 goes_on) || stuck=$((stuck + 1))
        end
        umount "$work/fs"
        umount "$work/backing"
    done
    row fsync "$store" "$runs" "$all" "$lost" "$after" "$stuck"
    [ "$lost$after$stuck" = 000 ] || bad=1
done
exit $bad
