//! A distribution's own kernels as guests.

use std::fs;

use super::{Ran, Scratch, run};

/// What the guest does is in its command line, after `test=`.
pub(crate) const INIT: &str = r#"#!/bin/busybox sh
echo "cpus=$(nproc)"
case $(sed 's/.*test=\([a-z]*\).*/\1/' /proc/cmdline) in
disk)
    mount -t ext4 /dev/vda /mnt || echo "cannot mount"
    [ -e /mnt/sum ] && (cd /mnt && md5sum -c sum)
    dd if=/dev/urandom of=/mnt/data bs=64k count=32 conv=fsync 2>/dev/null
    (cd /mnt && md5sum data > sum && sync)
    umount /mnt
    echo "serial=$(cat /sys/block/vda/serial)"
    dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c
    ;;
count)
    i=0
    while true; do
        i=$((i + 1))
        echo "tick $i"
        echo "forks=$(dmesg | grep -c 'virtual machine fork')"
        date +time=%s
        sleep 0.2
    done
    ;;
load)
    mount -t ext4 /dev/vda /mnt
    dd if=/dev/urandom of=/mnt/busy bs=64k count=8 2>/dev/null
    sum=$(md5sum < /mnt/busy)
    i=0
    while true; do
        i=$((i + 1))
        dd if=/mnt/busy of=/mnt/copy bs=64k conv=fsync 2>/dev/null
        mv /mnt/copy /mnt/busy
        echo 3 > /proc/sys/vm/drop_caches
        [ "$(md5sum < /mnt/busy)" = "$sum" ] || echo "damaged"
        echo "tick $i"
    done
    ;;
devices)
    echo hello > /dev/hvc0
    printf 'ECHO' > /echo
    chmod +x /echo
    /echo
    echo "vsock=$?"
    ip addr add 192.168.77.2/24 dev eth0
    ip link set eth0 up
    nc 192.168.77.1 5000 > /got
    nc 192.168.77.1 5001 < /got
    # What comes goes back, until the host has seen enough.
    mkfifo /echoed
    nc 192.168.77.1 5002 < /echoed | cat > /echoed
    ;;
panic) echo c > /proc/sysrq-trigger ;;
reboot) reboot -f ;;
esac
poweroff -f
"#;

/// The newest kernel whose name ends so.
pub(crate) fn kernel(ending: &str) -> String {
    let mut kernels: Vec<String> = fs::read_dir("/boot")
        .unwrap()
        .map(|e| e.unwrap().path().to_str().unwrap().to_owned())
        .filter(|p| p.starts_with("/boot/vmlinuz-") && p.ends_with(ending))
        .filter(|p| ending == "-cloud-amd64" || !p.ends_with("-cloud-amd64"))
        .collect();
    kernels.sort();
    kernels.pop().expect("a kernel of Debian is installed")
}

/// An initial RAM disk for a kernel.
pub(crate) fn initrd(dir: &Scratch, kernel: &str) -> String {
    let init = dir.file("init", INIT.as_bytes());
    let initrd = dir.path("initrd");
    let made = run(&[
        "guest", "--kernel", kernel, "--init", &init, "--output", &initrd,
    ]);
    assert_eq!((made.status, made.err.as_str()), (0, ""));
    initrd
}

/// Boots a kernel and waits for its end.
pub(crate) fn boot(kernel: &str, initrd: &str, test: &str, more: &[&str]) -> Ran {
    let line = format!("console=ttyS0 panic=-1 quiet test={test}");
    let mut args = vec![
        "boot",
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--cmdline",
        &line,
    ];
    args.extend(["--memory", "256", "--timeout", "100"]);
    args.extend(more);
    run(&args)
}
