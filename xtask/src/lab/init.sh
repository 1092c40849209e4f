#!/bin/busybox sh
# The lab's first process: it inserts the modules, builds the root file system out of the host's
# (read-only, over 9p) and a tmpfs, and hands over to the agent or to systemd.
#
# /lab.conf beside it, written by the host, says:
#   agent     the program that runs the command
#   keep_tmp  names under the host's /tmp that must stay visible, escaped for printf %b
#   systemd   yes or no; with yes, masked lists the units to leave out
set -e
export PATH=/bin
bb=/bin/busybox
fail() {
    echo "lab: $1 failed"
    # Flushes the serial console; the host sees the machine end and shows its log.
    $bb sleep 1
    $bb poweroff -f
}
step=start
trap 'fail "$step"' EXIT

step="mounting proc, sys and dev"
$bb mkdir -p /proc /sys /dev /host /over /root
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev

. /lab.conf

for module in $($bb cat /modules/order); do
    step="inserting the module $module"
    $bb insmod "/modules/$module.ko"
done

step="mounting the host's files"
p9=trans=virtio,version=9p2000.L,msize=512000
$bb mount -t 9p -o "ro,cache=loose,$p9" lab-root /host
step="mounting the overlay"
$bb mount -t tmpfs -o mode=755,size=75% tmpfs /over
$bb mkdir /over/upper /over/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /root

step="mounting what a system has"
cd /root
for dir in proc sys dev run tmp lab lab/out; do
    [ -d "$dir" ] || $bb mkdir -p "$dir"
done
$bb mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
$bb mkdir -m 1777 run/lock
$bb mkdir run/lab run/lab/tmp
# One path for systemd and us, whatever is in its name.
$bb ln -s "$agent" run/lab/agent
# Overlayfs takes no upper directory on an overlay, so /tmp is a tmpfs; what the host has there
# and the command needs is bound into it.
$bb mount -o bind tmp run/lab/tmp
$bb mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
for name in $keep_tmp; do
    name=$(printf '%b' "$name")
    if [ -d "run/lab/tmp/$name" ]; then
        $bb mkdir "tmp/$name"
        $bb mount -o bind "run/lab/tmp/$name" "tmp/$name"
    elif [ -f "run/lab/tmp/$name" ]; then
        : >"tmp/$name"
        $bb mount -o bind "run/lab/tmp/$name" "tmp/$name"
    fi
done
$bb mount -t 9p -o "rw,cache=mmap,$p9" lab-out lab/out
# The host's disks and swap are not the lab's.
echo '# none in the lab' >etc/fstab
# Whatever the host is, the lab is no container: systemd would not listen to the command line.
$bb rm -f .dockerenv
$bb mount -o move /proc proc
$bb mount -o move /sys sys
$bb mount -o move /dev dev
$bb mkdir -p dev/pts dev/shm dev/mqueue
$bb mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts dev/pts
$bb mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
$bb mount -t mqueue mqueue dev/mqueue
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e "dev/${link%%:*}" ] || $bb ln -s "/proc/self/${link#*:}" "dev/${link%%:*}"
done
step="setting up the network's loopback"
$bb ip link set lo up
$bb hostname lab

if [ "$systemd" = yes ]; then
    step="preparing systemd"
    $bb mkdir -p run/systemd
    $bb cp -r /units run/systemd/system
    # Jobs of the host, and what looks for hardware that is not here, only cost time.
    for unit in $masked; do
        $bb ln -sf /dev/null "run/systemd/system/$unit"
    done
    step="starting systemd"
    exec $bb switch_root /root /lib/systemd/systemd
fi
step="mounting cgroups"
$bb mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 sys/fs/cgroup
step="starting the agent"
exec $bb switch_root /root /run/lab/agent lab-agent
