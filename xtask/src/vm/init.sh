#!/bin/busybox sh
# The first process of a machine of `cargo xtask vm`. The kernel has the first serial line to
# itself; what is said here, and by the tests, goes to the second.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/shm /dev/pts
$b mount -t devpts pts /dev/pts
$b mount -t tmpfs run /run
$b mount -t cgroup2 cgroup /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
exec </dev/ttyS1 >/dev/ttyS1 2>&1
$b stty raw -echo
$b ip link set lo up
$b modprobe tun
# As systemd sets them.
ulimit -Hn 524288
ulimit -Sn 1024
# busybox has what is not of the host's.
$b mkdir /busybox
$b --install -s /busybox
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/busybox HOME=/ TERM=dumb GATE_SKIPS=/run/skips

# Nobody works on it.
export GATE_TEST_SUSPEND=1

# Runs one program of tests: its name, its folder, and its command.
run() {
    echo "gate-vm: run $1"
    cd "$2"
    shift 2
    : >$GATE_SKIPS
    "$@" </dev/null
    code=$?
    $b cat $GATE_SKIPS
    echo "gate-vm: end $code"
}

echo "gate-vm: booted $($b uname -r)"
. /tasks.sh
cd /
echo "gate-vm: done"
$b sync
$b poweroff -f
