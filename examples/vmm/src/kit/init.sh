#!/bin/busybox sh
# The first program in a guest that was given an initial RAM disk by `cofferdam-vmm guest`.
/bin/busybox mkdir -p /proc /sys /dev /root /run /mnt
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
while read -r module; do
    insmod "/modules/$module" || echo "init: cannot insert $module" >&2
done < /modules/order
ip link set lo up
root=
init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        init=*) init=${word#init=} ;;
    esac
done
if [ -n "$root" ]; then
    tries=0
    while [ ! -b "$root" ] && [ $tries -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    if mount "$root" /mnt; then
        mount --move /dev /mnt/dev
        exec switch_root /mnt "$init"
    fi
    echo "init: cannot mount $root; here is a shell" >&2
elif [ -x /guest-init ]; then
    exec /guest-init
fi
setsid cttyhack sh
poweroff -f
