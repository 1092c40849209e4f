//! Opening KVM where it is, and saying what to do where it is not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use kvm_vcpu::{Error, Kvm, Mode, Region};
use rustix::fs::Uid;
use rustix::thread::set_thread_res_uid;

#[test]
fn a_missing_device_says_what_to_load() {
    let e = Kvm::open_at("/nonexistent/kvm").unwrap_err();
    assert!(matches!(e, Error::NoDevice { .. }), "{e:?}");
    let text = e.to_string();
    assert!(text.starts_with("/nonexistent/kvm does not exist: load the module"));
    assert!(text.contains("modprobe kvm_amd") && !text.contains('\n'));
}

#[test]
fn another_device_is_not_kvm() {
    let e = Kvm::open_at("/dev/null").unwrap_err();
    assert!(matches!(e, Error::NotKvm { .. }), "{e:?}");
    assert!(e.to_string().ends_with("use /dev/kvm"), "{e}");
}

#[test]
fn a_directory_is_an_error_of_its_own() {
    let e = Kvm::open_at("/").unwrap_err();
    assert!(matches!(e, Error::Open { .. }), "{e:?}");
}

#[test]
#[ignore = "needs root"]
fn a_device_that_may_not_be_opened_says_which_group_may() {
    let path = std::env::temp_dir().join(format!("cofferdam-kvm-{}", std::process::id()));
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let owned = path.clone();
    // The thread alone becomes another user, and ends.
    let opened = thread::spawn(move || {
        let nobody = Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        Kvm::open_at(owned).map(drop)
    });
    let opened = opened.join();
    fs::remove_file(path).unwrap();
    let e = opened.unwrap().unwrap_err();
    assert!(matches!(e, Error::PermissionDenied { .. }), "{e:?}");
    assert!(e.to_string().contains("usermod -aG kvm"), "{e}");
}

#[test]
#[ignore = "needs kvm"]
fn vcpus_have_numbers_of_their_own_and_a_limit() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&[Region::anonymous(0, 0x1000)]).unwrap();
    let mode = Mode::real(0, 0);
    let first = vm.create_vcpu(0, &mode).unwrap();
    let e = vm.create_vcpu(0, &mode).unwrap_err();
    assert!(matches!(e, Error::VcpuExists { id: 0 }), "{e:?}");
    // The kernel keeps the number even when the vCPU is gone.
    drop(first);
    assert!(vm.create_vcpu(0, &mode).is_err());
    let e = vm.create_vcpu(u32::MAX, &mode).unwrap_err();
    assert!(matches!(e, Error::VcpuLimit { .. }), "{e:?}");
}

#[test]
#[ignore = "needs kvm"]
fn a_machine_has_no_more_vcpus_than_the_host_allows() {
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&[Region::anonymous(0, 0x1000)]).unwrap();
    let max = u32::try_from(kvm.max_vcpus()).unwrap();
    for id in 0..max {
        vm.create_vcpu(id, &Mode::Reset).unwrap();
    }
    let refused = vm.create_vcpu(max, &Mode::Reset).unwrap_err();
    let text = refused.to_string();
    match refused {
        Error::TooManyVcpus { id, max: found } => assert_eq!((id, found), (max, max)),
        // Where numbers end, too.
        Error::VcpuLimit { id, .. } => assert_eq!(id, max),
        other => panic!("{other:?}"),
    }
    assert!(text.contains(&max.to_string()), "{text}");
}

#[test]
#[ignore = "needs kvm"]
fn memory_that_cannot_be_is_refused_before_the_kernel_is_asked() {
    let kvm = Kvm::open().unwrap();
    let r = Region::anonymous;
    for regions in [
        vec![r(0, 0)],
        vec![r(0x800, 0x1000)],
        vec![r(0, 0x2000), r(0x1000, 0x1000)],
    ] {
        let e = kvm.create_vm(&regions).unwrap_err();
        assert!(matches!(e, Error::Region { .. }), "{e:?}");
    }
    // More than the address space has.
    let e = kvm.create_vm(&[r(0, 1 << 50)]).unwrap_err();
    assert!(matches!(e, Error::MapMemory { .. }), "{e:?}");
}
