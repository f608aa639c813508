#!/bin/bash
# PID 1 of the guest once the host's root is mounted: mounts what tests need, then runs the job.
#
# The job ($VM_JOB, written by `cargo xtask vm`) is a bash fragment: it sets VM_NONCE, exports the
# environment of the tests and calls `step NAME DIRECTORY COMMAND...` once per test binary.
# Everything a step prints goes unchanged through the virtio port named "results"; between steps
# the port carries lines `@NONCE WORD...` (ready, begin, end, done). The nonce is new in each run,
# so no test output is taken for a result.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=dumb LC_ALL=C.UTF-8

mkdir -p /dev/pts /dev/shm /sys/fs/bpf /sys/fs/cgroup /sys/kernel/tracing
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
# Opening it loads the module; udev, which would make the node, does not run here.
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
# Nor does anything load drivers, or make this link, which bash's <(...) needs.
modprobe virtio_net
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname guest

port=
for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" = results ] && port=/dev/$(basename "$(dirname "$name")")
done
exec 3>"${port:-/dev/console}"

mark() {
    # The line break first: a step's last line may not have ended.
    printf '\n@%s %s\n' "$VM_NONCE" "$*" >&3
}

step() {
    local name=$1 directory=$2
    shift 2
    mark begin "$name"
    (cd "$directory" && exec "$@") </dev/null >&3 2>&1
    mark end "$name" $?
}

# shellcheck source=/dev/null
. "$VM_JOB"
mark "done"
poweroff -f 2>/dev/null || busybox poweroff -f
