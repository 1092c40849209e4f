//! Architectures: how the kernel tells them apart, and their system calls by name.

use std::fmt;

/// An architecture of a profile.
#[derive(Clone, Copy)]
pub(crate) struct Arch {
    /// Its name in a profile.
    pub(crate) name: &'static str,
    /// `AUDIT_ARCH_…` of `linux/audit.h`.
    pub(crate) audit: u32,
    pub(crate) wide: bool,
    number: fn(&str) -> Option<u32>,
}

impl Arch {
    /// The number of a system call, as filters see it.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        (self.number)(name)
    }

    /// Whether its system calls are those of x86-64 with a bit set.
    pub(crate) fn is_x32(&self) -> bool {
        self.name == "SCMP_ARCH_X32"
    }

    /// Whether words of 64 bits begin with the more significant half.
    pub(crate) fn is_big_endian(&self) -> bool {
        self.audit & LITTLE == 0
    }
}

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const WIDE: u32 = 0x8000_0000;
const LITTLE: u32 = 0x4000_0000;

/// What x32 sets in the number of a system call.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

macro_rules! numbers {
    ($module:ident) => {
        |name| {
            let number: syscalls::$module::Sysno = name.parse().ok()?;
            u32::try_from(number.id()).ok()
        }
    };
}

const fn arch(
    name: &'static str,
    machine: u32,
    flags: u32,
    number: fn(&str) -> Option<u32>,
) -> Arch {
    Arch {
        name,
        audit: machine | flags,
        wide: flags & WIDE != 0,
        number,
    }
}

/// Those that the kernel has for x32 alone, where x86-64 has another number.
const X32_ONLY: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

fn x32(name: &str) -> Option<u32> {
    let own = X32_ONLY.iter().find(|(known, _)| *known == name);
    let number = if let Some((_, number)) = own {
        *number
    } else {
        let number: syscalls::x86_64::Sysno = name.parse().ok()?;
        u32::try_from(number.id()).ok()?
    };
    Some(number | X32_BIT)
}

/// Every architecture that is known.
pub(crate) const ALL: [Arch; 15] = [
    arch("SCMP_ARCH_AARCH64", 183, WIDE | LITTLE, numbers!(aarch64)),
    arch("SCMP_ARCH_ARM", 40, LITTLE, numbers!(arm)),
    arch(
        "SCMP_ARCH_LOONGARCH64",
        258,
        WIDE | LITTLE,
        numbers!(loongarch64),
    ),
    arch("SCMP_ARCH_MIPS", 8, 0, numbers!(mips)),
    arch("SCMP_ARCH_MIPS64", 8, WIDE, numbers!(mips64)),
    arch("SCMP_ARCH_MIPSEL", 8, LITTLE, numbers!(mips)),
    arch("SCMP_ARCH_MIPSEL64", 8, WIDE | LITTLE, numbers!(mips64)),
    arch("SCMP_ARCH_PPC", 20, 0, numbers!(powerpc)),
    arch("SCMP_ARCH_PPC64", 21, WIDE, numbers!(powerpc64)),
    arch("SCMP_ARCH_PPC64LE", 21, WIDE | LITTLE, numbers!(powerpc64)),
    arch("SCMP_ARCH_RISCV64", 243, WIDE | LITTLE, numbers!(riscv64)),
    arch("SCMP_ARCH_S390X", 22, WIDE, numbers!(s390x)),
    arch("SCMP_ARCH_X32", 62, WIDE | LITTLE, x32),
    arch("SCMP_ARCH_X86", 3, LITTLE, numbers!(x86)),
    arch("SCMP_ARCH_X86_64", 62, WIDE | LITTLE, numbers!(x86_64)),
];

/// The architecture that this program is built for.
pub(crate) fn native() -> Arch {
    let name = match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "arm" => "SCMP_ARCH_ARM",
        "loongarch64" => "SCMP_ARCH_LOONGARCH64",
        "powerpc64" => "SCMP_ARCH_PPC64LE",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "s390x" => "SCMP_ARCH_S390X",
        "x86" => "SCMP_ARCH_X86",
        _ => "SCMP_ARCH_X86_64",
    };
    let [.., last] = ALL;
    ALL.into_iter()
        .find(|arch| arch.name == name)
        .unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        let number = |arch: &str, name: &str| {
            ALL.iter()
                .find(|known| known.name == arch)
                .unwrap()
                .number(name)
        };
        assert_eq!(number("SCMP_ARCH_X86_64", "read"), Some(0));
        assert_eq!(number("SCMP_ARCH_X86_64", "clone3"), Some(435));
        assert_eq!(number("SCMP_ARCH_X86", "read"), Some(3));
        assert_eq!(number("SCMP_ARCH_X86", "socketcall"), Some(102));
        assert_eq!(number("SCMP_ARCH_X86_64", "socketcall"), None);
        assert_eq!(number("SCMP_ARCH_X32", "read"), Some(X32_BIT));
        assert_eq!(number("SCMP_ARCH_X32", "execve"), Some(X32_BIT + 520));
        assert_eq!(number("SCMP_ARCH_AARCH64", "openat"), Some(56));
        assert_eq!(number("SCMP_ARCH_AARCH64", "open"), None);
    }

    #[test]
    fn this_machines_is_known() {
        assert_eq!(
            native().name.to_lowercase(),
            format!("scmp_arch_{}", std::env::consts::ARCH)
        );
    }
}
